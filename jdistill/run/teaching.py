"""Teachers for many craft, all at once, by :mod:`jdistill.core.apg`: ``jdistill teach``.

The folder that comes out is laid out as ``--teacher_dir`` reads it::

    teachers/
      teacher_dynamics.csv     # the craft whose teachers are good enough, with what these are worth
      teacher_0000/policy.safetensors
      quality.csv              # every craft, its teacher's numbers, and whether it passed
      weak/teacher_0007/policy.safetensors    # of those that did not
      teach.json, training.safetensors        # what was asked for; where training is

A round trains the teachers of all craft that have none good enough yet, and then measures them; of two teachers the
better one is kept. Whatever ends the program, the same command goes on from the last save, and the result is the same.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import PartitionSpec
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from bridge.quadrotors import QuadrotorSpec, to_csv
from bridge.teaching import Lesson
from jdistill.core import apg
from jdistill.core.apg import ApgCfg, Learner
from jdistill.core.networks import Policy, PolicyState
from jdistill.errors import CheckpointError, ConfigError, TrainingError
from jdistill.export.policy_file import load_policy, save_policy
from jdistill.files import replace_file
from jdistill.run.held import HeldRun
from jdistill.run.mesh import SAME, EnvMesh
from jdistill.run.signals import caught_signals

TEACHERS = "teacher"
"""The axis along which teachers are divided among devices."""
BY_TEACHER = PartitionSpec(TEACHERS)
DYNAMICS, QUALITY, SETTINGS, TRAINING, WEAK = (
    "teacher_dynamics.csv",
    "quality.csv",
    "teach.json",
    "training.safetensors",
    "weak",
)
POLICY = "policy.safetensors"
Numbers = dict[str, float]
"""What a teacher is worth: ``survival``, a share, ``steady_error`` (m) and whatever else there is."""
Judge = Callable[[Policy, PolicyState], Sequence[Numbers]]
"""The numbers of the teachers of all craft, each leaf of whose parameters is (N, ...)."""


@dataclass(frozen=True)
class TeachCfg:
    """What is asked for."""

    apg: ApgCfg = field(default_factory=ApgCfg)
    """How a teacher is trained in a round."""
    rounds: int = 2
    """At most."""
    seed: int = 0
    """Of everything random."""
    min_survival: float = 0.95
    """Share of episodes that a teacher which is good enough survives."""
    max_error: float = 0.05
    """Its greatest steady error, m."""
    save_s: float = 60.0
    """Seconds between two saves."""

    def passes(self, numbers: Mapping[str, float]) -> bool:
        """Whether a teacher is good enough; NaN is not."""
        return bool(numbers["survival"] >= self.min_survival and numbers["steady_error"] <= self.max_error)


class Teaching:
    """The teachers of ``specs`` (N) in the folder ``out``."""

    def __init__(
        self,
        specs: Sequence[QuadrotorSpec],
        lesson: Lesson,
        policy: Policy,
        begin: PolicyState | None,
        judge: Judge,
        cfg: TeachCfg,
        out: Path,
        description: Mapping[str, Any],
        devices: Sequence[jax.Device] | None = None,
    ):
        """Go on in ``out``, or begin.

        ``policy`` is the network of each, ``begin`` what all begin with: a policy for one craft, a generalist, or None,
        from scratch. ``description`` is all that the result hangs on beside these, and joins the policy files.

        Raises:
            ConfigError: ``out`` holds other teachers.
        """
        self.specs, self.lesson, self.policy, self.begin = specs, lesson, policy, begin
        self.judge, self.cfg, self.out, self.description = judge, cfg, out, description
        self.mesh = EnvMesh(devices, TEACHERS)
        self.quality: dict[int, dict[str, Any]] = {}
        """By id, of the teachers that there are."""
        self.found: dict[int, PolicyState] = {}
        """Their parameters."""
        self._claim()

    # -- the folder ------------------------------------------------------------------------------------------------

    def _claim(self) -> None:
        """Make the folder ours, or go on in it."""
        about = {"quadrotors": to_csv(self.specs), **self.description, **asdict(self.cfg)}
        about = json.loads(json.dumps({k: v for k, v in about.items() if k != "save_s"}))
        file = self.out / SETTINGS
        if not file.exists():
            if self.out.is_dir() and any(self.out.iterdir()):
                raise ConfigError(f"{self.out}: holds something else; name a new folder with --out")
            self.out.mkdir(parents=True, exist_ok=True)
            replace_file(file, json.dumps(about, indent=1) + "\n")
            return
        try:
            before = json.loads(file.read_text())
        except (ValueError, OSError) as e:
            raise ConfigError(f"{file}: damaged ({e}); name a new folder with --out") from e
        if changed := [k for k in about if about[k] != before.get(k)]:
            raise ConfigError(
                f"{self.out}: its teachers were begun with another {changed[0]}; name a new folder with --out"
            )
        self._read_back()

    def _read_back(self) -> None:
        table = self.out / QUALITY
        for row in csv.DictReader(io.StringIO(table.read_text())) if table.exists() else ():
            try:
                numbers = {k: _value(v) for k, v in row.items()}
                key, passed = int(numbers["id"]), bool(numbers["passed"])
                _worth(numbers), int(numbers["round"])
            except (KeyError, TypeError, ValueError, AttributeError) as e:
                raise ConfigError(f"{table}: damaged; remove it, and its teachers are trained anew") from e
            self.quality[key] = numbers
            self.found[key] = load_policy(self._folder(key, passed) / POLICY)[1]

    def _folder(self, key: int, passed: bool) -> Path:
        name = f"teacher_{key:04d}"
        return self.out / name if passed else self.out / WEAK / name

    def _write(self, key: int, state: PolicyState, numbers: dict[str, Any]) -> None:
        """Put a teacher where it belongs."""
        folder = self._folder(key, numbers["passed"])
        folder.mkdir(parents=True, exist_ok=True)
        spec = next(s for s in self.specs if s.id == key)
        row = {k: v for k, v in asdict(spec).items() if v not in (None, "")}
        save_policy(folder / POLICY, self.policy, state, {**self.description, "quadrotor": row, "numbers": numbers})
        self.quality[key], self.found[key] = numbers, state

    def _write_tables(self) -> None:
        rows = [self.quality[s.id] for s in self.specs if s.id in self.quality]
        replace_file(self.out / QUALITY, _table(rows))
        good = [s for s in self.specs if self.quality.get(s.id, {}).get("passed")]
        lines = to_csv(good).splitlines()
        for i, spec in enumerate(good, 1):
            lines[i] += f",{self.quality[spec.id]['survival']!r},{self.quality[spec.id]['steady_error']!r},True"
        replace_file(self.out / DYNAMICS, "\n".join([lines[0] + ",survival,steady_error,passed", *lines[1:]]) + "\n")
        for spec in good:  # A weak predecessor's, once the tables say so.
            shutil.rmtree(self._folder(spec.id, False), ignore_errors=True)

    # -- training --------------------------------------------------------------------------------------------------

    def run(self) -> list[dict[str, Any]]:
        """Train what is missing; returns the rows of the quality table.

        Raises:
            TrainingError: interrupted, and everything is saved; or another program trains them.
        """
        held = HeldRun(self.out)
        try:
            return self._all_rounds()
        finally:
            held.release()

    def _all_rounds(self) -> list[dict[str, Any]]:
        saved = self._load_training()
        first = saved["round"] if saved else self._rounds_done()
        for number in range(first, self.cfg.rounds):
            pending = saved["pending"] if saved else self.weak()
            if not pending:
                break
            print(f"Round {number + 1}: {len(pending)} teachers, {self.cfg.apg.updates} updates", flush=True)
            states = self._train(number, pending, saved)
            self._judge(number, pending, states)
            (self.out / TRAINING).unlink(missing_ok=True)
            saved = None
        return [self.quality[s.id] for s in self.specs]

    def weak(self) -> list[int]:
        """Places in ``specs`` of the craft without a teacher that is good enough."""
        return [i for i, s in enumerate(self.specs) if not self.quality.get(s.id, {}).get("passed")]

    def _rounds_done(self) -> int:
        return max((int(numbers["round"]) for numbers in self.quality.values()), default=0)

    def _judge(self, number: int, pending: Sequence[int], states: PolicyState) -> None:
        """Measure the teachers of the craft ``pending`` and keep each that is better than what there is."""
        fresh = {self.specs[i].id: jax.tree.map(lambda x, j=j: x[j], states) for j, i in enumerate(pending)}
        all_of_them = [fresh.get(s.id, self.found.get(s.id)) for s in self.specs]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *all_of_them)
        measured = dict(zip((s.id for s in self.specs), self.judge(self.policy, stacked), strict=True))
        for key, state in fresh.items():
            numbers = {"id": key, **measured[key], "round": number + 1, "passed": self.cfg.passes(measured[key])}
            before = self.quality.get(key)
            if before is None or _worth(numbers) >= _worth(before):
                self._write(key, state, numbers)
            else:
                self.quality[key] = {**before, "round": number + 1}
        self._write_tables()

    def _train(self, number: int, pending: list[int], saved: dict[str, Any] | None) -> PolicyState:
        """Train the teachers of the craft ``pending``, from where ``saved`` is if it says; returns them (P, ...)."""
        parameters, keys, before = self._beginnings(number, pending)
        start = self.mesh.program(self._init, (BY_TEACHER, BY_TEACHER, BY_TEACHER), BY_TEACHER)
        step = self.mesh.program(self._update, (BY_TEACHER, BY_TEACHER, SAME), (BY_TEACHER, BY_TEACHER), donate=(1,))
        learners = start(parameters, keys, before)
        done = 0
        if saved:
            learners, done = _restored(learners, saved["arrays"]), saved["update"]
        last_save, last_line, updates = time.monotonic(), 0.0, self.cfg.apg.updates
        with caught_signals() as received:
            while done < updates:
                learners, metrics = step(parameters, learners, self._learns_moments(number, done))
                jax.block_until_ready(metrics)  # A signal is answered after this update, not after all that are queued.
                done += 1
                now = time.monotonic()
                if done == updates or now - last_line > 10:
                    last_line = now
                    costs = np.asarray(metrics["cost"])[: len(pending)]
                    print(f"{done:6d}/{updates}  cost {costs.mean():.4f}, worst {costs.max():.4f}", flush=True)
                if done == updates or received or now - last_save > self.cfg.save_s:
                    self._save_training(number, done, pending, learners)
                    last_save = now
                if received and done < updates:
                    raise TrainingError(f"interrupted after {done} updates; the same command goes on from there")
        return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[: len(pending)]), learners.policy)

    def _learns_moments(self, number: int, done: int) -> bool:
        return self.begin is None and number == 0 and done < self.cfg.apg.normalizer_updates

    def _beginnings(self, number: int, pending: Sequence[int]) -> tuple[Any, Array, Any]:
        """Parameters of the craft, keys, and the policies of an earlier round; filled up to a multiple of the devices
        with copies of the last one."""
        count = self.mesh.shards.count
        rows = np.array([*pending, *[pending[-1]] * (-len(pending) % count)])
        parameters = jax.tree.map(lambda x: jnp.asarray(x)[rows], self.lesson.parameters)
        rng = jax.random.fold_in(jax.random.key(self.cfg.seed), number)
        keys = jnp.stack([jax.random.fold_in(rng, self.specs[i].id) for i in rows])
        before: Any = ()
        if number > 0:
            before = jax.tree.map(lambda *x: jnp.stack(x), *(self.found[self.specs[i].id] for i in rows))
        return self.mesh.put((parameters, keys, before), BY_TEACHER)

    def _init(self, parameters: Any, keys: Array, before: Any) -> Learner:
        def one(parameters: Any, key: Array, before: Any) -> Learner:
            lesson = self.lesson.of_craft(parameters)
            policy_key, key = jax.random.split(key)
            if before != ():
                state = before
            elif self.begin is None:
                state = apg.fresh_policy(lesson, self.policy, policy_key)
            elif apg.num_inputs(self.begin) == lesson.obs_spec.shape[0]:
                state = self.begin
            else:
                state = apg.specialize(self.begin, lesson.facts())
            return apg.init(lesson, self.cfg.apg, state, key)

        return jax.vmap(one)(parameters, keys, before)

    def _update(self, parameters: Any, learners: Learner, normalize: Array) -> tuple[Learner, dict[str, Array]]:
        def one(parameters: Any, learner: Learner, normalize: Array) -> Any:
            return apg.update(self.lesson.of_craft(parameters), self.policy, self.cfg.apg, learner, normalize)

        return jax.vmap(one, in_axes=(0, 0, None))(parameters, learners, normalize)

    # -- what a kill leaves ----------------------------------------------------------------------------------------

    def _save_training(self, number: int, update: int, pending: list[int], learners: Learner) -> None:
        about = {"round": number, "update": update, "pending": pending}
        arrays = {name: x[: len(pending)] for name, x in _arrays(learners).items()}
        replace_file(self.out / TRAINING, save(arrays, metadata={"teach": json.dumps(about)}))

    def _load_training(self) -> dict[str, Any] | None:
        path = self.out / TRAINING
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                about = json.loads(file.metadata()["teach"])
        except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as e:
            raise CheckpointError(f"{path}: damaged ({e}); remove it, and the round begins anew") from e
        return {**about, "arrays": arrays}


def _worth(numbers: Mapping[str, float]) -> tuple[bool, float, float]:
    """Larger for the better teacher: good enough, survives, errs little."""
    error = numbers["steady_error"]
    return bool(numbers["passed"]), numbers["survival"], -error if np.isfinite(error) else -np.inf


def _arrays(tree: Any) -> dict[str, np.ndarray]:
    """The leaves by their paths; random keys as their words."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        found[jax.tree_util.keystr(path)] = np.ascontiguousarray(jax.random.key_data(leaf) if is_key else leaf)
    return found


def _restored(like: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """``arrays`` as the pytree that they were, which ``like`` has the form and the devices of; filled up as that is.

    Raises:
        CheckpointError: they are another one's.
    """
    have = _arrays(like)
    if have.keys() != arrays.keys() or any(have[k].shape[1:] != arrays[k].shape[1:] for k in have):
        raise CheckpointError(f"{TRAINING}: is another version's; remove it, and the round begins anew")

    def leaf(path: Any, x: Any) -> Any:
        array = arrays[jax.tree_util.keystr(path)]
        array = np.concatenate([array, *[array[-1:]] * (x.shape[0] - array.shape[0])])
        value = jax.random.wrap_key_data(jnp.asarray(array)) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else array
        return jax.device_put(value, x.sharding)

    return jax.tree_util.tree_map_with_path(leaf, like)


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _value(text: str) -> Any:
    return text == "True" if text in ("True", "False") else int(text) if text.isdigit() else float(text)
