"""The constants of Crazyflow's quadrotors, read from its tables. Imports neither JAX nor torch nor Crazyflow."""

from __future__ import annotations

import importlib.util
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge.errors import SettingError
from bridge.quadrotors import QuadrotorSpec


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
            SettingError: Crazyflow has no first-principles model of that name.
        """
        shared, models = _tables()
        if drone not in models:
            raise SettingError(f"env.drone={drone!r}: expected one of {', '.join(sorted(models))}")
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


def _tables() -> tuple[dict[str, Any], dict[str, Any]]:
    """What all drones share, and each one's first-principles model. Crazyflow itself would take seconds to import."""
    spec = importlib.util.find_spec("crazyflow")
    assert spec is not None and spec.submodule_search_locations is not None, "crazyflow is a dependency"
    folder = Path(spec.submodule_search_locations[0]) / "dynamics"
    shared = tomllib.loads((folder / "params.toml").read_text())
    return shared, tomllib.loads((folder / "first_principles" / "params.toml").read_text())


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
