"""The notebook runs as it stands, and stands as it ran."""

from __future__ import annotations

import os

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import ROOT

FILE = ROOT / "examples" / "train_and_fly.ipynb"


def outputs(notebook, kind):
    """What the cells show of one kind, in order."""
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    if kind == "text":
        return "".join(output.text for output in shown if output.output_type == "stream")
    return [output.data[kind] for output in shown if kind in output.get("data", {})]


@pytest.fixture(scope="module")
def written():
    return nbformat.read(FILE, as_version=4)


def test_it_comes_with_its_outputs_and_is_small(written):
    nbformat.validate(written)
    assert FILE.stat().st_size < 200_000 and len(outputs(written, "image/png")) == 2
    assert "8 of 8 flew to the end" in outputs(written, "text")
    assert "/root" not in FILE.read_text() and "/home" not in FILE.read_text()


def test_it_runs_and_its_student_flies(written, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    again = nbformat.from_dict(written)
    NotebookClient(again, timeout=600, kernel_name="python3").execute()
    assert len(outputs(again, "image/png")) == 2
    lines = outputs(again, "text").splitlines()
    survival = [float(line.split()[3].rstrip("%")) for line in lines if "survival" in line]
    assert len(survival) == 4 and min(survival) > 95
