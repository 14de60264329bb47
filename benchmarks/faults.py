"""Faults tried on real runs: how many were survived, and what was lost, silent, or a traceback.

    python -m benchmarks.faults [--chains 20] [--full 10] [--signals 12] [--files 60] [--inputs 1000] [--out FILE]

- *kills*: chains of a run that is killed at a random file operation and gone on with, until it is done. Its student
  must be, bit by bit, that of the run nobody killed.
- *full disks*: from a random file operation on every one fails. The last checkpoint must still be there.
- *signals*: one that asks the run to end, once or several times, or a pipe that nobody reads any more. Every iteration
  that was printed must be saved.
- *damaged files*: a random byte of a checkpoint, a policy file or a recording is another one. Whoever reads the file
  must say so in one line, or the numbers must be those that were written.
- *odd inputs*: settings, command lines, configuration, policy and run files by Hypothesis, so many for each of the
  properties of ``tests/test_fuzz.py``, other ones for every ``--seed``. Each must be one line or be read.

Needs a C compiler, on Linux. Half an hour on two cores. The results are written after every trial, and those of parts
that are left out (0) stay. With ``--page`` nothing is tried: the tables of docs/reliability.md are written.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
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
from jdistill.files import replace_file
from jdistill.run.folders import newest_checkpoint

ITERATIONS = 6
RUN = ["--num_envs", "4", "--logger", "none", "--device", "cpu", "--devices", "1", "--phase1", "2"]
RUN += ["agent.num_steps_per_env=8", "agent.algorithm.gradient_length=4", "agent.save_interval=1"]
OUTCOMES = ("tried", "survived", "lost", "silent", "tracebacks")
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- written by python -m benchmarks.faults --page -->", "<!-- up to here -->"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE)
BEFORE = """| fault | tried | survived | lost | silent | tracebacks |
|---|---|---|---|---|---|
| kills, in chains | 61 | 23 | 4 | 0 | |
| full disks | 30 | 30 | 0 | 0 | up to 85 each |
| signals | 26 | 16 | 10 | 0 | |
| damaged checkpoints | 49 | 10 | 0 | 39 | 0 |
| damaged policy files | 22 | 0 | 0 | 22 | 0 |
| odd settings | 7000 | | | | 447 |
| odd command lines | 570 | | | | 28 |"""
"""What came of faults of these kinds before anything was done about them."""


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
        command, env = self._command(*flags), self._environment(**fault)
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)

    def begin(self, *flags: str) -> subprocess.Popen[str]:
        """``train_jax.py``, without a fault."""
        command, pipe = self._command(*flags), subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, env=self._environment(), stdout=pipe, stderr=pipe, text=True)

    def _command(self, *flags: str) -> list[str]:
        command = [sys.executable, "train_jax.py", "--logdir", str(self.logdir)]
        return [*command, *([] if "--resume" in flags else self.flags), *flags]

    def _environment(self, **fault: Any) -> dict[str, str]:
        count = self.logdir.parent / "count"
        env = {**os.environ, "FAULT_ROOT": str(self.logdir), "LD_PRELOAD": str(self.library), "FAULT_COUNT": str(count)}
        return env | {f"FAULT_{name.upper()}": str(value) for name, value in fault.items()}

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


Found = Iterator[Counter[str]]
"""How often each of the :data:`OUTCOMES` has come out, after every trial."""


def kills(folder: Path, library: Path, chains: int, rng: random.Random, flags: Sequence[str] = RUN) -> Found:
    """Chains of kills and resumes; a chain survives, a kill is tried."""
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
        yield found


def full_disks(folder: Path, library: Path, number: int, rng: random.Random, flags: Sequence[str] = RUN) -> Found:
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
        yield found


def signals(folder: Path, library: Path, number: int, rng: random.Random, flags: Sequence[str] = RUN) -> Found:
    """What asks a run to end before its time."""
    found = Counter(dict.fromkeys(OUTCOMES, 0))
    for i in range(number):
        trainer = Trainer(folder / f"signal{i}" / "logs", library, [*flags, "agent.save_interval=1000000"])
        trainer.logdir.mkdir(parents=True)
        process, signum = trainer.begin("--max_iterations", "1000000"), rng.choice(SIGNALS)
        assert process.stdout and process.stderr
        wanted, printed = rng.randint(1, 12), -1
        for line in process.stdout:
            printed = int(m[1]) if (m := re.search(r"Learning iteration (\d+)/", line)) else printed
            if printed == wanted:
                break
        for _ in range(rng.randint(1, 4)):
            process.stdout.close() if signum == signal.SIGPIPE else process.send_signal(signum)
        if not process.stdout.closed:
            printed = max([printed, *map(int, re.findall(r"Learning iteration (\d+)/", process.stdout.read()))])
        err = process.stderr.read()
        told = process.wait(timeout=600) == 128 + signum and "everything is saved" in err
        saved = newest_checkpoint(trainer.run) if trainer.run else 0
        found.update({"tried": 1, "tracebacks": "Traceback" in err})
        found["lost" if (saved or 0) <= printed else "survived" if told else "silent"] += 1
        print(f"  signal {i}: {signum.name} at iteration {wanted}, {saved} saved: {err.strip()[-200:]}", flush=True)
        shutil.rmtree(trainer.logdir.parent)
        yield found


def damaged_files(folder: Path, library: Path, number: int, rng: random.Random, flags: Sequence[str] = RUN) -> Found:
    """Another byte in a file that a later command reads."""
    found = Counter(dict.fromkeys(OUTCOMES, 0))
    trainer, recording = Trainer(folder / "damaged" / "logs", library, flags), folder / "flown.hdf5"
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
        yield found


def odd_inputs(folder: Path, library: Path, number: int, rng: random.Random, flags: Sequence[str] = RUN) -> Found:
    """What people and programs write by mistake."""
    env = {**os.environ, "FUZZ_EXAMPLES": str(number)}
    command = [sys.executable, "-m", "pytest", "-q", "-n0", f"--hypothesis-seed={rng.getrandbits(32)}"]
    command += [f"--basetemp={folder / 'inputs'}", "-o", "addopts=", "tests/test_fuzz.py"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    held, failed = (
        int(m[1]) if (m := re.search(rf"(\d+) {word}", done.stdout)) else 0 for word in ("passed", "failed")
    )
    print(done.stdout[-500:])
    yield Counter({"tried": number * (held + failed), "survived": number * held, "tracebacks": failed})


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


PARTS = {
    "kills, in chains": kills,
    "full disks": full_disks,
    "signals": signals,
    "damaged files": damaged_files,
    "odd inputs": odd_inputs,
}


def table(results: dict[str, Any]) -> str:
    """In Markdown."""
    lines = [f"| fault | {' | '.join(OUTCOMES)} |", f"|---|{'---|' * len(OUTCOMES)}"]
    for what, found in results["rows"].items():
        lines.append(f"| {what} | {' | '.join(str(found[outcome]) for outcome in OUTCOMES)} |")
    return "\n".join(lines)


def tables(results: dict[str, Any]) -> str:
    """What the page has of them."""
    return f"{table(results)}\n\nBefore there were checksums, and before more than Ctrl-C was caught:\n\n{BEFORE}"


def write_page(results: dict[str, Any]) -> None:
    """Put the tables in their place."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    replace_file(PAGE, f"{before}{BEGIN}\n\n{tables(results)}\n\n{END}{rest.partition(END)[2]}")


def main() -> int:
    """Try, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chains", type=int, default=20)
    parser.add_argument("--full", type=int, default=10)
    parser.add_argument("--signals", type=int, default=12)
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--inputs", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--page", action="store_true", help="try nothing, write the page")
    args = parser.parse_args()
    if args.page:
        write_page(json.loads(PAGE.with_name("faults.json").read_text()))
        return 0
    before = json.loads(args.out.read_text())["rows"] if args.out and args.out.is_file() else {}
    results: dict[str, Any] = {"seed": args.seed, "rows": before}
    with tempfile.TemporaryDirectory() as name:
        library = build(Path(name))
        numbers = (args.chains, args.full, args.signals, args.files, args.inputs)
        for number, (what, part) in zip(numbers, PARTS.items(), strict=True):
            rng = random.Random(f"{args.seed} {what}")
            for found in part(Path(name), library, number, rng) if number else ():
                results["rows"][what] = {outcome: found[outcome] for outcome in OUTCOMES}
                if args.out:
                    args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
