"""Faults tried on real runs: how many were survived, and what was lost, silent, or a traceback.

    python -m benchmarks.faults [--chains 20] [--files 60] [--full 10] [--seed 0] [--out docs/faults.json]

- *kills*: chains of a run that is killed at a random file operation and gone on with, until it is done. Its student
  must be, bit by bit, that of the run nobody killed.
- *full disks*: from a random file operation on every one fails. The last checkpoint must still be there.
- *damaged files*: a random byte of a checkpoint, a policy file or a recording is another one. Whoever reads the file
  must say so in one line, or the numbers must be those that were written.

Needs a C compiler, on Linux. Half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks.crazyflie import ROOT

ITERATIONS = 6
RUN = ["--num_envs", "4", "--logger", "none", "--device", "cpu", "--devices", "1", "--phase1", "2"]
RUN += ["agent.num_steps_per_env=8", "agent.algorithm.gradient_length=4", "agent.save_interval=1"]
OUTCOMES = ("tried", "survived", "lost", "silent", "tracebacks")


def build(folder: Path) -> Path:
    """The library that is preloaded."""
    library = folder / "faults.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return library


class Trainer:
    """Starts runs whose folders are below ``logdir``."""

    def __init__(self, logdir: Path, library: Path, flags: Sequence[str] = RUN):
        self.logdir, self.library, self.flags = logdir, library, flags

    def train(self, *flags: str, **fault: Any) -> subprocess.CompletedProcess[str]:
        """``train_jax.py`` with a fault: ``mode``, and the file operation ``at`` which it happens."""
        command = [sys.executable, "train_jax.py", "--logdir", str(self.logdir), *self.flags, *flags]
        if "--resume" in flags:
            command = [*command[:4], *flags]
        count = self.logdir.parent / "count"
        env = {**os.environ, "FAULT_ROOT": str(self.logdir), "LD_PRELOAD": str(self.library), "FAULT_COUNT": str(count)}
        env |= {f"FAULT_{name.upper()}": str(value) for name, value in fault.items()}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)

    @property
    def operations(self) -> int:
        """How many file operations the last run that ended by itself had."""
        return int((self.logdir.parent / "count").read_text())

    @property
    def run(self) -> Path | None:
        """The only run folder that can be gone on with."""
        found = (x.parents[1] for x in self.logdir.glob("*/*/checkpoints/*") if x.name.isdecimal())
        return next(found, None)


def tracebacks(done: subprocess.CompletedProcess[str]) -> int:
    """How many the program printed."""
    return done.stderr.count("Traceback (most recent call last)")


def same(file: Path, other: Path) -> bool:
    """Whether two policy files hold the same numbers."""
    ours, theirs = load_file(file), load_file(other)
    return ours.keys() == theirs.keys() and all(np.array_equal(x, theirs[name]) for name, x in ours.items())


def kills(folder: Path, library: Path, chains: int, rng: random.Random, flags: Sequence[str] = RUN) -> Counter[str]:
    """Chains of kills and resumes."""
    whole = Trainer(folder / "whole", library, flags)
    whole.train("--max_iterations", str(ITERATIONS)).check_returncode()
    operations, found = whole.operations, Counter(dict.fromkeys(OUTCOMES, 0))
    assert whole.run
    for chain in range(chains):
        trainer = Trainer(folder / f"chain{chain}" / "logs", library, flags)
        trainer.logdir.mkdir(parents=True)
        for _ in range(20):
            goes_on = ["--resume"] if trainer.run else []
            done = trainer.train(
                *goes_on, "--max_iterations", str(ITERATIONS), mode="kill", at=rng.randint(1, operations)
            )
            found["tracebacks"] += tracebacks(done)
            if done.returncode != -9:
                break
            found["tried"] += 1
        ended = done.returncode in (0, 1) and "already has" in done.stderr + "already has" * (done.returncode == 0)
        equal = bool(
            ended and trainer.run and same(trainer.run / "student.safetensors", whole.run / "student.safetensors")
        )
        found["survived" if equal else "silent" if ended else "lost"] += 1
        print(f"  chain {chain}: {'as if nobody had killed it' if equal else done.stderr.strip()[-300:]}", flush=True)
        shutil.rmtree(trainer.logdir.parent)
    return found


def full_disks(
    folder: Path, library: Path, number: int, rng: random.Random, flags: Sequence[str] = RUN
) -> Counter[str]:
    """A disk that is full from some operation on; the run must go on once it is not."""
    found = Counter(dict.fromkeys(OUTCOMES, 0))
    for i in range(number):
        trainer = Trainer(folder / f"full{i}" / "logs", library, flags)
        trainer.train("--max_iterations", "2").check_returncode()
        before = trainer.operations
        done = trainer.train("--resume", "--max_iterations", str(ITERATIONS), mode="full", at=rng.randint(1, before))
        found["tried"] += 1
        found["tracebacks"] += tracebacks(done)
        found["silent"] += done.returncode == 0
        again = trainer.train("--resume", "--max_iterations", str(ITERATIONS))
        goes_on = again.returncode == 0 or "already has" in again.stderr
        found["survived" if goes_on else "lost"] += 1
        print(f"  full disk {i}: {done.stderr.strip()[-200:]}", flush=True)
        shutil.rmtree(trainer.logdir.parent)
    return found


def damaged_files(folder: Path, library: Path, number: int, rng: random.Random) -> Counter[str]:
    """Another byte in a file that a later command reads."""
    found = Counter(dict.fromkeys(OUTCOMES, 0))
    trainer, recording = Trainer(folder / "damaged" / "logs", library), folder / "flown.hdf5"
    trainer.train("--max_iterations", "3", "--record", str(recording), "env.episode_length_s=0.05").check_returncode()
    trainer.train("--resume", "--max_iterations", "5").check_returncode()
    assert trainer.run
    student = trainer.run / "student.safetensors"
    whole = load_file(student)
    for file in _files(trainer.run, recording, number, rng):
        content, place, bit = file.read_bytes(), rng.randrange(file.stat().st_size), 1 << rng.randrange(8)
        file.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        found["tried"] += 1
        if file == recording:
            done = trainer.train("--dataset", str(recording), "--max_iterations", "1", "--experiment_name", "offline")
        else:
            done = _read(trainer.run, file)
        found["tracebacks"] += tracebacks(done)
        told = done.returncode != 0
        unchanged = told or file == recording or _unchanged(trainer.run, file, whole)
        # A recording whose changed byte means nothing trains as before; its numbers have checksums.
        found["survived" if told or unchanged else "silent"] += 1
        if not told:
            print(f"  {file.name} byte {place}: {'means nothing' if unchanged else 'SILENT'}", flush=True)
        file.write_bytes(content)
    return found


def _files(run: Path, recording: Path, number: int, rng: random.Random) -> Iterator[Path]:
    newest = max((run / "checkpoints").iterdir(), key=lambda x: int(x.name))
    parts = [x for x in newest.rglob("*") if x.is_file() and x.stat().st_size]
    kinds = [parts, [run / "student.safetensors"], [recording]]
    for i in range(number):
        yield rng.choice(kinds[i % len(kinds)])


def _read(run: Path, file: Path) -> subprocess.CompletedProcess[str]:
    """A program that reads the file and writes what it read beside the run."""
    program = f"""
import sys
from pathlib import Path
from jdistill.cli.main import report_errors
def read(argv):
    run = Path({str(run)!r})
    if {file.suffix == ".safetensors"}:
        from jdistill.export.policy_file import load_policy
        load_policy(run / "student.safetensors")
    else:
        import jax, numpy as np, orbax.checkpoint as ocp
        from jdistill.run.checkpoint import Checkpoints
        checkpoints = Checkpoints(run, 5)
        arrays, _ = checkpoints.read(checkpoints.latest())
        np.savez(run.parent / "read.npz", **arrays)
sys.exit(report_errors("read", read, []))
"""
    return subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300)


def _unchanged(run: Path, file: Path, whole: dict[str, np.ndarray]) -> bool:
    """Whether what was read is what had been written."""
    if file.suffix == ".safetensors":
        read = load_file(file)
        return all(np.array_equal(read[name], x) for name, x in whole.items())
    arrays = np.load(run.parent / "read.npz")
    student = {re.sub(r"/", ".", f"student.{name}"): x for name, x in whole.items() if name.startswith("params/")}
    return all(np.array_equal(arrays[name], x) for name, x in student.items())


def main() -> int:
    """Try, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chains", type=int, default=20)
    parser.add_argument("--full", type=int, default=10)
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rng, rows = random.Random(args.seed), {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        library = build(folder)
        rows["kills, in chains"] = kills(folder, library, args.chains, rng)
        rows["full disks"] = full_disks(folder, library, args.full, rng)
        rows["damaged files"] = damaged_files(folder, library, args.files, rng)
    print(f"| fault | {' | '.join(OUTCOMES)} |\n|---|{'---|' * len(OUTCOMES)}")
    for what, found in rows.items():
        print(f"| {what} | {' | '.join(str(found[outcome]) for outcome in OUTCOMES)} |")
    if args.out:
        args.out.write_text(json.dumps({"seed": args.seed, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
