"""Any Isaac Lab environment as one of ours, inside the compiled program.

What is wrapped is a batch of environments that speaks Isaac Lab's vectorised Gymnasium API: a ``DirectRLEnv``, a
``ManagerBasedRLEnv``, or whatever else (mjlab's) has

- ``reset(seed=...) -> (obs, extras)`` and ``step(action) -> (obs, reward, terminated, truncated, extras)`` with torch
  tensors, restarting finished environments inside ``step``;
- ``num_envs``, ``max_episode_length``, ``step_dt``, ``episode_length_buf``, and ``single_action_space`` or
  ``action_manager``.

The simulator keeps its state to itself, so a State of ours holds what it said last and not what it is.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import torch
from jax import Array

from bridge.dlpack import DLPackError, torch_call
from bridge.env import (
    Color,
    Layout,
    ObservationSpec,
    Renderer,
    State,
)
from bridge.episodes import begin_episodes, count_episodes
from bridge.errors import SettingError, SimulatorError
from bridge.isaaclab.log import ScalarLog
from bridge.isaaclab.managers import names_of
from bridge.isaaclab.render import VisualizerRenderer
from bridge.keys import random_ages, single_key
from bridge.main_thread import MainThread
from bridge.observation import looks_channels_first

T = TypeVar("T")

MODES = ("callback", "host")
OUTCOME = ("reward", "terminated", "truncated")
"""What a step says of each environment, beside its observations."""


class IsaacLabEnv:
    """A :class:`bridge.env.TrainingEnv` of the running environment ``env``, which is reset here.

    ``step`` can be traced: inside the compiled program the simulator is stepped by a callback that sees XLA's own
    buffers, so that actions arrive as views of them and observations are written straight into them. No host
    synchronisation is added to the simulator's own.

    Args:
        env: the environment, wrapped by Gymnasium or not. It belongs to this object from now on, which does not close
            it.
        groups: observation groups to bring over; None brings all, images too. The others cost nothing. A group that is
            a dictionary stands for all that is in it.
        mode: ``callback`` steps the simulator on whichever thread XLA calls back, ``host`` on the one that calls
            :meth:`drive`. The numbers are the same.

    Raises:
        SettingError: an environment that cannot be trained on; one line.
    """

    restorable = False
    calls_back = True
    """A compiled program that steps this environment leaves the device in every step."""

    def __init__(self, env: Any, groups: Sequence[str] | None = None, mode: str = "callback"):
        if mode not in MODES:
            raise SettingError(f"bridge.mode={mode}: expected one of {', '.join(MODES)}")
        self.env = env
        self.unwrapped = getattr(env, "unwrapped", env)
        self.num_envs = int(self.unwrapped.num_envs)
        self.num_actions = _num_actions(self.unwrapped)
        self.max_episode_length = _counted(self.unwrapped.max_episode_length)
        self.step_dt = float(self.unwrapped.step_dt)
        # Some of Isaac Lab's buffers are filled by the first step only, which makes the first reset unlike all others.
        obs = _flat(self.env.reset()[0])
        if not obs:
            raise SettingError("the environment observes nothing, so there is nothing to learn from")
        self._names = names_of(self.unwrapped)
        self.obs_specs: Mapping[str, ObservationSpec] = {
            name: self._spec(name, value) for name, (_, value) in obs.items()
        }
        self.action_layout: Mapping[str, Any] = self._names.action_layout or getattr(
            self.unwrapped, "action_layout", {}
        )
        self.deployment = self._names.deployment
        self.groups = [name for name in self.obs_specs if groups is None or _asked_for(name, groups)]
        self._paths = [(name, obs[name][0], obs[name][1].ndim == 1) for name in self.groups]
        _check_device(next(iter(obs.values()))[1].device)
        self._main_thread = MainThread() if mode == "host" else None
        self._failure: Exception | None = None
        self._outcome: tuple[str, ...] = OUTCOME
        self._breaking = torch.zeros(0)
        """(B,) bool, which environments the simulator is to restart with its next step, as they broke in the last."""
        self._log = ScalarLog()

    def _spec(self, name: str, value: torch.Tensor) -> ObservationSpec:
        """Vectors, and single numbers as vectors of one, come over as float32; all else as it is."""
        if value.ndim == 0 or value.shape[0] != self.num_envs:
            shape = f"({self.num_envs}, ...)"
            raise SettingError(f"observation group '{name}' has shape {tuple(value.shape)}, expected {shape}")
        dtype = "float32" if value.ndim <= 2 else str(value.dtype).removeprefix("torch.")
        layouts, frames = (getattr(self.unwrapped, kind, {}) for kind in ("obs_layouts", "obs_frames"))
        layout: Layout = tuple(layouts.get(name, ()))
        terms: Mapping[str, Any] = {}
        # A wrapper may have changed what the managers made.
        if (managed := self._names.layouts.get(name, ())) and value.shape[1:] == (sum(size for _, size, _ in managed),):
            layout, terms = managed, self._names.terms[name]
        held = jax.dtypes.canonicalize_dtype(dtype)  # JAX has no 64 bits, as long as it is not told to.
        sizes = tuple(value.shape[1:]) or (1,)
        return ObservationSpec(sizes, held, layout, frames.get(name), terms, looks_channels_first(sizes))

    def restarting_nonfinite(self) -> IsaacLabEnv:
        """See :func:`bridge.nonfinite.restarting`: this object, from now on.

        Simulators restart what is over of itself only: an environment that broke is made as old as an episode gets, so
        that its next step is its last. That step counts as broken too.
        """
        self._outcome = (*OUTCOME, "nonfinite")
        return self

    # -- what the learner traces -----------------------------------------------------------------------------------

    def reset(self, rng: Array) -> State:
        """Start all episodes; ``rng``, or the first of (B,) keys, decides the simulator's seed."""
        seed = (jax.random.bits(single_key(rng), (), jnp.uint32) >> 1).astype(jnp.int32)
        out = self._call(self._torch_reset)(seed)
        zeros, no = jnp.zeros(self.num_envs), jnp.zeros(self.num_envs, bool)
        broken = {} if self._outcome == OUTCOME else {"nonfinite": no}
        return State(
            pipeline_state=(),
            obs=out["obs"],
            reward=zeros,
            done=no,
            metrics={"episode_return": zeros, "episode_length": zeros},
            info={**begin_episodes(self.num_envs), **broken, "time_outs": no, "outcome": out["outcome"]},
        )

    def step(self, state: State, action: Array) -> State:
        """Advance every environment by one control step with ``action`` (B, A)."""
        # The order of callbacks is that of the data they pass on, so each takes what the one before it gave.
        out = self._call(self._torch_step)(action, state.info["outcome"])
        reward, (terminated, truncated, *others) = out["outcome"][0], out["outcome"][1:] > 0
        broken = dict(zip(self._outcome[len(OUTCOME) :], others, strict=True))
        terminated = functools.reduce(operator.or_, others, terminated)
        done = terminated | truncated
        metrics, counts = count_episodes(state.info, reward, done)
        return state.replace(
            obs=out["obs"],
            reward=reward,
            done=done,
            metrics=metrics,
            info={**counts, **broken, "time_outs": truncated & ~terminated, "outcome": out["outcome"]},
        )

    def randomize_episode_length(self, state: State, rng: Array) -> State:
        """Pretend the episodes began at different times, rsl_rl's ``init_at_random_ep_len``."""
        length = random_ages(rng, self.num_envs, self.max_episode_length)
        out = self._call(self._torch_set_lengths)(length, state.info["outcome"], state.obs)
        return state.replace(obs=out["obs"], info={**state.info, "outcome": out["outcome"]})

    # -- what the learner calls ------------------------------------------------------------------------------------

    def drive(self, program: Callable[..., T], *args: Any) -> T:
        """Run a compiled program that resets or steps this environment, and wait for its results.

        Raises:
            SimulatorError: the simulator failed; the message is its error in one line, its traceback the cause.
        """

        def whole() -> T:
            return jax.block_until_ready(program(*args))

        try:
            return self._main_thread.run(whole) if self._main_thread else whole()
        except jax.errors.JaxRuntimeError as e:
            if (failure := self._failure) is None:
                raise
            self._failure = None
            text = " ".join(str(failure).split()) or "no message"
            raise SimulatorError(f"the simulator failed: {type(failure).__name__}: {text[:300]}") from (
                e if isinstance(failure, DLPackError) else failure
            )

    def pop_log(self) -> dict[str, float]:
        """Means of what the simulator put into ``extras["log"]`` since the last call, under rsl_rl's tags."""
        return self._log.pop()

    def renderer(self, width: int, height: int, color: Color) -> Renderer:
        """See :class:`bridge.env.Renderer`; Isaac Lab's visualizers have no use for ``color``."""
        return VisualizerRenderer(self.unwrapped, width, height)

    # -- torch, inside the callbacks -------------------------------------------------------------------------------

    def _torch_reset(self, out: Any, seed: torch.Tensor) -> None:
        obs, _ = self.env.reset(seed=int(seed))
        self._log.pop()
        self._write(out["obs"], obs)
        out["outcome"].zero_()
        self._breaking = torch.zeros_like(out["outcome"][0], dtype=torch.bool)

    def _torch_step(self, out: Any, action: torch.Tensor, before: torch.Tensor) -> None:
        # The action's memory is XLA's and ends with this call; environments keep theirs.
        obs, reward, terminated, truncated, extras = self.env.step(action.clone())
        self._write(out["obs"], obs)
        for row, value, name in zip(out["outcome"], (reward, terminated, truncated), OUTCOME, strict=False):
            if not isinstance(value, torch.Tensor) or value.shape != row.shape:
                raise SettingError(_not_one_each(name, value, self.num_envs))
            row.copy_(value)
        self._log.add(extras.get("log"))
        if len(self._outcome) > len(OUTCOME):
            self._restart_nonfinite(out)

    def _restart_nonfinite(self, out: Any) -> None:
        """Without a look at the numbers from the host, which would wait for the device."""
        reward, terminated, truncated, nonfinite = out["outcome"]
        finite = reward.square().isfinite()
        for value in out["obs"].values():
            seen = value.square().isfinite().reshape(self.num_envs, -1).all(dim=1)
            value.masked_fill_(~seen.reshape(-1, *[1] * (value.ndim - 1)), 0)
            finite &= seen
        reward.masked_fill_(~finite, 0)
        nonfinite.copy_(~finite | self._breaking)
        self._breaking = ~finite & (terminated + truncated == 0)
        ages = self.unwrapped.episode_length_buf
        self.unwrapped.episode_length_buf = ages.masked_fill(self._breaking, self.max_episode_length)

    def _torch_set_lengths(self, out: Any, length: torch.Tensor, before: torch.Tensor, obs: Any) -> None:
        self.unwrapped.episode_length_buf = length.to(self.unwrapped.episode_length_buf.dtype, copy=True)
        for name, value in obs.items():
            out["obs"][name].copy_(value)
        out["outcome"].copy_(before)

    def _write(self, out: dict[str, torch.Tensor], obs: Any) -> None:
        for name, path, is_vector in self._paths:
            value = obs
            for key in path:
                value = value[key]
            if value.numel() != out[name].numel():  # It would be repeated to fill the array.
                raise SettingError(f"observation group '{name}' was {list(out[name].shape)}, now {list(value.shape)}")
            out[name].copy_(value[:, None] if is_vector else value)

    def _call(self, function: Callable[..., None]) -> Callable[..., Any]:
        """``function`` inside the compiled program. Its results are ``obs`` and ``outcome`` (3, B): reward, terminated,
        truncated, and perhaps nonfinite; few arrays, because each costs a microsecond or two to hand over."""

        def guarded(*args: Any) -> None:
            try:
                function(*args)
            except Exception as e:
                self._failure = e
                raise

        specs = {g: self.obs_specs[g] for g in self.groups}
        obs = {g: jax.ShapeDtypeStruct((self.num_envs, *spec.shape), spec.dtype) for g, spec in specs.items()}
        shapes = {"obs": obs, "outcome": jax.ShapeDtypeStruct((len(self._outcome), self.num_envs), jnp.float32)}
        execute = self._main_thread.execute if self._main_thread else None
        # The functions above hand XLA's memory to nobody.
        return torch_call(guarded, shapes, execute, guard=False)


def _not_one_each(name: str, value: Any, num_envs: int) -> str:
    what = f"a tensor of {list(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
    hint = (
        "; Gymnasium's TimeLimit does that: register the task without max_episode_steps" if name == "truncated" else ""
    )
    return f"step returns as '{name}' {what}, expected a tensor of [{num_envs}]{hint}"


def _flat(obs: Any, above: tuple[str, ...] = ()) -> dict[str, tuple[tuple[str, ...], torch.Tensor]]:
    """Observation groups with the keys that lead to them; those of nested groups are ``outer/inner``."""
    name = "/".join(above) or "policy"
    if isinstance(obs, torch.Tensor):
        return {name: (above, obs)}
    if not hasattr(obs, "items"):
        raise SettingError(f"observation group '{name}' is a {type(obs).__name__}, expected a torch tensor")
    return {name: group for key, value in obs.items() for name, group in _flat(value, (*above, key)).items()}


def _asked_for(name: str, groups: Sequence[str]) -> bool:
    """Whether ``name`` is one of ``groups``, or in one that is a dictionary."""
    return any(name == group or name.startswith(f"{group}/") for group in groups)


def _num_actions(env: Any) -> int:
    """Size of one action; discrete ones are refused."""
    if hasattr(env, "action_manager"):
        return int(env.action_manager.total_action_dim)
    space = env.single_action_space
    if getattr(space, "shape", None) is None or len(space.shape) != 1:
        raise SettingError(f"the environment's action space is {space}, expected a vector of numbers")
    return int(space.shape[0])


def _counted(length: float) -> int:
    """Steps of an episode; endless ones are refused."""
    if not length < 2**31:
        raise SettingError(f"an episode of {length:.0e} steps never ends: set env.episode_length_s")
    return int(length)


def _check_device(device: torch.device) -> None:
    """Raise :class:`SettingError` unless JAX computes where the simulator does."""
    platform = {"cuda": "gpu"}.get(device.type, device.type)
    if jax.default_backend() != platform:
        raise SettingError(
            f"the simulator is on {device}, JAX on {jax.default_backend()}: run both on one with --device cpu, or "
            "add JAX's GPU packages with 'uv run --extra cuda ...'"
        )
