"""How XLA compiles our programs, and where compiled programs are kept.

Call :func:`prepare` before JAX first computes anything; the commands do.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
from pathlib import Path

import jax

LIMIT = 2**30
"""Bytes that the compiled programs of all runs may take; the least recently used ones go first."""

# LLVM unrolls the inner loops of XLA's CPU kernels, 16 and 64 long here, until they no longer vectorise well: an update
# of the default student takes a quarter longer with it, and compiling it too. XLA ignores the option on other devices.
CPU_OPTION = "xla_cpu_disable_loop_unrolling"
_EXTRA = "--xla_backend_extra_options="
# A GPU gets a whole loop as one CUDA graph, where it was one graph a step and more. CPUs ignore it.
_GRAPHS = "--xla_gpu_enable_command_buffer="


def prepare() -> None:
    """Set the precision of products and XLA's options, and keep compiled programs in the user's cache folder.

    What the user has set stays: ``JAX_DEFAULT_MATMUL_PRECISION`` (``tensorfloat32`` for one), ``XLA_FLAGS`` with
    options of its own, ``JAX_COMPILATION_CACHE_DIR``, and ``JAX_ENABLE_COMPILATION_CACHE=0``, which switches the cache
    off.
    """
    if jax.config.jax_default_matmul_precision is None:
        # A GPU rounds the factors of products to 10 bits otherwise: labels would be off by 2e-3, and the physics too.
        jax.config.update("jax_default_matmul_precision", "highest")
    flags = os.environ.get("XLA_FLAGS", "")
    if _EXTRA not in flags:
        flags += f" {_EXTRA}{CPU_OPTION}"
    if _GRAPHS not in flags:
        flags += f" {_GRAPHS}+WHILE"
    os.environ["XLA_FLAGS"] = flags.strip()
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # A user without a home, or with one that cannot be written to.
        return  # Nothing is lost but time.
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", LIMIT)
    # The small programs around the iteration too: there are dozens, each of which takes a GPU's compiler a tenth of a
    # second.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/jdistill``, or what stands for it, with a folder for each kind of processor.

    Compiled programs use the instructions of the processor at hand, and a home folder may be shared by many.
    """
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "jdistill" / f"xla-{hashlib.sha256(_processor().encode()).hexdigest()[:12]}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^(flags|Features)\s*:.*$", info.read_text(), re.MULTILINE) if info.exists() else None
    return f"{platform.machine()} {found.group(0) if found else platform.processor()}"
