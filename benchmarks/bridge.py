"""What stands between a torch simulator and the learner: time a step, beside plain torch and rsl_rl.

    python -m benchmarks.bridge --out docs/bridge.json

Three measurements, each alternating with its peer in this process, medians of several rounds, one torch thread:

1. the bridge's own time a step: on a simulator that does nothing, and around one that costs next to nothing;
2. that time as a share of a step of point control on the real Isaac Lab, 64 environments (with ``isaaclab`` installed);
3. collection with 256 environments and two 64-64-64 networks on the cheap simulator, ours against rsl_rl's.

About 2 minutes on two CPU cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import torch
from rsl_rl.algorithms import Distillation as TorchDistillation
from rsl_rl.models import MLPModel
from rsl_rl.storage import RolloutStorage
from tensordict import TensorDict

from benchmarks.torch_side import finish, torch_device
from benchmarks.trivial import TrivialEnv
from bridge.isaaclab.cfg import IsaacLabCfg
from bridge.isaaclab.env import IsaacLabEnv
from bridge.isaaclab.simulator import POINT_CONTROL
from jdistill.core import networks
from jdistill.core.actor import PolicyActor
from jdistill.core.config import AgentCfg, AlgorithmCfg, StudentCfg
from jdistill.core.distillation import Distillation
from jdistill.core.networks import Policy
from jdistill.run import compilation
from jdistill.run.provenance import machine

STEPS, ROUNDS = 400, 9
HIDDEN = [64, 64, 64]


def seconds(work: Callable[[], Any]) -> float:
    """Duration of one call."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def alternate(works: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, float]:
    """Median seconds of each, called in turns after one call to warm up."""
    for work in works.values():
        work()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            times[name].append(seconds(work))
    return {name: statistics.median(values) for name, values in times.items()}


def compiled_loop(env: IsaacLabEnv, steps: int) -> Callable[[], Any]:
    """A compiled program of ``steps`` steps with actions that depend on the observation, and nothing else."""

    def step(state: Any, _: None) -> Any:
        return env.step(state, 0.1 * state.obs[env.groups[0]][:, : env.num_actions]), None

    start = env.drive(jax.jit(env.reset), jax.random.key(0))
    program = jax.jit(lambda state: jax.lax.scan(step, state, None, length=steps)[0])
    return lambda: env.drive(program, start)


def overhead() -> dict[str, float]:
    """Microseconds a step of the bridge, 64 environments of 22 and 26 observations.

    ``alone_us`` is a step of a simulator that does nothing. ``around_us`` is what is left of a step of the cheap
    simulator without the simulator's own time: more, because torch's code and XLA's push each other out of the caches.
    """
    idle = TrivialEnv(64, device=torch_device())
    nothing = idle.step(torch.zeros(64, 4, device=idle.device))
    idle.step = lambda actions: nothing  # type: ignore[method-assign]
    cheap = TrivialEnv(64, device=torch_device())
    watch = Stopwatch(cheap)
    times = alternate({"alone": compiled_loop(IsaacLabEnv(idle), STEPS)})
    loop = compiled_loop(IsaacLabEnv(cheap), STEPS)
    loop()
    around = statistics.median(watch.outside(loop) for _ in range(ROUNDS))
    return {"alone_us": 1e6 * times["alone"] / STEPS, "around_us": 1e6 * around / STEPS}


class Stopwatch:
    """Adds up the time that an environment spends in its own ``step``."""

    def __init__(self, env: Any):
        self._step, self._inside = env.step, 0.0
        env.step = self._timed

    def _timed(self, action: torch.Tensor) -> Any:
        began = time.perf_counter()
        out = self._step(action)
        self._inside += time.perf_counter() - began
        return out

    def outside(self, work: Callable[[], Any]) -> float:
        """Seconds of ``work`` that were not spent in ``step``."""
        self._inside = 0.0
        whole = seconds(work)
        return whole - self._inside


def share_of_isaaclab(overrides: list[str]) -> dict[str, float]:
    """The bridge's share of a step of point control on Isaac Lab: all time outside of the simulator's own ``step``."""
    from bridge.isaaclab.launch import open_env, parse_flags

    launch, _ = parse_flags([], torch_device())
    cfg = IsaacLabCfg(num_envs=64, overrides=overrides)
    with open_env(POINT_CONTROL, cfg, launch, 0, None, "callback", ".") as env:
        watch, loop = Stopwatch(env.env), compiled_loop(env, 50)
        loop()
        whole = statistics.median(seconds(loop) for _ in range(3)) / 50
        outside = statistics.median(watch.outside(loop) for _ in range(3)) / 50
        return {"step_ms": 1e3 * whole, "overhead_us": 1e6 * outside, "share": outside / whole}


def our_collection(num_envs: int) -> Callable[[], Any]:
    """Our rollout: both networks act, the student's action steps the simulator, everything is stored."""
    env = IsaacLabEnv(TrivialEnv(num_envs, device=torch_device()), groups=["policy", "critic"])
    groups = {"student": ["policy"], "teacher": ["critic"]}
    student = StudentCfg(pre_dims=[], rnn_type=None, hidden_dims=HIDDEN, output_activation="identity")
    cfg = AgentCfg(num_steps_per_env=STEPS, obs_groups=groups, student=student, algorithm=AlgorithmCfg())
    policy = Policy(4, tuple(HIDDEN))
    alg = Distillation(env, policy, cfg)
    teacher = PolicyActor(policy, networks.init(policy, jax.random.key(1), 26, True), ("critic",))
    state = env.drive(jax.jit(alg.init), jax.random.key(0), teacher)
    program = jax.jit(alg.rollout)
    return lambda: env.drive(program, state, teacher)


def their_collection(num_envs: int) -> Callable[[], Any]:
    """rsl_rl's collection loop, as its runner writes it, with its own models and storage."""
    env = TrivialEnv(num_envs, device=torch_device())

    def tensordict(obs: dict[str, torch.Tensor]) -> TensorDict:
        return TensorDict(dict(obs), batch_size=[num_envs], device=env.device)

    obs = tensordict(env.reset(seed=0)[0])
    groups = {"student": ["policy"], "teacher": ["critic"]}
    models = [
        MLPModel(obs, groups, role, 4, HIDDEN, obs_normalization=True, distribution_cfg={"class_name": name}).to(
            env.device
        )
        for role, name in (("student", "GaussianDistribution"), ("teacher", "GaussianDistribution"))
    ]
    for model in models:
        model.to(env.device)
    storage = RolloutStorage("distillation", num_envs, STEPS, obs, [4], torch_device())
    algorithm = TorchDistillation(models[0], models[1], storage, gradient_length=STEPS, device=torch_device())
    algorithm.train_mode()

    def collect() -> None:
        nonlocal obs
        with torch.inference_mode():
            for _ in range(STEPS):
                actions = algorithm.act(obs)
                raw, rewards, terminated, truncated, extras = env.step(actions)
                obs = tensordict(raw)
                algorithm.process_env_step(obs, rewards, terminated | truncated, extras)
        algorithm.storage.clear()
        finish()

    return collect


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num_envs", type=int, default=256, help="of the collection (256)")
    parser.add_argument("--without_isaaclab", action="store_true", help="leave the second measurement out")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("overrides", nargs="*", metavar="env.KEY=VALUE", help="settings of the Isaac Lab task")
    args = parser.parse_args()
    compilation.prepare()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"machine": machine(), "bridge": overhead()}
    times = alternate({"jdistill": our_collection(args.num_envs), "rsl_rl": their_collection(args.num_envs)})
    results["collection"] = {name: 1e3 * value / STEPS for name, value in times.items()}
    results["collection"]["ratio"] = times["rsl_rl"] / times["jdistill"]
    if not args.without_isaaclab:
        results["isaaclab"] = share_of_isaaclab(args.overrides)
    bridge, collection = results["bridge"], results["collection"]
    print("| measurement | value |\n|---|---|")
    print(f"| bridge alone, 64 environments | {bridge['alone_us']:.0f} us a step |")
    print(f"| bridge around a cheap simulator, 64 environments | {bridge['around_us']:.0f} us a step |")
    print(f"| collection, {args.num_envs} environments, rsl_rl | {collection['rsl_rl']:.3f} ms a step |")
    print(f"| collection, {args.num_envs} environments, jdistill | {collection['jdistill']:.3f} ms a step |")
    print(f"| ratio | {collection['ratio']:.2f} |")
    if "isaaclab" in results:
        real = results["isaaclab"]
        print(f"| point control on Isaac Lab, 64 environments | {real['step_ms']:.1f} ms a step |")
        print(f"| bridge's share of it | {real['share']:.1%} ({real['overhead_us']:.0f} us) |")
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
