"""What becomes of the numbers when an environment breaks and ``agent.on_nonfinite=mask``."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.crazyflie import PointControlCfg
from bridge.env import AutoReset
from jdistill.core.actor import PolicyActor
from jdistill.core.distillation import Distillation
from jdistill.core.sampling import Experience
from jdistill.core.sharding import Shards
from jdistill.core.statistics import Metrics, is_finite
from jdistill.data.dataset import info
from jdistill.errors import ConfigError, SettingError, TrainingError
from jdistill.run.callbacks import Record
from jdistill.run.compose import compose
from jdistill.run.inputs import make_algorithm
from jdistill.run.mesh import BY_ENV, SAME
from jdistill.run.runner import DistillationRunner
from tests.jdistill.run.test_mesh import on
from tests.masses import Masses, masses_teacher

ENVS, STEPS, BREAKS, AT = 8, 10, 2, 5
AGENT = [f"env.num_envs={ENVS}", f"agent.num_steps_per_env={STEPS}", "agent.algorithm.gradient_length=4"]
AGENT += [
    "agent.logger=none",
    "agent.save_interval=100",
    "agent.max_iterations=3",
    "agent.on_nonfinite=mask",
    "agent.init_at_random_ep_len=false",
]
FEED_FORWARD = ["agent.student.rnn_type=null", "agent.student.pre_dims=[]"]
SAMPLERS = {
    "streaming": [],
    "minibatch": ["agent.algorithm.sampler=minibatch", "agent.algorithm.num_mini_batches=2"],
    "uniform": ["agent.algorithm.use_dagger=true"],
    "packed": ["agent.algorithm.use_dagger=true", "agent.algorithm.sampler=packed"],
}


class Breaking(Masses):
    """Masses; environment 2 says something absurd for two steps and then ``info["last words"]``, every episode."""

    def reset(self, rng):
        state = super().reset(rng)
        words = jnp.full(self.num_envs, jnp.nan)
        return state.replace(
            pipeline_state=(state.pipeline_state, jnp.zeros(self.num_envs)), info={"last words": words}
        )

    def step(self, state, action):
        place, age = state.pipeline_state
        after = super().step(state.replace(pipeline_state=place), action)
        age = age + 1
        mine = jnp.arange(self.num_envs) == BREAKS
        absurd = jnp.where(mine & (age > AT - 3), 1e9, 0.0)
        absurd = jnp.where(mine & (age == AT), state.info["last words"], absurd)
        obs = {name: x + absurd[:, None] for name, x in after.obs.items()}
        done = jnp.where(mine, age > AT, after.done)
        return after.replace(pipeline_state=(after.pipeline_state, age), obs=obs, done=done)


def configured(*overrides: str):
    return compose("masses", PointControlCfg, [], [*AGENT, *overrides])


def teacher_of(cfg) -> PolicyActor:
    return masses_teacher().actor(cfg.agent)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_broken_episode_leaves_no_trace_in_what_is_learned(sampler):
    """Whether it ends in NaN or in what has no finite square is the same; what came before it was absurd already."""
    cfg = configured(*SAMPLERS[sampler])
    alg = make_algorithm(AutoReset(Breaking(ENVS)), cfg.agent)
    actor = teacher_of(cfg)
    start = alg.init(jax.random.key(0), actor)
    iterate = jax.jit(alg.iteration)
    ends = {}
    for words in (jnp.nan, 1e30):
        state = start.replace(
            env_state=start.env_state.replace(info={**start.env_state.info, "last words": jnp.full(ENVS, words)})
        )
        broken = 0.0
        for _ in range(3):
            state, metrics, _ = iterate(state, actor)
            broken += float(metrics.scalars["Train/nonfinite_episodes"])
            assert metrics.finite.all(), metrics.first_cause(ENVS)
        assert broken == 6
        ends[str(words)] = state
    nan, large = (ends[key].student for key in ("nan", "1e+30"))
    for a, b in zip(jax.tree.leaves(nan), jax.tree.leaves(large), strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.abs(nan.normalizer.mean).max() < 10, "observations of 1e9 would have ruined it"
    assert 0 < float(nan.normalizer.count) < 3 * STEPS * ENVS
    assert any(
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(jax.tree.leaves(nan.params), jax.tree.leaves(start.student.params), strict=True)
    )


@pytest.mark.parametrize("shape", [(7,), (16, 64), (40, 10, 26), (4, 3, 8, 8, 2)])
def test_one_broken_number_is_found_wherever_it_is(shape):
    """XLA's extremes of three axes and more lose a NaN on CPUs."""
    check = jax.jit(lambda x: (is_finite(x), Metrics.create({}, [("x", x)]).first_broken[0]))
    rng = np.random.default_rng(0)
    good = rng.normal(size=shape).astype(np.float32)
    good.flat[:2] = 3e38, -3e38
    assert check(good) == (True, -1)
    for broken in (np.nan, np.inf, -np.inf) * 4:
        x, index = good.copy(), tuple(rng.integers(0, shape))
        x[index] = broken
        found, place = check(x)
        assert not found and place == (index[0] * shape[1] + index[1] if len(shape) > 1 else -1), (broken, index)


def test_an_episode_is_left_out_back_to_its_beginning():
    done = jnp.array([[0, 1, 0, 0, 1, 0, 0]], bool).T
    broken = jnp.array([[0, 0, 0, 0, 1, 0, 0]], bool).T
    numbers = jnp.arange(1.0, 8.0)[:, None, None]
    kept = Experience(numbers, numbers, done, (), numbers).without_broken(broken, done)
    assert kept.counts[:, 0].tolist() == [True, True, False, False, False, True, True]
    for x in (kept.obs, kept.teacher_action, kept.carry):
        assert x[:, 0, 0].tolist() == [1, 2, 0, 0, 0, 6, 7]


def test_moments_of_the_rows_that_count():
    x = jax.random.normal(jax.random.key(1), (8, 3))
    counts = jnp.array([1, 1, 0, 0, 0, 0, 1, 0], bool)
    mean, var, number = on(4, lambda *args: Shards(4).moments(*args), (BY_ENV, BY_ENV), SAME, x, counts)
    np.testing.assert_allclose(mean, x[counts].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(var, x[counts].var(axis=0), rtol=1e-6)
    assert number == 3
    nothing = Shards().moments(x, jnp.zeros(8, bool))
    assert all(np.isfinite(part).all() for part in nothing)


def test_a_run_goes_on_says_so_and_records_whole_episodes_only(tmp_path, capsys):
    cfg = configured(*FEED_FORWARD)
    record = Record(tmp_path / "rollouts.hdf5")
    runner = DistillationRunner(AutoReset(Breaking(ENVS)), cfg, masses_teacher(), tmp_path / "run", callbacks=[record])
    runner.start()
    runner.learn()
    out = capsys.readouterr().out
    assert out.count("Warning: NaN or infinity ended 2 episodes") == 1, "once"
    assert "Train/nonfinite_episodes" in (tmp_path / "run" / "progress.csv").read_text()
    import h5py

    with h5py.File(tmp_path / "rollouts.hdf5") as file:
        largest = [abs(demo["obs/student"][()]).max() for demo in file["data"].values()]
    assert len(largest) > ENVS and max(largest) < 10
    assert info(tmp_path / "rollouts.hdf5")


def test_without_it_the_run_ends_at_the_first(tmp_path):
    cfg = configured("agent.on_nonfinite=stop", *FEED_FORWARD)
    runner = DistillationRunner(AutoReset(Breaking(ENVS)), cfg, masses_teacher(), tmp_path / "run")
    runner.start()
    with pytest.raises(TrainingError, match=f"NaN or infinity in .* of environment {BREAKS} at step"):
        runner.learn()


def test_environments_that_all_break_end_the_run(tmp_path):
    class Broken(Masses):
        def step(self, state, action):
            after = super().step(state, action)
            return after.replace(reward=after.reward * jnp.nan)

    cfg = configured(*FEED_FORWARD)
    runner = DistillationRunner(AutoReset(Broken(ENVS)), cfg, masses_teacher(), tmp_path / "run")
    runner.start()
    with pytest.raises(TrainingError, match=f"ended {ENVS * STEPS} episodes of {ENVS} environments, too many"):
        runner.learn()


def test_what_cannot_be_restarted_or_does_not_step_is_refused():
    class Own:
        num_envs = ENVS

    with pytest.raises(SettingError, match="mask: Own restarts its own episodes"):
        make_algorithm(Own(), configured().agent)
    with pytest.raises(ConfigError, match="on_nonfinite=mask: a dataset steps no environments"):
        configured("agent.algorithm.dataset=[a.hdf5]")
    with pytest.raises(ConfigError, match="on_nonfinite=skip: expected one of stop, mask"):
        configured("agent.on_nonfinite=skip")
    assert isinstance(make_algorithm(AutoReset(Masses(ENVS)), configured().agent), Distillation)
