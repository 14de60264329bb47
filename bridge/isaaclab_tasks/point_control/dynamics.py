"""The Crazyflie's rotors as pure torch functions.

The formulas are those of Crazyflow's first-principles model (``crazyflow.dynamics.first_principles``). Newton
integrates the rigid body, gravity and the gyroscopic term of the body itself; what is left is the wrench of the rotors
and of the air, and the rotors' own lag.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from bridge.crazyflie.airframe import Airframe

RAD_PER_S = 2 * math.pi / 60
"""rpm to rad/s."""


def rotor_acceleration(airframe: Airframe, rotor_vel: Tensor, command: Tensor, motor: Tensor) -> Tensor:
    """Change of the rotor speeds (B, 4) in rpm/s.

    a (c - w) + b (c^2 - w^2) with one pair of constants while a rotor gains speed and another while it loses speed.

    Args:
        airframe: constants.
        rotor_vel: (B, 4) rotor speeds w, rpm.
        command: (B, 4) commanded speeds c, rpm.
        motor: (B,) multipliers of the rate constants.
    """
    up1, up2, down1, down2 = airframe.rotor_dyn_coef
    linear, quadratic = command - rotor_vel, command**2 - rotor_vel**2
    rate = torch.where(linear > 0, up1 * linear + up2 * quadratic, down1 * linear + down2 * quadratic)
    return motor[:, None] * rate


def wrench(
    airframe: Airframe, rotor_vel: Tensor, rotor_acc: Tensor, vel: Tensor, ang_vel: Tensor, thrust: Tensor
) -> tuple[Tensor, Tensor]:
    """Force (B, 3) in N and torque (B, 3) in Nm on the body, both in the body frame, at the centre of mass.

    Thrust along z and linear drag; roll and pitch torques of the thrusts, yaw torque of the rotors' drag, and the
    reaction to a change of the rotors' angular momentum in size (spin-up) and direction (gyroscopic).

    Args:
        airframe: constants.
        rotor_vel: (B, 4) rotor speeds, rpm.
        rotor_acc: (B, 4) their change, rpm/s.
        vel: (B, 3) velocity in the body frame, m/s.
        ang_vel: (B, 3) body rates, rad/s.
        thrust: (B,) multipliers of the thrust.
    """
    mixing = _constant(airframe.mixing_matrix, rotor_vel.device)
    drag = _constant(airframe.drag_matrix, rotor_vel.device)
    forces = thrust[:, None] * _polynomial(airframe.rpm2thrust, rotor_vel)
    torques = _polynomial(airframe.rpm2torque, rotor_vel)
    force = vel @ drag.T
    force[:, 2] += forces.sum(dim=-1)
    roll, pitch = (airframe.L * forces @ mixing[:2].T).unbind(dim=-1)
    spin = mixing[2] * (airframe.prop_inertia * RAD_PER_S)
    momentum, momentum_rate = rotor_vel @ spin, rotor_acc @ spin
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
def _constant(rows: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    # Kept, so that a step on a GPU uploads nothing.
    return torch.tensor(rows, device=device)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    c0, c1, c2 = coefficients
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
