"""Settings of a task of Isaac Lab, as a run keeps them."""

from __future__ import annotations

from dataclasses import dataclass

from bridge.overrides import OverridesCfg

PREFIXES = ("env.", "physics=", "renderer=", "presets=")
"""How overrides begin that Isaac Lab itself applies."""


@dataclass
class IsaacLabCfg(OverridesCfg):
    """``overrides`` are in Isaac Lab's words: ``env.scene.ground=None``, ``physics=newton_mjwarp``."""

    quadrotors: str | None = None
    """CSV file of quadrotors, ``env.quadrotors`` of tasks that fly some; null where nothing is said of it."""


@dataclass
class QuadrotorsCfg(IsaacLabCfg):
    """Of a task that flies quadrotors out of files."""

    quadrotors: str | None = ""
