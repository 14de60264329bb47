"""What the actions of point control are: motor commands, or thrust and body rates, as autopilots take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import jax.numpy as jnp
from jax import Array

from bridge.crazyflie.cfg import MOTORS, PREVIOUS, RateControllerCfg
from bridge.crazyflie.dynamics import Craft, Motors, Quadrotor, mixed, polynomial
from bridge.crazyflie.mixer import arms, rotor_speeds, thrust_limits
from bridge.crazyflie.physics import motor_rate
from bridge.crazyflie.vectors import Vector


class Commands(Protocol):
    """A choice of what actions mean. A command is four numbers in 0..1, each (B,)."""

    @property
    def layout(self) -> tuple[str, ...]:
        """Their names."""
        ...

    @property
    def observed(self) -> str:
        """What the observation calls those of the step before."""
        ...

    def at_rest(self, quadrotor: Quadrotor, rotor_vel: Array) -> Motors:
        """The command under which ``quadrotor`` does not turn and its motors go on at ``rotor_vel`` (rpm)."""
        ...

    def controller(self, quadrotor: Quadrotor, command: Motors) -> Callable[[Craft], Motors]:
        """The rotor speeds (rpm) to be commanded under ``command``, at every physics step anew."""
        ...


@dataclass(frozen=True)
class MotorCommands:
    """Each motor's speed, from the slowest to the fastest."""

    layout: tuple[str, ...] = MOTORS
    observed: str = PREVIOUS

    def at_rest(self, quadrotor: Quadrotor, rotor_vel: Array) -> Motors:
        """See :class:`Commands`."""
        return (quadrotor.motor_speeds(rotor_vel),) * 4

    def controller(self, quadrotor: Quadrotor, command: Motors) -> Callable[[Craft], Motors]:
        """See :class:`Commands`."""
        speeds = quadrotor.command(command)
        return lambda craft: speeds


@dataclass(frozen=True)
class ThrustAndRates:
    """Collective thrust (of four motors at full speed) and body rates, held by a controller in the craft.

    The motors follow their commands with the rate r (1/s), so a body axis under the torque J (K (w_cmd - w) - D dw/dt)
    answers by ``w'' + r (1 + D) w' + r K w = r K w_cmd``. Gains that put both its poles at the bandwidth p (1/s) are
    ``K = p^2 / r`` and ``D = 2 p / r - 1``; motors so fast that D would be negative need none. The controller knows the
    nominal craft, not what an episode made of it.
    """

    cfg: RateControllerCfg = field(default_factory=RateControllerCfg)
    layout: tuple[str, ...] = ("collective_thrust", "roll_rate", "pitch_rate", "yaw_rate")
    observed: str = "previous_thrust_and_rates"

    def at_rest(self, quadrotor: Quadrotor, rotor_vel: Array) -> Motors:
        """See :class:`Commands`."""
        thrust = polynomial(quadrotor.thrust, rotor_vel) / thrust_limits(quadrotor)[1]
        return (thrust, *(jnp.full_like(thrust, 0.5),) * 3)

    def controller(self, quadrotor: Quadrotor, command: Motors) -> Callable[[Craft], Motors]:
        """See :class:`Commands`."""
        q, (_, full) = quadrotor, thrust_limits(quadrotor)
        limits = (self.cfg.max_rate, self.cfg.max_rate, self.cfg.max_yaw_rate)
        wanted = Vector(*(limit * (2.0 * c - 1.0) for limit, c in zip(limits, command[1:], strict=True)))
        rate, arm = motor_rate(q), arms(q)

        def torque(axis: int, bandwidth: float, inertia: Array, error: Array, thrusts: list[Array]) -> Array:
            stiffness, damping = bandwidth**2 / rate, jnp.maximum(2.0 * bandwidth / rate - 1.0, 0.0)
            # J D dw/dt is D times the torque that acts, which is that of the thrusts now.
            return inertia * stiffness * error - damping * arm[axis] * mixed(axis, thrusts)

        def control(craft: Craft) -> Motors:
            thrusts = [polynomial(q.thrust, w) for w in craft.rotor_vel]
            bandwidths = (self.cfg.bandwidth, self.cfg.bandwidth, self.cfg.yaw_bandwidth)
            axes = zip(range(3), bandwidths, q.inertia.parts, (wanted - craft.ang_vel).parts, strict=True)
            return rotor_speeds(q, 4.0 * full * command[0], Vector(*(torque(*axis, thrusts) for axis in axes)))

        return control


def commands_of(action: str, cfg: RateControllerCfg) -> Commands:
    """The choice ``env.action``, see :data:`bridge.crazyflie.cfg.ACTIONS`."""
    return MotorCommands() if action == "motors" else ThrustAndRates(cfg)
