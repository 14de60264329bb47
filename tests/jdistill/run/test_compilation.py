"""XLA's options and the cache of compiled programs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from jdistill.run import compilation
from tests.conftest import ROOT

pytestmark = pytest.mark.full

PROGRAM = """
from jdistill.run import compilation
compilation.prepare()
import os, jax, jax.numpy as jnp
print(os.environ["XLA_FLAGS"])
print(jax.config.jax_default_matmul_precision)
print(float(jax.jit(lambda x: jnp.sin(x).sum())(jnp.zeros(3))))
"""


FLAGS = f"--xla_backend_extra_options={compilation.CPU_OPTION} --xla_gpu_enable_command_buffer=+WHILE"


def compute(**environment: str) -> tuple[str, str]:
    """Compile a small program in a process of its own; its XLA flags and the precision of its products."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    env = {**inherited, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=env)
    assert done.returncode == 0 and not done.stderr, done.stderr
    flags, precision, result = done.stdout.splitlines()
    assert result == "0.0"
    return flags, precision


def test_compiled_programs_stay_in_the_users_cache_folder(tmp_path):
    assert compute(XDG_CACHE_HOME=str(tmp_path)) == (FLAGS, "highest")
    (folder,) = (tmp_path / "jdistill").iterdir()
    assert list(folder.glob("jit__lambda*-cache"))


def test_what_the_user_has_set_stays_and_a_home_that_cannot_be_written_to_does_no_harm(tmp_path):
    (tmp_path / "file").write_text("")
    theirs = "--xla_backend_extra_options=xla_cpu_disable_slp_vectorizer --xla_gpu_enable_command_buffer="
    said = compute(XDG_CACHE_HOME=str(tmp_path / "file"), XLA_FLAGS=theirs, JAX_DEFAULT_MATMUL_PRECISION="float32")
    assert said == (theirs, "float32")
    cache = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "theirs"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    flags, _ = compute(XDG_CACHE_HOME=str(tmp_path), XLA_FLAGS="--xla_cpu_ftz=true", **cache)
    assert flags.split()[0] == "--xla_cpu_ftz=true" and compilation.CPU_OPTION in flags
    assert list((tmp_path / "theirs").iterdir()) and not (tmp_path / "jdistill").exists()


def test_each_kind_of_processor_has_its_folder(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    here = compilation.cache_folder()
    assert here.parent.as_posix() == "/somewhere/jdistill"
    monkeypatch.setattr(compilation, "_processor", lambda: "another")
    assert compilation.cache_folder() != here and compilation.cache_folder().parent == here.parent
