"""Sensors of the point-control task in torch; the formulas are those of :mod:`bridge.crazyflie.sensor`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bridge.crazyflie.cfg import SensorCfg
from bridge.isaaclab_tasks.point_control.dynamics import Craft


@dataclass
class Measurement:
    """One measurement of a batch of craft; the fields are those of :class:`Craft`."""

    pos: Tensor
    """(B, 3) m."""
    quat: Tensor
    """(B, 4) xyzw."""
    vel: Tensor
    """(B, 3) m/s."""
    ang_vel: Tensor
    """(B, 3) rad/s."""


SIZES = (3, 4, 3, 3)
"""Of its fields in order."""


class Sensors:
    """What has been measured of a batch of craft, on ``device``; nothing before the first :meth:`reset`."""

    def __init__(self, cfg: SensorCfg, num_envs: int, device: str):
        self.cfg = cfg
        self.recent = torch.zeros(cfg.delay_steps + 1, num_envs, sum(SIZES), device=device)
        """(delay + 1, B, 13) the numbers of the newest measurements. They come in turn, so that a step writes one."""
        self.newest = 0
        """The place of the newest."""
        self.delay = torch.full((num_envs,), cfg.delay_steps, device=device)
        """(B,) int64, control steps."""
        self._env = torch.arange(num_envs, device=device)

    @property
    def seen(self) -> Measurement:
        """What the student sees now."""
        arrived = self.recent[(self.newest - self.delay) % len(self.recent), self._env]
        return Measurement(*arrived.split(SIZES, dim=-1))

    def reset(self, env_ids: Tensor, craft: Craft) -> None:
        """Measure where the episodes of the environments ``env_ids`` (K,) begin, with the craft ``craft`` (K)."""
        self.recent[:, env_ids] = _row(measure(self.cfg, craft))
        if self.cfg.random_delay:
            self.delay[env_ids] = torch.randint(len(self.recent), (len(env_ids),), device=self.delay.device)

    def step(self, craft: Craft) -> None:
        """Measure once more, and let what is old enough arrive."""
        self.newest = (self.newest + 1) % len(self.recent)
        self.recent[self.newest] = _row(measure(self.cfg, craft))


def _row(measurement: Measurement) -> Tensor:
    """The 13 numbers of a measurement side by side (B, 13)."""
    return torch.cat([measurement.pos, measurement.quat, measurement.vel, measurement.ang_vel], dim=-1)


def measure(cfg: SensorCfg, craft: Craft) -> Measurement:
    """The craft's state with this moment's noise."""
    quat = craft.quat
    if cfg.attitude_noise > 0:
        quat = turn(quat, 0.5 * math.radians(cfg.attitude_noise) * torch.randn_like(craft.pos))
    return Measurement(
        pos=_noisy(craft.pos, cfg.position_noise),
        quat=quat,
        vel=_noisy(craft.vel, cfg.velocity_noise),
        ang_vel=_noisy(craft.ang_vel, cfg.rate_noise),
    )


def _noisy(value: Tensor, deviation: float) -> Tensor:
    """``value`` with white noise; drawing none costs nothing."""
    return value + deviation * torch.randn_like(value) if deviation > 0 else value


def turn(quat: Tensor, half: Tensor) -> Tensor:
    """Quaternions xyzw (B, 4) behind a small rotation about the body axes by twice ``half`` (B, 3), rad.

    Hamilton's product of ``quat`` and the normalized (half, 1).
    """
    axis, scalar = quat.split((3, 1), dim=-1)
    vector = axis + scalar * half + torch.linalg.cross(axis, half)
    turned = torch.cat([vector, scalar - (axis * half).sum(dim=-1, keepdim=True)], dim=-1)
    return turned / (1.0 + half.square().sum(dim=-1, keepdim=True)).sqrt()
