"""Settings of a task of Isaac Lab, as a run keeps them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge.errors import SettingError

PREFIXES = ("env.", "physics=", "renderer=", "presets=")
"""How overrides begin that Isaac Lab itself applies."""


@dataclass
class IsaacLabCfg:
    """What is set beside the task's registered config."""

    num_envs: int | None = None
    """Number of environments; null takes the task's own."""
    overrides: list[str] = field(default_factory=list)
    """Overrides in Isaac Lab's words (``env.scene.ground=None``, ``physics=newton_mjwarp``), applied in order."""

    def validate(self) -> None:
        """Raise :class:`SettingError` with one line for a number of environments that makes no sense."""
        if self.num_envs is not None and self.num_envs < 1:
            raise SettingError(f"env.num_envs={self.num_envs}: expected a positive number")


def is_simulators(override: str) -> bool:
    """Whether ``override`` (``key=value``) is for Isaac Lab to apply."""
    return override.startswith(PREFIXES) and not override.startswith("env.num_envs=")


def as_overrides(section: Mapping[str, Any], prefix: str = "env.") -> Iterable[str]:
    """The ``env`` section of a config file in Isaac Lab's words."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from as_overrides(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={value}"
