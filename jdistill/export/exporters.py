"""Writes a student in several formats, each of them checked, and beside them what every format needs.

A file counts as written when its policy, read back, acts as the student does for 100 steps of the student's own
task; where that task needs a simulator of its own, over 100 observations like those that the student has seen.

- ``policy.json`` says what goes in and what comes out.
- ``golden.npz`` has those 100 steps, for tests on the machine that is to run the policy: ``observations`` (100, D),
  ``actions`` (100, A), ``begins`` (100,), true where the recurrent state begins anew, and images by their groups.
- ``calibration.npz`` has ``observations`` (1000, D) of ten flights, the first of which is the golden one: what the
  policy sees in use, for quantizers.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridge.env import TrainingEnv
from jdistill.core.observations import vector_of
from jdistill.errors import ExportError, UserError
from jdistill.export import formats, images, verify
from jdistill.export.formats import Exported, Student
from jdistill.export.layers import PolicyLayers
from jdistill.export.verify import STEPS, Recording, Start
from jdistill.files import replace_file

FLIGHTS = 10
"""Of ``STEPS`` steps each, whose observations make the calibration set."""
FLIGHT_TOLERANCE = 0.1
"""How far two flights may come apart in ``STEPS`` steps, in any number that is observed."""

DESCRIPTION = (
    *("observation", "action", "control_rate_hz"),
    *("robot", "command_names", "physics_dt", "decimation", "motors"),
)
"""What ``policy.json`` takes over from a policy file's header (see :func:`jdistill.core.observations.describe`)."""


def export(
    student: Student,
    names: Sequence[str],
    out: Path,
    env: TrainingEnv | None = None,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write and check a student in every format of ``names``; prints a line for each.

    ``out`` gets ``policy.json``, ``golden.npz`` and ``calibration.npz`` too.

    Args:
        student: what to export.
        names: of :func:`jdistill.export.formats.known_formats`.
        out: folder for the files, which is created.
        env: the student's task with one environment, to compare in; None compares over drawn observations.
        notes: what ``policy.json`` tells besides (``task``, ``versions``).

    Raises:
        ExportError: no such format, a missing package, or a file whose actions are not the student's.
        PolicyFileError: the teacher's file is needed and cannot be read.
    """
    functions = {name: formats.load(name) for name in names}
    original = verify.jax_policy(student.policy, student.state)
    files = {}
    with _folder(out):
        recordings = _recordings(student, original, env)
        golden = next(recordings)
        for name, function in functions.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # TorchScript is what was asked for.
                exported = function(student, out)
                difference = _check(exported, golden)
                if difference is not None and exported.flies and env is not None and exported.start is not None:
                    own = next(verify.flights(env, student.agent.obs_groups["student"], exported.start))
                    _check_flight(exported, golden, own)
            files[name] = {"file": exported.file.name, "largest_difference": difference, **exported.notes}
        beside = _save_observations(out, student.layers, golden, recordings)
        content = {**sidecar(student), **(notes or {}), "files": files, **beside}
        replace_file(out / "policy.json", json.dumps(content, indent=1) + "\n")


@contextlib.contextmanager
def _folder(out: Path) -> Iterator[None]:
    """``out`` for files; where nothing comes of it, it is not left behind empty."""
    was_there = out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except UserError:
        if not was_there:
            with contextlib.suppress(OSError):  # It holds what was written before.
                out.rmdir()
        raise


def sidecar(student: Student) -> dict[str, Any]:
    """What ``policy.json`` says of the student: what goes in, what comes out, at which rate, where episodes start."""
    header = student.header
    return {
        "iteration": header.get("iteration"),
        **{name: header[name] for name in DESCRIPTION if name in header},
        "initial_state": {name: value.tolist() for name, value in student.layers.initial_states.items()},
        "network": header["network"],
    }


def _recordings(student: Student, original: Start, env: TrainingEnv | None) -> Iterator[Recording]:
    if env is None:
        return verify.draws(student.layers, original)
    return verify.flights(env, student.agent.obs_groups["student"], original)


def _save_observations(
    out: Path, layers: PolicyLayers, golden: Recording, others: Iterator[Recording]
) -> dict[str, Any]:
    """Write ``golden.npz`` and ``calibration.npz``; what ``policy.json`` says of them."""
    flights = [golden, *itertools.islice(others, FLIGHTS - 1)]
    cnns = [cnn.cfg for cnn in layers.cnns]
    calibration = images.arrays(cnns, verify.joined([flight.observations for flight in flights]))
    _save(
        out / "golden.npz",
        **images.arrays(cnns, golden.observations),
        actions=golden.actions,
        begins=golden.begins,
    )
    _save(out / "calibration.npz", **calibration)
    return {
        "golden": {"file": "golden.npz", "steps": STEPS, "source": golden.source},
        "calibration": {
            "file": "calibration.npz",
            "observations": len(calibration["observations"]),
            "source": golden.source,
        },
    }


def _save(file: Path, **arrays: np.ndarray) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    replace_file(file, buffer.getvalue())


def _check(exported: Exported, golden: Recording) -> float | None:
    """Compare what was written with the student; prints a line, returns the largest difference; None without any."""
    file = exported.file
    if exported.start is None or (exported.flies and golden.source == "drawn"):
        print(f"{file}: written, but not compared with the original: nothing here can run it")
        return None
    what = {"task": "steps", "drawn": "drawn observations (its simulator is not the embedded one)"}[golden.source]
    difference = verify.difference(golden, exported.start)
    allowed = verify.TOLERANCE if exported.tolerance is None else exported.tolerance
    if not difference <= allowed:  # A NaN is no agreement either.
        _remove(exported)
        raise ExportError(f"{file.name}: its actions differ by {difference:.1e} from the original's; not written")
    line = f"{file}: {STEPS} {what} beside the original, largest difference {difference:.1e}"
    print(line if exported.tolerance is None else f"{line} ({allowed:g} is allowed)")
    return difference


def _check_flight(exported: Exported, golden: Recording, own: Recording) -> None:
    """Compare a flight with that of the student from the same start, until the first of their episodes ends."""
    ends = np.flatnonzero((golden.begins | own.begins)[1:])
    length = int(ends[0]) + 1 if len(ends) else STEPS
    seen, theirs = (vector_of(flight.observations)[:length] for flight in (golden, own))
    apart = float(np.max(np.abs(theirs - seen)))
    if not apart <= FLIGHT_TOLERANCE:
        _remove(exported)
        raise ExportError(f"{exported.file.name}: flies otherwise than the original, {apart:.1e} away; not written")
    print(f"{exported.file}: flew {length} steps by itself, what it saw differs by {apart:.1e} at most")


def _remove(exported: Exported) -> None:
    for written in (exported.file, *exported.more_files):
        if written.is_dir():
            shutil.rmtree(written)
        else:
            written.unlink(missing_ok=True)
