"""The update of a student with a camera: rsl_rl's ``Distillation.update`` and ours, same weights, rollout and settings.

    taskset -c 0 python -m benchmarks.images --out docs/images.json

Depth images of 60x100, 64 environments, 24 steps; a CNN and an MLP, which is what rsl_rl has. Both run with one thread,
in turns; medians of the CPU seconds of ``--rounds`` adjacent updates, compile time apart. Both go on learning, and
their losses are compared. Beside them stand our update of a CNN with a GRU, which rsl_rl has not, what its time is
spent on, the memory that XLA plans, and, once, our update with XLA's own convolutions. Three minutes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import torch
from rsl_rl.algorithms import Distillation as TorchDistillation
from rsl_rl.models import CNNModel, MLPModel
from rsl_rl.storage import RolloutStorage
from tensordict import TensorDict

from bridge.env import AutoReset, ObservationSpec, State
from jdistill.core import convolution, networks
from jdistill.core.actor import PolicyActor
from jdistill.core.config import AgentCfg, AlgorithmCfg, StudentCfg
from jdistill.core.distillation import Distillation
from jdistill.core.networks import Policy
from jdistill.core.rollout import Rollout
from jdistill.export import rsl_rl
from jdistill.run import compilation
from jdistill.run.inputs import student_for
from jdistill.run.profiling import operation_times
from jdistill.run.provenance import machine

ENVS, STEPS, NUMBERS, ACTIONS, IMAGE = 64, 24, 19, 4, (60, 100, 1)
CNN = {"output_channels": [16, 32, 32], "kernel_size": [5, 3, 3], "stride": 2, "activation": "relu"}
GROUPS = {"student": ["student", "depth"], "teacher": ["student"]}
HIDDEN = [128, 64]
LENGTH = 8
"""Steps of a window."""
XLAS = "ours with XLA's convolutions"
PARTS = {
    "cnn_0 rematted_computation": "CNN, computed anew",
    "cnn_0 transpose(jvp": "CNN, gradients",
    "cnn_0": "CNN, forward",
    "rnn_0": "GRU",
    "": "dense layers, optimizer",
}
"""Of an update, by words in JAX's names of its operations; the first that fits."""


class Still:
    """The sizes of a task with a depth camera; nothing moves."""

    num_envs, num_actions, max_episode_length, step_dt, key_per_env = ENVS, ACTIONS, 1000, 0.02, True
    obs_specs = {"student": ObservationSpec((NUMBERS,)), "depth": ObservationSpec(IMAGE)}  # noqa: RUF012

    def reset(self, rng: jax.Array) -> State:
        """Zeros."""
        zeros = jnp.zeros(ENVS)
        obs = {name: jnp.zeros((ENVS, *spec.shape)) for name, spec in self.obs_specs.items()}
        return State(zeros, obs, zeros, zeros > 0, {}, {})

    def step(self, state: State, action: jax.Array) -> State:
        """The same again."""
        return state


def draw() -> dict[str, np.ndarray]:
    """A rollout, each array (T, B, ...)."""
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(STEPS, ENVS, NUMBERS)).astype(np.float32)
    labels = np.tanh(obs @ rng.normal(size=(NUMBERS, ACTIONS)) / NUMBERS**0.5).astype(np.float32)
    return {"student": obs, "depth": rng.random((STEPS, ENVS, *IMAGE), np.float32), "labels": labels}


class Theirs:
    """rsl_rl's update."""

    def __init__(self, data: dict[str, np.ndarray]):
        torch.manual_seed(0)
        self.labels = torch.tensor(data["labels"])
        depth = torch.tensor(data["depth"]).permute(0, 1, 4, 2, 3).contiguous()
        self.obs = [
            TensorDict({"student": torch.tensor(x), "depth": d}, batch_size=[ENVS])
            for x, d in zip(data["student"], depth, strict=True)
        ]
        settings: Any = {"hidden_dims": HIDDEN, "activation": "elu"}
        self.student = CNNModel(self.obs[0], GROUPS, "student", ACTIONS, cnn_cfg=CNN, **settings)
        teacher = MLPModel(self.obs[0], GROUPS, "teacher", ACTIONS, **settings)
        self.storage = RolloutStorage("distillation", ENVS, STEPS, self.obs[0], [ACTIONS], "cpu")
        self.algorithm = TorchDistillation(
            self.student, teacher, self.storage, gradient_length=LENGTH, max_grad_norm=1.0
        )
        self.algorithm.train_mode()

    def update(self) -> float:
        """The loss of one update; the rollout is stored before, apart from the time."""
        return float(self.algorithm.update()["behavior"])

    def store(self) -> None:
        """Put the rollout where rsl_rl's update reads it."""
        for obs, labels in zip(self.obs, self.labels, strict=True):
            step = RolloutStorage.Transition()
            step.observations, step.privileged_actions = obs, labels
            step.actions, step.rewards = torch.zeros(ENVS, ACTIONS), torch.zeros(ENVS)
            step.dones = torch.zeros(ENVS)
            self.storage.add_transition(step)


class Ours:
    """Our update, compiled; with a GRU where ``rnn_type`` says so."""

    def __init__(self, data: dict[str, np.ndarray], tensors: dict[str, np.ndarray], rnn_type: str | None = None):
        student = StudentCfg(
            pre_dims=[],
            rnn_type=rnn_type,
            rnn_hidden_dim=64,
            hidden_dims=HIDDEN,
            output_activation="identity",
            obs_normalization=False,
            cnn_cfg=CNN,
        )
        algorithm = AlgorithmCfg(num_learning_epochs=1, gradient_length=LENGTH)
        agent = AgentCfg(num_steps_per_env=STEPS, obs_groups=GROUPS, student=student, algorithm=algorithm)
        env = AutoReset(Still())
        policy = student_for(env, agent)
        alg, bare = Distillation(env, policy, agent), Policy(ACTIONS, (4,))
        teacher = PolicyActor(bare, networks.init(bare, jax.random.key(0), NUMBERS, False), ("student",))
        self.state = alg.init(jax.random.key(0), teacher)
        if rnn_type is None:
            ends = "elu", "identity", ACTIONS
            weights = rsl_rl.from_tensors(tensors, rsl_rl.MODEL, *ends, policy.cnns)[1]
            self.state = self.state.replace(student=weights)
        steps = jax.eval_shape(alg.rollout, self.state, teacher)[1].steps
        no = jnp.zeros((STEPS, ENVS), bool)
        obs = {name: jnp.asarray(data[name]) for name in ("student", "depth")}
        taken = steps._replace(
            obs=obs, teacher_action=jnp.asarray(data["labels"]), done=no, is_first=no, student_carry=()
        )
        taken = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x, taken)
        self.rollout = Rollout(taken, start_carry=self.state.student_carry)
        self.program = jax.jit(alg.update).lower(self.state, self.rollout).compile()
        memory: Any = self.program.memory_analysis()
        self.mebibytes = round(memory.temp_size_in_bytes / 2**20, 1)

    def update(self) -> float:
        """The loss of one update."""
        self.state, loss = self.program(self.state, self.rollout)
        return float(loss)

    def store(self) -> None:
        """It lies there already."""


def measure(rounds: int) -> dict[str, Any]:
    """CPU seconds, losses, memory and a profile."""
    data = draw()
    theirs = Theirs(data)
    tensors = {name: x.detach().numpy().copy() for name, x in theirs.student.state_dict().items()}
    with_gru = Ours(data, tensors, "gru")
    with mock.patch.object(convolution, "takes_products", lambda: False):
        of_xla = Ours(data, tensors)
    sides: dict[str, Any] = {"rsl_rl": theirs, "ours": Ours(data, tensors), "ours with a GRU": with_gru}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            loss, lap = timed(side)
            losses[name].append(loss)
            seconds[name].append(lap)
    gaps = [abs(t - o) / t for t, o in zip(losses["rsl_rl"], losses["ours"], strict=True)]
    medians = {name: round(statistics.median(laps), 3) for name, laps in seconds.items()}
    ours = {XLAS: of_xla, **sides}
    return {
        "cpu_seconds": {**medians, XLAS: round(timed(of_xla)[1], 3)},
        "times_as_fast_as_rsl_rl": {
            name: round(statistics.median(t / o for t, o in zip(seconds["rsl_rl"], laps, strict=True)), 2)
            for name, laps in seconds.items()
        },
        "largest_difference_of_losses": max(gaps),
        "temporary_MiB": {name: side.mebibytes for name, side in ours.items() if isinstance(side, Ours)},
        "profile": profile(with_gru),
    }


def timed(side: Any) -> tuple[float, float]:
    """The loss of an update, and its CPU seconds."""
    side.store()
    start = time.process_time()
    return side.update(), time.process_time() - start


def profile(side: Ours) -> dict[str, dict[str, float]]:
    """Shares of an update's time: in each part of it, in products of matrices and in all else."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            side.update()
        times = operation_times(Path(folder), str(side.program.as_text()))
    shares: dict[str, dict[str, float]] = {part: defaultdict(float) for part in PARTS.values()}
    for path, ms in times.items():
        part = next(part for key, part in PARTS.items() if all(word in path for word in key.split()))
        shares[part]["products" if "dot_general" in path else "the rest"] += ms / sum(times.values())
    return {part: {kind: round(share, 3) for kind, share in kinds.items()} for part, kinds in shares.items()}


def table(results: dict[str, Any]) -> str:
    """Seconds and memory in Markdown."""
    lines = ["| update | CPU seconds | times as fast as rsl_rl | XLA's temporary memory |", "|---|---|---|---|"]
    for name, spent in results["cpu_seconds"].items():
        ratio, memory = results["times_as_fast_as_rsl_rl"].get(name), results["temporary_MiB"].get(name)
        ratio = results["cpu_seconds"]["rsl_rl"] / spent if ratio is None else ratio
        lines.append(f"| {name} | {spent:.2f} | {ratio:.2f} | {'' if memory is None else f'{memory:.0f} MiB'} |")
    return "\n".join(lines)


def profile_table(results: dict[str, Any]) -> str:
    """The profile in Markdown."""
    lines = ["| part | products of matrices | the rest |", "|---|---|---|"]
    for part, kinds in results["profile"].items():
        lines.append(f"| {part} | {kinds.get('products', 0):.0%} | {kinds.get('the rest', 0):.0%} |")
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="updates of each (default 5)")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    compilation.prepare()
    torch.set_num_threads(1)
    results = {"machine": machine(), "envs": ENVS, "steps": STEPS, "image": IMAGE, **measure(args.rounds)}
    text = json.dumps(results, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
