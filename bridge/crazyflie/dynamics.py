"""The Crazyflie itself: Crazyflow's first-principles model, driven by rotor speeds."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from bridge import SCIPY_WITHOUT_ARRAY_API
from bridge.crazyflie.cfg import RandomizationCfg
from bridge.errors import SettingError


class Craft(struct.PyTreeNode):
    """Physical state of a batch of quadrotors."""

    pos: Array
    """(B, 3) m, world frame, relative to the spawn point."""
    quat: Array
    """(B, 4) xyzw, body to world."""
    vel: Array
    """(B, 3) m/s, world frame."""
    ang_vel: Array
    """(B, 3) rad/s, body frame."""
    rotor_vel: Array
    """(B, 4) rpm; motors front-right, back-right, back-left, front-left."""


class Physics(struct.PyTreeNode):
    """Multipliers on the nominal physical parameters, each (B,)."""

    mass: Array
    inertia: Array
    thrust: Array
    motor: Array

    @staticmethod
    def sample(cfg: RandomizationCfg, rng: Array, num_envs: int) -> Physics:
        """Draw each multiplier uniformly from [1 - width, 1 + width]."""
        widths = jnp.array([cfg.mass, cfg.inertia, cfg.thrust, cfg.motor])
        unit = jax.random.uniform(rng, (4, num_envs), minval=-1.0, maxval=1.0)
        return Physics(*(1.0 + widths[:, None] * unit))


class Crazyflie:
    """The airframe's constants and its pure step function."""

    def __init__(self, drone: str, num_envs: int, physics_freq: int, substeps: int):
        sim = build_sim(drone, num_envs, physics_freq)
        clip = sim.step_pipeline["clip_rotor_vel_cmd"].keywords
        self.rotor_min = float(clip["lower"])
        """Slowest rotor speed, rpm."""
        self.rotor_max = float(clip["upper"])
        """Fastest rotor speed, rpm."""
        self._template = sim.data
        # The pipeline minus the floor: the task flies around its spawn point, wherever that is.
        self._stages: dict[str, Callable[[Any], Any]] = {
            name: fn for name, fn in sim.step_pipeline.items() if name != "clip_floor_pos"
        }
        self._substeps = substeps
        params = sim.data.params
        self.arm_length = float(params.L[0]) * 2**0.5
        """Distance of a motor from the centre, m."""
        c0, c1, c2 = (float(c) for c in params.rpm2thrust[0])
        weight = float(params.mass[0]) * -float(params.gravity_vec[2])
        self.weight = weight
        """Of the nominal craft, N."""
        self.hover_rotor_vel = (-c1 + (c1**2 - 4 * c2 * (c0 - weight / 4)) ** 0.5) / (2 * c2)
        """Rotor speed that carries the nominal craft, rpm."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The airframe's numbers, a pytree of the same structure for every airframe."""
        names = ("rotor_min", "rotor_max", "arm_length", "weight", "hover_rotor_vel")
        return {"params": self._template.params, **{name: getattr(self, name) for name in names}}

    def with_parameters(self, parameters: dict[str, Any]) -> Crazyflie:
        """Another airframe in the same simulator."""
        other = copy.copy(self)
        vars(other).update({name: value for name, value in parameters.items() if name != "params"})
        other._template = self._template.replace(params=parameters["params"])
        clip: Any = self._stages["clip_rotor_vel_cmd"]
        clip = functools.partial(clip, lower=other.rotor_min, upper=other.rotor_max)
        other._stages = {**self._stages, "clip_rotor_vel_cmd": clip}
        return other

    def command(self, action: Array) -> Array:
        """Motor commands in [0, 1] (B, 4) to rotor speeds in rpm: linear between the slowest and the fastest."""
        return self.rotor_min + action * (self.rotor_max - self.rotor_min)

    def motor_speeds(self, craft: Craft) -> Array:
        """Rotor speeds (B, 4) on the scale of :meth:`command`, so that a steady motor's speed equals its command."""
        return (craft.rotor_vel - self.rotor_min) / (self.rotor_max - self.rotor_min)

    def step(self, craft: Craft, physics: Physics, rotor_cmd: Array, force: Array | None = None) -> Craft:
        """Advance by one control step with the rotor speeds ``rotor_cmd`` (B, 4) in rpm commanded.

        ``force`` (B, 3), in N and in the world frame, acts on the centre of mass throughout.
        """
        data = self._template
        states = data.states.replace(**{k: v[:, None] for k, v in vars(craft).items()})
        if force is not None:
            states = states.replace(force=force[:, None])
        data = data.replace(
            states=states,
            controls=data.controls.replace(rotor_vel=rotor_cmd[:, None]),
            params=self._scaled_params(physics),
        )
        for _ in range(self._substeps):
            for stage in self._stages.values():
                data = stage(data)
        return Craft(**{k: getattr(data.states, k)[:, 0] for k in vars(craft)})

    def felt(self, physics: Physics) -> Array:
        """What the physical parameters mean to a policy (B, 4), see :data:`bridge.crazyflie.cfg.PHYSICS`.

        The motor command that carries the craft; thrust over weight at full speed; the angular acceleration about the
        roll axis when the motors of one side run at full speed; and the rate at which a motor near hover approaches
        its command, spin-up and spin-down averaged.
        """
        params = self._template.params
        c0, c1, c2 = (params.rpm2thrust[0, i] * physics.thrust for i in range(3))
        weight = self.weight * physics.mass
        hover = (-c1 + jnp.sqrt(c1**2 - 4 * c2 * (c0 - weight / 4))) / (2 * c2)
        full = c0 + c1 * self.rotor_max + c2 * self.rotor_max**2
        roll = 2 * full * params.L[0] / (params.J[0, 0] * physics.inertia)
        up, up2, down, down2 = (params.rotor_dyn_coef[0, i] * physics.motor for i in range(4))
        rate = 0.5 * (up + down) + (up2 + down2) * hover
        command = (hover - self.rotor_min) / (self.rotor_max - self.rotor_min)
        return jnp.stack([command, 4 * full / weight, roll, rate], axis=-1)

    def _scaled_params(self, physics: Physics) -> Any:
        """Crazyflow's parameters with a leading (B, 1) for worlds and drones."""
        nominal = self._template.params
        scale = {k: v[:, None, None] for k, v in vars(physics).items()}
        return nominal.replace(
            mass=nominal.mass * scale["mass"],
            J=nominal.J * scale["inertia"][..., None],
            J_inv=nominal.J_inv / scale["inertia"][..., None],
            rpm2thrust=nominal.rpm2thrust * scale["thrust"][..., None],
            rotor_dyn_coef=nominal.rotor_dyn_coef * scale["motor"][..., None],
        )


def rotation_matrix(quat: Array) -> Array:
    """Unit quaternions xyzw (B, 4) to rotation matrices (B, 3, 3), body to world."""
    x, y, z, w = jnp.moveaxis(quat, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def build_sim(drone: str, num_envs: int, physics_freq: int, num_drones: int = 1) -> Any:
    """Crazyflow's simulator, ``num_drones`` in each environment.

    The remarks that its dependencies print at import are kept off the user's terminal.
    """
    if SCIPY_WITHOUT_ARRAY_API:
        raise RuntimeError("scipy was imported before bridge: set SCIPY_ARRAY_API=1 in the environment")
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mujoco
        from crazyflow.drones import Drone
        from crazyflow.dynamics import load_params
        from crazyflow.sim import Sim

        known = [d.value for d in Drone]
        if drone not in known:
            raise SettingError(f"env.drone={drone!r}: expected one of {', '.join(known)}")
        try:
            load_params("first_principles", drone)
        except KeyError as e:
            raise SettingError(f"env.drone={drone!r}: Crazyflow has no first-principles model of it") from e
        # MuJoCo warns about a naming detail of the scene, on stderr and in a log file where the user stands.
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            return Sim(
                n_worlds=num_envs,
                n_drones=num_drones,
                drone=drone,
                dynamics="first_principles",
                control="rotor_vel",
                freq=physics_freq,
                device=jax.default_backend(),
            )
        finally:
            mujoco.set_mju_user_warning(None)
