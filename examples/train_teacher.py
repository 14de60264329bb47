"""Train the teacher of the embedded point-control task from scratch, with analytic policy gradients.

The embedded simulator is differentiable, so the policy needs no reward samples and no critic: the cost of a
stretch of an episode is differentiated through simulator and policy with respect to the policy's parameters. A
stretch (``--horizon`` steps) begins where the last one ended, so the policy learns on the states it meets
itself; some environments start afresh between stretches.

A teacher is worth what its student can copy, so it is trained with two handicaps. Its rotor speeds are noisy:
the student has no rotor speeds, and a teacher that leans on them gives actions that the student cannot
reproduce. And its actions are executed with errors, as a student's are, which makes it hold its point firmly
in spite of them. ::

    python examples/train_teacher.py --out jdistill/teachers/crazyflie.safetensors

``--quadrotors`` trains a teacher for quadrotors that differ widely; it observes the physical parameters of its own
one. The bundled one was made in three runs: from scratch, then twice more with the trim loss that takes away its
offsets, the last time with larger errors for a firmer hold. ::

    train="python examples/train_teacher.py --quadrotors --width 0.01"
    again="--learning_rate 1e-3 --updates"
    $train --trim 0 --out a.safetensors
    $train --init a.safetensors $again 300 --action_error 0.03 --seed 1 --out b.safetensors
    $train --init b.safetensors $again 350 --action_error 0.2 --seed 2 --out quadrotors.safetensors
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import Array

from bridge.crazyflie import PhysicalState, PointControl, PointControlCfg
from bridge.crazyflie.cfg import RandomizationCfg, ResetCfg, TargetCfg
from bridge.crazyflie.dynamics import Craft
from bridge.crazyflie.physics import felt
from bridge.crazyflie.vectors import Vector
from bridge.env import AutoReset, State, where_done
from jdistill.core import networks
from jdistill.core.networks import Policy, PolicyState
from jdistill.evaluation.evaluate import evaluate
from jdistill.export.policy_file import load_policy, save_policy

GROUP = "teacher"
ROTOR_SPEEDS = slice(22, 26)
"""Where the rotor speeds are in the observation."""
NORMALIZER_UPDATES = 100
"""Updates after which the normalizer is frozen: by then the policy can fly, and what it observes is typical."""


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="policy file to write")
    parser.add_argument("--quadrotors", action="store_true", help="for quadrotors that differ widely")
    parser.add_argument("--init", type=Path, help="policy file to begin with, in place of a fresh policy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_envs", type=int, default=256)
    parser.add_argument("--horizon", type=int, default=120, help="control steps the gradient flows through")
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--learning_rate", type=float, default=2e-3, help="decays to zero along a cosine")
    parser.add_argument("--rotor_noise", type=float, default=0.03, help="standard deviation, per step, 0..1")
    parser.add_argument("--action_error", type=float, default=0.1, help="the same, per stretch, -1..1")
    parser.add_argument("--trim", type=float, default=20.0, help="weight of the trim loss, with --quadrotors")
    parser.add_argument("--width", type=float, default=0.03, help="below this distance (m) being closer is worth less")
    return parser.parse_args()


def task_cfg(args: argparse.Namespace) -> PointControlCfg:
    """The task that the teacher is for: the default one, or that of ``configs/crazyflie_raptor.yaml``."""
    if not args.quadrotors:
        return PointControlCfg()
    return PointControlCfg(
        drone="cf2x_T350",
        teacher_sees_physics=True,
        randomization=RandomizationCfg(mass=0.1, inertia=0.4, thrust=0.3, motor=0.5),
    )


def training_cfg(args: argparse.Namespace) -> PointControlCfg:
    """The task made harder: wider starts, wider physical parameters, wilder targets."""
    widths = RandomizationCfg(mass=0.04, inertia=0.05, thrust=0.04, motor=0.05)
    cfg = task_cfg(args)
    return dataclasses.replace(
        cfg,
        num_envs=args.num_envs,
        target=TargetCfg(sigma=1.0, max_speed_limit=2.0),
        reset=ResetCfg(position=15.0, linear_velocity=1.5, angular_velocity=3.0, tilt=70.0),
        randomization=cfg.randomization if args.quadrotors else widths,
    )


# ------------------------------------------------------------------------------------------ training


class Handicap(struct.PyTreeNode):
    """What disturbs the policy during a stretch of T steps."""

    rotor_noise: Array
    """(T, B, 4) added to the rotor speeds that the policy sees."""
    action_error: Array
    """(B, 4) added to every action of the stretch."""

    @staticmethod
    def draw(args: argparse.Namespace, rng: Array) -> Handicap:
        """Normal deviates of the standard deviations that ``args`` asks for."""
        noise_key, error_key = jax.random.split(rng)
        noise = jax.random.normal(noise_key, (args.horizon, args.num_envs, 4))
        error = jax.random.normal(error_key, (args.num_envs, 4))
        return Handicap(rotor_noise=args.rotor_noise * noise, action_error=args.action_error * error)


def huber(x: Vector, width: float) -> Array:
    """Smooth length of vectors: |x|^2 / (2 width) near zero, |x| far away (pseudo-Huber)."""
    return jnp.sqrt(x.dot(x) + width * width) - width


def vertical(craft: Craft) -> Array:
    """Cosine of the tilt (B,)."""
    return craft.quat.rotation().z.z


def cost(before: PhysicalState, after: PhysicalState, width: float) -> Array:
    """What a control step costs (B,); smooth everywhere, for the gradient. ``width`` (m) rounds off the distance's."""
    craft, target = after.craft, after.target
    tracking = huber(craft.pos - target.pos, width) + 0.15 * huber(craft.vel - target.vel, 0.2)
    rate = craft.ang_vel
    rates = 0.003 * rate.x**2 + 0.003 * rate.y**2 + 0.01 * rate.z**2
    roughness = 4.0 * sum((a - b) ** 2 for a, b in zip(after.last_action, before.last_action, strict=True))
    tilt = 0.1 * (1.0 - vertical(craft))
    # The task's limits are 4 m/s and 90 degrees. Walls that rise well before them have a gradient that a
    # termination lacks.
    walls = jnp.sum(jax.nn.relu(jnp.abs(craft.vel.array) - 3.0) ** 2, axis=-1)
    walls += 10.0 * jax.nn.relu(0.3 - vertical(craft)) ** 2
    return tracking + rates + roughness + tilt + walls


def stretch(
    env: PointControl, policy: Policy, policy_state: PolicyState, state: State, handicap: Handicap, width: float
) -> Any:
    """Fly the steps of a stretch: mean cost, and beside it the last State and all observations (T, B, D)."""

    # Recomputing each step in the backward pass is faster here than storing what it needs.
    @jax.checkpoint
    def step(state: State, noise: Array):
        obs = state.obs[GROUP].at[:, ROTOR_SPEEDS].add(noise)
        _, action = networks.act(policy, policy_state, (), obs)
        after = env.step(state, action + handicap.action_error)
        return after, (cost(state.pipeline_state, after.pipeline_state, width), state.obs[GROUP])

    state, (costs, obs) = jax.lax.scan(step, state, handicap.rotor_noise)
    return costs.mean(), (state, obs)


def trim_loss(env: PointControl, policy: Policy, policy_state: PolicyState, rng: Array) -> Array:
    """How far the policy is from rest where it should rest: the mean squared difference from the hover command.

    For craft that hover level on a resting target, with any heading and any physical parameters. An offset of the
    policy's there is an offset of the craft from its point, which the cost of an episode barely tells from the rest.
    """
    sim = env.reset(rng).pipeline_state
    hover = felt(sim.physics.apply(env.quadrotor))[0]
    craft = sim.craft.replace(rotor_vel=(env.quadrotor.command(hover),) * 4)
    sim = sim.replace(craft=craft, last_action=(hover,) * 4)
    _, action = networks.act(policy, policy_state, (), env.observe_pipeline_state(sim)[GROUP])
    return jnp.mean((action - (2.0 * hover[:, None] - 1.0)) ** 2)


def refresh(env: PointControl, state: State, rng: Array, share: float = 0.15) -> State:
    """Restart a random share of the environments and all that have left the limits."""
    fresh_key, pick_key = jax.random.split(rng)
    fresh = env.reset(fresh_key)
    craft = state.pipeline_state.craft
    error = (craft.pos - state.pipeline_state.target.pos).norm()
    # `<` is false for what is not a number, so that such states restart as well.
    fine = (error < 5.0) & (jnp.abs(craft.vel.array).max(axis=-1) < 6.0) & (vertical(craft) > -0.2)
    fine &= jnp.abs(craft.ang_vel.array).max(axis=-1) < 35.0
    done = ~fine | (jax.random.uniform(pick_key, fine.shape) < share)
    chosen = where_done(done, (fresh.pipeline_state, fresh.obs), (state.pipeline_state, state.obs))
    return state.replace(pipeline_state=chosen[0], obs=chosen[1])


def hovering_start(policy_state: PolicyState, action: Array) -> PolicyState:
    """Let the untrained policy command about ``action`` (-1..1) on all motors, whatever it sees."""
    last = max(k for k in policy_state.params if k.startswith("mlp_"))
    dense = policy_state.params[last]["dense"]
    dense = {"kernel": 0.1 * dense["kernel"], "bias": jnp.full_like(dense["bias"], jnp.arctanh(action))}
    return policy_state.replace(params={**policy_state.params, last: {"dense": dense}})


def train(args: argparse.Namespace) -> tuple[Policy, PolicyState]:
    """Run all updates; returns the network, its parameters and its normalizer."""
    env = PointControl(training_cfg(args))
    policy = Policy(num_actions=4, hidden_dims=(64, 64, 64), activation="elu", output_activation="tanh")
    init_key, reset_key, rng = jax.random.split(jax.random.key(args.seed), 3)
    policy_state = networks.init(policy, init_key, env.obs_specs[GROUP].shape[0], normalize=True)
    policy_state = hovering_start(policy_state, 2.0 * env.hover_action - 1.0)
    if args.init:
        policy, policy_state, _ = load_policy(args.init)
    resting = dataclasses.replace(env.cfg, target=TargetCfg(kind="fixed"), reset=ResetCfg(on_target_fraction=1.0))
    at_rest = PointControl(resting)
    schedule = optax.cosine_decay_schedule(args.learning_rate, args.updates)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99))

    @jax.jit
    def update(policy_state: PolicyState, opt_state: Any, state: State, rng: Array, normalize: Array):
        refresh_key, handicap_key = jax.random.split(rng)
        state = refresh(env, state, refresh_key)
        handicap = Handicap.draw(args, handicap_key)

        def loss(params):
            candidate = policy_state.replace(params=params)
            value, after = stretch(env, policy, candidate, state, handicap, args.width)
            if args.quadrotors:
                value += args.trim * trim_loss(at_rest, policy, candidate, handicap_key)
            return value, after

        (value, (state, obs)), gradient = jax.value_and_grad(loss, has_aux=True)(policy_state.params)
        norm = optax.global_norm(gradient)
        gradient = jax.tree.map(lambda g: jnp.where(jnp.isfinite(norm), g, 0.0), gradient)
        change, opt_state = optimizer.update(gradient, opt_state)
        assert policy_state.normalizer is not None
        seen = jax.lax.cond(normalize, policy_state.normalizer.update, lambda _: policy_state.normalizer, obs)
        policy_state = PolicyState(params=optax.apply_updates(policy_state.params, change), normalizer=seen)
        return policy_state, opt_state, state, value, norm

    state, opt_state = jax.jit(env.reset)(reset_key), optimizer.init(policy_state.params)
    begin = time.perf_counter()
    for i in range(args.updates):
        rng, key = jax.random.split(rng)
        policy_state, opt_state, state, value, norm = update(
            policy_state, opt_state, state, key, i < NORMALIZER_UPDATES and not args.init
        )
        if i % 50 == 0 or i == args.updates - 1:
            elapsed = time.perf_counter() - begin
            print(f"{i:5d}  cost {value:.4f}  gradient norm {norm:7.3f}  {elapsed:5.0f} s", flush=True)
    return policy, policy_state


# ---------------------------------------------------------------------------------------- evaluation


def evaluate_all(task: PointControlCfg, policy: Policy, policy_state: PolicyState, seed: int = 1000) -> dict[str, dict]:
    """The bundled numbers: 1000 episodes of the task and of variations of it."""
    cases: dict[str, dict[str, Any]] = {
        "mixed": {},
        "fixed": {"target": TargetCfg(kind="fixed")},
        "langevin": {"target": TargetCfg(kind="langevin")},
        "figure_eight": {"target": TargetCfg(kind="figure_eight")},
        "mixed_tilt_60": {"reset": ResetCfg(tilt=60.0)},
        "mixed_tilt_90": {"reset": ResetCfg(tilt=90.0)},
    }
    numbers = {}
    for i, (name, changes) in enumerate(cases.items()):
        cfg = dataclasses.replace(task, num_envs=1000, **changes)
        numbers[name] = evaluate(AutoReset(PointControl(cfg)), policy, policy_state, [GROUP], seed + i)
        print(f"{name}: {json.dumps(numbers[name])}", flush=True)
    return numbers


def describe(env_cfg: PointControlCfg, numbers: dict[str, dict]) -> dict[str, Any]:
    """The policy file's header: what goes in, what comes out, what it is worth."""
    env = PointControl(env_cfg)
    return {
        "observation": {
            "group": GROUP,
            "frame": env_cfg.teacher_frame,
            "layout": [dict(zip(("name", "size", "unit"), part, strict=True)) for part in env.obs_specs[GROUP].layout],
        },
        "action": env.action_layout,
        "drone": env_cfg.drone,
        "trained_by": "examples/train_teacher.py",
        "numbers": numbers,
    }


def main() -> None:
    """Train, evaluate, write."""
    args = parse_args()
    policy, policy_state = train(args)
    task = task_cfg(args)
    numbers = evaluate_all(task, policy, policy_state)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    save_policy(args.out, policy, policy_state, describe(task, numbers))
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
