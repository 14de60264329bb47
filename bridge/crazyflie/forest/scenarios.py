"""What forest flight is evaluated in: variations of a task, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bridge.crazyflie.cfg import SensorCfg
from bridge.crazyflie.forest.cfg import ForestFlightCfg, most_columns
from bridge.tasks import Scenario


def scenarios(cfg: ForestFlightCfg) -> Mapping[str, Scenario]:
    """Every scenario of the task ``cfg``, which is the first one."""
    forest, image, pilot = cfg.forest, cfg.image, cfg.pilot
    few, many = forest.obstacles // 2, min(forest.obstacles * 5 // 4, most_columns(forest))
    slower = replace(pilot, speed=0.6 * pilot.speed)
    exact = replace(image, noise=0.0, dropout=0.0)
    return {
        "default": Scenario("the task as it was trained on", cfg),
        "sparse": Scenario(f"{few} columns", replace(cfg, forest=replace(forest, obstacles=few))),
        "dense": Scenario(f"{many} columns", replace(cfg, forest=replace(forest, obstacles=many))),
        "exact": Scenario("no noise on picture and state", replace(cfg, image=exact, sensor=SensorCfg())),
        "dropouts": Scenario("10 % of the pixels see nothing", replace(cfg, image=replace(image, dropout=0.1))),
        "slow": Scenario("commands mean 60 % of the speed", replace(cfg, pilot=slower)),
    }
