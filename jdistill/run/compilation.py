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


def prepare() -> None:
    """Set XLA's options, and keep compiled programs in the user's cache folder for the next run.

    What the user has set stays: ``XLA_FLAGS`` with backend options of its own, ``JAX_COMPILATION_CACHE_DIR``, and
    ``JAX_ENABLE_COMPILATION_CACHE=0``, which switches the cache off.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _EXTRA not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {_EXTRA}{CPU_OPTION}".strip()
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:
        return
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return  # Nothing is lost but time.
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", LIMIT)


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
