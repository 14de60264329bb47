"""A quadrotor's rotors as pure torch functions.

The formulas are those of Crazyflow's first-principles model (``crazyflow.dynamics.first_principles``). Newton
integrates the rigid body, gravity and the gyroscopic term of the body itself; what is left is the wrench of the rotors
and of the air, and the rotors' own lag.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bridge.crazyflie.constants import MIXING, RAD_PER_S, Constants


@dataclass
class Craft:
    """Physical state of a batch of quadrotors."""

    pos: Tensor
    """(B, 3) m, world frame, relative to the spawn point."""
    quat: Tensor
    """(B, 4) xyzw, body to world."""
    vel: Tensor
    """(B, 3) m/s, world frame."""
    ang_vel: Tensor
    """(B, 3) rad/s, body frame."""
    rotor_vel: Tensor
    """(B, 4) rpm; motors front-right, back-right, back-left, front-left."""


@dataclass
class Quadrotor:
    """Physical parameters of N craft, see :class:`bridge.crazyflie.constants.Constants`."""

    mass: Tensor
    """(N, 1)."""
    inertia: Tensor
    """(N, 3)."""
    arm: Tensor
    """(N, 1)."""
    thrust: Tensor
    """(N, 3)."""
    torque: Tensor
    """(N, 3)."""
    spin_up: Tensor
    """(N, 2)."""
    spin_down: Tensor
    """(N, 2)."""
    rotor_inertia: Tensor
    """(N, 1)."""
    drag: Tensor
    """(N, 3)."""
    rotor_min: Tensor
    """(N, 1)."""
    rotor_max: Tensor
    """(N, 1)."""

    @staticmethod
    def of(constants: Constants) -> Quadrotor:
        """With these numbers, on the CPU. Gravity is the simulation's."""
        number = np.size(constants.mass)

        def rows(value: object) -> Tensor:
            columns = [np.broadcast_to(x, number) for x in (value if isinstance(value, tuple) else (value,))]
            return torch.tensor(np.stack(columns, axis=-1), dtype=torch.float32)

        return Quadrotor(**{name: rows(v) for name, v in constants._asdict().items() if name != "gravity"})

    def take(self, row: Tensor) -> Quadrotor:
        """The craft in the rows ``row`` (K,)."""
        return Quadrotor(**{name: value[row] for name, value in vars(self).items()})

    def put(self, row: Tensor, craft: Quadrotor) -> None:
        """Replace what is in the rows ``row`` (K,) by ``craft`` (K)."""
        for name, value in vars(craft).items():
            getattr(self, name)[row] = value

    def to(self, device: str) -> Quadrotor:
        """The same on ``device``."""
        return Quadrotor(**{name: value.to(device) for name, value in vars(self).items()})

    @property
    def arm_length(self) -> Tensor:
        """(N, 1) distance of a motor from the centre, m."""
        return self.arm * 2**0.5

    def hover_rotor_vel(self, gravity: float) -> Tensor:
        """(N, 1) rotor speed at which four motors carry the weight, rpm."""
        c0, c1, c2 = self.thrust.split(1, dim=-1)
        return (-c1 + (c1 * c1 - 4 * c2 * (c0 - self.mass * gravity / 4)).sqrt()) / (2 * c2)

    def command(self, action: Tensor) -> Tensor:
        """Motor commands (B, 4) in [0, 1] to rotor speeds in rpm: linear between the slowest and the fastest."""
        return self.rotor_min + action * (self.rotor_max - self.rotor_min)

    def motor_speeds(self, rotor_vel: Tensor) -> Tensor:
        """Rotor speeds in rpm on the scale of :meth:`command`, so that a steady motor's speed equals its command."""
        return (rotor_vel - self.rotor_min) / (self.rotor_max - self.rotor_min)


def rotor_acceleration(quadrotor: Quadrotor, rotor_vel: Tensor, command: Tensor, motor: Tensor) -> Tensor:
    """Change of the rotor speeds (B, 4) in rpm/s.

    a (c - w) + b (c^2 - w^2) with one pair of constants while a rotor gains speed and another while it loses speed.

    Args:
        quadrotor: constants.
        rotor_vel: (B, 4) rotor speeds w, rpm.
        command: (B, 4) commanded speeds c, rpm.
        motor: (B,) multipliers of the rate constants.
    """
    (up1, up2), (down1, down2) = (pair.split(1, dim=-1) for pair in (quadrotor.spin_up, quadrotor.spin_down))
    linear, quadratic = command - rotor_vel, command**2 - rotor_vel**2
    rate = torch.where(linear > 0, up1 * linear + up2 * quadratic, down1 * linear + down2 * quadratic)
    return motor[:, None] * rate


def wrench(
    quadrotor: Quadrotor, rotor_vel: Tensor, rotor_acc: Tensor, vel: Tensor, ang_vel: Tensor, thrust: Tensor
) -> tuple[Tensor, Tensor]:
    """Force (B, 3) in N and torque (B, 3) in Nm on the body, both in the body frame, at the centre of mass.

    Thrust along z and linear drag; roll and pitch torques of the thrusts, yaw torque of the rotors' drag, and the
    reaction to a change of the rotors' angular momentum in size (spin-up) and direction (gyroscopic).

    Args:
        quadrotor: constants.
        rotor_vel: (B, 4) rotor speeds, rpm.
        rotor_acc: (B, 4) their change, rpm/s.
        vel: (B, 3) velocity in the body frame, m/s.
        ang_vel: (B, 3) body rates, rad/s.
        thrust: (B,) multipliers of the thrust.
    """
    mixing = _mixing(rotor_vel.device)
    forces = thrust[:, None] * _polynomial(quadrotor.thrust, rotor_vel)
    torques = _polynomial(quadrotor.torque, rotor_vel)
    force = quadrotor.drag * vel
    force[:, 2] += forces.sum(dim=-1)
    roll, pitch = (quadrotor.arm * forces @ mixing[:2].T).unbind(dim=-1)
    inertia = quadrotor.rotor_inertia[:, 0] * RAD_PER_S
    momentum, momentum_rate = inertia * (rotor_vel @ mixing[2]), inertia * (rotor_acc @ mixing[2])
    torque = torch.stack(
        [
            roll + ang_vel[:, 1] * momentum,
            pitch - ang_vel[:, 0] * momentum,
            torques @ mixing[2] + momentum_rate,
        ],
        dim=-1,
    )
    return force, torque


@functools.cache
def _mixing(device: torch.device) -> Tensor:
    # Kept, so that a step on a GPU uploads nothing.
    return torch.tensor(MIXING, device=device)


def _polynomial(coefficients: Tensor, x: Tensor) -> Tensor:
    c0, c1, c2 = coefficients.split(1, dim=-1)
    return c0 + x * (c1 + c2 * x)


def rotation_matrix(quat: Tensor) -> Tensor:
    """Unit quaternions xyzw (B, 4) to rotation matrices (B, 3, 3), body to world."""
    x, y, z, w = quat.unbind(dim=-1)
    entries = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(entries, dim=-1).reshape(-1, 3, 3)
