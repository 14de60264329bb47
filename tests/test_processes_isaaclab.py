"""Two real Isaac Lab simulators, each in its process, distil point control together."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.test_processes import await_iteration, ended, newest, start

ISAAC_LAB = ["--task", "crazyflie", "--sim", "isaaclab", "--logger", "none", "agent.num_steps_per_env=8"]
ISAAC_LAB += ["agent.student.rnn_type=null", "agent.algorithm.gradient_length=8"]


@pytest.mark.full
def test_one_of_two_simulators_dies_and_the_run_goes_on(tmp_path):
    arguments = [*ISAAC_LAB, "--num_envs", "8", "--phase1", "2", "--max_iterations", "1000", "agent.save_interval=2"]
    processes = start(2, tmp_path, *arguments)
    await_iteration(processes[0], 3)
    processes[1].kill()
    (status, _, err), _ = ended(processes)
    assert status == 1
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert re.fullmatch(r"error: process 1 of 2 \(on .+\) has ended; .*--resume goes on with it", line)
    run = newest(tmp_path)
    saved = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
    assert saved in (2, 4)
    assert yaml.safe_load((run / "config.yaml").read_text())["env"]["num_envs"] == 8, "of both together"
    told = ended(start(2, tmp_path, "--resume", "--max_iterations", str(saved + 1)))
    assert [status for status, *_ in told] == [0, 0], told
    assert f"Resuming {run} at iteration {saved}" in told[0][1] and "Done. Student:" in told[0][1]
