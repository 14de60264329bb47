"""Forest flight with an expert beside it, for its teacher to learn from: see ``examples/train_forest_teacher.py``."""

from __future__ import annotations

import dataclasses

from jax import Array

from bridge.crazyflie.cfg import SensorCfg
from bridge.crazyflie.forest import planner
from bridge.crazyflie.forest.cfg import COMMANDS, ForestFlightCfg
from bridge.crazyflie.forest.task import ForestFlight, ForestState
from bridge.env import ObservationSpec

EXPERT = "expert"
"""The observation group with the actions (B, 4) of :mod:`bridge.crazyflie.forest.planner`."""


class GuidedForestFlight(ForestFlight):
    """The task without camera and noise, and with the group :data:`EXPERT`."""

    def __init__(self, cfg: ForestFlightCfg):
        super().__init__(dataclasses.replace(cfg, camera="none", sensor=SensorCfg()))
        expert = ObservationSpec.of_layout(tuple((name, 1, "-1..1") for name in COMMANDS))
        self.obs_specs = {**self.obs_specs, EXPERT: expert}

    def observe_pipeline_state(self, sim: ForestState) -> dict[str, Array]:
        """See the class."""
        return {**super().observe_pipeline_state(sim), EXPERT: planner.act(self.cfg, sim)}
