"""The code is clean by its own tools."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize("tool", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join)
def test_tool_finds_nothing(tool):
    done = subprocess.run([sys.executable, "-m", *tool], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_repository_speaks_of_itself_alone():
    """No lock file, no package index, no path of somebody's machine."""
    files = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert "uv.lock" not in files and ".python-version" in files
    assert (ROOT / ".python-version").read_text().strip() == "3.12"
    text = (ROOT / "pyproject.toml").read_text()
    assert "index" not in text and "http" not in text
    ci = (ROOT / ".ci" / "run").read_text()
    assert "uv run --group test pytest" in ci and "uv run --group test pytest" in (ROOT / "README.md").read_text()
