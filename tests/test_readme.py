"""The code that the README shows."""

from __future__ import annotations

import re

import pytest

from jdistill.run.folders import newest_checkpoint, starts
from tests.conftest import ROOT

pytestmark = pytest.mark.full


def test_the_python_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"## In Python\n\n```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert re.search(r"^survival: student \d+.\d%, teacher \d+.\d%$", capsys.readouterr().out, re.MULTILINE)
    run = names["run"]
    assert newest_checkpoint(run) == 3 and (tmp_path / run).is_dir()
    assert starts(run)[0]["command"].startswith(
        "jdistill.train(task='crazyflie', phase1=2, max_iterations=3, num_envs=8"
    )
    assert names["state"].obs["student"].shape == (8, 22) and names["header"]["iteration"] == 3
