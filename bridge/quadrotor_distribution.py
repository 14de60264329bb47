"""Quadrotors drawn at random, from the distribution that RAPTOR (arXiv 2509.11481) samples its teachers' craft from.

The steps and ranges are those of the paper's supplement and of RLtools, the authors' code (``rl/environments/l2f``,
``sample_initial_parameters``); for each craft, independently,

1. thrust-to-weight ratio ``twr ~ U(1.5, 5)``,
2. mass ``m = s^3`` with ``s ~ U(0.02^(1/3), 5^(1/3))``: sizes are uniform, and mass goes with their cube,
3. arm ``l = k m^(1/3) / 7.24``, where the factor is ``k = 1 + u`` for ``u >= 0`` and ``1 / (1 - u)`` otherwise,
   ``u ~ N(0, 0.1)``,
4. torque-to-inertia ratio ``r ~ U(40, 1200)`` 1/s^2, and from it ``Ixx = Iyy = f l T / r`` with the thrust
   ``T = twr m g`` of all motors; ``Izz = 1.832 Ixx``,
5. motors: time constants ``U(0.03, 0.1)`` s to gain speed and ``U(0.03, 0.3)`` s to lose it, torque coefficient
   ``U(0.005, 0.05)`` m, thrust curve normalized to 1 at full speed.

What torque ``f l T`` stands for is read in three ways, and the inertia with it. By geometry two motors of one side,
each with T / 4, have the lever ``l / sqrt(2)``, so ``f = sqrt(2) / 4``. RLtools has ``sqrt(2) T / 4`` times a motor's
*coordinate* ``l / sqrt(2)``, so ``f = 1 / 4``. The Foundation fork's ``train_teacher_multi.py`` has ``f = sqrt(2)``, by
which a Crazyflie (r = 1576) lies outside and the sampled craft turn a quarter as fast as r says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bridge.quadrotors import GRAVITY, QuadrotorSpec

Range = tuple[float, float]
"""Least and greatest."""
PUBLISHED_CURVE = (0.038, 0.154, 0.987)
"""Thrust of a Crazyflie's motor over the speed, before it is normalized."""
FOUNDATION_CURVE = (QuadrotorSpec.thrust_c0, QuadrotorSpec.thrust_c1)


@dataclass(frozen=True)
class Distribution:
    """What is drawn uniformly between two numbers, and the constants of the formulas of this module."""

    twr: Range = (1.5, 5.0)
    """Thrust-to-weight ratio."""
    mass: Range = (0.02, 5.0)
    """kg; the cube root is uniform."""
    size_mass_ratio: float = 7.24
    """Cube root of the mass over the arm, kg^(1/3)/m, where the factor k is 1."""
    size_deviation: float = 0.1
    """Standard deviation of u."""
    largest_deviation: float = math.inf
    """To which u is clipped."""
    torque_to_inertia: Range = (40.0, 1200.0)
    """1/s^2."""
    torque_factor: float = 0.25
    """f."""
    inertia_ratio: float = 1.832
    """Izz over Ixx."""
    motor_tau: Range = (0.03, 0.1)
    """s, gaining speed."""
    motor_tau_down: Range | None = (0.03, 0.3)
    """s, losing speed; None takes that of gaining it."""
    torque_coefficient: Range = (0.005, 0.05)
    """m."""
    thrust_c0: Range = (PUBLISHED_CURVE[0] / sum(PUBLISHED_CURVE),) * 2
    """Thrust of the slowest motor over that of the fastest."""
    linear_share: Range = (PUBLISHED_CURVE[1] / sum(PUBLISHED_CURVE[1:]),) * 2
    """``thrust_c1 / (thrust_c1 + thrust_c2)``: how straight the thrust curve is."""
    drag: Range = (0.0, 0.0)
    """Drag of the air over weight, s/m, along each axis."""

    def draw(self, id: int, seed: int) -> QuadrotorSpec:
        """The craft ``id`` of the sample ``seed``, whatever the number of craft."""
        rng = np.random.default_rng([seed, id])

        def uniform(low: float, high: float) -> float:
            return float(low + (high - low) * rng.random())

        twr = uniform(*self.twr)
        mass = uniform(*(m ** (1 / 3) for m in self.mass)) ** 3
        u = float(np.clip(self.size_deviation * rng.standard_normal(), -self.largest_deviation, self.largest_deviation))
        arm = (1 + u if u >= 0 else 1 / (1 - u)) * mass ** (1 / 3) / self.size_mass_ratio
        inertia = self.torque_factor * arm * twr * mass * GRAVITY / uniform(*self.torque_to_inertia)
        tau = uniform(*self.motor_tau)
        tau_down = uniform(*self.motor_tau_down) if self.motor_tau_down else tau
        c0, share = uniform(*self.thrust_c0), uniform(*self.linear_share)
        return QuadrotorSpec(
            id=id,
            mass=mass,
            arm_length=arm,
            Ixx=inertia,
            Iyy=inertia,
            Izz=self.inertia_ratio * inertia,
            twr=twr,
            motor_tau=tau,
            motor_tau_down=tau_down,
            torque_coefficient=uniform(*self.torque_coefficient),
            thrust_c0=c0,
            thrust_c1=share * (1 - c0),
            thrust_c2=(1 - share) * (1 - c0),
            drag_x=mass * GRAVITY * uniform(*self.drag),
            drag_y=mass * GRAVITY * uniform(*self.drag),
            drag_z=mass * GRAVITY * uniform(*self.drag),
            seed=seed,
        )

    def sample(self, num: int, seed: int) -> list[QuadrotorSpec]:
        """``num`` craft; the first ones of a longer sample of the same seed are the same."""
        return [self.draw(i, seed) for i in range(num)]

    def outside(self, quadrotor: QuadrotorSpec, tolerance: float = 1e-9) -> list[str]:
        """What of ``quadrotor`` could not have been drawn, by name; the arm counts if it is 3 deviations off."""
        q, total = quadrotor, quadrotor.curve(1.0)
        torque = self.torque_factor * q.arm_length * q.max_thrust
        k = 1 + min(3 * self.size_deviation, self.largest_deviation)
        found: dict[str, tuple[float, Range]] = {
            "twr": (q.twr * total, self.twr),
            "mass": (q.mass, self.mass),
            "arm_length": (self.size_mass_ratio / q.size_mass_ratio, (1 / k, k)),
            "Ixx": (torque / q.Ixx, self.torque_to_inertia),
            "Iyy": (torque / q.Iyy, self.torque_to_inertia),
            "motor_tau": (q.motor_tau, self.motor_tau),
            "motor_tau_down": (q.motor_tau_down, self.motor_tau_down or (q.motor_tau, q.motor_tau)),
            "torque_coefficient": (q.torque_coefficient, self.torque_coefficient),
            "thrust_c0": (q.thrust_c0 / total, self.thrust_c0),
            "thrust_c1": (q.thrust_c1 / (q.thrust_c1 + q.thrust_c2), self.linear_share),
            **{f"drag_{axis}": (getattr(q, f"drag_{axis}") / q.weight, self.drag) for axis in "xyz"},
        }
        return [n for n, (x, (low, high)) in found.items() if not low - tolerance <= x <= high + tolerance]


RAPTOR = Distribution()
"""As published, with the authors' code's reading of the torque; the thrust curve is one for all."""
FOUNDATION = Distribution(
    largest_deviation=0.3,
    torque_factor=math.sqrt(2),
    motor_tau=(0.02, 0.12),
    motor_tau_down=None,
    torque_coefficient=(QuadrotorSpec.torque_coefficient,) * 2,
    thrust_c0=(FOUNDATION_CURVE[0],) * 2,
    linear_share=(FOUNDATION_CURVE[1] / (1 - FOUNDATION_CURVE[0]),) * 2,
)
"""As the Foundation fork draws them."""
WIDE = Distribution(
    twr=(1.4, 5.0),
    largest_deviation=0.3,
    torque_factor=math.sqrt(2) / 4,
    motor_tau=(0.03, 0.15),
    thrust_c0=(0.0, 0.12),
    linear_share=(0.0, 0.65),
    drag=(0.0, 0.06),
)
"""As published, with the torque by geometry, and wider where Crazyflies identified from flight would lie outside: the
weakest has a thrust-to-weight ratio of 1.49 and a time constant of 0.14 s; all have drag, and motors that never stand.
"""
DISTRIBUTIONS = {"wide": WIDE, "raptor": RAPTOR, "foundation": FOUNDATION}
"""By name."""
