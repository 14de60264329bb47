"""What goes wrong while a run writes, ends or is gone on with: nothing is lost, nothing damaged is taken for whole."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from bridge.crazyflie import PointControlCfg
from bridge.env import AutoReset
from jdistill.cli.main import run_command
from jdistill.core import networks
from jdistill.core.networks import Policy
from jdistill.errors import CheckpointError, PolicyFileError, TrainingError
from jdistill.export.policy_file import load_policy
from jdistill.files import replace_file
from jdistill.run.callbacks import Callback
from jdistill.run.compose import compose
from jdistill.run.folders import best_return, newest_checkpoint, run_folders
from jdistill.run.held import HeldRun
from jdistill.run.inputs import Teacher
from jdistill.run.output import Output, kept_going, nobody_reads
from jdistill.run.runner import DistillationRunner, Interrupted
from tests.conftest import ROOT
from tests.masses import Masses

AGENT = ["agent.num_steps_per_env=8", "agent.algorithm.gradient_length=4", "agent.logger=none"]
AGENT += ["agent.student.rnn_type=null", "agent.student.pre_dims=[]"]
"""Of the runs in this process and of the commands, which so have one program."""


def make_runner(folder: Path, *overrides: str, callbacks=()) -> DistillationRunner:
    """A run on masses; its settings are the agent's."""
    cfg = compose("masses", PointControlCfg, [], ["env.num_envs=8", *AGENT, "agent.save_interval=1", *overrides])
    teacher = Policy(1, (8,), output_activation="tanh")
    start = networks.init(teacher, jax.random.key(5), 2, normalize=False)
    return DistillationRunner(AutoReset(Masses(8)), cfg, Teacher(teacher, start, {}), folder, callbacks=callbacks)


@pytest.fixture
def finished(tmp_path) -> Path:
    """A run of four iterations with four checkpoints."""
    runner = make_runner(tmp_path / "run", "agent.max_iterations=4")
    runner.start()
    runner.learn()
    return tmp_path / "run"


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_file_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    file = tmp_path / "config.yaml"
    replace_file(file, "old")
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(OSError, match="No space left"):
                replace_file(file, "new")
        assert file.read_text() == "old" and [x.name for x in tmp_path.iterdir()] == ["config.yaml"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    (tmp_path / "config.yaml.part").symlink_to(elsewhere)
    replace_file(file, "new")
    assert file.read_text() == "new" and elsewhere.read_text() == "mine", "no link is followed"


def test_a_policy_file_with_another_byte_anywhere_in_its_tensors_is_refused(finished):
    file = finished / "student.safetensors"
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in [header, len(whole) - 1, *rng.integers(header, len(whole), 20)]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        with pytest.raises(PolicyFileError, match=r"damaged|NaN or infinity"):
            load_policy(file)
    file.write_bytes(whole)
    load_policy(file)


# -- checkpoints ---------------------------------------------------------------------------------------------------


def biggest(folder: Path) -> Path:
    return max((x for x in folder.rglob("*") if x.is_file()), key=lambda x: x.stat().st_size)


def test_a_checkpoint_with_other_numbers_is_named_and_the_one_before_it_serves(finished, capsys):
    found = 0
    for place in (0.3, 0.5, 0.7, 0.9):
        shutil.rmtree(copy := finished.with_name("copy"), ignore_errors=True)
        shutil.copytree(finished, copy)
        file = biggest(copy / "checkpoints" / "4" / "state")
        content = bytearray(file.read_bytes())
        content[int(place * len(content))] ^= 16
        file.write_bytes(content)
        runner = make_runner(copy)
        try:
            runner.load()
        except CheckpointError as e:
            found += 1
            assert str(e).startswith(f"{copy / 'checkpoints' / '4'}: damaged (") and "--resume --fallback" in str(e)
            runner.load(fallback=True)
            assert runner.current_learning_iteration == 3 and newest_checkpoint(copy) == 3
            assert (copy / "damaged" / "4").is_dir() and "it is kept in" in capsys.readouterr().out
        else:  # A byte that means nothing.
            state, whole = runner.state, make_runner(finished)
            whole.load()
            for a, b in zip(jax.tree.leaves(state.student), jax.tree.leaves(whole.state.student), strict=True):
                np.testing.assert_array_equal(a, b)
    assert found


def test_a_resume_mends_what_a_kill_left_between_a_checkpoint_and_its_other_files(finished, monkeypatch):
    """The checkpoint is there; the student's file is not its own, and it was not kept as the best."""
    runner = make_runner(finished)
    runner.load()
    with monkeypatch.context() as patch:
        patch.setattr(runner.checkpoints, "_save_best", lambda *_: False)
        runner.checkpoints.save(5, runner.state.replace(iteration=runner.state.iteration + 1), mean_return=1e6)
        runner.checkpoints.close()
    replace_file(finished / "student.safetensors", b"cut")
    again = make_runner(finished)
    again.load()
    again.checkpoints.close()
    for name in ("student", "best_student"):
        assert load_policy(finished / f"{name}.safetensors")[2]["iteration"] == 5
    assert best_return(finished) == 1e6


def test_arrays_without_elements_are_saved_and_restored(tmp_path):
    class Empty(Masses):
        def reset(self, rng):
            state = super().reset(rng)
            return state.replace(pipeline_state=(state.pipeline_state, np.zeros((self.num_envs, 0), np.float32)))

        def step(self, state, action):
            place, nothing = state.pipeline_state
            after = super().step(state.replace(pipeline_state=place), action)
            return after.replace(pipeline_state=(after.pipeline_state, nothing))

    run = tmp_path / "run"
    runner = make_runner(run, "agent.max_iterations=1")
    cfg, teacher = runner.cfg, runner.teacher
    runner = DistillationRunner(AutoReset(Empty(8)), cfg, teacher, run)
    runner.start()
    runner.learn()
    again = DistillationRunner(AutoReset(Empty(8)), cfg, teacher, run)
    again.load()
    assert again.current_learning_iteration == 1
    assert again.state.env_state.pipeline_state[1].shape == (8, 0)


# -- the run folder ------------------------------------------------------------------------------------------------


def test_a_run_has_one_trainer(tmp_path):
    held = HeldRun(tmp_path)
    with pytest.raises(TrainingError, match=rf"is being trained by process {os.getpid()} on .*: wait for its end"):
        HeldRun(tmp_path)
    held.release()
    HeldRun(tmp_path).release()


def test_a_lock_ends_with_its_holder(tmp_path):
    program = "import sys, pathlib; from jdistill.run.held import HeldRun; HeldRun(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, cwd=ROOT)
    HeldRun(tmp_path).release()


class Mover(Callback):
    """Does something to the run, moves its folder for one, after its second iteration."""

    def __init__(self, act):
        self.act = act

    def after_iteration(self, iteration) -> None:
        if iteration.number == 1:
            self.act()


def test_a_folder_that_is_moved_while_it_is_trained_is_noticed_and_nothing_is_lost(tmp_path):
    run = tmp_path / "run"
    there = tmp_path / "archive"
    runner = make_runner(run, "agent.save_interval=100", callbacks=[Mover(lambda: run.rename(there))])
    runner.start()
    runner.held = HeldRun(run)
    with pytest.raises(TrainingError, match=rf"was moved to {there}; everything is saved there: --resume"):
        runner.learn()
    assert newest_checkpoint(there) == 3 and not run.exists()
    runner.held.release()


def test_a_folder_that_is_removed_while_it_is_trained_ends_the_run(tmp_path):
    run = tmp_path / "run"
    runner = make_runner(run, "agent.save_interval=100", callbacks=[Mover(lambda: shutil.rmtree(run))])
    runner.start()
    runner.held = HeldRun(run)
    with pytest.raises(TrainingError, match="was removed while it was being trained"):
        runner.learn()
    runner.held.release()


# -- signals and pipes ---------------------------------------------------------------------------------------------


def begun(logdir: Path, *flags: str, **settings) -> subprocess.Popen:
    command = [sys.executable, "train_jax.py", "--task", "tests/masses.py:masses", "--logdir", str(logdir), *flags]
    command += ["--teacher", str(logdir.parent / "teacher.safetensors"), "--max_iterations", "1000000"]
    command += ["--num_envs", "8", *AGENT, "agent.save_interval=1000000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Under nohup, which the tests may be, it would ignore what it is to obey.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        return subprocess.Popen(command, cwd=ROOT, **pipes, **settings)
    finally:
        signal.signal(signal.SIGHUP, before)


def until(process: subprocess.Popen, text: str) -> None:
    while text not in (line := process.stdout.readline()):
        assert line, process.stderr.read()


@pytest.fixture
def logdir(tmp_path) -> Path:
    """With the teacher beside it."""
    make_runner(tmp_path / "run").start()
    (tmp_path / "run" / "teacher.safetensors").rename(tmp_path / "teacher.safetensors")
    return tmp_path / "logs"


def saved(logdir: Path) -> int:
    (run,) = run_folders(str(logdir))
    assert load_file(run / "student.safetensors")
    return newest_checkpoint(run) or 0


@pytest.mark.parametrize("signals", [[signal.SIGINT] * 3, [signal.SIGHUP]], ids=["INT", "HUP"])
def test_whatever_asks_a_run_to_end_saves_it(logdir, signals):
    process = begun(logdir)
    until(process, "Learning iteration 3/")
    for number in signals:
        process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signals[0] and saved(logdir) >= 4
    assert err.count("\n") == 1 and "everything is saved" in err


def test_so_does_slurms_warning(tmp_path):
    run = tmp_path / "run"
    warn = Mover(lambda: os.kill(os.getpid(), signal.SIGUSR1))
    runner = make_runner(run, "agent.save_interval=100", callbacks=[warn])
    runner.start()
    with pytest.raises(Interrupted, match="Interrupted after 3 iterations; everything is saved") as stop:
        runner.learn()
    assert stop.value.signum == signal.SIGUSR1 and newest_checkpoint(run) == 3
    assert load_policy(run / "student.safetensors")[2]["iteration"] == 3


def test_a_run_can_outlive_its_terminal(logdir):
    process = begun(logdir, "--on_hangup", "ignore")
    until(process, "Learning iteration 3/")
    process.send_signal(signal.SIGHUP)
    until(process, "Learning iteration 9/")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM and saved(logdir) >= 10


def test_a_pipe_that_nobody_reads_any_more_ends_the_run_and_loses_nothing(logdir):
    process = begun(logdir)
    until(process, "Learning iteration 3/")
    process.stdout.close()  # As | head does.
    err = process.stderr.read()
    assert process.wait(timeout=120) == 128 + signal.SIGPIPE and saved(logdir) >= 4
    assert err.count("\n") == 1 and "everything is saved" in err


def test_output_that_fails_is_dropped(capsys):
    class Full:
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

        def flush(self) -> None:
            raise OSError(28, "No space left on device")

        def fileno(self) -> int:
            raise OSError

    out = Output(Full())
    assert out.write("something") == 9 and out.failure.errno == 28
    out.flush()
    sys.stdout, before = Full(), sys.stdout
    try:
        with kept_going():
            print("lost")
            assert not nobody_reads()
    finally:
        sys.stdout = before
    assert "standard output failed (No space left on device)" in capsys.readouterr().err


def test_a_rollout_that_no_memory_holds_is_told_before_anything_begins(logdir, capsys):
    teacher = str(logdir.parent / "teacher.safetensors")
    argv = ["--task", "tests/masses.py:masses", "--teacher", teacher, "--logdir", str(logdir), "--num_envs", "1000000"]
    assert run_command("train", [*argv, "--logger", "none", "agent.num_steps_per_env=100000"]) == 1
    err = capsys.readouterr().err
    assert "a rollout of 1000000 environments x 100000 steps needs" in err and err.count("\n") == 1
    assert "lower --num_envs or agent.num_steps_per_env" in err and not logdir.exists()


# -- a run that cannot learn ---------------------------------------------------------------------------------------


def test_a_loss_that_explodes_is_spoken_of(tmp_path, capsys):
    run = tmp_path / "run"
    runner = make_runner(
        run, "agent.algorithm.learning_rate=1e3", "agent.max_iterations=8", "agent.algorithm.max_grad_norm=null"
    )
    runner.start()
    runner.learn()
    assert "Warning: the student has parameters as large as" in capsys.readouterr().out
