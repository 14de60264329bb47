"""The command on the real Isaac Lab: the documented command, resumes, external tasks, complaints."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import jax
import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from benchmarks.cartpole import TASK, cartpole_usd, overrides
from bridge.crazyflie.cfg import RandomizationCfg, SensorCfg
from bridge.isaaclab import launch
from bridge.isaaclab.agent import agent_defaults
from bridge.isaaclab.env import IsaacLabEnv
from bridge.isaaclab.simulator import POINT_CONTROL
from bridge.isaaclab_tasks import point_control
from bridge.quadrotors import read_csv
from jdistill.cli.main import run_command
from jdistill.core import networks
from jdistill.core.networks import Policy
from jdistill.export import rsl_rl
from jdistill.export.policy_file import load_policy, save_policy
from jdistill.run import presets, session, training
from jdistill.run.compose import load_file
from jdistill.run.saved_run import load_config
from jdistill.run.teachers import TABLE
from tests.conftest import BUNDLED_TEACHER, ROOT
from tests.jdistill.run.test_teachers import HEADER, NETWORK, row, teacher_state, write_teacher
from tests.test_train_jax import ENVIRONMENT, complaint, status_of, train

SMALL = ["--num_envs", "8", "--device", "cpu", "--logger", "none", "agent.num_steps_per_env=16"]
SMALL += ["agent.algorithm.gradient_length=8"]


@pytest.fixture(scope="module")
def documented(tmp_path_factory, make_isaaclab_env):
    """The user's own command, with their teacher's file and their asset."""
    make_isaaclab_env.close()
    folder = tmp_path_factory.mktemp("isaaclab")
    policy, state, _ = load_policy(BUNDLED_TEACHER)
    tensors = {k: torch.tensor(v) for k, v in rsl_rl.to_tensors(policy, state).items()}
    normalizer = {k.removeprefix("obs_normalizer."): v for k, v in tensors.items() if k.startswith("obs_normalizer.")}
    actor = {k.replace("mlp.", "actor."): v for k, v in tensors.items() if k.startswith("mlp.")}
    torch.save({"model_state_dict": actor, "obs_norm_state_dict": normalizer}, folder / "best_model.pt")
    usd = folder / "cf2x.usda"
    shutil.copy(ROOT / "bridge" / "isaaclab_tasks" / "point_control" / "crazyflie.usda", usd)
    arguments = ["--task", "distillation", "--checkpoint", str(folder / "best_model.pt"), "--headless"]
    arguments += ["--phase1", "1", "--max_iterations", "2", f"env.robot.spawn.usd_path={usd}"]
    return train(folder / "logs", *SMALL, *arguments)


def test_the_documented_command(documented):
    run, out = documented
    assert "best_model.pt: 26 observations, 64-64-64-4, elu, tanh at the output, with normalizer" in out
    assert "Training Phase: Phase 1 (teacher actions)\nPhase Iteration: 0/1 (Phase 1)" in out
    assert "SWITCHING TO PHASE 2" in out and "Metrics/position_error" in out, "the simulator's own scalars are shown"
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["task"] == POINT_CONTROL == point_control.TASK_ID
    given = config["env"]["overrides"]
    assert config["env"]["num_envs"] == 8 and any(o.startswith("env.robot.spawn.usd_path=") for o in given)
    assert "env.sensor.delay_steps=2" in given, "the preset's sensors, as on the embedded simulator"
    assert config["agent"]["obs_groups"] == {"student": ["policy"], "teacher": ["teacher"]}
    policy, _, header = load_policy(run / "student.safetensors")
    assert (policy.pre_dims, policy.rnn_type, policy.output_activation) == ((16,), "gru", "tanh")
    assert header["observation"]["groups"][0]["layout"][0] == {"name": "position_error", "size": 3, "unit": "m"}
    assert header["action"]["layout"][0] == "front_right" and header["control_rate_hz"] == pytest.approx(100)


def test_a_run_goes_on_in_its_simulator(documented):
    run, _ = documented
    logdir = run.parents[1]
    again, out = train(logdir, "--resume", "--device", "cpu", "--max_iterations", "3", "--task", "distillation")
    assert again == run and f"Resuming {run} at iteration 2" in out
    assert "Phase Iteration: 2/1 (Phase 1)" in out and "SWITCHING" not in out
    assert load_policy(run / "student.safetensors")[2]["iteration"] == 3


def test_a_student_of_isaac_lab_is_exported_without_it(documented, tmp_path, capsys):
    run, _ = documented
    assert run_command("export", [str(run), "--format", "safetensors,onnx", "--out", str(tmp_path)]) == 0
    assert "100 drawn observations (its simulator is not the embedded one) beside" in capsys.readouterr().out
    sidecar = json.loads((tmp_path / "policy.json").read_text())
    assert sidecar["task"] == POINT_CONTROL and sidecar["observation"]["groups"][0]["name"] == "policy"


def test_a_student_is_evaluated_in_its_simulator(documented, tmp_path, capsys):
    """The generic part of the metrics on a simulator that is not JAX, by the command."""
    run, _ = documented
    settings = ["--episodes", "8", "--out", str(tmp_path), "--device", "cpu", "env.episode_length_s=0.2"]
    assert run_command("evaluate", [str(run), *settings]) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "evaluation.json").read_text())
    assert list(results["scenarios"]) == ["default"] and results["task"] == POINT_CONTROL
    policies = results["scenarios"]["default"]["policies"]
    assert policies["teacher"]["length"] == 20 and policies["teacher"]["survival"] == 1
    assert policies["teacher"]["agreement"] == {"rmse": 0.0, "r2": 1.0} and policies["student"]["agreement"]["rmse"] > 0
    assert len(policies["student"]["traces"][0]["action"]) == 20


def test_teachers_of_many_quadrotors(tmp_path):
    """Of each craft of the folder its own teacher is heard; and a run that was moved finds its craft again."""
    (folder := tmp_path / "teachers").mkdir()
    (folder / TABLE).write_text("\n".join([HEADER, *map(row, (7, 2, 5))]) + "\n")
    for key in (7, 2, 5):
        write_teacher(folder, key)
    settings = [*SMALL, "agent.student.rnn_type=null", "agent.algorithm.num_learning_epochs=1"]
    settings += ["env.episode_length_s=0.08", "agent.init_at_random_ep_len=false"]
    flown = tmp_path / "flown.hdf5"
    arguments = ["--sim", "isaaclab", "--teacher_dir", str(folder), "--phase1", "1", "--record", str(flown)]
    run, out = train(tmp_path / "logs", *settings, *arguments, "--max_iterations", "2")
    assert "3 (ids 2, 5, 7), each 26 observations" in out
    with h5py.File(flown) as file:
        episodes = [{k: v[()] for k, v in (*g["obs"].items(), *g.items()) if k != "obs"} for g in file["data"].values()]
    assert sorted(int(episode["teacher_id"][0, 0]) for episode in episodes) == [2] * 12 + [5] * 8 + [7] * 12, "in turn"
    for episode in episodes:
        (key,) = set(episode["teacher_id"][:, 0].astype(int).tolist())
        expected = networks.act(NETWORK, teacher_state(key), (), episode["teacher"])[1]
        np.testing.assert_allclose(episode["teacher_actions"], expected, atol=1e-5)
    craft = read_csv(folder / TABLE)
    shutil.rmtree(folder)
    run = Path(shutil.move(run, run.with_name("moved")))
    assert load_config(run).env.quadrotors == str(run / "quadrotors.csv") and read_csv(run / "quadrotors.csv") == craft
    resume = ["--sim", "isaaclab", "--device", "cpu", "--resume", "--load_run", str(run), "--max_iterations", "3"]
    again, out = train(tmp_path / "logs", *resume)
    assert again == run and "3 (ids 2, 5, 7)" in out


def test_an_external_package_registers_its_task(tmp_path, capsys):
    """Isaac Lab's own mechanism; a task called ``distillation`` wins over ours, and its rsl_rl config is read.

    The task has managers, and what those know goes along with the student.
    """
    (tmp_path / "their_tasks.py").write_text(
        "import sys\n"
        "import gymnasium as gym\n"
        "from isaaclab_rl.rsl_rl import RslRlDistillationAlgorithmCfg, RslRlDistillationRunnerCfg, RslRlRNNModelCfg\n"
        "def register():\n"
        "    kwargs = dict(gym.spec('Isaac-Cartpole').kwargs)\n"
        "    kwargs['rsl_rl_cfg_entry_point'] = agent\n"
        "    gym.register('distillation', entry_point=gym.spec('Isaac-Cartpole').entry_point,\n"
        "                 disable_env_checker=True, kwargs=kwargs)\n"
        "    return [a for a in sys.argv[1:] if a != '--theirs']\n"
        "def agent():\n"
        "    model = RslRlRNNModelCfg(hidden_dims=[24], activation='relu', obs_normalization=True, rnn_type='lstm',\n"
        "                             rnn_hidden_dim=12, rnn_num_layers=2)\n"
        "    algorithm = RslRlDistillationAlgorithmCfg(num_learning_epochs=2, learning_rate=2e-3, gradient_length=8)\n"
        "    cfg = RslRlDistillationRunnerCfg(num_steps_per_env=16, max_iterations=1, save_interval=50,\n"
        "                                     experiment_name='theirs', student=model, teacher=model,\n"
        "                                     algorithm=algorithm, clip_actions=0.7)\n"
        "    cfg.obs_groups = {'student': ['policy'], 'teacher': ['policy']}\n"
        "    return cfg\n"
    )
    teacher = Policy(1, (8,))
    save_policy(tmp_path / "t.safetensors", teacher, networks.init(teacher, jax.random.key(0), 8, True), {})
    arguments = ["--task", "distillation", "--external_callback", "their_tasks.register", "--theirs"]
    arguments += [
        "--num_envs",
        "4",
        "--device",
        "cpu",
        "--logger",
        "none",
        "--teacher",
        str(tmp_path / "t.safetensors"),
    ]
    command = [sys.executable, str(ROOT / "train_jax.py"), "--logdir", str(tmp_path / "logs"), *arguments]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path)}
    command += [o.replace("env.scene.cartpole.", "env.scene.robot.") for o in overrides(cartpole_usd(tmp_path))]
    terms = "env.observations.policy"
    command += [f"{terms}.joint_pos_rel.scale=2.0", f"{terms}.joint_pos_rel.clip=[-3.0,3.0]"]
    command += [f"{terms}.joint_vel_rel.history_length=3"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "logs" / "theirs").glob("*")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["task"] == "distillation" and config["agent"]["clip_actions"] == 0.7
    algorithm = config["agent"]["algorithm"]
    assert (algorithm["num_learning_epochs"], algorithm["gradient_length"], algorithm["max_grad_norm"]) == (2, 8, None)
    policy, state, _ = load_policy(run / "student.safetensors")
    assert (policy.rnn_type, policy.rnn_num_layers, policy.hidden_dims) == ("lstm", 2, (24,))
    assert (policy.activation, policy.output_activation, policy.pre_dims) == ("relu", "identity", ())
    assert state.normalizer is not None
    names_go_along(run, capsys)


def names_go_along(run, capsys):
    """What the managers of the cartpole know is in ``policy.json`` and in the ONNX file, by mjlab's keys."""
    assert run_command("export", [str(run), "--format", "onnx"]) == 0, capsys.readouterr().err
    sidecar = json.loads((run / "exported" / "policy.json").read_text())
    joints = ["slider_to_cart", "cart_to_pole"]
    position, velocity = sidecar["observation"]["groups"][0]["layout"]
    assert position == {
        "name": "joint_pos_rel",
        "size": 2,
        "unit": "",
        "function": "joint_pos_rel",
        "scale": 2.0,
        "clip": [-3.0, 3.0],
        "elements": joints,
    }
    assert (velocity["name"], velocity["size"], velocity["history_length"]) == ("joint_vel_rel", 6, 3)
    assert sidecar["action"]["layout"] == joints[:1] and sidecar["control_rate_hz"] == pytest.approx(60)
    assert sidecar["action"]["terms"] == [
        {"name": "joint_effort", "type": "JointEffortAction", "size": 1, "scale": [100.0], "offset": [0.0]}
    ]
    assert sidecar["robot"] == {
        "joint_names": joints,
        "default_joint_pos": [0.0, 0.0],
        "joint_stiffness": [0.0, 0.0],
        "joint_damping": [10.0, 0.0],
    }
    assert sidecar["command_names"] == [] and sidecar["decimation"] == 2
    session = onnxruntime.InferenceSession(str(run / "exported" / "policy.onnx"))
    known = session.get_modelmeta().custom_metadata_map
    assert known["joint_names"] == "slider_to_cart,cart_to_pole" and known["joint_damping"] == "10,0"
    assert known["observation_names"] == "joint_pos_rel,joint_vel_rel"
    assert known["observation_terms_clip"] == "-3;3,-inf;inf" and known["action_scale"] == "100"


@pytest.mark.parametrize("where", ["preset", "config"])
@pytest.mark.parametrize("sim", ["isaaclab", "crazyflow"])
def test_a_files_environment_reaches_both_simulators(sim, where, tmp_path, monkeypatch):
    """The ``env`` of the task's own preset, or of ``--config``, under what is said beside it; nothing is started."""
    settings = yaml.safe_load(presets.preset("crazyflie").read_text())
    sensor = {"position_noise": 0.01, "velocity_noise": 0, "attitude_noise": 0, "rate_noise": 0}
    sensor |= {"delay_steps": 3, "random_delay": True}
    file = tmp_path / "crazyflie.yaml"
    file.write_text(yaml.safe_dump(settings | {"env": {"sensor": sensor, "randomization": {"motor": 0.2}}}))
    if where == "preset":
        monkeypatch.setattr(presets, "FOLDER", tmp_path)
    overrides = ["env.sensor.delay_steps=2"]
    job = training.Job(
        sim=sim, device="cpu", num_envs=8, overrides=overrides, config=file if where == "config" else None
    )
    beginning = training.begin(job)
    started = session.start(beginning.request, placement=job.placement)
    cfg = training.configure(job, beginning, started)

    def env_of(cfg):
        return launch.load_env_cfg(POINT_CONTROL, cfg.env.overrides) if sim == "isaaclab" else cfg.env

    env = env_of(cfg)
    assert cfg.env.num_envs == 8 and cfg.agent.student.rnn_type == "gru"
    assert env.sensor == SensorCfg(position_noise=0.01, delay_steps=2, random_delay=True)
    assert env.randomization == RandomizationCfg(motor=0.2)
    # A run that goes on keeps its environment, whatever presets say by now.
    cfg.save(tmp_path / "config.yaml")
    saved = load_file(tmp_path / "config.yaml")
    for section, expected in ((saved["env"], env.sensor), ({}, SensorCfg())):
        resumed = beginning._replace(layers=[saved | {"env": section}], run=tmp_path)
        assert env_of(training.configure(training.Job(), resumed, started)).sensor == expected


def test_registered_configs_are_defaults():
    distillation = agent_defaults("Isaac-Velocity-Flat-AnymalD", None)
    assert distillation["obs_groups"].keys() == {"student", "teacher"}
    assert distillation["algorithm"]["class_name"] == "Distillation" and "num_steps_per_env" in distillation
    ppo = agent_defaults(TASK, None)
    assert ppo["teacher"]["activation"] == "elu" and ppo["experiment_name"] == "cartpole_direct_distillation"
    assert "algorithm" not in ppo, "PPO's is not ours"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--task", "Isaac-Cartpole-Dirct"], "unknown task Isaac-Cartpole-Dirct (did you mean Isaac-Cartpole-Direct?)"),
        (["--task", TASK], "Isaac-Cartpole-Direct: name its teacher with --teacher FILE"),
        (["--task", TASK, "--agent", "skrl"], "--agent skrl: Isaac-Cartpole-Direct has no such entry point"),
        (["--task", TASK, "--vizz", "newton"], "unknown flag --vizz"),
        (["--task", "no_such_package:Task-v0"], "--task no_such_package:Task-v0: No module named 'no_such_package'"),
        (["--task", TASK, "--external_callback", "nowhere.register"], "--external_callback nowhere.register: "),
        (["--sim", "isaaclab", "env.tilt=3"], "env.tilt: no setting 'tilt' in env; there are "),
        (["--sim", "isaaclab", "env.target.kindd=fixed"], "env.target.kindd: no setting 'kindd' in env.target"),
        (["--sim", "isaaclab", "env.drone=cf9"], "env.drone='cf9': expected one of"),
        (["--sim", "isaaclab", "env.quadrotors=/nowhere.csv"], "/nowhere.csv: No such file or directory"),
        (["--sim", "isaaclab", f"env.quadrotors={__file__}"], "test_train_isaaclab.py: unknown column"),
        (
            ["--sim", "isaaclab", "env.action=ctbr"],
            "env.action='ctbr': known to the embedded simulator only, use --sim",
        ),
        (["--sim", "isaaclab", "physics=bullet"], "bullet"),
        (["env.robot.spawn.usd_path=/nowhere/cf2x.usd"], "/nowhere/cf2x.usd"),
        (["--sim", "isaaclab", "agent.algorithm.learning_rat=1"], "did you mean agent.algorithm.learning_rate?"),
    ],
)
def test_complaints(capsys, tmp_path, arguments, expected):
    assert status_of(["--logdir", str(tmp_path / "logs"), "--device", "cpu", *arguments]) not in (0, None)
    lines = [line for line in capsys.readouterr().err.splitlines() if "Warning" not in line and line.strip()]
    assert lines[-1].startswith("train_jax.py: error: ") and expected in lines[-1], lines
    assert "Traceback" not in "".join(lines) and not (tmp_path / "logs").exists()


def test_embedded_names_stay_embedded(capsys, tmp_path):
    message = complaint(capsys, "--task", "distillation", "env.robots.spawn.usd_path=x", "--logdir", str(tmp_path))
    assert "env.robots.spawn.usd_path: unknown setting; there are env." in message


def test_both_drivers_are_bitwise_equal_on_isaac_lab(make_isaaclab_env):
    env = make_isaaclab_env(POINT_CONTROL, "env.scene.num_envs=8")
    rollouts = []
    for mode in ("callback", "host"):
        ours = IsaacLabEnv(env, mode=mode)

        def step(state, _, ours=ours):
            after = ours.step(state, 2.0 * state.obs["policy"][:, :4])
            return after, (after.obs, after.reward, after.done)

        fly = jax.jit(lambda rng, ours=ours, step=step: jax.lax.scan(step, ours.reset(rng), None, length=60)[1])
        rollouts.append(jax.tree.map(np.asarray, ours.drive(fly, jax.random.key(5))))
    for a, b in zip(*map(jax.tree.leaves, rollouts), strict=True):
        assert (a == b).all()
    assert rollouts[0][2].any(), "episodes ended on the way"


def test_the_simulators_scalars_are_averaged(make_isaaclab_env):
    ours = IsaacLabEnv(make_isaaclab_env(POINT_CONTROL, "env.scene.num_envs=8"))
    state = ours.drive(jax.jit(ours.reset), jax.random.key(0))
    step, errors = jax.jit(ours.step), []
    for _ in range(3):
        state = ours.drive(step, state, np.zeros((8, 4), np.float32))
        errors.append(float(np.linalg.norm(np.asarray(state.obs["policy"])[:, :3], axis=1).mean()))
    log = ours.pop_log()
    assert log["Metrics/position_error"] == pytest.approx(np.mean(errors), rel=1e-3)
    assert re.match(r"Metrics/|Episode", next(iter(log)))
