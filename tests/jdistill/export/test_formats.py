"""The table of export formats: ours, and those of other packages."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import jax
import pytest

from jdistill.core import networks
from jdistill.core.config import AgentCfg
from jdistill.core.networks import Policy
from jdistill.errors import ExportError
from jdistill.export import exporters, formats
from jdistill.export.formats import Student
from jdistill.export.policy_file import load_policy, save_policy
from tests.conftest import BUNDLED_TEACHER, ROOT


@pytest.fixture
def student(tmp_path):
    policy = Policy(4, (8,), rnn_type="gru", rnn_hidden_dim=5)
    state = networks.init(policy, jax.random.key(0), 22, True)
    save_policy(tmp_path / "student.safetensors", policy, state, {"iteration": 3})
    return Student(*load_policy(tmp_path / "student.safetensors"), AgentCfg(), BUNDLED_TEACHER)


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A package in the path of Python that announces formats of its own."""
    site = tmp_path / "site"
    (site / "weights_text-1.0.dist-info").mkdir(parents=True)
    (site / "weights_text-1.0.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: weights-text\nVersion: 1.0\n"
    )
    (site / "weights_text-1.0.dist-info" / "entry_points.txt").write_text(
        "[jdistill.exports]\ntext = weights_text:export\nbroken = weights_text:broken\nonnx = weights_text:export\n"
    )
    (site / "weights_text.py").write_text(
        textwrap.dedent(
            """
            import numpy as np
            from jdistill.export.formats import Exported
            from jdistill.export.layers import build
            from jdistill.export.verify import jax_policy

            def export(student, out):
                file = out / "bias.txt"
                np.savetxt(file, student.layers.mlp[-1].bias)
                return Exported(file, jax_policy(*build(student.layers)), notes={"lines": 4})

            def broken(student, out):
                file, beside = out / "broken.txt", out / "beside.txt"
                file.write_text(""), beside.write_text("")
                return Exported(file, lambda: lambda obs: np.full((1, 4), np.nan, np.float32), (beside,))
            """
        )
    )
    monkeypatch.syspath_prepend(str(site))
    yield
    sys.modules.pop("weights_text", None)


def test_another_packages_format_is_exported_and_checked(student, outside, tmp_path, capsys):
    assert list(formats.known_formats()) == [*formats.FORMATS, "text", "broken"]
    assert formats.known_formats()["onnx"].value.startswith("jdistill."), "ours are not replaced"
    exporters.export(student, ["safetensors", "text"], tmp_path / "out", notes={"task": "mine"})
    assert "bias.txt: 100 drawn observations" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "policy.json").read_text())
    assert content["task"] == "mine" and content["iteration"] == 3
    assert content["files"]["text"] == {"file": "bias.txt", "largest_difference": 0.0, "lines": 4}
    assert len((tmp_path / "out" / "bias.txt").read_text().splitlines()) == 4


def test_a_nan_leaves_no_file(student, outside, tmp_path):
    with pytest.raises(ExportError, match=r"broken.txt: its actions differ by nan from the original's; not written"):
        exporters.export(student, ["broken"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_formats_are_told_before_anything_is_written(student, tmp_path):
    for name, shown in (("tflite", "tflite"), ("", r"\(empty\)")):
        with pytest.raises(ExportError, match=f"--format {shown}: expected some of rsl_rl, jit, onnx, safetensors, c"):
            exporters.export(student, ["safetensors", name], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_the_table_imports_no_format():
    code = (
        "import sys; from jdistill.export import exporters, formats, policy_file; formats.known_formats()\n"
        "print({'torch', 'onnx', 'onnxruntime', 'rsl_rl'} & sys.modules.keys())\n"
        "print([m for m in sys.modules if m.startswith(('jdistill.run', 'jdistill.evaluation', 'jdistill.cli'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split("\n")[:2] == ["set()", "[]"]
