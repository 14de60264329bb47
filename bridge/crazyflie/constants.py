"""The numbers of a quadrotor, or of those of a file, in the form in which they are flown.

Both simulators' physics are made of them, the embedded one's in JAX and its twin's in torch. Imports neither.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bridge.crazyflie.airframe import Airframe
from bridge.errors import SettingError
from bridge.quadrotors import GRAVITY, QuadrotorSpec

RAD_PER_S = 2 * math.pi / 60
"""rpm to rad/s."""
MIXING = ((-1.0, -1.0, 1.0, 1.0), (-1.0, 1.0, 1.0, -1.0), (-1.0, 1.0, -1.0, 1.0))
"""The side of the x and the y axis on which each motor sits, and its sense of rotation."""


class Constants(NamedTuple):
    """Of one craft, numbers; of N, arrays (N,), and numbers where all have the same."""

    mass: Any
    """kg."""
    inertia: tuple[Any, Any, Any]
    """Principal moments about the body axes, kg m^2."""
    arm: Any
    """Distance of the motors to the body's x and y axes, m."""
    thrust: tuple[Any, Any, Any]
    """A motor's thrust in N as a polynomial in rpm, constant term first."""
    torque: tuple[Any, Any, Any]
    """A propeller's drag torque in Nm, likewise."""
    spin_up: tuple[Any, Any]
    """Linear (1/s) and quadratic (1/(rpm s)) rate at which a motor gains speed."""
    spin_down: tuple[Any, Any]
    """The same while it loses speed."""
    rotor_inertia: Any
    """One propeller with its motor, kg m^2."""
    drag: tuple[Any, Any, Any]
    """Drag of the air along the body axes, N/(m/s); negative."""
    rotor_min: Any
    """Slowest rotor speed, rpm."""
    rotor_max: Any
    """Fastest rotor speed, rpm."""
    gravity: Any
    """m/s^2, downwards."""

    @staticmethod
    def of(airframe: Airframe) -> Constants:
        """The craft that Crazyflow's tables describe.

        Raises:
            SettingError: it is no X of four equal arms, or its axes are not the principal ones.
        """
        off_diagonal = [
            m[i][j] for m in (airframe.J, airframe.drag_matrix) for i in range(3) for j in range(3) if i != j
        ]
        if airframe.mixing_matrix != MIXING or any(off_diagonal) or any(airframe.gravity_vec[:2]):
            raise SettingError("env.drone: not a quadrotor in X configuration with principal axes forward and left")
        up, up2, down, down2 = airframe.rotor_dyn_coef
        return Constants(
            mass=airframe.mass,
            inertia=tuple(airframe.J[i][i] for i in range(3)),  # type: ignore[arg-type]
            arm=airframe.L,
            thrust=airframe.rpm2thrust,  # type: ignore[arg-type]
            torque=airframe.rpm2torque,  # type: ignore[arg-type]
            spin_up=(up, up2),
            spin_down=(down, down2),
            rotor_inertia=airframe.prop_inertia,
            drag=tuple(airframe.drag_matrix[i][i] for i in range(3)),  # type: ignore[arg-type]
            rotor_min=airframe.rotor_min,
            rotor_max=airframe.rotor_max,
            gravity=-airframe.gravity_vec[2],
        )

    @staticmethod
    def of_rows(specs: Sequence[QuadrotorSpec]) -> Constants:
        """Those of ``specs`` (N).

        Rotor speeds are counted from 0, the slowest, to 1, the fastest; propellers have no angular momentum.
        """

        def column(name: str) -> np.ndarray:
            return np.array([getattr(s, name) for s in specs])

        full = column("twr") * column("mass") * GRAVITY / 4
        c0, c1, c2 = (full * column(f"thrust_c{i}") for i in range(3))
        kappa = column("torque_coefficient")
        return Constants(
            mass=column("mass"),
            inertia=(column("Ixx"), column("Iyy"), column("Izz")),
            arm=column("arm_length") / math.sqrt(2),
            thrust=(c0, c1, c2),
            torque=(kappa * c0, kappa * c1, kappa * c2),
            spin_up=(1 / column("motor_tau"), 0.0),
            spin_down=(1 / column("motor_tau_down"), 0.0),
            rotor_inertia=0.0,
            drag=(-column("drag_x"), -column("drag_y"), -column("drag_z")),
            rotor_min=0.0,
            rotor_max=1.0,
            gravity=GRAVITY,
        )
