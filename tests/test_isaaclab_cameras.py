"""Cameras and height scans of the real Isaac Lab, without Isaac Sim: what they see reaches a student by the command."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks import copies
from benchmarks.cartpole import cartpole_usd
from bridge.isaaclab.env import IsaacLabEnv
from jdistill.core import networks
from jdistill.core.networks import Policy
from jdistill.export.policy_file import load_policy, save_policy
from tests.isaaclab_sensors import RAYS, SIZE, TASK
from tests.test_train_jax import train

ENVS, STEPS = 2, 8
PICTURE = (2, SIZE, SIZE)
SEES = ["agent.obs_groups.student=[policy,scan]", "agent.obs_groups.teacher=[critic]"]
NETWORK = ["agent.student.cnn_cfg={output_channels: [4,4], kernel_size: 3, stride: 2}"]
NETWORK += ["agent.student.encoder_dims={scan: [4]}", "agent.student.rnn_type=null", "agent.student.pre_dims=[]"]
NETWORK += ["agent.student.hidden_dims=[8]"]


@pytest.fixture(scope="module")
def usd(tmp_path_factory) -> str:
    """The setting that puts in the cartpole that ``newton`` ships."""
    return f"env.scene.robot.spawn.usd_path={cartpole_usd(tmp_path_factory.mktemp('cartpole'))}"


@pytest.fixture
def simulator(make_isaaclab_env, usd):
    """Two cartpoles on Newton, each with a camera and rays to the ground."""
    return make_isaaclab_env(TASK, f"env.scene.num_envs={ENVS}", usd)


def test_what_sensors_see_is_what_they_see_in_a_plain_loop(simulator):
    """A compiled rollout, and Isaac Lab alone with the same actions: the same pixels and heights."""
    env = IsaacLabEnv(simulator)
    specs = {name: (spec.shape, spec.channels_first) for name, spec in env.obs_specs.items()}
    assert specs == {"policy": (PICTURE, True), "critic": ((4,), False), "scan": ((RAYS,), False)}

    def step(state, _):
        action = 0.5 + state.obs["critic"][:, :1]
        after = env.step(state, action)
        return after, (action, after.obs)

    program = jax.jit(lambda rng: jax.lax.scan(step, env.reset(rng), None, length=STEPS)[1])
    actions, seen = jax.tree.map(np.asarray, env.drive(program, jax.random.key(3)))
    simulator.reset(seed=int(jax.random.bits(jax.random.key(3), (), jnp.uint32) >> 1))
    for t, action in enumerate(actions):
        theirs = simulator.step(torch.tensor(action))[0]
        for name, values in seen.items():
            np.testing.assert_allclose(values[t], theirs[name], atol=1e-5, err_msg=f"{name} at {t}")
    assert (seen["policy"][0] != seen["policy"][-1]).any(axis=(1, 2, 3)).all(), "the cart moves in the picture"
    assert np.isfinite(seen["scan"]).all() and len(np.unique(seen["scan"].round(3))) > 1, "stairs"


def test_every_pixel_is_written_once(simulator):
    """From the simulator into the program's own memory; XLA copies it once at most before it is in the rollout."""
    found = copies.measure(simulator, ["policy"])
    assert found["passes"] == 4 * np.prod(PICTURE) + 4 * 3 + 4, "beside reward, two kinds of end, and the action"
    assert found["torch_writes"] == found["passes"] >= found["xla_copies"]


def test_a_student_of_sensors_is_trained_by_the_command(make_isaaclab_env, usd, tmp_path):
    make_isaaclab_env.close()
    policy = Policy(1, (8,))
    save_policy(tmp_path / "t.safetensors", policy, networks.init(policy, jax.random.key(0), 4, True), {})
    arguments = ["--sim", "isaaclab", "--task", TASK, "--teacher", str(tmp_path / "t.safetensors"), usd]
    arguments += ["--num_envs", str(ENVS), "--device", "cpu", "--logger", "none", "--phase1", "1"]
    arguments += ["--max_iterations", "2", "agent.num_steps_per_env=4", "agent.algorithm.gradient_length=2"]
    run, out = train(tmp_path / "logs", *arguments, *SEES, *NETWORK)
    assert "SWITCHING TO PHASE 2" in out
    policy, _, header = load_policy(run / "student.safetensors")
    image, scan = header["observation"]["groups"]
    assert (image["shape"], image["axes"]) == (list(PICTURE), "channels, height, width")
    assert scan["layout"][0]["name"] == "height_scan" and scan["size"] == RAYS
    assert (len(policy.cnns), len(policy.encoders)) == (1, 1)
