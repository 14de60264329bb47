"""The loop, in this process: broken data, phase information."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from safetensors.numpy import load_file

from bridge.crazyflie import PointControl, PointControlCfg
from bridge.env import AutoReset
from jdistill.config import compose
from jdistill.runner import DistillationRunner, TrainingError, load_teacher
from tests.conftest import BUNDLED_TEACHER


class Breaking(PointControl):
    """Crazyflies whose teacher observation becomes NaN after ``good_steps`` steps."""

    good_steps = 40

    def reset(self, rng):
        state = super().reset(rng)
        return state.replace(info={**state.info, "steps": jnp.zeros((), jnp.int32)})

    def step(self, state, action):
        after = super().step(state, action)
        steps = state.info["steps"] + 1
        broken = jnp.where(steps > self.good_steps, jnp.nan, after.obs["teacher"])
        return after.replace(obs={**after.obs, "teacher": broken}, info={**after.info, "steps": steps})


@pytest.fixture
def make_runner(tmp_path):
    def make(env_cls=PointControl, *overrides: str) -> DistillationRunner:
        settings = ["env.num_envs=2", "agent.num_steps_per_env=16", "agent.save_interval=1", "agent.logger=none"]
        cfg = compose("crazyflie", PointControlCfg, [], [*settings, *overrides])
        env = AutoReset(env_cls(cfg.env))
        return DistillationRunner(env, cfg, load_teacher(BUNDLED_TEACHER, env, cfg), tmp_path)

    return make


def test_broken_observations_stop_the_run_and_the_last_good_checkpoint_stays(make_runner, tmp_path):
    runner = make_runner(Breaking, "agent.max_iterations=5")
    runner.start()
    with pytest.raises(TrainingError) as error:
        runner.learn()
    assert str(error.value) == (
        "iteration 2: NaN or infinity in observation group 'teacher'; "
        f"the checkpoint of iteration 2 is kept in {tmp_path}"
    )
    again = make_runner(Breaking)
    again.load()
    assert again.current_learning_iteration == 2
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(again.state.student))
    student = load_file(tmp_path / "student.safetensors")
    assert (student["params/mlp_1/dense/bias"] == again.state.student.params["mlp_1"]["dense"]["bias"]).all()


def test_phase_information(make_runner):
    runner = make_runner(
        PointControl, "agent.algorithm.use_two_stage_training=true", "agent.algorithm.phase1_iterations=7"
    )
    seen = []
    for iteration in (0, 6, 7):
        runner.current_learning_iteration = iteration
        seen.append(runner.get_training_phase_info())
    assert seen[0] == {
        "use_two_stage_training": True,
        "training_phase": 1,
        "current_iteration": 0,
        "phase1_iterations": 7,
        "action_source": "teacher",
    }
    assert [(s["training_phase"], s["action_source"]) for s in seen[1:]] == [(1, "teacher"), (2, "student")]
