"""Where a checkpoint of Brax's PPO is. Importing this imports no JAX."""

from __future__ import annotations

from pathlib import Path

CONFIG = "ppo_network_config.json"
"""Beside the arrays."""
STATISTICS = "brax.training.acme.running_statistics"
"""The module that a pickle of ``brax.io.model.save_params`` names first."""


def find_brax_checkpoint(path: Path) -> Path | None:
    """The checkpoint that ``path`` is, or the newest one in it; None where it is none of Brax's."""
    if path.is_dir():
        if (path / CONFIG).is_file():
            return path
        steps = [child for child in path.iterdir() if child.name.isdigit() and (child / CONFIG).is_file()]
        return max(steps, key=lambda child: int(child.name), default=None)
    try:
        with path.open("rb") as file:
            return path if STATISTICS.encode() in file.read(200) else None
    except OSError:
        return None
