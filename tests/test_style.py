"""The code is clean by its own tools."""

from __future__ import annotations

import subprocess
import sys
import tomllib

import pytest
import yaml

from tests.conftest import ROOT


@pytest.mark.full
@pytest.mark.parametrize("tool", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]], ids=" ".join)
def test_tool_finds_nothing(tool):
    done = subprocess.run([sys.executable, "-m", *tool], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_hooks_are_local_and_known():
    """They download nothing, and are the tools that the tests run."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    assert {hook["language"] for hook in hooks[0]["hooks"]} == {"system"}
    assert [hook["entry"] for hook in hooks[0]["hooks"]] == ["ruff check", "ruff format --check", "mypy"]


def test_the_repository_speaks_of_itself_alone():
    """No lock file, no package index, no path of somebody's machine."""
    files = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()
    assert "uv.lock" not in files and ".python-version" in files
    assert (ROOT / ".python-version").read_text().strip() == "3.12"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    urls = project["project"].pop("urls")
    assert {"Repository", "Documentation", "Changelog"} <= set(urls)
    assert not any(host in url for url in urls.values() for host in ("pypi", "simple/"))
    # Elsewhere there is none, neither of an index nor of a package.
    assert "index" not in str(project) and "://" not in str(project)
    ci = (ROOT / ".ci" / "run").read_text()
    assert "uv run --group test pytest" in ci and "uv run --group test pytest" in (ROOT / "README.md").read_text()
