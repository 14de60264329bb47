"""Settings of a task as arguments of a compiled program; see :class:`bridge.env.Parametric`."""

from __future__ import annotations

import dataclasses
from typing import Any

from bridge.crazyflie.target import KINDS


def split(cfg: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that may be traced, as numbers, and all else, both nested as the settings are."""
    numbers: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for name, value in vars(cfg).items():
        if dataclasses.is_dataclass(value):
            numbers[name], rest[name] = split(value)
        elif isinstance(value, float) or name == "delay_steps":
            numbers[name] = value
        elif name == "kind":
            numbers[name] = KINDS[value]
        else:
            rest[name] = value
    return numbers, rest


def joined(cfg: Any, numbers: dict[str, Any]) -> Any:
    """The settings ``cfg`` with other numbers."""
    parts = {k: joined(getattr(cfg, k), v) if isinstance(v, dict) else v for k, v in numbers.items()}
    return dataclasses.replace(cfg, **parts)
