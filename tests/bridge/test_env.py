"""Auto-reset: what happens when episodes end."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bridge.check import check_env
from bridge.crazyflie import PointControl
from bridge.env import AutoReset, Env, ObservationSpec, State, TrainingEnv
from bridge.errors import SettingError


class Counter:
    """Counts its own steps; environment i terminates at step ``limits[i]``; the reward is the action."""

    num_actions = 1
    max_episode_length = 5
    step_dt = 0.1

    def __init__(self, limits: list[int]):
        self.limits = jnp.array(limits)
        self.num_envs = len(limits)

    def reset(self, rng):
        start = jax.random.uniform(rng, (self.num_envs,))
        zeros = jnp.zeros(self.num_envs)
        state = State(
            pipeline_state={"count": zeros, "start": start},
            obs={},
            reward=zeros,
            done=jnp.zeros(self.num_envs, bool),
            metrics={"Metrics/twice": zeros},
            info={"steps": jnp.zeros((), jnp.int32)},
        )
        return state.replace(obs=self._obs(state.pipeline_state))

    def step(self, state, action):
        sim = {**state.pipeline_state, "count": state.pipeline_state["count"] + 1}
        return state.replace(
            pipeline_state=sim,
            obs=self._obs(sim),
            reward=action[:, 0],
            done=sim["count"] >= self.limits,
            metrics={"Metrics/twice": 2 * sim["count"]},
            info={**state.info, "steps": state.info["steps"] + 1},
        )

    def _obs(self, sim):
        return {k: v[:, None] for k, v in sim.items()}


def run(env: AutoReset, steps: int) -> list[State]:
    """States before the first and after every step, with rewards 1."""
    states = [env.reset(jax.random.key(0))]
    step = jax.jit(env.step)
    for _ in range(steps):
        states.append(step(states[-1], jnp.ones((env.num_envs, 1))))
    return states


def obs(**groups):
    """What changes a State's observation groups."""
    return lambda state: state.replace(obs={**state.obs, **groups})


def metrics(value):
    """What changes a State's metric."""
    return lambda state: state.replace(metrics={"Metrics/reach": value})


def test_counter_and_wrapper_satisfy_the_protocol(crazyflie):
    assert isinstance(Counter([1]), Env)
    assert isinstance(AutoReset(Counter([1])), TrainingEnv)
    assert isinstance(crazyflie, Env)


def test_termination_and_time_out_are_told_apart():
    # Environment 0 terminates at step 3, environment 1 runs into the limit of 5, environment 2 does both at step 5.
    states = run(AutoReset(Counter([3, 99, 5])), 5)
    done = np.stack([s.done for s in states])
    time_outs = np.stack([s.info["time_outs"] for s in states])
    assert done.T.tolist() == [[0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1], [0, 0, 0, 0, 0, 1]]
    assert time_outs.T.tolist() == [[0] * 6, [0, 0, 0, 0, 0, 1], [0] * 6]


def test_only_finished_environments_restart():
    states = run(AutoReset(Counter([3, 99])), 4)
    assert [float(s.obs["count"][0, 0]) for s in states] == [0, 1, 2, 0, 1]
    assert [float(s.obs["count"][1, 0]) for s in states] == [0, 1, 2, 3, 4]
    starts = np.stack([s.obs["start"][:, 0] for s in states])
    assert len(set(starts[:, 0].tolist())) == 2, "the new episode draws a new start"
    assert len(set(starts[:, 1].tolist())) == 1
    assert int(states[-1].info["steps"]) == 4, "the wrapped environment's own info is left alone"


def test_a_start_is_taken_once_and_drawn_before_it_is_taken_again():
    """Environment 0 begins anew every second step, the others when time is up."""
    env = AutoReset(Counter([2, 99, 99]))
    states = run(env, 12)
    begun = [s for s in states if s.done[0] or s is states[0]]
    starts = [float(s.obs["start"][0, 0]) for s in begun]
    assert len(starts) == 7 and len(set(starts)) == 7, "no start twice"
    used = np.stack([s.info["starts"].used for s in states])
    assert used[0].all(), "the first episodes have taken theirs"
    assert used[2].tolist() == [True, False, False], "drawn for all, taken by one"
    fresh = [np.asarray(s.info["starts"].fresh[0]["start"]) for s in states]
    assert (fresh[1] == fresh[0]).all() and (fresh[3] == fresh[2]).all(), "nothing is drawn while nobody needs it"


class Observing(Counter):
    """Observes by the method that auto-reset may call."""

    def step(self, state, action):
        return super().step(state, action).replace(obs={})

    def observe_pipeline_state(self, sim):
        return self._obs(sim)


def test_observations_are_made_once_after_restarts_where_the_environment_lets():
    plain, observing = run(AutoReset(Counter([3, 99])), 5), run(AutoReset(Observing([3, 99])), 5)
    for a, b in zip(plain, observing, strict=True):
        assert all((a.obs[k] == b.obs[k]).all() for k in ("count", "start"))


def test_metrics_speak_of_the_finished_episode():
    states = run(AutoReset(Counter([3, 99])), 4)
    assert [float(s.metrics["episode_return"][0]) for s in states] == [0, 1, 2, 3, 1]
    assert [float(s.metrics["episode_length"][0]) for s in states] == [0, 1, 2, 3, 1]
    assert float(states[3].metrics["Metrics/twice"][0]) == 6, "the last step's metric survives the reset"
    assert states[3].info["episode_length_buf"].tolist() == [0, 3]


def test_random_ages_spread_the_time_outs():
    env = AutoReset(Counter([99] * 64))
    state = env.randomize_episode_length(env.reset(jax.random.key(0)), jax.random.key(1))
    assert set(state.info["episode_length_buf"].tolist()) == {0, 1, 2, 3, 4}
    state = env.step(state, jnp.ones((64, 1)))
    assert 0 < int(state.info["time_outs"].sum()) < 64


@pytest.mark.full
@pytest.mark.parametrize("wrap", [AutoReset, lambda env: env])
def test_states_keep_their_types(crazyflie, wrap):
    """A step's state can be scanned over, and a second step compiles nothing new."""
    env = wrap(crazyflie)
    step = jax.jit(lambda state, action: env.step(state, action))  # Compiled for nobody else.
    before = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), env.reset(jax.random.key(0)))
    after = step(before, jnp.zeros((8, 4)))
    step(after, jnp.zeros((8, 4)))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
    assert step._cache_size() == 1


class Robot:
    """Observes a vector, a picture and a contact; ``changes`` replace parts of what it says, by method and field."""

    num_envs, num_actions, max_episode_length, step_dt = 3, 2, 5, 0.1

    def __init__(self, **changes):
        self.changes = changes

    def reset(self, rng):
        zeros = jnp.zeros(3)
        obs = {
            "arm": jnp.zeros((3, 4)),
            "camera": jnp.zeros((3, 8, 6, 1), jnp.uint8),
            "contact": jnp.zeros((3, 1), bool),
        }
        state = State({"x": zeros}, obs, zeros, jnp.zeros(3, bool), {"Metrics/reach": zeros}, {"steps": 0})
        return self._changed("reset", state)

    def step(self, state, action):
        assert action.shape == (3, 2)
        return self._changed("step", state.replace(reward=action[:, 0]))

    def _changed(self, method, state):
        for field in ("both", method):
            change = self.changes.get(field)
            state = change(state) if change else state
        return state


def test_shapes_are_found_and_not_declared():
    env = AutoReset(Robot())
    assert {name: str(spec) for name, spec in env.obs_specs.items()} == {
        "arm": "float32[4]",
        "camera": "uint8[8, 6, 1]",
        "contact": "bool[1]",
    }
    state = env.step(env.reset(jax.random.key(0)), jnp.ones((3, 2)))
    assert state.obs["camera"].dtype == jnp.uint8


def test_what_an_environment_says_of_its_groups_is_kept():
    plain = Robot()
    plain.obs_sizes, plain.obs_frames = {"arm": 4}, {"arm": "body"}
    plain.obs_layouts = {"arm": (("joint", 3, "rad"), ("grip", 1, "m"))}
    spec = AutoReset(plain).obs_specs["arm"]
    assert spec == ObservationSpec.of_layout((("joint", 3, "rad"), ("grip", 1, "m")), "body")
    told = Robot()
    told.obs_specs = {"arm": spec}
    assert AutoReset(told).obs_specs["arm"] == spec and set(AutoReset(told).obs_specs) == {"arm", "camera", "contact"}


def test_a_traced_program_does_not_look_again(crazyflie):
    env = AutoReset(PointControl(crazyflie.cfg))
    assert env.obs_specs["teacher"].frame == crazyflie.cfg.teacher_frame
    assert env.with_parameters(env.parameters).obs_specs is env.obs_specs


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"reset": lambda s: s.obs}, "Robot.reset returns a dict, expected a bridge.env.State"),
        ({"step": lambda s: (s, 0.0)}, "Robot.step returns a tuple, expected a bridge.env.State"),
        (
            {"both": lambda s: s.replace(obs=s.obs["arm"])},
            "reset: obs is float32[3, 4], expected a dict of arrays by name",
        ),
        ({"both": lambda s: s.replace(obs={})}, "Robot.reset: obs is empty, expected at least one observation group"),
        ({"both": obs(arm=jnp.zeros(3))}, "obs['arm'] is float32[3], expected (batch, size) with a batch of 3"),
        ({"both": obs(arm=jnp.zeros((4, 3)))}, "obs['arm'] is float32[4, 3], expected (batch, size) with a batch of 3"),
        ({"both": obs(arm=jnp.zeros((3, 4), int))}, "Robot.reset: obs['arm'] is int32[3, 4], expected float32"),
        ({"step": obs(arm=jnp.zeros((3, 5)))}, "obs['arm'] is float32[3, 4] after reset and float32[3, 5] after step"),
        ({"step": obs(leg=jnp.zeros((3, 5)))}, "obs['leg'] is missing after reset and float32[3, 5] after step"),
        ({"step": lambda s: s.replace(reward=0.0)}, "Robot.step: reward is float32[], expected float32[3]"),
        ({"both": lambda s: s.replace(done=jnp.zeros(3))}, "Robot.reset: done is float32[3], expected bool[3]"),
        ({"both": lambda s: s.replace(done=None)}, "Robot.reset: done is a NoneType, expected bool[3]"),
        ({"both": metrics(jnp.zeros(3, int))}, "metrics['Metrics/reach'] is int32[3], expected float32[3]"),
        ({"both": metrics(0.0)}, "metrics['Metrics/reach'] is float32[], expected float32[3]"),
        (
            {"step": lambda s: s.replace(metrics={})},
            "metrics['Metrics/reach'] is float32[3] after reset and missing after",
        ),
        ({"step": lambda s: s.replace(info={})}, "info['steps'] is int32[] after reset and missing after step"),
        ({"both": lambda s: s.replace(info={"name": "arm"})}, "Robot.reset: info['name'] is a str, expected an array"),
        (
            {"both": lambda s: s.replace(pipeline_state=jnp.zeros(()))},
            "pipeline_state is float32[], expected a leading axis",
        ),
        (
            {"step": lambda s: s.replace(pipeline_state=[s.pipeline_state["x"]])},
            "pipeline_state['x'] is float32[3] after",
        ),
    ],
)
def test_mistakes_of_an_environment_are_named(changes, complaint):
    with pytest.raises(SettingError) as error:
        check_env(Robot(**changes))
    assert complaint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "declared", "complaint"),
    [
        ("obs_sizes", {"arm": 5}, "Robot: obs['arm'] is float32[4] without its batch axis, declared is (5,)"),
        ("obs_sizes", {"leg": 5}, "there is no obs['leg'], which it declares; there are arm, camera, contact"),
        (
            "obs_layouts",
            {"arm": (("joint", 3, "rad"),)},
            "obs['arm'] is float32[4] without its batch axis, declared is (3,)",
        ),
        (
            "obs_specs",
            {"camera": ObservationSpec((8, 6, 3))},
            "obs['camera'] is uint8[8, 6, 1] without its batch axis, ",
        ),
    ],
)
def test_declarations_are_held_against_what_is_there(name, declared, complaint):
    env = Robot()
    setattr(env, name, declared)
    with pytest.raises(SettingError) as error:
        AutoReset(env).obs_specs  # noqa: B018
    assert complaint in str(error.value)


def test_an_environment_that_lacks_a_member():
    class Half:
        num_envs, num_actions, reset = 1, 1, Robot.reset

    with pytest.raises(SettingError, match=r"^Half has no max_episode_length and no step_dt and no step; bridge"):
        check_env(Half())
    with pytest.raises(SettingError, match="Half has no max_episode_length and no step_dt"):
        AutoReset(Half())
