"""The tests of ``tests/mjlab`` in an environment of their own: mjlab pins other packages than Isaac Lab does."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch  # noqa: F401  Which makes this a test of the whole suite alone.

from tests.conftest import ROOT
from tests.test_train_jax import ENVIRONMENT

SHARED = ("jax", "jaxlib", "torch", "warp-lang")
"""Packages of which both environments are to have one version, so that nothing is fetched or compiled twice."""


@pytest.fixture
def python(tmp_path) -> Path:
    """The interpreter of an environment with the extra ``mjlab``, as the documentation installs it."""
    uv = os.environ.get("UV") or shutil.which("uv")
    assert uv, "the README installs uv"
    versions = [f"{name}=={importlib.metadata.version(name)}" for name in SHARED]
    found = tmp_path / "mjlab" / "bin" / "python"
    subprocess.run([uv, "venv", "-q", "--python", "3.12", found.parents[1]], check=True)
    install = [uv, "pip", "install", "-q", "--python", found, "-e", f"{ROOT}[mjlab]", "pytest", *versions]
    # What an earlier run has fetched is in the cache.
    if subprocess.run([*install, "--offline"], cwd=ROOT, capture_output=True).returncode:
        subprocess.run(install, cwd=ROOT, check=True)
    return found


def test_mjlab(python):
    # Its half million lines of dependencies are compiled once; the environment is gone afterwards.
    environment = {k: v for k, v in ENVIRONMENT.items() if k not in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE")}
    command = [python, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider", "tests/mjlab"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout and "skipped" not in done.stdout
