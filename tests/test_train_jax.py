"""The command: runs, resumes, signals, profiles, complaints.

From the outside where that is the point, else by its ``main``, which saves starting Python and JAX each time. Runs have
the same settings where they can, for those are compiled once.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
import torch
import yaml
from safetensors.numpy import load_file

import train_jax
from bridge import registry
from jdistill.core import networks
from jdistill.core.networks import Policy
from jdistill.export import rsl_rl
from jdistill.export.policy_file import load_policy, save_policy
from jdistill.run import policy_paths, session, training
from jdistill.run.folders import starts
from jdistill.run.progress import read_progress
from tests.conftest import BUNDLED_TEACHER, CACHE, ROOT
from tests.masses import masses_teacher

SMALL = ["--num_envs", "4", "--logger", "none", "agent.num_steps_per_env=16", "agent.save_interval=100"]
SHORT_EPISODES = ["env.episode_length_s=0.03", "agent.save_interval=1", "--phase1", "4"]
ENVIRONMENT = {
    **os.environ,
    "JAX_COMPILATION_CACHE_DIR": str(CACHE),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
}


def command(logdir: Path, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / "train_jax.py"), "--logdir", str(logdir), *arguments]


def train(logdir: Path, *arguments: str) -> tuple[Path, str]:
    """Run the command to its end, in this process; returns the newest run folder and what it printed."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert train_jax.main(["--logdir", str(logdir), *arguments]) == 0
    return max((p for p in logdir.glob("*/*") if p.is_dir()), key=lambda p: p.stat().st_mtime), out.getvalue()


def status_of(arguments: list[str]) -> int:
    """The command's exit status, whoever ends it: argparse exits by itself."""
    try:
        return train_jax.main(arguments)
    except SystemExit as stop:
        return stop.code


def complaint(capsys, *arguments: str) -> str:
    """Run the command in this process; it must fail with one line on stderr, which is returned."""
    assert status_of(list(arguments)) not in (0, None)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("train_jax.py: error: "), lines
    return lines[0]


def test_a_window_of_the_preset_gives_way_to_the_rollouts_asked_for_and_one_of_the_users_does_not(tmp_path, capsys):
    nobody = tmp_path / "nobody.pt"
    nobody.write_bytes(b"no policy")
    asked = [
        "--teacher",
        str(nobody),
        "agent.num_steps_per_env=16",
        "agent.algorithm.num_learning_epochs=1",
    ]
    assert status_of(asked) == 1
    said = capsys.readouterr()
    assert "agent.algorithm.gradient_length=60 is longer than an iteration: it is 16 here\n" in said.out
    assert "nobody.pt: " in said.err and said.err.count("\n") == 1
    for chosen in (["agent.algorithm.gradient_length=60"], ["agent.algorithm={gradient_length: 60}"]):
        assert "gradient_length=60: longer than the 16 steps of an iteration" in complaint(capsys, *asked, *chosen)


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory):
    """A short run through both phases with TensorBoard, a profile and a name."""
    logdir = tmp_path_factory.mktemp("two stages")
    arguments = [*SMALL, "--logger", "tensorboard", "--phase1", "3", "--max_iterations", "6", "--run_name", "night"]
    return train(logdir, *arguments, "--profile", "4:1", "--experiment_name", "exp", "--task", "distillation")


def test_console_lines(two_stages):
    lines = two_stages[1].splitlines()
    at = [lines.index(f" Learning iteration {i}/6 ".center(80).rstrip()) for i in range(6)]
    for i, line in enumerate(at):
        phase = "Phase 1 (teacher actions)" if i < 3 else "Phase 2 (student actions)"
        assert lines[line - 1] == "#" * 80
        assert lines[line + 1 : line + 4] == ["", f"Training Phase: {phase}", f"Phase Iteration: {i}/3 (Phase 1)"]
    banner = [
        "=" * 80,
        "=" * 80,
        "  SWITCHING TO PHASE 2: Now using STUDENT actions to update environment",
        "  Iteration: 3",
        "=" * 80,
        "=" * 80,
    ]
    assert lines[at[3] - 1 - len(banner) : at[3] - 1] == banner
    assert lines.count(banner[2]) == 1
    block = "\n".join(lines[at[5] :])
    for row in ("Total steps: 384", "Steps per second: ", "Mean behavior loss: ", "Iteration time: ", "ETA: 0:00:00"):
        assert row in block
    assert "\x1b" not in two_stages[1], "plain text in a pipe"


def test_run_folder(two_stages):
    run, out = two_stages
    assert re.fullmatch(r"exp/\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_night", f"{run.parent.name}/{run.name}")
    assert f"Logging to {run}" in out
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["task"] == "crazyflie" and config["env"]["num_envs"] == 4
    assert config["agent"]["algorithm"]["phase1_iterations"] == 3
    assert (run / "checkpoints" / "6").is_dir()
    policy, _, header = load_policy(run / "student.safetensors")
    assert policy.rnn_type == "gru" and header["obs_size"] == 22 and header["iteration"] == 6
    for name, value in load_file(run / "teacher.safetensors").items():
        assert (value == load_file(BUNDLED_TEACHER)[name]).all(), "the teacher stays as it was"


def test_scalars_are_rsl_rls(two_stages):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(two_stages[0]))
    events.Reload()
    wanted = {"Loss/behavior", "Loss/learning_rate", "Perf/total_fps", "Policy/mean_std"}
    wanted |= {"Distillation/training_phase", "Distillation/current_iteration", "Episode_Termination/tilt"}
    assert wanted <= set(events.Tags()["scalars"])
    phases = events.Scalars("Distillation/training_phase")
    assert [(e.step, e.value) for e in phases] == [(0, 1), (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]
    curves = read_progress(two_stages[0])
    assert curves.keys() == set(events.Tags()["scalars"])
    for tag, (iterations, values) in curves.items():
        assert iterations == [e.step for e in events.Scalars(tag)]
        assert values == pytest.approx([e.value for e in events.Scalars(tag)], rel=1e-6), tag


def test_profile_shows_the_scopes(two_stages):
    run, out = two_stages
    (trace,) = (run / "profile").rglob("*.xplane.pb")
    data = trace.read_bytes()
    for scope in ("teacher", "student", "env_step", "update"):
        assert f"/{scope}/".encode() in data
    (events,) = (run / "profile").rglob("*.trace.json.gz")
    named = [e for e in json.loads(gzip.decompress(events.read_bytes()))["traceEvents"] if e.get("name") == "iteration"]
    assert [e["args"]["step_num"] for e in named] == ["4"]
    times = json.loads((run / "profile" / "scopes.json").read_text())
    assert set(times) == {"teacher", "student", "env_step", "update", "other"}
    assert all(ms > 0 for ms in times.values())
    assert f"Profiler trace written to {run / 'profile'}" in out


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(tmp_path):
    """Stopped before the switch of phases, and once more after it."""
    whole, _ = train(tmp_path / "whole", *SMALL, "--phase1", "3", "--max_iterations", "7")
    first, _ = train(tmp_path / "parts", *SMALL, "--phase1", "3", "--max_iterations", "2")
    for start, end, switches in ((2, 5, True), (5, 7, False)):
        resumed, out = train(tmp_path / "parts", "--resume", "--max_iterations", str(end))
        assert resumed == first and f"Resuming {first} at iteration {start}" in out
        assert ("SWITCHING TO PHASE 2" in out) == switches, "the run's own phase 1 is remembered"
    ours, theirs = (load_file(run / "student.safetensors") for run in (first, whole))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert (value == theirs[name]).all(), name
    ours, theirs = (read_progress(run) for run in (resumed, whole))
    assert ours["Loss/behavior"][0] == [*range(7)]
    assert {t: c for t, c in ours.items() if t[:5] != "Perf/"} == {t: c for t, c in theirs.items() if t[:5] != "Perf/"}
    assert [s["iteration"] for s in starts(resumed)] == [0, 2, 5]
    assert starts(resumed)[1]["command"].startswith("python train_jax.py --logdir")
    assert starts(resumed)[1]["command"].endswith("--resume --max_iterations 5")


def interrupted(arguments: list[str], at: int, signum: int) -> tuple[str, int, list[str]]:
    """Start the command, send the signal at iteration ``at``; returns what it printed, iterations done, its hint."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=ROOT
    )
    out = ""
    for line in process.stdout:
        out += line
        if f"Learning iteration {at}/" in line:
            process.send_signal(signum)
            break
    rest, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signum
    assert err.count("\n") == 1 and "Traceback" not in err
    done, hint = re.search(r"Interrupted after (\d+) iterations; everything is saved.*Go on with: (.*)$", err).groups()
    last = re.findall(r"Learning iteration (\d+)/", out + rest)[-1]
    assert int(done) == int(last) + 1
    return out + rest, int(done), hint.split()


@pytest.fixture
def of_masses(tmp_path) -> list[str]:
    """Arguments for a task that is compiled in no time, where the point is not the task."""
    policy, state, description = masses_teacher()
    save_policy(tmp_path / "teacher.safetensors", policy, state, description)
    task = ["--task", f"{ROOT / 'tests' / 'masses.py'}:masses", "--teacher", str(tmp_path / "teacher.safetensors")]
    return [*task, *SMALL, "agent.student.rnn_type=null"]


def test_signals_save_and_say_how_to_go_on(tmp_path, of_masses):
    start = command(tmp_path / "logs", *of_masses, "--max_iterations", "100000")
    _, done, hint = interrupted(start, 5, signal.SIGINT)
    assert hint[:2] == ["python", "train_jax.py"]
    out, _, _ = interrupted([sys.executable, *hint[1:]], done + 2, signal.SIGTERM)
    assert re.search(r"Learning iteration (\d+)/", out)[1] == str(done)


def test_best_student_is_one_that_flew_itself(tmp_path):
    """Episodes of three steps: only after the switch may a checkpoint count as the best."""
    run, _ = train(tmp_path, *SMALL, *SHORT_EPISODES, "--max_iterations", "4")
    assert not list((run / "best").glob("[0-9]*")) and not (run / "best_student.safetensors").exists()
    run, _ = train(tmp_path, "--resume", "--max_iterations", "8")
    (best,) = (run / "best").glob("[0-9]*")
    assert 5 <= int(best.name) <= 8
    assert load_policy(run / "best_student.safetensors")[2]["iteration"] == int(best.name)
    assert len(list((run / "checkpoints").glob("[0-9]*"))) == 5, "max_checkpoints"


def test_wandb_works_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    arguments = ["--phase1", "3", "--max_iterations", "2", "--log_project_name", "Foundation"]
    run, _ = train(tmp_path, *SMALL, *arguments, "--logger", "wandb")
    (file,) = (run / "wandb").glob("offline-run-*/*.wandb")
    history = wandb_history(file.read_bytes())
    losses = [float(row["Loss/behavior"]) for row in history if "Loss/behavior" in row]
    assert losses == pytest.approx(read_progress(run)["Loss/behavior"][1], rel=1e-6) and len(losses) == 2


def wandb_history(data: bytes) -> list[dict[str, str]]:
    """The rows that an offline run has logged, values as JSON. The file is a LevelDB log behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows, whole, at = [], b"", 7
    while at + 7 <= len(data):
        if (left := -at % 32768) < 7 and left:  # Too little for another record: the block is padded.
            at += left
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # A whole record, or the last part of one.
            record, whole = Record.FromString(whole), b""
            rows.append({item.key or ".".join(item.nested_key): item.value_json for item in record.history.item})
    return rows


def test_a_mad_teacher_stops_the_run(capsys, tmp_path):
    policy, state, header = load_policy(BUNDLED_TEACHER)
    params = jax.tree.map(lambda x: 1e30 * x, state.params)
    save_policy(tmp_path / "mad.safetensors", policy, state.replace(params=params), header)
    arguments = [*SMALL, "--phase1", "3", "--max_iterations", "4", "--teacher", str(tmp_path / "mad.safetensors")]
    message = complaint(capsys, "--logdir", str(tmp_path), *arguments)
    what = "NaN or infinity in the teacher's action of environment 0 at step 0"
    assert message.endswith(f"error: iteration 0: {what}; nothing was saved yet")


def test_from_the_outside_with_flags_of_no_effect(tmp_path, of_masses):
    flags = ["--headless", "--device", "cpu", "--resume", "False", "--max_iterations", "1"]
    start = command(tmp_path / "logs", *of_masses, *flags)
    done = subprocess.run(start, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0 and not done.stderr
    assert "Training Phase" not in done.stdout, "one-stage training has no phases to speak of"
    (config,) = tmp_path.glob("logs/*/*/config.yaml")
    assert yaml.safe_load(config.read_text())["agent"]["algorithm"]["use_two_stage_training"] is False


def test_help_explains_every_flag(capsys):
    assert status_of(["--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: train_jax.py ")
    flags = "task num_envs max_iterations phase1 seed teacher checkpoint resume load_run experiment_name run_name"
    flags += " logger log_project_name logdir device headless profile config record dataset"
    flags += " video video_interval video_length"
    # A flag begins a line; its help stands behind two blanks, or on the next line, which is indented further.
    explained = dict(
        re.findall(
            r"^  --(\w+)(?: [A-Z:]+| \{[^}]*\}| \[BOOL\]| FILE \[FILE \.\.\.\])?(?:  +|\n {10,})(\S.*)$",
            text,
            re.MULTILINE,
        )
    )
    assert set(flags.split()) <= explained.keys(), set(flags.split()) - explained.keys()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task", "crazyfly"], "unknown task crazyfly (did you mean crazyflie?)"),
        (["--num_env", "4"], "unknown flag --num_env (did you mean --num_envs?)"),
        (["--phase_1=4"], "unknown flag --phase_1 (did you mean --phase1?)"),
        (["--num_envs", "-4"], "'-4' is not a positive count"),
        (["--num_envs", "0"], "'0' is not a positive count"),
        (["--phase1", "1.5"], "'1.5' is not a count"),
        (["--max_iterations", "many"], "'many' is not a positive count"),
        (["--resume", "maybe"], "'maybe' is neither true nor false"),
        (["--logger", "neptune"], "invalid choice: 'neptune'"),
        (["--profile", "3"], "expected START:COUNT"),
        (["--profile", "3:9", "--max_iterations", "10"], "this run has iterations 0 to 9"),
        (["--device", "tpy"], "--device tpy: expected cpu, cuda or cuda:N"),
        (["--load_run", "x"], "add --resume"),
        (["--video_interval", "3"], "--video_interval and --video_length are a film's: add --video"),
        (["--dataset", "nowhere.hdf5"], "nowhere.hdf5: no such file"),
        (["--dataset", "README.md"], "README.md: truncated, damaged or no HDF5 file"),
        (["--record", "b.hdf5", "agent.algorithm.dataset=[a.hdf5]"], "leave one of the two out"),
        (["--record", "README.md"], "--record README.md: exists already"),
        (["agent.algorithm.use_dagger=true", "agent.algorithm.max_buffer_size=9"], "smaller than one rollout"),
        (["agent.algorithm.use_dagger=true", "agent.algorithm.max_buffer_size=2000000000"], "lower it, or set"),
        (["env.robots.spawn.usd_path=cf2x.usd"], "env.robots.spawn.usd_path: unknown setting"),
        (["bridge.mode=thread"], "bridge.mode=thread: expected one of auto, callback, host"),
        (["--sim", "crazyflow", "--task", "Isaac-Ant-Direct"], "--sim crazyflow: has no task Isaac-Ant-Direct"),
        (["--viz", "newton"], "unknown flag --viz here: it belongs to Isaac Lab's tasks"),
        (["foo=1"], "there are agent, bridge, env"),
        (["agent=3"], "is a section"),
        (["agent.obs_groups.studnet=[student]"], "did you mean student?"),
        (["env.drone=cf9"], "env.drone='cf9': expected one of cf21B_500"),
        (["env.episode_length_s=.inf"], "env.episode_length_s=inf"),
        (["env.physics_freq=0"], "env.physics_freq=0"),
        (["--seed", "99999999999999"], "agent.seed=99999999999999: expected a number from 0"),
        (["--phase1", "9999999999"], "phase1_iterations=9999999999"),
        (["--experiment_name", ".."], "not the name of a folder"),
        (["agent.algorithm.max_grad_norm=-1"], "must be positive, or null"),
        (["env.reset.tilt=-3"], "env.reset.tilt=-3"),
        (["--teacher", "a", "--checkpoint", "b"], "give one of them"),
        (["--config", "crazyfly"], "no such file or preset (did you mean crazyflie?)"),
        (["agent.algorithm.learning_rat=1"], "did you mean agent.algorithm.learning_rate?"),
        (["env.randomization.maas=1"], "did you mean env.randomization.mass?"),
        (["agent.seed"], "expected key=value"),
        (["--teacher", "nowhere.safetensors"], "nowhere.safetensors: no such file"),
    ],
)
def test_bad_command_lines(capsys, tmp_path, arguments, expected):
    assert expected in complaint(capsys, "--logdir", str(tmp_path / "logs"), *arguments)
    assert not (tmp_path / "logs").exists(), "nothing is created by a command that cannot run"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--sim", "isaaclab"], "this task"),
        (["--task", "distillation", "env.robot.spawn.usd_path=x"], "this task"),
        (["--task", "Isaac-Ant-Direct", "--viz", "newton"], "unknown task Isaac-Ant-Direct; every other"),
        (["--task", "distilation"], "unknown task distilation (did you mean distillation?); every other"),
    ],
)
def test_without_isaac_lab_its_extra_is_named(capsys, monkeypatch, tmp_path, arguments, expected):
    find_spec = importlib.util.find_spec
    absent = lambda name, package=None: None if name == "isaaclab" else find_spec(name, package)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", absent)
    needs = f"error: {expected} needs Isaac Lab, use 'uv run --extra isaaclab train_jax.py ...'"
    assert complaint(capsys, "--logdir", str(tmp_path / "logs"), *arguments).endswith(needs)


def test_what_is_named_and_not_there_is_told_before_a_simulator_starts(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "load", lambda *args: pytest.fail("a simulator was started"))
    flags = ("--logdir", str(tmp_path / "logs"))
    assert "holds no model_N.pt" in complaint(capsys, "--teacher", str(tmp_path), *flags)
    assert "no such file" in complaint(capsys, "--teacher", str(tmp_path / "model_1.pt"), *flags)
    assert "no such file" in complaint(capsys, "--student", str(tmp_path / "model_1.pt"), *flags)


def test_teachers_that_do_not_fit(capsys, tmp_path):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(BUNDLED_TEACHER.read_bytes()[:20_000])
    assert "truncated" in complaint(capsys, "--teacher", str(cut), "--logdir", str(tmp_path / "logs"))
    _, _, header = load_policy(BUNDLED_TEACHER)
    for obs_size, actions, expected in (
        (30, 4, "takes 30 observations, the environment's 'teacher' has 26"),
        (26, 5, "gives 5 actions, the environment takes 4"),
    ):
        policy = Policy(actions, (8,))
        save_policy(cut, policy, networks.init(policy, jax.random.key(0), obs_size, True), header)
        assert expected in complaint(capsys, "--teacher", str(cut), "--logdir", str(tmp_path / "logs"))
    world = complaint(capsys, "env.teacher_frame=world", "--logdir", str(tmp_path / "logs"))
    assert "the teacher sees in the body frame, 'teacher' is in the world frame" in world
    groups = complaint(capsys, "agent.obs_groups.student=[policy]", "--logdir", str(tmp_path / "logs"))
    assert "no observation group 'policy'; there are student (22), teacher (26)" in groups
    assert not (tmp_path / "logs").exists()


def test_an_rsl_rl_checkpoint_is_a_teacher(tmp_path):
    """The bundled teacher, written as the task's own rsl_rl 2.x wrote it, labels like the bundled teacher."""
    policy, state, _ = load_policy(BUNDLED_TEACHER)
    tensors = {k: torch.tensor(v) for k, v in rsl_rl.to_tensors(policy, state).items()}
    normalizer = {k.removeprefix("obs_normalizer."): v for k, v in tensors.items() if k.startswith("obs_normalizer.")}
    actor = {k.replace("mlp.", "actor."): v for k, v in tensors.items() if k.startswith("mlp.")}
    torch.save({"model_state_dict": actor, "obs_norm_state_dict": normalizer, "iter": 9}, tmp_path / "best_model.pt")
    arguments = ["--phase1", "3", "--max_iterations", "1", "--checkpoint", str(tmp_path / "best_model.pt")]
    run, out = train(tmp_path, *SMALL, *arguments)
    assert "best_model.pt: 26 observations, 64-64-64-4, elu, tanh at the output, with normalizer" in out
    kept, again, _ = load_policy(run / "teacher.safetensors")
    obs = jax.random.normal(jax.random.key(0), (5, 26))
    assert jnp.allclose(networks.act(kept, again, (), obs)[1], networks.act(policy, state, (), obs)[1], atol=1e-6)


def test_a_bundled_teacher_goes_by_its_name(tmp_path, monkeypatch):
    job = training.Job(config="crazyflie_raptor")
    beginning = training.begin(job)
    started = session.start(beginning.request)
    cfg = training.configure(job, beginning, started)
    file = policy_paths.teacher_path(cfg, started.task, job, beginning)
    policy, _, header = load_policy(file)
    assert file.parent == BUNDLED_TEACHER.parent and header["obs_size"] == 30 and policy.hidden_dims == (64, 64, 64)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quadrotors").write_bytes(b"mine")
    assert policy_paths.teacher_path(cfg, started.task, job, beginning) == Path("quadrotors"), (
        "a file of that name comes first"
    )


def test_nothing_to_resume(capsys, tmp_path, two_stages):
    assert "nothing to resume" in complaint(capsys, "--resume", "--logdir", str(tmp_path))
    run = two_stages[0]
    where = ["--logdir", str(run.parents[1]), "--experiment_name", "exp"]
    assert "no such run" in complaint(capsys, "--resume", "--load_run", "2020", *where)
    assert "already has 6 iterations, --max_iterations is 6: raise it" in complaint(capsys, "--resume", *where)
    assert "has its teacher already" in complaint(capsys, "--resume", "agent.teacher.activation=relu", *where)
    assert "has its seed already" in complaint(capsys, "--resume", "--seed", "7", *where)
    outside = complaint(capsys, "--resume", "--max_iterations", "9", "--profile", "1:2", *where)
    assert "--profile 1:2: this run has iterations 6 to 8" in outside
    other = complaint(capsys, "--resume", "--max_iterations", "9", "agent.student.rnn_hidden_dim=5", *where)
    assert "made with other settings" in other and "16" in other and "5" in other and "leave out what" in other
    student = yaml.safe_load((run / "config.yaml").read_text())["agent"]["student"]
    assert student["rnn_hidden_dim"] == 16, "nothing is overwritten"


def test_devices_that_are_not_there(tmp_path):
    arguments = command(tmp_path, *SMALL, "--max_iterations", "1", "--device", "tpu")
    done = subprocess.run(arguments, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("train_jax.py: error: --device tpu: JAX finds no such device")


def test_a_damaged_checkpoint_is_told_and_the_one_before_it_serves(capsys, tmp_path):
    run, _ = train(tmp_path, *SMALL, *SHORT_EPISODES, "--max_iterations", "3")
    for folder in (run / "checkpoints" / "3", run / "best"):
        for file in folder.rglob("*"):
            if file.is_file():
                file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    message = complaint(capsys, "--logdir", str(tmp_path), "--resume", "--max_iterations", "4")
    assert "checkpoints/3: damaged (" in message and "delete this folder" in message
    shutil.rmtree(run / "checkpoints" / "3")
    _, out = train(tmp_path, "--resume", "--max_iterations", "4")
    assert "at iteration 2" in out


def test_unwritable_log_folder(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    message = complaint(capsys, "--logdir", str(tmp_path / "file"), "--num_envs", "4")
    assert "choose another --logdir" in message
