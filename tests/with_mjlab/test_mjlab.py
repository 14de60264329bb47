"""The command on the real mjlab: its tasks, settings, checkpoints and films; complaints.

All on one task in one size: each other one would compile Warp's kernels and JAX's programs anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import yaml
from mjlab.scripts.train import TrainConfig, run_train
from mjlab.tasks.registry import list_tasks, load_env_cfg

import train_jax
from bridge.env import TrainingEnv
from bridge.mjlab import launch, names
from bridge.mjlab.agent import agent_defaults
from bridge.mjlab.cfg import MjlabCfg
from bridge.tasks import Session
from jdistill.cli.main import run_command
from jdistill.export.policy_file import load_policy
from tests.conftest import ROOT

TASK, GO1 = "Mjlab-Cartpole-Balance", "Mjlab-Velocity-Flat-Unitree-Go1"
SMALL = ["--num_envs", "4", "--device", "cpu", "--logger", "none", "agent.num_steps_per_env=8"]
STEPS = 10
"""Of an episode."""
OPTIONS = launch.Options("cpu")


def opened(*overrides: str, groups: list[str] | None = None):
    return launch.open_env(TASK, MjlabCfg(4, list(overrides)), OPTIONS, Session(1, groups))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A checkpoint of mjlab's own trainer."""
    cfg, folder = TrainConfig.from_task(TASK), tmp_path_factory.mktemp("ppo")
    cfg.env.scene.num_envs = 4
    cfg.agent.max_iterations, cfg.agent.num_steps_per_env, cfg.agent.logger = 1, 8, "tensorboard"
    cfg.agent.actor.hidden_dims, cfg.agent.actor.obs_normalization = (24, 16), True
    with contextlib.redirect_stdout(io.StringIO()):
        run_train(TASK, cfg, folder)
    return folder / "model_0.pt"


@pytest.fixture(scope="module")
def documented(teacher, tmp_path_factory):
    """The command of the documentation, with a setting in mjlab's own words."""
    logdir = tmp_path_factory.mktemp("logs")
    arguments = ["--logdir", str(logdir), "--task", TASK, "--teacher", str(teacher), *SMALL]
    arguments += ["--phase1", "1", "--max_iterations", "2", "--env.episode-length-s", "0.5"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert train_jax.main([*arguments, "env.rewards.smooth_reward.weight=2"]) == 0
    (run,) = logdir.glob("*/*")
    return run, out.getvalue()


def test_the_documented_command(documented):
    run, out = documented
    assert "model_0.pt: 5 observations, 24-16-1, elu, with normalizer" in out and "SWITCHING TO PHASE 2" in out
    assert "Episode_Reward/smooth_reward" in out, "mjlab's own scalars are shown"
    assert "Setting seed" not in out and "Base Environment" not in out
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["task"], config["sim"], run.parent.name) == (TASK, "mjlab", "cartpole_distillation")
    words = ["env.episode_length_s=0.5", "env.rewards.smooth_reward.weight=2"]
    assert config["env"] == {"num_envs": 4, "overrides": words, "play": False}
    assert config["agent"]["obs_groups"] == {"student": ["actor"], "teacher": ["actor"]}
    policy, _, header = load_policy(run / "student.safetensors")
    assert (policy.hidden_dims, policy.rnn_type, policy.output_activation) == ((64, 64), None, "identity")
    layout = [(part["name"], part["size"]) for part in header["observation"]["groups"][0]["layout"]]
    assert layout == [("cart_pos", 1), ("pole_angle", 2), ("cart_vel", 1), ("pole_vel", 1)]
    action = header["action"]
    assert (action["size"], action["layout"], action["rate_hz"]) == (1, ["slider"], 20.0)
    assert header["robot"]["joint_names"] == ["slider", "hinge_1"]


def test_a_run_goes_on_in_its_simulator_and_is_recorded_by_it(documented, capsys):
    run, _ = documented
    arguments = ["--logdir", str(run.parents[1]), "--load_run", str(run), "--resume", "--device", "cpu"]
    film = ["--video", "--video-length", "2", "--video_interval", "8", "env.viewer.width=64", "env.viewer.height=48"]
    assert train_jax.main([*arguments, "--max_iterations", "3", *film]) == 0
    assert f"Resuming {run} at iteration 2" in capsys.readouterr().out
    assert load_policy(run / "student.safetensors")[2]["iteration"] == 3
    assert [file.name for file in run.rglob("*.mp4")]


def test_a_student_is_evaluated_as_trained_and_as_played(documented, tmp_path):
    run, _ = documented
    assert run_command("evaluate", [str(run), "--episodes", "4", "--out", str(tmp_path), "--device", "cpu"]) == 0
    results = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(results["scenarios"]) == ["default", "play"] and results["versions"]["mjlab"]
    for scenario in results["scenarios"].values():
        teacher = scenario["policies"]["teacher"]
        assert teacher["length"] == STEPS and teacher["agreement"] == {"rmse": 0.0, "r2": 1.0}


def test_a_student_is_filmed_and_exported(documented, tmp_path, capsys):
    run, _ = documented
    assert run_command("play", [str(run), "--seconds", "0.2", "--out", str(tmp_path / "a.gif"), "--device", "cpu"]) == 0
    assert "a.gif: 2 frames, student and teacher" in capsys.readouterr().out
    from PIL import Image

    film = Image.open(tmp_path / "a.gif")
    first = np.asarray(film.convert("L"))
    film.seek(1)
    assert first.std() > 10 and (first != np.asarray(film.convert("L"))).any(), "the cart moves"
    assert run_command("export", [str(run), "--format", "safetensors", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "policy.json").read_text())["action"]["layout"] == ["slider"]


def test_rollouts_are_those_of_a_plain_loop():
    """A compiled rollout, and mjlab alone with the same actions: the same numbers to the last bit."""
    with opened("env.episode_length_s=0.5", "env.observations.critic.concatenate_terms=False") as env:
        assert isinstance(env, TrainingEnv) and env.max_episode_length == STEPS
        assert env.groups == ["actor", "critic/cart_pos", "critic/pole_angle", "critic/cart_vel", "critic/pole_vel"]
        assert env.obs_specs["critic/pole_angle"].layout == (("pole_angle", 2, ""),)

        def rollout(rng):
            def step(state, _):
                action = state.obs["actor"][:, :1]
                after = env.step(state, action)
                return after, (action, after.obs, after.reward, after.done)

            return jax.lax.scan(step, env.reset(rng), None, length=2 * STEPS)[1]

        program = jax.jit(rollout)
        actions, obs, rewards, dones = jax.tree.map(np.asarray, env.drive(program, jax.random.key(3)))
        seed = int(jax.random.bits(jax.random.key(3), (), np.uint32) >> 1)
        env.env.reset(seed=seed)
        for action, seen, reward, done in zip(actions, obs["actor"], rewards, dones, strict=True):
            theirs, paid, terminated, truncated, _ = env.env.step(torch.tensor(action))
            assert (theirs["actor"].numpy() == seen).all() and (paid.numpy() == reward).all()
            assert ((terminated | truncated).numpy() == done).all()
        assert dones[STEPS - 1].all() and not dones[: STEPS - 1].any()


def test_names_are_those_of_the_registry_without_importing_it(tmp_path):
    assert names.task_names() == list_tasks()
    (tmp_path / "their_robots").mkdir()
    (tmp_path / "their_robots" / "tasks.py").write_text('register_mjlab_task("Their-Robot", env_cfg=1)\n')
    (tmp_path / "their_robots-1.0.dist-info").mkdir()
    (tmp_path / "their_robots-1.0.dist-info" / "METADATA").write_text("Name: their_robots\nVersion: 1.0\n")
    entry = "[mjlab.tasks]\ntheirs = their_robots.tasks\n"
    (tmp_path / "their_robots-1.0.dist-info" / "entry_points.txt").write_text(entry)
    code = f"import sys; sys.path.append({str(tmp_path)!r}); from bridge import registry; print(registry.task_names())"
    code += "; print({'mjlab', 'torch', 'warp', 'mujoco', 'their_robots'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    found, imported = done.stdout.splitlines()
    assert f"'{GO1}': 'mjlab'" in found and "'Their-Robot': 'mjlab'" in found and imported == "set()"


def test_registered_configs_are_defaults():
    go1 = agent_defaults(GO1)
    assert go1["obs_groups"] == {"teacher": ["actor"]} and go1["teacher"]["activation"] == "elu"
    assert go1["experiment_name"] == "go1_velocity_distillation" and "algorithm" not in go1
    assert go1["student"]["hidden_dims"] == [512, 256, 128] and go1["student"]["obs_normalization"]
    assert agent_defaults("Mjlab-Lift-Cube-Yam-Depth")["obs_groups"] == {"teacher": ["actor", "camera"]}


def test_the_play_variant_ends_and_takes_what_it_has_use_for():
    words = ["env.events.push_robot=None", "env.commands.twist.ranges.lin_vel_y=(0.0, 0.5)"]
    trained, played = (launch.env_cfg(GO1, MjlabCfg(4, words, play)) for play in (False, True))
    assert load_env_cfg(GO1, play=True).episode_length_s > 1e8
    assert played.episode_length_s == trained.episode_length_s == load_env_cfg(GO1).episode_length_s
    assert trained.events["push_robot"] is None and "push_robot" not in played.events
    assert played.commands["twist"].ranges.lin_vel_y == (0.0, 0.5) and played.commands["twist"].ranges.lin_vel_x[1] == 2
    assert dataclasses.asdict(load_env_cfg(GO1))["events"]["push_robot"], "the registry keeps its own"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task", "Mjlab-Cartpole-Balanse"], "(did you mean Mjlab-Cartpole-Balance?); mjlab has 12"),
        (["--task", "Isaac-Ant", "--sim", "mjlab"], "unknown task Isaac-Ant"),
        (["--task", GO1], f"{GO1}: name its teacher with --teacher FILE"),
        (["--task", TASK, "--vido"], "unknown flag --vido"),
        (["--task", TASK, "--env.rewards"], "--env.rewards: expected a value after it"),
        (["--task", TASK, "--video", "--video-length", "x"], "argument --video_length"),
        (
            ["env.rewards.smoth.weight=1"],
            "env.rewards.smoth.weight: no setting 'smoth' in env.rewards; there are smooth",
        ),
        (["env.decimation=fast"], "env.decimation=fast: expected a value like 5"),
        (["env.sim.mujoco.cone=round"], "env.sim.mujoco.cone=round: expected one of pyramidal, elliptic"),
        (["env.viewer=3"], "env.viewer=3: is a section, set what is in it (origin_type, height"),
        (["env.auto_reset=False"], "env.auto_reset=False leaves finished episodes as they are"),
        (["env.episode_length_s=1e12"], "never ends: set env.episode_length_s"),
        (["agent.obs_groups.student=camera"], "camera"),
        (["--task", "Mjlab-Tracking-Flat-Unitree-G1"], "follows a motion; name one with --motion-file FILE.npz"),
        (["--task", "Mjlab-Tracking-Flat-Unitree-G1", "--motion-file", "no.npz"], "no.npz: no such file; name one"),
    ],
)
def test_complaints(capfd, tmp_path, teacher, arguments, expected):
    task = [] if "--task" in arguments else ["--task", TASK]
    file = [] if arguments == ["--task", GO1] else ["--teacher", str(teacher)]
    given = ["--logdir", str(tmp_path / "logs"), *SMALL, *task, *file, *arguments]
    try:
        status = train_jax.main(given)
    except SystemExit as stop:
        status = stop.code
    lines = capfd.readouterr().err.strip().splitlines()
    assert status and lines[-1].startswith("train_jax.py: error: ") and expected in lines[-1], lines
    assert not (tmp_path / "logs").exists()
