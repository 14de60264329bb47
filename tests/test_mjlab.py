"""The tests of ``tests/with_mjlab`` in an environment of their own: mjlab pins other packages than Isaac Lab does."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch  # noqa: F401  Which makes this a test of the whole suite alone.

from tests.conftest import ROOT
from tests.test_train_jax import ENVIRONMENT

SHARED = ("jax", "jaxlib", "torch", "warp-lang")
"""Packages of which both environments are to have one version, so that nothing is fetched or compiled twice."""


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment with the extra ``mjlab``, kept for the next run."""
    uv = os.environ.get("UV") or shutil.which("uv")
    assert uv, "the README installs uv"
    found = ROOT / ".pytest_cache" / "mjlab" / "bin" / "python"
    if not found.exists():
        subprocess.run([uv, "venv", "-q", "--clear", "--python", sys.executable, found.parents[1]], check=True)
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in SHARED]
    install = [uv, "pip", "install", "-q", "--python", found, "-e", f"{ROOT}[mjlab]", "pytest", *versions]
    # What an earlier run has fetched is in the cache.
    if subprocess.run([*install, "--offline"], cwd=ROOT, capture_output=True).returncode:
        subprocess.run(install, cwd=ROOT, check=True)
    return found


def test_mjlab(python):
    # Bytecode is kept in that environment: without it each import of mjlab takes half a minute.
    environment = {k: v for k, v in ENVIRONMENT.items() if k not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}
    command = [python, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "tests/with_mjlab"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout
