"""The bridge to torch simulators, on one that costs nothing and has every bad habit; Isaac Lab itself is elsewhere."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks.trivial import TrivialEnv
from bridge.crazyflie import PointControlCfg
from bridge.env import TrainingEnv
from bridge.isaaclab.env import IsaacLabEnv
from bridge.isaaclab.log import ScalarLog
from jdistill.core import networks, observations
from jdistill.core.actor import PolicyActor
from jdistill.core.config import AgentCfg, AlgorithmCfg, StudentCfg
from jdistill.core.distillation import Distillation
from jdistill.core.networks import Policy
from jdistill.errors import ConfigError, RenderError, SettingError, SimulatorError
from jdistill.evaluation.evaluate import evaluate
from jdistill.run.compose import compose
from jdistill.run.inputs import load_teacher, resolve_obs_groups
from tests.conftest import BUNDLED_TEACHER

ENVS, STEPS = 6, 120


def policy_of(obs: dict) -> jax.Array:
    """Actions that depend on what was seen."""
    return jnp.tanh(3.0 * obs["policy"][:, :4])


def roll(env: IsaacLabEnv, seed: int = 0, steps: int = STEPS):
    """Stacked observations, rewards, dones, time-outs and metrics of a compiled rollout."""

    @jax.jit
    def rollout(rng):
        def step(state, _):
            after = env.step(state, policy_of(state.obs))
            out = (state.obs, after.reward, after.done, after.info["time_outs"], after.metrics)
            return after, out

        return jax.lax.scan(step, env.reset(rng), None, length=steps)

    return jax.tree.map(np.asarray, env.drive(rollout, jax.random.key(seed)))


def plain_rollout(seed: int, steps: int = STEPS):
    """The same by a plain torch loop."""
    env = TrivialEnv(ENVS)
    env.reset()
    number = int(jax.random.bits(jax.random.key(seed), (), jnp.uint32) >> 1)
    obs, _ = env.reset(seed=number)
    act = jax.jit(policy_of)
    out = []
    for _ in range(steps):
        seen = {k: v.clone().numpy() for k, v in obs.items()}
        obs, reward, terminated, truncated, _ = env.step(torch.tensor(np.asarray(act(seen))))
        out.append((seen, reward.clone().numpy(), (terminated | truncated).numpy(), (truncated & ~terminated).numpy()))
    return out


def test_it_is_a_training_env():
    env = IsaacLabEnv(TrivialEnv(ENVS))
    assert isinstance(env, TrainingEnv)
    assert (env.num_envs, env.num_actions, env.max_episode_length, env.step_dt) == (ENVS, 4, 50, 0.01)
    assert {k: v.shape for k, v in env.obs_specs.items()} == {"policy": (22,), "critic": (26,)} and not env.restorable


@pytest.mark.parametrize("mode", ["callback", "host"])
def test_rollouts_are_those_of_a_plain_loop(mode):
    """Whatever the simulator overwrites, each observation is what it was when it was handed over."""
    _, (obs, reward, done, time_outs, metrics) = roll(IsaacLabEnv(TrivialEnv(ENVS), mode=mode))
    total, length = np.zeros(ENVS, np.float32), np.zeros(ENVS)
    for t, (seen, paid, ended, late) in enumerate(plain_rollout(0)):
        for name, value in seen.items():
            np.testing.assert_allclose(obs[name][t], value, atol=1e-5, err_msg=f"{name} at {t}")
        np.testing.assert_allclose(reward[t], paid, atol=1e-5)
        assert (done[t] == ended).all() and (time_outs[t] == late).all()
        total, length = total + reward[t], length + 1
        np.testing.assert_allclose(metrics["episode_return"][t], total, rtol=1e-5)
        np.testing.assert_allclose(metrics["episode_length"][t], length)
        total, length = np.where(ended, 0, total), np.where(ended, 0, length)
    assert done.any() and time_outs.any()


def test_both_drivers_are_bitwise_equal():
    here, there = (roll(IsaacLabEnv(TrivialEnv(ENVS), mode=mode), seed=3) for mode in ("callback", "host"))
    assert jax.tree.structure(here) == jax.tree.structure(there)
    for a, b in zip(jax.tree.leaves(here), jax.tree.leaves(there), strict=True):
        assert (a == b).all()


def test_the_seed_decides_everything():
    env = IsaacLabEnv(TrivialEnv(ENVS))
    first, again, other = roll(env, seed=1)[1], roll(env, seed=1)[1], roll(env, seed=2)[1]
    assert (first[0]["critic"] == again[0]["critic"]).all() and (first[0]["critic"] != other[0]["critic"]).any()


def test_the_host_driver_steps_on_the_callers_thread():
    seen = {"callback": set(), "host": set()}
    for mode, threads in seen.items():
        inner = TrivialEnv(ENVS)
        step = inner.step

        def watched(action, step=step, threads=threads):
            threads.add(threading.current_thread())
            return step(action)

        inner.step = watched
        env = IsaacLabEnv(inner, mode=mode)
        state = env.drive(jax.jit(env.reset), jax.random.key(0))
        program = jax.jit(lambda state, env=env: env.step(state, policy_of(state.obs)))
        for _ in range(20):
            state = env.drive(program, state)
    assert seen["host"] == {threading.main_thread()}
    assert seen["callback"]


def test_old_observations_survive_the_simulators_next_step():
    """The race: the simulator overwrites what it handed out while a compiled program may still have to read it."""
    env = IsaacLabEnv(TrivialEnv(2000))
    state = jax.jit(env.reset)(jax.random.key(0))
    step = jax.jit(lambda state: env.step(state, policy_of(state.obs)))
    slow = jax.jit(lambda obs: jax.lax.fori_loop(0, 50, lambda _, x: jnp.sort(x, axis=0), obs["critic"]).sum())
    kept, sums = [], []
    for _ in range(30):
        sums.append(slow(state.obs))  # Still running when the next step begins.
        kept.append(state.obs)
        state = step(state)
    for obs, total in zip(kept, sums, strict=True):
        assert float(total) == float(slow(obs))


def test_only_the_groups_that_are_asked_for_come_over():
    env = IsaacLabEnv(TrivialEnv(ENVS), groups=["policy", "depth"])
    state = env.drive(jax.jit(env.reset), jax.random.key(0))
    assert set(state.obs) == {"policy"} and set(env.obs_specs) == {"policy", "critic"}


class Dressed(TrivialEnv):
    """Hands out what ``dress`` makes of its two groups."""

    def __init__(self, dress):
        self.dress = dress
        super().__init__(ENVS)

    def reset(self, seed=None):
        obs, extras = super().reset(seed)
        return self.dress(obs), extras

    def step(self, actions):
        obs, *rest = super().step(actions)
        return self.dress(obs), *rest


def everything(obs: dict) -> dict:
    """Nested groups, single numbers, truth values, double precision, a history and a picture."""
    picture = (50 * obs["critic"][:, :12].abs()).to(torch.uint8).reshape(ENVS, 2, 2, 3)
    inner = {"joint": obs["policy"][:, :3].double(), "camera": picture}
    history = torch.stack([obs["policy"][:, :3], obs["policy"][:, 3:6]], dim=1)
    return {"policy": inner, "height": obs["critic"][:, 0], "contact": obs["critic"][:, :2] > 0, "history": history}


@pytest.mark.parametrize("mode", ["callback", "host"])
def test_groups_of_any_form(mode):
    env = IsaacLabEnv(Dressed(everything), mode=mode)
    assert {name: str(spec) for name, spec in env.obs_specs.items()} == {
        "policy/joint": "float32[3]",
        "policy/camera": "uint8[2, 2, 3]",
        "height": "float32[1]",
        "contact": "float32[2]",
        "history": "float32[2, 3]",
    }
    state = env.drive(jax.jit(env.reset), jax.random.key(0))
    state = env.drive(jax.jit(env.step), state, jnp.zeros((ENVS, 4)))
    assert {k: v.shape[1:] for k, v in state.obs.items()} == {k: v.shape for k, v in env.obs_specs.items()}
    assert {k: v.dtype for k, v in state.obs.items()} == {k: v.dtype for k, v in env.obs_specs.items()}
    inside = env.env._state
    np.testing.assert_allclose(state.obs["contact"], inside[:, :2] > 0)
    np.testing.assert_allclose(state.obs["height"], inside[:, :1])
    np.testing.assert_allclose(state.obs["history"].reshape(ENVS, 6), inside[:, :6])
    np.testing.assert_array_equal(state.obs["policy/camera"].reshape(ENVS, 12), (50 * inside[:, :12].abs()).byte())
    again = env.drive(jax.jit(env.randomize_episode_length), state, jax.random.key(1))
    assert all((again.obs[name] == value).all() for name, value in state.obs.items())


def test_a_dictionary_stands_for_its_members_in_their_order():
    """JAX sorts what is in a dictionary; a policy must see it as the simulator has it."""
    env = IsaacLabEnv(
        Dressed(lambda obs: {"policy": {"velocity": obs["policy"][:, 3:5], "joint": obs["policy"][:, :3]}})
    )
    agent = AgentCfg(obs_groups={"student": ["policy"], "teacher": ["teacher"]})
    resolve_obs_groups(agent, env)
    assert agent.obs_groups["student"] == agent.obs_groups["teacher"] == ["policy/velocity", "policy/joint"]
    state = env.drive(jax.jit(env.reset), jax.random.key(0))
    seen = observations.select(state.obs, agent.obs_groups["student"])
    np.testing.assert_allclose(seen, env.env._state[:, [3, 4, 0, 1, 2]])
    assert IsaacLabEnv(env.env, groups=["policy"]).groups == agent.obs_groups["student"]


def test_pictures_come_over_as_they_are_and_only_where_they_are_asked_for():
    env = IsaacLabEnv(Dressed(everything), groups=["policy/joint"])
    assert set(env.drive(jax.jit(env.reset), jax.random.key(0)).obs) == {"policy/joint"}, "the others cost nothing"
    assert observations.size(["policy/joint", "height"], env.obs_specs) == 4
    entries = ["policy/joint", "policy/camera"]
    assert observations.size(entries, env.obs_specs) == 3, "an image is no part of the vector"
    assert list(observations.images(entries, env.obs_specs)) == ["policy/camera"]
    told = []
    env = IsaacLabEnv(Dressed(lambda obs: told.append(everything(obs)) or told[-1]), groups=entries)
    state = env.drive(jax.jit(env.reset), jax.random.key(0))
    (image,) = observations.select(state.obs, entries).images
    assert image.dtype == jnp.uint8 and image.shape == (ENVS, 2, 2, 3)
    np.testing.assert_array_equal(image, told[-1]["policy"]["camera"])


@pytest.mark.parametrize(
    "dress", [lambda obs: {"policy": torch.zeros(ENVS, 8, 8, 3)}, lambda _: torch.zeros(ENVS, 8, 8, 3)]
)
def test_a_teacher_that_sees_nothing_on_a_task_with_nothing_but_a_camera_is_told_in_one_line(dress):
    cfg = compose("crazyflie", PointControlCfg, [], [])
    env = IsaacLabEnv(Dressed(dress))
    resolve_obs_groups(cfg.agent, env)
    with pytest.raises(
        ConfigError, match=r"the teacher takes 0 images \(none\), agent.obs_groups.teacher has 1 \(policy\)"
    ):
        load_teacher(BUNDLED_TEACHER, env, cfg)


@pytest.mark.parametrize(
    ("obs", "complaint"),
    [
        ({}, "the environment observes nothing"),
        ({"policy": torch.zeros(3, 2)}, rf"group 'policy' has shape \(3, 2\), expected \({ENVS}, ...\)"),
        ({"policy": {"age": torch.zeros(())}}, rf"group 'policy/age' has shape \(\), expected \({ENVS}, ...\)"),
        ({"policy": np.zeros((ENVS, 2))}, "group 'policy' is a ndarray, expected a torch tensor"),
    ],
)
def test_observations_that_cannot_come_over(obs, complaint):
    with pytest.raises(SettingError, match=complaint):
        IsaacLabEnv(Dressed(lambda _: obs))


def test_episodes_can_begin_at_random_ages():
    env = IsaacLabEnv(TrivialEnv(ENVS))
    start = jax.jit(lambda rng: env.randomize_episode_length(env.reset(rng), rng))
    state = env.drive(start, jax.random.key(0))
    ages = env.env.episode_length_buf
    assert ages.dtype == torch.int64 and ages.max() < 50 and len(ages.unique()) > 1
    last = env.drive(
        jax.jit(lambda s: jax.lax.scan(lambda s, _: (env.step(s, jnp.zeros((ENVS, 4))),) * 2, s, None, 60)), state
    )
    ended = np.asarray(last[1].info["time_outs"])
    assert ended.any(axis=0).all() and len({int(t) for t in ended.argmax(axis=0)}) > 1


def test_a_failing_simulator_is_told_in_one_line():
    for mode in ("callback", "host"):
        inner = TrivialEnv(ENVS)
        env = IsaacLabEnv(inner, mode=mode)
        state = env.drive(jax.jit(env.reset), jax.random.key(0))

        def broken(action):
            raise ValueError("joint limits\nexceeded")

        inner.step = broken
        with pytest.raises(SimulatorError, match=r"^the simulator failed: ValueError: joint limits exceeded$") as error:
            env.drive(jax.jit(env.step), state, jnp.zeros((ENVS, 4)))
        assert isinstance(error.value.__cause__, ValueError)


def test_environments_that_cannot_be_trained_on():
    discrete = TrivialEnv(ENVS)
    discrete.single_action_space.shape = ()
    with pytest.raises(ValueError, match="expected a vector of numbers"):
        IsaacLabEnv(discrete)
    with pytest.raises(ValueError, match=r"bridge\.mode=thread: expected one of callback, host"):
        IsaacLabEnv(TrivialEnv(ENVS), mode="thread")


def test_scalars_are_averaged_as_rsl_rl_does():
    log = ScalarLog()
    first = {"Metrics/x": torch.tensor(1.0), "y": 2.0}
    for entry in (first, first, {}, None, {"Metrics/x": torch.tensor([4.0])}):
        log.add(entry)
    assert log.pop() == {"Metrics/x": 2.0, "Episode/y": 2.0} and log.pop() == {}
    env = IsaacLabEnv(TrivialEnv(ENVS))
    roll(env)
    assert set(env.pop_log()) == {"Metrics/distance", "Episode/ended"}


@pytest.mark.parametrize("mode", ["callback", "host"])
def test_the_learner_learns_on_it(mode):
    """Two-stage distillation through the ordinary training program; the loss falls."""
    env = IsaacLabEnv(TrivialEnv(64), groups=["policy", "critic"], mode=mode)
    cfg = AgentCfg(
        num_steps_per_env=30,
        obs_groups={"student": ["policy[:22]"], "teacher": ["critic"]},
        algorithm=AlgorithmCfg(use_two_stage_training=True, phase1_iterations=5, learning_rate=3e-3),
        student=StudentCfg(pre_dims=[], hidden_dims=[16]),
        clip_actions=0.5,
    )
    teacher = Policy(4, (16,))
    alg = Distillation(env, Policy(4, (16,), rnn_type="gru"), cfg)
    parameters = networks.init(teacher, jax.random.key(1), 26, False)
    actor = PolicyActor(teacher, parameters, tuple(cfg.obs_groups["teacher"]))
    state = env.drive(jax.jit(alg.init), jax.random.key(0), actor)
    iteration = jax.jit(alg.iteration, donate_argnums=0)
    losses = []
    for _ in range(20):
        state, metrics, _ = env.drive(iteration, state, actor)
        losses.append(float(metrics.scalars["Loss/behavior"]))
    assert losses[-1] < 0.3 * losses[0]
    assert env.env.actions.abs().max() <= 0.5, "actions are clipped before they step the environment"
    numbers = evaluate(env, alg.student, state.student, ["policy"])
    assert numbers["episodes"] == 64 and 0 <= numbers["survival"] <= 1
    again = env.drive(jax.jit(alg.restart_episodes), state, actor)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert (np.asarray(env.env.episode_length_buf) == 0).all()


class Painter:
    """A visualizer, as far as pictures go: wide, red on the left, as bright as its camera is high."""

    def __init__(self):
        self.height = 0.0

    def set_camera_view(self, eye, target):
        self.height = eye[2]

    def render_rgb_array(self):
        picture = np.zeros((90, 160, 3), np.uint8)
        picture[:, :80, 0] = round(100 * self.height)
        return picture


def test_pictures_come_from_the_simulators_own_visualizer():
    trivial = TrivialEnv(ENVS)
    env = IsaacLabEnv(trivial)
    with pytest.raises(RenderError, match=r"runs no visualizer that gives pictures; add --viz newton_gl"):
        env.renderer(40, 40, (0, 0, 0))
    trivial.sim = SimpleNamespace(visualizers=[object(), Painter()])
    trivial.camera_view = lambda index: ((0.0, 0.0, index + 1.0), (0.0, 0.0, 0.0))
    renderer = env.renderer(40, 30, (0, 0, 0))
    picture = renderer.frame(env.reset(jax.random.key(0)), 1)
    assert picture.shape == (30, 40, 3) and picture.dtype == np.uint8
    assert (picture[:, :18, 0] == 200).all() and (picture[:, 22:] == 0).all(), "the middle, seen from where it is told"
    trivial.sim.visualizers[1].render_rgb_array = lambda: None
    with pytest.raises(RenderError, match="Painter gives no picture"):
        renderer.frame(env.reset(jax.random.key(0)))


class Exploding(TrivialEnv):
    """Environment 1 is NaN from its 5th step of every episode on; the simulator goes on with it, as simulators do."""

    def step(self, actions):
        self._state[1] = torch.where(self.episode_length_buf[1] == 4, torch.nan, self._state[1])
        return super().step(actions)


def test_an_environment_that_breaks_is_restarted_by_the_step_after():
    env = IsaacLabEnv(Exploding(ENVS)).restarting_nonfinite()

    @jax.jit
    def rollout(rng):
        def step(state, _):
            after = env.step(state, policy_of(state.obs))
            return after, (after.obs, after.reward, after.done, after.info["time_outs"], after.info["nonfinite"])

        return jax.lax.scan(step, env.reset(rng), None, length=14)[1]

    obs, reward, done, time_outs, broken = jax.tree.map(np.asarray, env.drive(rollout, jax.random.key(0)))
    assert np.flatnonzero(broken.any(axis=1)).tolist() == [4, 5, 10, 11], "it breaks, and is restarted"
    assert not broken[:, [0, *range(2, ENVS)]].any()
    assert done[broken].all() and not time_outs[broken].any() and (reward[broken] == 0).all()
    assert all(np.isfinite(x).all() for x in obs.values())
    assert not obs["policy"][[4, 10], 1].any() and obs["policy"][[5, 11], 1].any(), "a new episode"


def test_a_mean_of_nothing_is_not_logged():
    log = ScalarLog()
    log.add({"a": torch.tensor(float("nan")), "b": 1.0})
    log.add({"a": torch.tensor(3.0), "b": 2.0})
    assert log.pop() == {"Episode/a": 3.0, "Episode/b": 1.5}
