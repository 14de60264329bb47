"""Where torch's side of a comparison computes: where JAX does."""

from __future__ import annotations

import jax
import torch


def torch_device() -> str:
    """JAX's default device, as torch names it."""
    return {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())


def finish() -> None:
    """Wait until torch has computed everything."""
    if torch_device() == "cuda":
        torch.cuda.synchronize()
