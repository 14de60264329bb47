"""The Crazyflie's rotors as pure torch functions, and the airframe's constants.

The formulas are those of Crazyflow's first-principles model (``crazyflow.dynamics.first_principles``). Newton
integrates the rigid body, gravity and the gyroscopic term of the body itself; what is left is the wrench of the rotors
and of the air, and the rotors' own lag.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bridge.errors import SettingError

RAD_PER_S = 2 * math.pi / 60
"""rpm to rad/s."""


@dataclass(frozen=True)
class Airframe:
    """Constants of a quadrotor, read from Crazyflow's tables; motors front-right, back-right, back-left, front-left."""

    mass: float
    """kg."""
    J: tuple[tuple[float, ...], ...]
    """(3, 3) kg m^2."""
    L: float
    """Distance of the motors to the body axes, m."""
    prop_inertia: float
    """One propeller with its motor, kg m^2."""
    thrust_min: float
    """Least thrust of a motor, N."""
    thrust_max: float
    """Greatest thrust of a motor, N."""
    rpm2thrust: tuple[float, ...]
    """(3,) thrust in N as a polynomial in rpm, constant term first."""
    rpm2torque: tuple[float, ...]
    """(3,) drag torque in Nm, likewise."""
    rotor_dyn_coef: tuple[float, ...]
    """(4,) linear and quadratic rate while the rotor gains speed, then the same while it loses speed."""
    mixing_matrix: tuple[tuple[float, ...], ...]
    """(3, 4) side of the axes on which each motor sits, and its sense of rotation."""
    drag_matrix: tuple[tuple[float, ...], ...]
    """(3, 3) air drag in the body frame, N/(m/s)."""

    @classmethod
    def load(cls, drone: str) -> Airframe:
        """Read the airframe ``drone``; the tables are read as files, because Crazyflow itself would bring JAX along.

        Raises:
            SettingError: Crazyflow has no first-principles model of that name.
        """
        spec = importlib.util.find_spec("crazyflow")
        assert spec is not None and spec.submodule_search_locations is not None, "crazyflow is a dependency"
        folder = Path(spec.submodule_search_locations[0]) / "dynamics"
        shared = tomllib.loads((folder / "params.toml").read_text())
        models = tomllib.loads((folder / "first_principles" / "params.toml").read_text())
        if drone not in models:
            raise SettingError(f"env.drone={drone!r}: expected one of {', '.join(sorted(models))}")
        params = shared | models[drone]
        return cls(**{name: _frozen(params[name]) for name in cls.__dataclass_fields__})

    @property
    def arm_length(self) -> float:
        """Distance of a motor from the centre, m."""
        return self.L * math.sqrt(2)

    @property
    def rotor_min(self) -> float:
        """Slowest rotor speed, rpm."""
        return self.rotor_vel(self.thrust_min)

    @property
    def rotor_max(self) -> float:
        """Fastest rotor speed, rpm."""
        return self.rotor_vel(self.thrust_max)

    def rotor_vel(self, thrust: float) -> float:
        """Rotor speed in rpm at which one motor pulls ``thrust`` N."""
        c0, c1, c2 = self.rpm2thrust
        return (-c1 + math.sqrt(c1**2 - 4 * c2 * (c0 - thrust))) / (2 * c2)


def _frozen(value):
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value


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
