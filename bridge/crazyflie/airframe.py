"""The constants of Crazyflow's quadrotors, read from its tables. Imports neither JAX nor torch nor Crazyflow."""

from __future__ import annotations

import importlib.util
import math
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bridge.errors import SettingError
from bridge.quadrotors import QuadrotorSpec

FOUNDATION = "foundation"
"""The one airframe that is not Crazyflow's."""


@dataclass(frozen=True)
class Airframe:
    """Constants of a quadrotor; motors front-right, back-right, back-left, front-left."""

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
    gravity_vec: tuple[float, ...]
    """(3,) m/s^2."""

    @classmethod
    def load(cls, drone: str) -> Airframe:
        """The airframe ``drone``.

        Raises:
            SettingError: Crazyflow has no first-principles model of that name, and neither have we.
        """
        if drone == FOUNDATION:
            return _foundation()
        shared, models = _tables()
        if drone not in models:
            raise SettingError(f"env.drone={drone!r}: expected one of {', '.join(sorted([*models, FOUNDATION]))}")
        params = shared | models[drone]
        return cls(**{name: _frozen(params[name]) for name in cls.__dataclass_fields__})

    @staticmethod
    def names() -> tuple[str, ...]:
        """Every drone of which Crazyflow has a first-principles model."""
        return tuple(_tables()[1])

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

    @property
    def motors(self) -> dict[str, Any]:
        """``rpm``, slowest and fastest; ``thrust``, :attr:`rpm2thrust`; ``hover_command``, the share of the way from
        the one speed to the other at which the motors carry the weight."""
        low, high = self.rotor_min, self.rotor_max
        hover = self.rotor_vel(-self.mass * self.gravity_vec[2] / 4)
        return {"rpm": [low, high], "thrust": list(self.rpm2thrust), "hover_command": (hover - low) / (high - low)}

    def rotor_vel(self, thrust: float) -> float:
        """Rotor speed in rpm at which one motor pulls ``thrust`` N."""
        c0, c1, c2 = self.rpm2thrust
        return (-c1 + math.sqrt(c1**2 - 4 * c2 * (c0 - thrust))) / (2 * c2)

    def spec(self, id: int, name: str) -> QuadrotorSpec:
        """As a row of a file of quadrotors: motors and drag torque linearized at hover, no angular momentum of the
        propellers."""
        low, span = self.rotor_min, self.rotor_max - self.rotor_min
        c0, c1, c2 = self.rpm2thrust
        thrust = c0 + c1 * low + c2 * low**2, (c1 + 2 * c2 * low) * span, c2 * span**2
        hover = self.rotor_vel(-self.mass * self.gravity_vec[2] / 4)
        up, up2, down, down2 = self.rotor_dyn_coef
        k0, k1, k2 = self.rpm2torque
        return QuadrotorSpec(
            id=id,
            mass=self.mass,
            arm_length=self.arm_length,
            Ixx=self.J[0][0],
            Iyy=self.J[1][1],
            Izz=self.J[2][2],
            twr=4 * self.thrust_max / (-self.mass * self.gravity_vec[2]),
            motor_tau=1 / (up + 2 * up2 * hover),
            motor_tau_down=1 / (down + 2 * down2 * hover),
            torque_coefficient=(k0 + hover * (k1 + hover * k2)) / (c0 + hover * (c1 + hover * c2)),
            thrust_c0=thrust[0] / self.thrust_max,
            thrust_c1=thrust[1] / self.thrust_max,
            thrust_c2=thrust[2] / self.thrust_max,
            drag_x=-self.drag_matrix[0][0],
            drag_y=-self.drag_matrix[1][1],
            drag_z=-self.drag_matrix[2][2],
            name=name,
        )


def _foundation() -> Airframe:
    """The Crazyflie of the fork of rsl_rl that point control comes from, as its code flies it at 100 Hz.

    A motor at the share u of its full speed pulls with 2.25 m g / 4 times ``0.038 + 0.154 u + 0.987 u^2``. These sum to
    1.179, so the ratio of thrust to weight is 2.65 and not 2.25, and a motor at rest still pulls. The drag torque is
    0.016 m times the thrust. In a step of 0.01 s a motor with the time constant 0.05 s goes 0.01 / (0.01 + 0.05) of the
    way, which is what the rate below does in one physics step of that length.
    """
    mass, full_speed, tau, dt = 0.0282, 24_000.0, 0.05, 0.01
    full_thrust = 2.25 * mass * 9.81 / 4
    curve = (0.038, 0.154, 0.987)
    thrust = tuple(full_thrust * c / full_speed**i for i, c in enumerate(curve))
    no = (0.0, 0.0, 0.0)
    return replace(
        Airframe.load("cf2x_L250"),
        mass=mass,
        J=((2.44864e-5, 0.0, 0.0), (0.0, 2.44864e-5, 0.0), (0.0, 0.0, 3.61504e-5)),
        L=0.04384 / math.sqrt(2),
        prop_inertia=0.0,
        thrust_min=thrust[0],
        thrust_max=full_thrust * sum(curve),
        rpm2thrust=thrust,
        rpm2torque=tuple(0.016 * c for c in thrust),
        rotor_dyn_coef=(1 / (tau + dt), 0.0, 1 / (tau + dt), 0.0),
        drag_matrix=(no, no, no),
    )


def _tables() -> tuple[dict[str, Any], dict[str, Any]]:
    """What all drones share, and each one's first-principles model. Crazyflow itself would take seconds to import."""
    spec = importlib.util.find_spec("crazyflow")
    assert spec is not None and spec.submodule_search_locations is not None, "crazyflow is a dependency"
    folder = Path(spec.submodule_search_locations[0]) / "dynamics"
    shared = tomllib.loads((folder / "params.toml").read_text())
    return shared, tomllib.loads((folder / "first_principles" / "params.toml").read_text())


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
