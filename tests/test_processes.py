"""Several processes that share a run, over the loopback interface: the same numbers, one voice, one end."""

from __future__ import annotations

import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

from jdistill.core import networks
from jdistill.core.networks import Policy
from jdistill.errors import CheckpointError, ConfigError
from jdistill.export.policy_file import save_policy
from jdistill.run.checkpoint import Checkpoints
from jdistill.run.processes import Group, find_group
from tests.conftest import ROOT
from tests.test_train_jax import ENVIRONMENT, command, train

RUN = ["--task", f"{ROOT / 'tests' / 'masses.py'}:masses", "--logger", "none", "--phase1", "3"]
RUN += ["agent.num_steps_per_env=16", "agent.student.output_activation=identity", "agent.student.rnn_type=null"]
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(number: int, logdir: Path, *arguments: str) -> list[subprocess.Popen]:
    """So many processes of the command."""
    group = ["--device", "cpu", "--coordinator", f"127.0.0.1:{free_port()}", "--num_processes", str(number)]
    return [
        subprocess.Popen(
            command(logdir, *arguments, *group, "--process_id", str(i)),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            cwd=ROOT,
        )
        for i in range(number)
    ]


def start_by_torchrun(number: int, logdir: Path, *arguments: str) -> list[subprocess.Popen]:
    """The launcher of so many processes; what they say is one."""
    port = str(free_port())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(number), "--master_port", port]
    return [
        subprocess.Popen(
            [*launcher, *command(logdir, "--distributed", "--device", "cpu", *arguments)[1:]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**ENVIRONMENT, "MASTER_PORT": port},
            cwd=ROOT,
        )
    ]


def ended(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of each."""
    said = [process.communicate(timeout=180) for process in processes]
    return [(process.returncode, *lines) for process, lines in zip(processes, said, strict=True)]


def await_iteration(process: subprocess.Popen, number: int) -> str:
    """What it has printed when it is there."""
    out = ""
    for line in process.stdout:
        out += line
        if f"Learning iteration {number}/" in line:
            return out
    raise AssertionError(out + process.stderr.read())


def newest(logdir: Path) -> Path:
    return max(logdir.glob("*/*"), key=lambda path: path.stat().st_mtime)


def rows(run: Path) -> dict[str, np.ndarray]:
    """What the run logged, without what hangs on the clock."""
    with (run / "progress.csv").open() as file:
        found = list(csv.DictReader(file))
    names = [name for name in found[0] if not name.startswith("Perf/")]
    return {name: np.array([float(row[name] or "nan") for row in found]) for name in names}


@pytest.fixture(scope="module", autouse=True)
def teacher(tmp_path_factory) -> None:
    """Every run's teacher."""
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    policy = Policy(1, (8,), output_activation="tanh")
    save_policy(file, policy, networks.init(policy, jax.random.key(5), 2, normalize=False), {})
    RUN.extend(["--teacher", str(file)])


@pytest.fixture(scope="module")
def alone(teacher, tmp_path_factory) -> Path:
    """The folder of a run in one process, on one device."""
    return train(tmp_path_factory.mktemp("alone"), *RUN, "--max_iterations", "5", "--devices", "1")[0]


def assert_learnt_alike(alone: Path, logdir: Path) -> None:
    """The only run of ``logdir`` has the numbers of the one in a single process."""
    together = newest(logdir)
    one, other = rows(alone), rows(together)
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_allclose(other[name], values, rtol=1e-3, atol=1e-4, err_msg=name)
    assert sorted(p.name for p in together.parent.iterdir()) == [together.name], "one run folder"


def test_processes_learn_what_one_learns_and_one_of_them_speaks(tmp_path, alone):
    told = ended(start(2, tmp_path, *RUN, "--max_iterations", "5"))
    assert [status for status, *_ in told] == [0] * 2, told
    assert "Learning iteration 4/5" in told[0][1] and "Done. Student:" in told[0][1]
    assert told[1][1:] == ("", "")
    assert_learnt_alike(alone, tmp_path)


@pytest.mark.full
def test_torchrun_and_a_recording_of_both_processes(tmp_path, alone):
    record = ["--record", str(tmp_path / "flown.hdf5")]
    ((status, out, err),) = ended(start_by_torchrun(2, tmp_path / "together", *RUN, "--max_iterations", "5", *record))
    assert status == 0, err
    assert out.count("Learning iteration 4/5") == 1 and out.count("Done. Student:") == 1
    assert_learnt_alike(alone, tmp_path / "together")
    files = [tmp_path / "flown.hdf5", tmp_path / "flown.1.hdf5"]
    steps = [sum(len(demo["actions"]) for demo in h5py.File(file)["data"].values()) for file in files]
    assert all(30 < n <= 4 * 5 * 16 for n in steps), "each has its own four environments' episodes"
    _, out = train(tmp_path / "offline", *RUN, "--dataset", str(files[0]), "--max_iterations", "1")
    episodes = sum(len(h5py.File(file)["data"]) for file in files)
    assert f"Dataset: {episodes} episodes, {sum(steps)} steps" in out, "they are read together"


def damage(run: Path, step: int) -> None:
    """Change a bit of what several processes wrote, such that an array has other numbers."""
    checkpoints = Checkpoints(run, 5)
    arrays, info = checkpoints.read(step)
    assert info["checksums"].keys() == arrays.keys() and len(info["checksums"]["env_state.done"]) == 2, "of each part"
    file = max((x for x in (run / "checkpoints" / str(step) / "state").rglob("d/*")), key=lambda x: x.stat().st_size)
    content = file.read_bytes()
    for place in range(len(content) // 8, len(content), len(content) // 8):
        file.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            checkpoints.read(step)
        except CheckpointError as e:
            if "is not what was saved" in str(e):
                break
    else:
        raise AssertionError("no bit changed a number")
    checkpoints.close()


def test_a_signal_to_one_saves_and_ends_all_and_a_death_ends_all_with_a_line(tmp_path):
    many = [*RUN, "--max_iterations", "100000", "agent.save_interval=5"]
    processes = start(2, tmp_path, *many)
    out = await_iteration(processes[0], 7)
    processes[1].send_signal(signal.SIGTERM)
    told = ended(processes)
    assert [status for status, *_ in told] == [128 + signal.SIGTERM] * 2, told
    assert told[1][1:] == ("", "") and told[0][2].count("\n") == 1
    saved = int(re.search(r"Interrupted after (\d+) iterations; everything is saved", told[0][2])[1])
    assert saved > 7 and str(saved) in {p.name for p in (newest(tmp_path) / "checkpoints").iterdir()}
    assert f"Learning iteration {saved - 1}/" in out + told[0][1]

    before = (saved - 1) // 5 * 5
    damage(newest(tmp_path), saved)
    processes = start(2, tmp_path, "--resume", "--fallback", "--max_iterations", "100000")
    out = await_iteration(processes[0], (saved // 5 + 2) * 5 + 1)
    assert re.search(rf"checkpoints/{saved}: damaged \('.+' is not what was saved\); it is kept in .*damaged\n", out)
    assert f"at iteration {before}" in out and "anew" not in out
    processes[0].kill()
    killed = time.monotonic()
    status, _, err = ended(processes)[1]
    assert status == 1 and time.monotonic() - killed < 30
    assert re.fullmatch(r"error: process 0 of 2 \(on .+\) has ended; .*--resume goes on with it\n", err)
    saved = max(int(p.name) for p in (newest(tmp_path) / "checkpoints").iterdir() if p.name.isdigit())
    _, out = train(tmp_path, "--resume", "--max_iterations", str(saved + 2), "--devices", "2")
    assert f"at iteration {saved}" in out and "anew" not in out


def test_an_error_is_told_once(tmp_path):
    """Whoever meets it: all of them, or one that cannot write its file."""
    told = ended(start(2, tmp_path, *RUN[:-1], "nobody.pt"))
    assert [status for status, *_ in told] == [1, 1] and told[1][1:] == ("", "")
    assert told[0][2].endswith("error: nobody.pt: no such file\n") and told[0][2].count("\n") == 1
    (tmp_path / "flown.1.hdf5").touch()
    told = ended(start(2, tmp_path, *RUN, "--record", str(tmp_path / "flown.hdf5")))
    assert [status for status, *_ in told] == [1, 1] and told[1][1:] == ("", "")
    assert re.fullmatch(r"error: process 1 of 2 \(on .+\): --record .*flown.1.hdf5: exists already.*\n", told[0][2])


def environment(monkeypatch, **variables: str) -> None:
    for name in [name for name in os.environ if name in LAUNCHERS or name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_launchers_say_who_is_who(monkeypatch):
    environment(monkeypatch, RANK="5", LOCAL_RANK="1", WORLD_SIZE="8", MASTER_ADDR="10.0.0.7", MASTER_PORT="29500")
    assert find_group(True, None, None, None) == Group("10.0.0.7:29501", 8, 5, 1)
    assert find_group(False, None, None, None) is None, "only where it is asked for"
    slurm = {"SLURM_NTASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "8123"}
    environment(monkeypatch, **slurm, SLURM_STEP_NODELIST="gpu[007-010,012],big1")
    assert find_group(True, None, None, None) == Group("gpu007:61123", 16, 9, 1)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "big1,gpu[3-4]")
    assert find_group(True, None, None, None).coordinator == "big1:61123"
    assert find_group(False, "h:1", 1, 0) is None, "one process is alone"


def test_half_a_group_is_refused(monkeypatch):
    environment(monkeypatch)
    for arguments, message in {
        (True, None, None, None): "neither torchrun nor srun has started this",
        (False, "host:1", 2, None): "--process_id is missing",
        (False, "host:1", None, 1): "--num_processes is missing",
        (False, "host", 2, 1): "--coordinator host: expected HOST:PORT",
        (False, "host:1", 2, 2): "--process_id 2: expected 0 to 1",
    }.items():
        with pytest.raises(ConfigError, match=message):
            find_group(*arguments)
    environment(monkeypatch, RANK="0", WORLD_SIZE="2")
    with pytest.raises(ConfigError, match="the launcher's environment is not complete"):
        find_group(True, None, None, None)
