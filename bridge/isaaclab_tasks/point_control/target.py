"""Targets of the point-control task in torch; the formulas are those of :mod:`bridge.crazyflie.target`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bridge.crazyflie.cfg import TargetCfg

FIXED, LANGEVIN, FIGURE_EIGHT = 0, 1, 2


@dataclass
class Target:
    """The point to be followed, relative to the spawn point, world frame."""

    pos: Tensor
    """(B, 3) m."""
    vel: Tensor
    """(B, 3) m/s."""
    raw_pos: Tensor
    """(B, 3) m, the Langevin path before smoothing."""
    raw_vel: Tensor
    """(B, 3) m/s."""
    speed_limit: Tensor
    """(B,) m/s."""
    kind: Tensor
    """(B,) int64, one of FIXED, LANGEVIN, FIGURE_EIGHT."""
    time: Tensor
    """(B,) s since the episode began."""


def reset(cfg: TargetCfg, num_envs: int, device: str) -> Target:
    """Start ``num_envs`` targets at the spawn point."""
    if cfg.kind == "mixed":
        fixed = torch.rand(num_envs, device=device) < cfg.fixed_fraction
        kind = torch.where(fixed, FIXED, LANGEVIN)
    else:
        number = {"fixed": FIXED, "langevin": LANGEVIN, "figure_eight": FIGURE_EIGHT}[cfg.kind]
        kind = torch.full((num_envs,), number, device=device)
    pos, vel, raw_pos, raw_vel = (torch.zeros(num_envs, 3, device=device) for _ in range(4))
    time = torch.zeros(num_envs, device=device)
    if cfg.kind == "figure_eight":
        vel = figure_eight(cfg, time)[1]
    limit = cfg.min_speed_limit + (cfg.max_speed_limit - cfg.min_speed_limit) * torch.rand(num_envs, device=device)
    return Target(pos=pos, vel=vel, raw_pos=raw_pos, raw_vel=raw_vel, speed_limit=limit, kind=kind, time=time)


def step(cfg: TargetCfg, target: Target, dt: float) -> None:
    """Advance by ``dt`` seconds, in place."""
    target.time += dt
    if cfg.kind == "fixed":
        return
    if cfg.kind == "figure_eight":
        target.pos, target.vel = figure_eight(cfg, target.time)
        return
    langevin(cfg, target, torch.randn_like(target.raw_vel), dt)


def langevin(cfg: TargetCfg, target: Target, noise: Tensor, dt: float) -> None:
    """One step of a speed-limited, smoothed Langevin path for the targets that follow one, in place.

    dv = (-damping v - omega^2 x) dt + sigma dW, integrated by the Euler-Maruyama scheme; |v| is clipped to the
    episode's limit. Position and velocity then pass the same exponential filter. ``noise`` (B, 3) is standard normal.
    """
    pull = -cfg.damping * target.raw_vel - cfg.omega**2 * target.raw_pos
    vel = target.raw_vel + pull * dt + cfg.sigma * math.sqrt(dt) * noise
    speed = vel.norm(dim=-1, keepdim=True)
    target.raw_vel = vel * (target.speed_limit[:, None] / speed.clamp(min=1e-6)).clamp(max=1.0)
    target.raw_pos = target.raw_pos + target.raw_vel * dt
    weight = cfg.smoothing * (target.kind == LANGEVIN)[:, None]
    target.pos = target.pos + weight * (target.raw_pos - target.pos)
    target.vel = target.vel + weight * (target.raw_vel - target.vel)


def figure_eight(cfg: TargetCfg, time: Tensor) -> tuple[Tensor, Tensor]:
    """Position (B, 3) and velocity (B, 3) on the lemniscate of Gerono: x = a sin(wt), y = a sin(wt) cos(wt)."""
    a, w = cfg.figure_eight_size, 2 * math.pi / cfg.figure_eight_period
    phase, zero = w * time, torch.zeros_like(time)
    pos = torch.stack([a * torch.sin(phase), 0.5 * a * torch.sin(2 * phase), zero], dim=-1)
    vel = torch.stack([a * w * torch.cos(phase), a * w * torch.cos(2 * phase), zero], dim=-1)
    return pos, vel
