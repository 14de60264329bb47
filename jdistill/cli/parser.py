"""What the commands share."""

from __future__ import annotations

import argparse
import os
from typing import NoReturn

from jdistill.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Answers a bad command line with one line and status 2."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: error: {message}\n")


def positive(text: str) -> int:
    """A number of things, at least one."""
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive count (1, 2, ...)")
    return int(text)


def select_device(name: str | None) -> None:
    """Tell JAX which device to use, before it looks for any."""
    if name is None:
        return
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "gpu", "tpu") or (index and not index.isdigit()):
        raise ConfigError(f"--device {name}: expected cpu, cuda or cuda:N")
    if index and kind in ("cuda", "gpu"):
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        chosen = visible[int(index)] if int(index) < len(visible) and visible[0] else index
        os.environ["CUDA_VISIBLE_DEVICES"] = chosen
    import jax

    try:
        jax.config.update("jax_platforms", "cuda" if kind == "gpu" else kind)
        jax.devices()
    except RuntimeError as e:
        hint = "" if kind == "cpu" else "; for a GPU use 'uv run --extra cuda ...'"
        raise ConfigError(f"--device {name}: JAX finds no such device{hint}") from e
