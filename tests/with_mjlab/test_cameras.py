"""mjlab's cameras on the CPU: what they see reaches a student by the command."""

from __future__ import annotations

import contextlib
import io

import jax
import numpy as np
import pytest
import torch
from mjlab.managers.observation_manager import ObservationGroupCfg, ObservationTermCfg
from mjlab.sensor import CameraSensorCfg
from mjlab.tasks import registry
from mjlab.tasks.manipulation import mdp
from mjlab.tasks.registry import load_env_cfg, load_rl_cfg, register_mjlab_task

import train_jax
from bridge.mjlab import launch
from bridge.mjlab.cfg import MjlabCfg
from bridge.tasks import Session
from jdistill.core import networks
from jdistill.core.networks import Policy
from jdistill.export.policy_file import load_policy, save_policy

STOCK, TASK, SIZE = "Mjlab-Cartpole-Balance", "Test-Cartpole-Camera", 16


@pytest.fixture(scope="module", autouse=True)
def registered():
    """The cartpole, seen from the side, as another package would register it."""
    cfg = load_env_cfg(STOCK)
    # The camera of MuJoCo looks along its -z, here along the world's y.
    side = CameraSensorCfg("side", pos=(0.0, -3.0, 1.2), quat=(0.7071068, 0.7071068, 0.0, 0.0), data_types=("depth",))
    side.width = side.height = SIZE
    cfg.scene.sensors = (*(cfg.scene.sensors or ()), side)
    depth = ObservationTermCfg(func=mdp.camera_depth, params={"sensor_name": "side", "cutoff_distance": 4.0})
    cfg.observations["camera"] = ObservationGroupCfg(terms={"depth": depth}, enable_corruption=False)
    register_mjlab_task(task_id=TASK, env_cfg=cfg, play_env_cfg=cfg, rl_cfg=load_rl_cfg(STOCK))
    yield
    del registry._REGISTRY[TASK]  # mjlab has no other way back.


def test_pictures_are_those_of_a_plain_loop():
    """A compiled rollout, and mjlab alone with the same actions: the same pixels, and the cart moves in them."""
    with launch.open_env(TASK, MjlabCfg(2, []), launch.Options("cpu"), Session(1, ["actor", "camera"])) as env:
        assert str(env.obs_specs["camera"]) == f"float32[1, {SIZE}, {SIZE}]" and env.obs_specs["camera"].channels_first

        def step(state, _):
            after = env.step(state, 5.0 * np.ones((2, 1), np.float32) + state.obs["actor"][:, :1])
            return after, (5.0 + state.obs["actor"][:, :1], after.obs["camera"])

        program = jax.jit(lambda rng: jax.lax.scan(step, env.reset(rng), None, length=6)[1])
        actions, pictures = jax.tree.map(np.asarray, env.drive(program, jax.random.key(3)))
        env.env.reset(seed=int(jax.random.bits(jax.random.key(3), (), np.uint32) >> 1))
        for action, picture in zip(actions, pictures, strict=True):
            np.testing.assert_array_equal(env.env.step(torch.tensor(action))[0]["camera"], picture)
    assert (pictures[0] != pictures[-1]).any(axis=(1, 2, 3)).all() and pictures.std() > 0


def test_a_student_with_a_camera_is_trained_by_the_command(tmp_path):
    policy = Policy(1, (8,))
    save_policy(tmp_path / "t.safetensors", policy, networks.init(policy, jax.random.key(0), 5, True), {})
    sees = ["agent.obs_groups.student=[camera]", "agent.obs_groups.teacher=[actor]"]
    cnn = "agent.student.cnn_cfg={output_channels: [4,4], kernel_size: 3, stride: 2}"
    arguments = ["--task", TASK, "--teacher", str(tmp_path / "t.safetensors"), "--logdir", str(tmp_path / "logs")]
    arguments += ["--num_envs", "2", "--device", "cpu", "--logger", "none", "--phase1", "1", "--max_iterations", "2"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert train_jax.main([*arguments, "agent.num_steps_per_env=4", *sees, cnn]) == 0
    assert "SWITCHING TO PHASE 2" in out.getvalue()
    (run,) = (tmp_path / "logs").glob("*/*")
    (group,) = load_policy(run / "student.safetensors")[2]["observation"]["groups"]
    assert (group["name"], group["shape"], group["axes"]) == ("camera", [1, SIZE, SIZE], "channels, height, width")
