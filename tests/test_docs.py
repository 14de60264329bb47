"""The pages and the API reference: every name and link that they mention is there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.full
def test_the_reference_is_built_from_the_docstrings(tmp_path):
    # The builder that writes nothing: names and links are looked up all the same.
    command = [sys.executable, "-m", "sphinx", "-b", "dummy", "-W", "-n", "-q", "--keep-going", "docs", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and not done.stderr, done.stderr
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for room in ("jdistill", "bridge")
        for path in (ROOT / room).rglob("*.py")
        if path.stem != "__main__" and "isaaclab_tasks" not in path.parts
    ]
    written = {path.stem for path in (ROOT / "docs" / "api").rglob("*.rst")}
    assert len(modules) > 50 and not set(modules) - written
