"""What point control is evaluated in: variations of a task, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bridge.crazyflie.cfg import PointControlCfg, RandomizationCfg, SensorCfg, TargetCfg, WindCfg
from bridge.tasks import Scenario

CRAZYFLIES = ("cf2x_L250", "cf2x_P250", "cf2x_T350", "cf21B_500")
"""Crazyflow's Crazyflies, by its names."""
BEYOND = {"mass": 0.1, "inertia": 0.25, "thrust": 0.1, "motor": 0.25}
"""How much wider than in training the physical parameters vary in the scenario ``dynamics``."""


def scenarios(cfg: PointControlCfg) -> Mapping[str, Scenario]:
    """Every scenario of the task ``cfg``, which is the first one. Drone, frames, starts and limits stay as they are.

    Scenarios that name a disturbance hold a resting point in calm air with perfect sensors, that disturbance aside.
    """
    # "mixed" of one kind alone is that kind, and needs no other program than the task's own.
    holding, wandering = TargetCfg(kind="mixed", fixed_fraction=1.0), TargetCfg(kind="mixed", fixed_fraction=0.0)
    plain = replace(cfg, target=holding, wind=WindCfg(), sensor=SensorCfg())
    found = {
        "default": Scenario("the task as it was trained on", cfg),
        "hover": Scenario("hold a point, from random states", plain),
        "langevin": Scenario("follow a Langevin path", replace(plain, target=wandering)),
    }
    for period in (10, 6, 4):
        target = TargetCfg(kind="figure_eight", figure_eight_period=float(period))
        text = f"follow a figure-eight of 2 m by 1 m, one in {period} s"
        found[f"figure_eight_{period}s"] = Scenario(text, replace(plain, target=target))
    found["step"] = Scenario("the point jumps by up to 2 m every 3 s", replace(plain, target=TargetCfg(kind="step")))
    found["tilt_60"] = Scenario("starts tilted up to 60 degrees", replace(plain, reset=replace(cfg.reset, tilt=60.0)))
    text = "pushes from the side by up to 20 % of the weight, half a second in every two"
    found["wind"] = Scenario(text, replace(plain, wind=WindCfg(force=0.2)))
    noise = SensorCfg(position_noise=0.01, velocity_noise=0.05, attitude_noise=1.0, rate_noise=0.1)
    text = "sensor noise: 1 cm, 5 cm/s, 1 degree, 0.1 rad/s"
    found["noise"] = Scenario(text, replace(plain, sensor=noise))
    for steps in sorted({max(1, round(ms * cfg.policy_freq / 1000)) for ms in (10, 20, 30)}):
        ms = round(1000 * steps / cfg.policy_freq)
        sensor = SensorCfg(delay_steps=steps)
        found[f"delay_{ms}ms"] = Scenario(f"measurements are {ms} ms old", replace(plain, sensor=sensor))
    widths = {name: min(getattr(cfg.randomization, name) + more, 0.95) for name, more in BEYOND.items()}
    text = "beyond the training range: " + ", ".join(f"{name} ± {width:.0%}" for name, width in widths.items())
    found["dynamics"] = Scenario(text, replace(plain, randomization=RandomizationCfg(**widths)))
    for drone in CRAZYFLIES:
        craft = replace(plain, drone=drone, quadrotors="", randomization=RandomizationCfg())
        found[drone] = Scenario(f"hold a point, the craft {drone} ± 1 %", craft)
    return found
