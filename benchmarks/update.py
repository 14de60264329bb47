"""The update alone: rsl_rl's ``Distillation.update`` and ours on the same rollout, weights and settings.

    python -m benchmarks.update --out docs/update.json

Both run pinned to one core with one thread, in turns; medians of ``--rounds`` adjacent pairs, compile time apart. Both
go on learning from update to update, and their losses are compared: a faster update that computed something else would
show. About 5 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rsl_rl.algorithms import Distillation as TorchDistillation
from rsl_rl.models import MLPModel
from rsl_rl.storage import RolloutStorage
from rsl_rl.utils import resolve_callable
from tensordict import TensorDict

from benchmarks.torch_side import torch_device
from bridge.crazyflie import PointControl, PointControlCfg
from bridge.env import AutoReset
from jdistill.core import networks
from jdistill.core.actor import PolicyActor
from jdistill.core.config import AgentCfg, AlgorithmCfg
from jdistill.core.distillation import Distillation, TrainState
from jdistill.core.networks import Policy
from jdistill.core.rollout import Rollout
from jdistill.export.rsl_rl import MODEL, model_cfg, to_tensors
from jdistill.run import compilation
from jdistill.run.provenance import machine

STUDENTS = {
    "gru": Policy(4, (16,), output_activation="tanh", pre_dims=(16,), rnn_type="gru", rnn_hidden_dim=16),
    "mlp": Policy(4, (64, 64, 64)),
}
"""The fork's recurrent student, and a plain MLP."""
SIZES = ((100, 400), (100, 24), (4096, 24))
"""Environments and steps of a rollout."""
GROUPS = {22: "student", 26: "teacher"}
"""The observation group of each size."""
DONE = 0.002
"""Probability that a step ends an episode, which is that of episodes of 500 steps."""


class Data(NamedTuple):
    """A rollout as arrays."""

    obs: np.ndarray
    """(T, B, D)"""
    teacher_action: np.ndarray
    """(T, B, A)"""
    done: np.ndarray
    """(T, B)"""

    @staticmethod
    def draw(envs: int, steps: int, size: int, seed: int = 0) -> Data:
        """Random observations, and actions of a teacher that depend on them."""
        rng = np.random.default_rng(seed)
        obs = rng.normal(size=(steps, envs, size)).astype(np.float32)
        teacher_action = np.tanh(obs @ rng.normal(size=(size, 4)) / size**0.5).astype(np.float32)
        return Data(obs, teacher_action, rng.random((steps, envs)) < DONE)


class Ours:
    """Our update, compiled."""

    def __init__(self, student: Policy, data: Data, cfg: AlgorithmCfg):
        steps, envs, size = data.obs.shape
        group = GROUPS[size]
        agent = AgentCfg(
            num_steps_per_env=steps, obs_groups={"student": [group], "teacher": ["teacher"]}, algorithm=cfg
        )
        env = AutoReset(PointControl(PointControlCfg(num_envs=envs)))
        teacher = Policy(4, (64, 64, 64), output_activation="tanh")
        self.alg = Distillation(env, student, agent)
        frozen = networks.init(teacher, jax.random.key(1), 26, normalize=True)
        actor = PolicyActor(teacher, frozen, ("teacher",))
        self.state: TrainState = jax.jit(self.alg.init)(jax.random.key(0), actor)
        shapes: Any = jax.eval_shape(self.alg.rollout, self.state, actor)[1]
        is_first = np.concatenate([np.zeros_like(data.done[:1]), data.done[:-1]])
        self.steps = shapes.steps._replace(
            obs={group: jnp.array(data.obs)},
            teacher_action=jnp.array(data.teacher_action),
            is_first=jnp.array(is_first),
            student_carry=(),
        )
        began = time.perf_counter()
        self.update = jax.jit(self._update).lower(self.state, *self._arrays()).compile()
        self.compile_s = time.perf_counter() - began

    def _arrays(self) -> Any:
        return self.steps.obs, self.steps.teacher_action, self.steps.is_first

    def _update(self, state: TrainState, obs: Any, teacher_action: Any, is_first: Any) -> Any:
        steps = self.steps._replace(obs=obs, teacher_action=teacher_action, is_first=is_first)
        return self.alg.update(state, Rollout(steps, start_carry=state.student_carry))

    def run(self) -> float:
        """One update; its loss."""
        self.state, loss = jax.block_until_ready(self.update(self.state, *self._arrays()))
        return float(loss)


class Theirs:
    """rsl_rl's update on its own storage and model, with our weights."""

    def __init__(self, ours: Ours, student: Policy, data: Data, cfg: AlgorithmCfg):
        steps, envs, size = data.obs.shape
        group = GROUPS[size]
        self.device = torch_device()
        obs = {group: torch.tensor(data.obs, device=self.device)}
        self.obs = TensorDict(obs, batch_size=[steps, envs], device=self.device)
        settings = model_cfg(student, ours.state.student, 0.1)
        cls: Any = resolve_callable(settings.pop("class_name"))
        groups = {"student": [group], "teacher": [group]}
        model = cls(self.obs[0], groups, "student", 4, **settings)
        tensors = {k: torch.tensor(np.asarray(v)) for k, v in to_tensors(student, ours.state.student, MODEL).items()}
        model.load_state_dict({**model.state_dict(), **tensors})
        model.to(self.device)
        teacher = MLPModel(self.obs[0], groups, "teacher", 4, hidden_dims=[64, 64, 64]).to(self.device)
        self.storage = RolloutStorage("distillation", envs, steps, self.obs[0], [4], self.device)
        names = ("num_learning_epochs", "gradient_length", "learning_rate", "max_grad_norm", "loss_type", "optimizer")
        settings = {name: getattr(cfg, name) for name in names}
        self.algorithm = TorchDistillation(model, teacher, self.storage, device=self.device, **settings)
        self.algorithm.train_mode()
        self.data = data

    def fill(self) -> None:
        """Put the rollout back into the storage, which an update empties."""
        actions, done = (torch.tensor(x, device=self.device) for x in (self.data.teacher_action, self.data.done))
        zeros = torch.zeros_like(actions[0]), torch.zeros_like(actions[0, :, 0])
        for t in range(len(actions)):
            transition = RolloutStorage.Transition()
            transition.observations, transition.privileged_actions = self.obs[t], actions[t]
            transition.actions, transition.rewards = zeros
            transition.dones = done[t]
            self.storage.add_transition(transition)

    def run(self) -> float:
        """One update; its loss."""
        return float(self.algorithm.update()["behavior"])


def measure(student: Policy, envs: int, steps: int, size: int, rounds: int) -> dict[str, Any]:
    """Median seconds of both updates in turns, the ratio of each adjacent pair, and how far the losses are apart."""
    cfg = AlgorithmCfg(num_learning_epochs=4, gradient_length=15, learning_rate=1e-3, max_grad_norm=1.0)
    data = Data.draw(envs, steps, size)
    ours = Ours(student, data, cfg)
    theirs = Theirs(ours, student, data, cfg)
    seconds: dict[str, list[float]] = {"jdistill": [], "rsl_rl": []}
    apart = 0.0
    for _ in range(rounds + 1):  # The first one warms up.
        losses = {}
        for name, side in (("jdistill", ours), ("rsl_rl", theirs)):
            if name == "rsl_rl":
                theirs.fill()
            began = time.perf_counter()
            losses[name] = side.run()
            seconds[name].append(time.perf_counter() - began)
        apart = max(apart, abs(losses["jdistill"] / losses["rsl_rl"] - 1))
    times = {name: values[1:] for name, values in seconds.items()}
    return {
        **{name: statistics.median(values) for name, values in times.items()},
        "ratio": statistics.median(b / a for a, b in zip(*times.values(), strict=True)),
        "compile_s": ours.compile_s,
        "loss_difference": apart,
        "flops": cfg.num_learning_epochs * steps * envs * flops(ours.state.student.params),
    }


def flops(params: Any) -> int:
    """Of the matrix products of one row: forward, to the inputs of every layer but the first, to the weights."""
    sizes = [x.size for x in jax.tree.leaves(params) if x.ndim == 2]
    first = next(x.size for x in jax.tree.leaves(params) if x.ndim == 2 and x.shape[0] in GROUPS)
    return 2 * (3 * sum(sizes) - first)


def peak() -> float:
    """FLOPs a second of a large matrix product."""
    matrix = jnp.ones((2048, 2048))
    product = jax.jit(lambda a: a @ a).lower(matrix).compile()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        jax.block_until_ready(product(matrix))
        times.append(time.perf_counter() - began)
    return 2 * 2048**3 / statistics.median(times)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="adjacent pairs of updates (7)")
    parser.add_argument("--only", nargs=3, metavar=("STUDENT", "ENVS", "STEPS"), help="one row of the table")
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    # Before JAX starts, which counts the cores that it may use.
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    compilation.prepare()
    rows = []
    print("| student | inputs | envs x steps | rsl_rl (s) | jdistill (s) | ratio |\n|---|---|---|---|---|---|")
    for name, student in STUDENTS.items():
        for envs, steps in SIZES:
            if args.only and args.only != [name, str(envs), str(steps)]:
                continue
            for size in GROUPS:
                row = measure(student, envs, steps, size, args.rounds)
                rows.append({"student": name, "inputs": size, "envs": envs, "steps": steps, **row})
                print(
                    f"| {name} | {size} | {envs} x {steps} | {row['rsl_rl']:.4f} | {row['jdistill']:.4f} "
                    f"| {row['ratio']:.1f} |",
                    flush=True,
                )
    if args.out:
        results = {"machine": machine(), "rounds": args.rounds, "peak_flops": peak(), "rows": rows}
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
