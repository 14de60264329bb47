"""Which device JAX computes on."""

from __future__ import annotations

import os

from jdistill.errors import ConfigError


def select_device(name: str | None) -> None:
    """Tell JAX which device to use, before it looks for any; None leaves the choice to JAX.

    Raises:
        ConfigError: no such device.
    """
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
