"""Checkpoints through Orbax: ``RUN/checkpoints/<iteration>`` and the best one under ``RUN/best``.

A checkpoint is the whole training state as a flat mapping from leaf path to array, so a state can be restored into
any pytree of the same leaves, and a mismatch can be told by name. Arrays without elements are left out. Beside the
state lies what is known of it: iteration, mean return, a checksum of every array.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import Array

from jdistill.core.distillation import TrainState
from jdistill.errors import CheckpointError
from jdistill.run import checksums, processes

STATE, INFO = "state", "info"
ASIDE = "damaged"
"""Folder of a run for checkpoints that could not be read."""
OTHER_SETTINGS = "the checkpoint was made with other settings"
ADVICE = "leave out what differs from the run's config.yaml, or begin a new run"
RENAMED = {
    "history.label": "history.teacher_action",
    "history.first": "history.is_first",
    "teacher_drives": "teacher_acts",
}
"""Leaves of version 0.1, by their present names."""
DROPPED = "teacher."
"""How leaves of version 0.1 begin that are no part of the state any more: the teacher has a file of its own."""
ENV = "env_state."
"""How the simulator's leaves begin. Another version of a simulator may have others; learning goes on without them."""
AVERAGE, PARAMS = "ema_params.", "student.params."
CARRY = "teacher_carry"
OF_ENVIRONMENTS = ("env_state", "student_carry", "teacher_carry", "teacher_acts", "history")
"""What goes with the environments, and cannot be gone on with where there are more or fewer of them."""


class Checkpoints:
    """Writes and reads the checkpoints of one run. Saving goes on in the background; :meth:`close` waits for it."""

    def __init__(self, run_dir: Path, max_to_keep: int):
        # Orbax reports every step of its work, and a failure from each of its threads; here it becomes one line.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._aside = run_dir / ASIDE
        self._latest = _manager(run_dir / "checkpoints", max_to_keep)
        self._best = _manager(run_dir / "best", 1)
        self._best_return = self._read_best_return()

    def save(self, iteration: int, state: Any, mean_return: float | None) -> bool:
        """Save ``state`` after ``iteration`` iterations; returns whether it is the best so far.

        ``mean_return`` is None where it says nothing about the student; such a state is never the best.
        """
        arrays = _copied(state)
        info = {"iteration": iteration, "mean_return": mean_return, "checksums": checksums.of_arrays(arrays)}
        args = ocp.args.Composite(**{STATE: ocp.args.StandardSave(arrays), INFO: ocp.args.JsonSave(info)})
        self._write(self._latest, iteration, args)
        return self._save_best(iteration, args, mean_return)

    def _save_best(self, iteration: int, args: Any, mean_return: float | None) -> bool:
        if mean_return is None or mean_return <= self._best_return:
            return False
        self._best_return = mean_return
        self._write(self._best, iteration, args)
        return True

    def latest(self) -> int | None:
        """Iterations completed at the newest checkpoint, or None."""
        return self._latest.latest_step()

    def restore(self, template: TrainState, fallback: bool = False) -> tuple[TrainState, bool]:
        """The newest checkpoint, as a state like ``template`` (arrays or their shapes), and whether it became the best.

        (A program that was killed after it wrote a checkpoint may not have come to keep it as the best.) With
        ``fallback``, damaged checkpoints are set aside, and the newest whole one counts.

        The state's ``env_state`` is None where the checkpoint's simulator has other leaves: another version, other
        settings, or other devices and a simulator that keeps something for all environments of a device. All of
        :data:`OF_ENVIRONMENTS` is None where the checkpoint has more environments, or fewer.

        Raises:
            CheckpointError: there is none, it is damaged, or its leaves have other names, shapes or types.
        """
        while (step := self._latest.latest_step()) is not None:
            folder = Path(self._latest.directory) / str(step)
            try:
                arrays, info = self._read_by_all(step)
            except CheckpointError as e:
                if not fallback:
                    hint = "go on from the checkpoint before it with --resume --fallback, or delete this folder"
                    raise CheckpointError(f"{e}; {hint}") from e
                print(f"{e}; it is kept in {self._aside}")
                # One process moves it, and the others wait.
                processes.told_by_main(partial(self._set_aside, folder))
                self._latest.reload()
                continue
            state = _from_host(arrays, template)
            args = ocp.args.Composite(**{STATE: ocp.args.StandardSave(arrays), INFO: ocp.args.JsonSave(info)})
            return state, self._save_best(step, args, info.get("mean_return"))
        raise CheckpointError(f"{self._latest.directory}: no checkpoint that could be read")

    def _read_by_all(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """:meth:`read`, which counts as failed in all processes if it fails in one of them."""
        failure: CheckpointError | None = None
        try:
            found = self.read(step)
        except CheckpointError as e:
            failure = e
        if processes.largest(failure is not None):
            raise failure or CheckpointError(f"{self._latest.directory / str(step)}: another process cannot read it")
        return found

    def _set_aside(self, folder: Path) -> None:
        self._aside.mkdir(exist_ok=True)
        folder.rename(self._aside / folder.name)

    def read(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays of the checkpoint ``step``, on the host, whatever devices made it, and what is known of them.

        Raises:
            CheckpointError: it is damaged.
        """
        try:
            return self._read(step)
        except Exception as e:  # Orbax raises a dozen kinds for a damaged folder.
            raise CheckpointError(f"{self._latest.directory / str(step)}: damaged ({_line(e)})") from e

    def _read(self, step: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        made: Any = self._latest.item_metadata(step)[STATE]
        on_host = {name: np.empty(x.shape, x.dtype) for name, x in made.items()}
        args = ocp.args.Composite(**{STATE: ocp.args.StandardRestore(on_host), INFO: ocp.args.JsonRestore()})
        found = self._latest.restore(step, args=args)
        arrays, info = found[STATE], dict(found[INFO])
        if info["iteration"] != step:
            raise ValueError(f"it is that of iteration {info['iteration']}")
        # Those of version 0.1, and those that several processes of it wrote, have no checksums.
        if wrong := checksums.first_wrong(arrays, info.get("checksums") or {}):
            raise ValueError(f"'{wrong}' is not what was saved")
        return arrays, info

    def close(self) -> None:
        """Wait until everything is on disk."""
        try:
            self._latest.close()
            self._best.close()
        except Exception as e:  # What went wrong in the background comes out here.
            raise CheckpointError(f"{self._latest.directory}: the last checkpoint is incomplete ({_line(e)})") from e

    def _write(self, manager: ocp.CheckpointManager, iteration: int, args: Any) -> None:
        try:
            if jax.process_count() > 1:  # Of two that are under way the processes would take one for the other.
                self._latest.wait_until_finished()
                self._best.wait_until_finished()
            manager.save(iteration, args=args)
        except Exception as e:  # A full disk, a vanished folder: Orbax raises a dozen kinds.
            raise CheckpointError(f"{manager.directory}: cannot save ({_line(e)})") from e

    def _read_best_return(self) -> float:
        step = self._best.latest_step()
        if step is None:
            return -np.inf
        try:
            info = self._best.restore(step, args=ocp.args.Composite(**{INFO: ocp.args.JsonRestore()}))[INFO]
            return float(info["mean_return"])
        except Exception:  # A damaged best checkpoint must not keep a run from going on; the next best replaces it.
            return -np.inf


def _manager(directory: Path, max_to_keep: int) -> ocp.CheckpointManager:
    # Orbax wants absolute paths.
    options = ocp.CheckpointManagerOptions(max_to_keep=max_to_keep, cleanup_tmp_directories=True)
    try:
        handlers = {STATE: ocp.StandardCheckpointHandler(), INFO: ocp.JsonCheckpointHandler()}
        return ocp.CheckpointManager(directory.absolute(), item_handlers=handlers, options=options)
    except OSError as e:
        raise CheckpointError(f"{directory}: cannot hold checkpoints ({e.strerror})") from e


def _copied(state: Any) -> dict[str, Any]:
    """Leaves by path, copied: the device may reuse its buffers while Orbax still writes.

    Where several processes hold the state, each of them keeps and writes its part.
    """
    leaves = {name: x for name, x in _by_name(state).items() if x.size}
    if jax.process_count() > 1:
        return jax.jit(lambda leaves: {name: jnp.copy(_data(x)) for name, x in leaves.items()})(leaves)
    return {name: np.array(_data(x)) for name, x in leaves.items()}


def _data(x: Array) -> Array:
    """A key as the array that a checkpoint holds, or the array itself."""
    return jax.random.key_data(x) if _is_key(x) else x


def _from_host(arrays: dict[str, np.ndarray], template: TrainState) -> TrainState:
    arrays = {RENAMED.get(name, name): x for name, x in arrays.items() if not name.startswith(DROPPED)}
    if template.ema_params is not None and not any(name.startswith(AVERAGE) for name in arrays):
        # Of a run without an average, which begins at the parameters.
        newest = {name: x for name, x in arrays.items() if name.startswith(PARAMS)}
        arrays |= {name.replace(PARAMS, AVERAGE, 1): x for name, x in newest.items()}
    left_out = _left_out(arrays, _by_name(template))
    template = template.replace(**dict.fromkeys(left_out))
    expected = _by_name(template)
    arrays |= {name: np.empty(x.shape, x.dtype) for name, x in expected.items() if not x.size}
    arrays = {name: x for name, x in arrays.items() if name.partition(".")[0] not in left_out}
    if missing := sorted(expected.keys() ^ arrays.keys()):
        raise CheckpointError(f"{OTHER_SETTINGS}: '{missing[0]}' is in one of the two only; {ADVICE}")
    leaves = []
    for name, like in expected.items():
        leaf = jax.device_put(arrays[name])
        leaf = jax.random.wrap_key_data(leaf) if _is_key(like) else leaf
        if leaf.shape != like.shape or leaf.dtype != like.dtype:
            raise CheckpointError(
                f"{OTHER_SETTINGS}: '{name}' is {leaf.dtype}{list(leaf.shape)} there, "
                f"{like.dtype}{list(like.shape)} here; {ADVICE}"
            )
        leaves.append(leaf)
    state: TrainState = jax.tree.unflatten(jax.tree.structure(template), leaves)
    return state


def _left_out(arrays: dict[str, np.ndarray], expected: dict[str, Any]) -> tuple[str, ...]:
    """The fields of the state in which a checkpoint cannot be gone on with."""
    done = f"{ENV}done"
    if done in arrays and arrays[done].shape != expected[done].shape:
        return OF_ENVIRONMENTS

    def differs(prefix: str) -> bool:
        here, there = (
            {name: tuple(x.shape) for name, x in leaves.items() if name.startswith(prefix)}
            for leaves in ({k: jax.eval_shape(_data, x) for k, x in expected.items() if x.size}, arrays)
        )
        return here != there

    if differs(CARRY):  # Another teacher remembers other things; its episodes begin anew.
        return ("env_state", "teacher_carry")
    return ("env_state",) if differs(ENV) else ()


def _by_name(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _is_key(x: Array | jax.ShapeDtypeStruct) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 200 else text[:200] + "..."
