"""Environments divided among devices: the same numbers on one, two and four, whatever is trained on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from bridge.crazyflie import PointControlCfg
from bridge.env import AutoReset, State
from jdistill.core.history import History
from jdistill.core.sharding import Shards
from jdistill.core.statistics import EPISODES, EpisodeBuffer, Metrics
from jdistill.errors import ConfigError
from jdistill.run.compose import compose
from jdistill.run.devices import make_mesh
from jdistill.run.inputs import make_algorithm
from jdistill.run.mesh import BY_ENV, BY_TIME_AND_ENV, SAME, EnvMesh, Programs, history_specs
from jdistill.run.runner import DistillationRunner
from tests.cameras import Cameras, cameras_teacher
from tests.jdistill.core.test_teachers import make_bank
from tests.masses import Masses, Swarm, masses_teacher

NUM_ENVS = 8
TASK = [f"env.num_envs={NUM_ENVS}"]
AGENT = ["agent.num_steps_per_env=8", "agent.algorithm.gradient_length=3", "agent.algorithm.num_learning_epochs=1"]
PHASES = ["agent.algorithm.use_two_stage_training=true", "agent.algorithm.phase1_iterations=12"]
HISTORY = ["agent.algorithm.use_dagger=true", "agent.algorithm.max_buffer_size=256"]
MLP = ["agent.student.rnn_type=null"]
NOISE = ["agent.student.init_noise_std=0.05"]
MODES = {
    "minibatch": [*PHASES, "agent.algorithm.sampler=minibatch", "agent.algorithm.num_mini_batches=2"],
    "uniform": [*PHASES, *HISTORY],
    "recent": [*HISTORY, "agent.algorithm.sampler=recent", "agent.algorithm.carry_start=burn_in"],
    "packed": [*HISTORY, "agent.algorithm.sampler=packed", "agent.algorithm.row_length=10"],
}


def configured(*overrides: str):
    return compose("crazyflie", PointControlCfg, [], [*TASK, *AGENT, "agent.logger=none", *overrides])


def runner_on(devices: int, folder, cfg, env_cls=Masses) -> DistillationRunner:
    env, mesh = AutoReset(env_cls(cfg.env.num_envs // devices)), EnvMesh(jax.devices()[:devices])
    return DistillationRunner(env, cfg, masses_teacher(), folder, mesh=mesh)


def on_masses(num_envs: int, cfg):
    return AutoReset(Masses(num_envs)), masses_teacher().actor(cfg.agent)


def on_a_swarm(num_envs: int, cfg):
    return AutoReset(Swarm(num_envs)), make_bank()


def with_cameras(num_envs: int, cfg):
    return AutoReset(Cameras(num_envs)), cameras_teacher().actor(cfg.agent)


def trained(devices: int, *overrides: str, task, iterations: int = 20):
    """The losses and all scalars of each iteration, and the training state after the last one."""
    cfg, mesh = configured(*overrides), EnvMesh(jax.devices()[:devices])
    env, teacher = task(NUM_ENVS // devices, cfg)
    teacher = mesh.put(teacher, SAME)
    programs = Programs(make_algorithm(env, cfg.agent, mesh.shards), mesh, teacher, 3)
    state = programs.init()(mesh.put(jax.random.key(3), SAME), teacher)
    iteration, scalars = programs.iteration(keeps_rollout=False), []
    for _ in range(iterations):
        state, metrics = iteration(state, teacher)
        scalars.append(jax.device_get(metrics.scalars))
    return {name: np.array([s[name] for s in scalars]) for name in scalars[0]}, state


def assert_same(one, other):
    (scalars, state), (again, divided) = one, other
    for name, values in scalars.items():
        np.testing.assert_allclose(again[name], values, rtol=2e-4, atol=2e-5, err_msg=name)
    learnt = [jax.tree.leaves((s.student, s.opt_state, s.episodes)) for s in (state, divided)]
    for a, b in zip(*learnt, strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize(("mode", "task"), [("uniform", on_a_swarm), ("recent", on_masses)])
def test_two_devices_learn_what_one_learns(mode, task):
    """From a history with the student's states and the labels of many teachers, and from one that is burnt in."""
    one = trained(1, *MODES[mode], task=task)
    assert one[0]["Train/episodes"].sum() > 50 and one[0]["Loss/behavior"][-1] > 0
    assert_same(one, trained(2, *MODES[mode], task=task))


@pytest.mark.parametrize("mode", ["minibatch", "packed"])
def test_students_with_images_too(mode):
    """A GRU behind a CNN, by the samplers that the other tests leave out."""
    sees = ["agent.obs_groups.student=[student,camera]", "agent.student.cnn_cfg={output_channels: [2],kernel_size: 3}"]
    small = ["agent.student.rnn_hidden_dim=4", "agent.student.pre_dims=[]", "agent.student.hidden_dims=[]"]
    one, two = (trained(count, *MODES[mode], *sees, *small, task=with_cameras) for count in (1, 2))
    assert one[0]["Train/episodes"].sum() > 50 and one[0]["Loss/behavior"][-1] > 0
    assert_same(one, two)


def test_a_dataset_is_divided_too():
    """Columns of unequal length, of which the last ones are half empty."""
    keys = jax.random.split(jax.random.key(0), 3)
    history = History(
        obs=jax.random.normal(keys[0], (32, NUM_ENVS, 2)),
        teacher_action=jax.random.normal(keys[1], (32, NUM_ENVS, 1)),
        is_first=jax.random.bernoulli(keys[2], 0.1, (32, NUM_ENVS)).at[0].set(True),
        carry=(),
        origin=jnp.zeros((), jnp.int32),
        length=jnp.array([32, 31, 30, 32, 28, 32, 16, 15]),
    )
    found = []
    for devices in (1, 2):
        cfg, mesh = configured("agent.algorithm.dataset=[flown.hdf5]", *MLP), EnvMesh(jax.devices()[:devices])
        env, teacher = on_masses(NUM_ENVS // devices, cfg)
        programs = Programs(make_algorithm(env, cfg.agent, mesh.shards), mesh, mesh.put(teacher, SAME), 3)
        state = programs.init()(mesh.put(jax.random.key(3), SAME), mesh.put(teacher, SAME))
        iteration, divided, losses = programs.offline_iteration(), mesh.put(history, history_specs()), []
        for _ in range(20):
            state, metrics = iteration(state, divided)
            losses.append(float(metrics.scalars["Loss/behavior"]))
        found.append(({"Loss/behavior": np.array(losses)}, state))
    assert_same(*found)


@pytest.mark.full
def test_four_devices_and_teachers_drawn_by_environment():
    settings = [*PHASES, *NOISE, "agent.algorithm.beta_schedule=linear", "agent.algorithm.beta_iterations=8"]
    settings += ["agent.algorithm.beta_per=episode", "agent.algorithm.phase1_until_return=1e9"]
    one = trained(1, *settings, task=on_masses)
    assert one[0]["Train/episodes"].sum() > 50
    assert_same(one, trained(4, *settings, task=on_masses))


def test_a_run_goes_on_with_other_devices(tmp_path):
    """More of them, then fewer; bitwise the state that was saved, environments included."""
    runner = runner_on(1, tmp_path, configured("agent.max_iterations=2", *HISTORY))
    runner.start()
    runner.learn()
    for iterations, devices in ((4, 4), (6, 1)):
        again = runner_on(devices, tmp_path, configured(f"agent.max_iterations={iterations}", *HISTORY))
        again.load()
        for a, b in zip(jax.tree.leaves(runner.state), jax.tree.leaves(again.state), strict=True):
            data = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b)]
            np.testing.assert_array_equal(*data)
        again.learn()
        assert again.current_learning_iteration == iterations
        assert len(again.state.env_state.done.sharding.device_set) == devices
        runner = again


def test_more_environments_begin_anew_and_learning_goes_on(tmp_path, capsys):
    runner = runner_on(1, tmp_path, configured("agent.max_iterations=2", *HISTORY))
    runner.start()
    runner.learn()
    again = runner_on(2, tmp_path, configured("agent.max_iterations=3", *HISTORY, "env.num_envs=12"))
    again.load()
    assert (
        "another number of environments: all episodes begin anew, and the history is empty" in capsys.readouterr().out
    )
    for a, b in zip(jax.tree.leaves(runner.state.student), jax.tree.leaves(again.state.student), strict=True):
        np.testing.assert_array_equal(a, b)
    assert again.state.history.length.tolist() == [0] * 12 and again.state.env_state.done.shape == (12,)
    again.learn()


class Keeper(Masses):
    """Keeps something for all of its environments together."""

    key_per_env = False

    def reset(self, rng: jax.Array) -> State:
        state = super().reset(jax.random.split(rng, self.num_envs))
        return state.replace(info={**state.info, "steps": jnp.zeros((), jnp.int32), "rng": jax.random.key_data(rng)})

    def step(self, state: State, action: jax.Array) -> State:
        after = super().step(state, action)
        return after.replace(info={**after.info, "steps": state.info["steps"] + 1})


def test_a_simulator_may_keep_something_for_all_of_its_environments(tmp_path, capsys):
    settings = ["env.num_envs=4", "agent.max_iterations=2"]
    runner = runner_on(2, tmp_path, configured(*settings), Keeper)
    runner.start()
    starts = np.asarray(runner.state.env_state.pipeline_state[:, 0])
    assert len(np.unique(starts)) == 4, "each device draws for itself"
    runner.learn()
    assert runner.state.env_state.info["steps"].tolist() == [16, 16]
    again = runner_on(2, tmp_path, configured(*settings), Keeper)
    again.load()
    assert again.state.env_state.info["steps"].tolist() == [16, 16]
    assert "anew" not in capsys.readouterr().out
    alone = runner_on(1, tmp_path, configured(*settings), Keeper)
    alone.load()
    assert "settings, version or devices): all episodes begin anew" in capsys.readouterr().out
    assert alone.state.env_state.info["steps"] == 0 and int(alone.state.iteration) == 2


def on(count: int, function, ins, outs, *args):
    return EnvMesh(jax.devices()[:count]).program(function, ins, outs)(*args)


@pytest.mark.parametrize("ends", [0.0, 0.02, 0.5])
def test_the_last_episodes_are_those_of_all_devices(ends):
    """More of them than the ring holds, fewer, none: the ring of four devices is that of one."""
    keys = jax.random.split(jax.random.key(0), 4)
    rings = [EpisodeBuffer.create()] * 2
    for round_ in range(3):
        done = jax.random.bernoulli(jax.random.fold_in(keys[0], round_), ends, (40, 16))
        returns, lengths = (jax.random.normal(jax.random.fold_in(key, round_), (40, 16)) for key in keys[1:3])
        rings = [
            on(
                count,
                lambda ring, *args, count=count: ring.extend(*args, Shards(count)),
                (SAME, *[BY_TIME_AND_ENV] * 3),
                SAME,
                *(ring, done, returns, lengths),
            )
            for count, ring in zip((1, 4), rings, strict=True)
        ]
    for a, b in zip(*map(jax.tree.leaves, rings), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (rings[0].count > EPISODES) == (ends == 0.5) and (rings[0].count == 0) == (ends == 0.0)


def test_moments_are_those_of_all_rows():
    x = 3.0 + jnp.arange(8.0)[:, None] ** 2 * jax.random.normal(jax.random.key(1), (8, 3))
    mean, var = on(4, lambda x: Shards(4).moments(x)[:2], BY_ENV, SAME, x)
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(var, x.var(axis=0), rtol=1e-6)


def test_a_flag_is_set_where_it_is_on_all_devices():
    flags = jnp.array([[True, True], [True, False]])
    found = on(2, lambda x: Shards(2).all(x[0]), PartitionSpec("env"), SAME, flags)
    assert found.tolist() == [True, False]


class Started:
    class simulator:
        is_jax, title = True, "JAX"


def test_devices_are_refused_that_the_environments_do_not_divide_among():
    cfg = configured("env.num_envs=90")
    assert make_mesh(cfg, Started).shards.count == 3, "the most that divide and have enough"
    assert make_mesh(configured("env.num_envs=8"), Started).shards.count == 1, "too few to be worth it"
    assert make_mesh(cfg, Started, "2").shards.count == 2
    with pytest.raises(
        ConfigError, match="--num_envs 90: cannot be divided among 4 devices; the nearest that can is 88"
    ):
        make_mesh(cfg, Started, "all")
    with pytest.raises(ConfigError, match="--devices 5: there are 4"):
        make_mesh(cfg, Started, "5")
    with pytest.raises(ConfigError, match="--devices none: expected a number or 'all'"):
        make_mesh(cfg, Started, "none")


def test_what_breaks_first_is_found_on_any_device():
    mesh = EnvMesh(jax.devices()[:2])
    values = np.zeros((3, NUM_ENVS, 2), np.float32)
    values[2, 1] = values[1, 6, 1] = np.nan

    def check(x):
        return Metrics.create({}, [("the action", x), ("the loss", jnp.zeros(()))], mesh.shards)

    metrics = mesh.program(check, BY_TIME_AND_ENV, SAME)(values)
    assert metrics.first_cause(NUM_ENVS) == "the action of environment 6 at step 1"
    assert mesh.program(check, BY_TIME_AND_ENV, SAME)(np.zeros_like(values)).first_cause(NUM_ENVS) is None
