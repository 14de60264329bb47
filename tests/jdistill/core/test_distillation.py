"""The algorithm: phases, rollouts, gradient windows, resets, statistics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jdistill.core import networks, statistics
from jdistill.core.config import StudentCfg
from jdistill.core.distillation import make_optimizer
from jdistill.core.networks import Policy
from jdistill.core.rollout import Rollout
from jdistill.core.statistics import EPISODES, EpisodeBuffer

GRU = Policy(4, (8,), pre_dims=(8,), rnn_type="gru", rnn_hidden_dim=8, output_activation="tanh")
LSTM = Policy(4, (8,), rnn_type="lstm", rnn_hidden_dim=6, rnn_num_layers=2)
MLP = Policy(4, (8,))


def leaves_equal(a, b) -> bool:
    return all(bool((x == y).all()) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def random_rollout(alg, state, teacher, steps: int, seed: int = 0) -> Rollout:
    """A rollout with random observations, teacher actions and frequent dones, of the algorithm's own structure."""
    shapes = jax.eval_shape(alg.rollout, state, teacher)[1]
    envs = alg.env.num_envs
    keys = jax.random.split(jax.random.key(seed), 3)
    done = jax.random.bernoulli(keys[2], 0.1, (steps, envs))
    transitions = shapes.steps._replace(
        obs={"student": jax.random.normal(keys[0], (steps, envs, 22)), "teacher": jnp.zeros((steps, envs, 26))},
        teacher_action=jnp.tanh(jax.random.normal(keys[1], (steps, envs, 4))),
        done=done,
        is_first=jnp.concatenate([jnp.zeros((1, envs), bool), done[:-1]]),
        student_carry=(),
    )
    return Rollout(transitions, start_carry=state.student_carry)


def reference_update(alg, state, rollout):
    """rsl_rl's update, step by step as it is written there, by plain autodiff: the check on our windows and scans."""
    rollout = rollout.steps
    cfg, steps = alg.cfg.algorithm, rollout.done.shape[0]
    obs = alg.student_obs(rollout.obs)
    first = networks.initial_carry(alg.student, state.student, alg.env.num_envs)

    def run(params, carry, window):
        """Sum of the step losses over ``window``, a list of (t, whether an epoch starts)."""
        total = 0.0
        for t, epoch_starts in window:
            carry = state.student_carry if epoch_starts else carry
            carry, actions = networks.act(alg.student, state.student.replace(params=params), carry, obs[t])
            error = actions - rollout.teacher_action[t]
            loss = jnp.square(error) if cfg.loss_type == "mse" else optax.huber_loss(error, delta=1.0)
            total += loss.mean()
            carry = jax.tree.map(lambda f, c, t=t: jnp.where(rollout.done[t][:, None], f, c), first, carry)
        return total, carry

    optimizer = make_optimizer(cfg)
    params, opt_state, carry = state.student.params, optimizer.init(state.student.params), state.student_carry
    schedule = [(t, t == 0) for _ in range(cfg.num_learning_epochs) for t in range(steps)]
    losses = 0.0
    for start in range(0, len(schedule), cfg.gradient_length):
        window = schedule[start : start + cfg.gradient_length]
        (loss, carry), grads = jax.value_and_grad(run, has_aux=True)(params, jax.lax.stop_gradient(carry), window)
        losses += loss
        if len(window) == cfg.gradient_length:
            updates, opt_state = optimizer.update(grads, opt_state, params)
            params = optax.apply_updates(params, updates)
    return params, carry, losses / len(schedule)


def full(*values):
    return pytest.param(*values, marks=pytest.mark.full)


EVEN, STRADDLING = (6, {"gradient_length": 3}), (7, {"gradient_length": 3})
LONG = 4, {"gradient_length": 6, "num_learning_epochs": 4}
"""Windows that end with the epochs; that straddle them, with a step left over; one that is longer than an epoch."""


@pytest.mark.parametrize(
    ("student", "steps", "settings"),
    [
        pytest.param(GRU, *EVEN, id="even-gru"),
        pytest.param(LSTM, *STRADDLING, id="straddling-lstm"),
        pytest.param(MLP, *STRADDLING, id="straddling-mlp"),
        pytest.param(GRU, *LONG, id="long window-gru", marks=pytest.mark.full),
        full(MLP, 6, {"gradient_length": 3, "loss_type": "huber", "optimizer": "adamw", "max_grad_norm": None}),
        full(MLP, 6, {"gradient_length": 4, "optimizer": "rmsprop"}),
        full(MLP, 6, {"gradient_length": 4, "optimizer": "sgd", "learning_rate": 0.1}),
    ],
)
def test_update_matches_plain_autodiff(make_distillation, teacher_actor, student, steps, settings):
    settings = {"num_learning_epochs": 2, "max_grad_norm": 0.5, **settings}
    alg = make_distillation(student, steps, **settings)
    state = alg.init(jax.random.key(0), teacher_actor)
    carry = jax.tree.map(lambda x: x + 0.3, state.student_carry)  # A run that is under way has no zero carry.
    state = state.replace(student_carry=carry)
    rollout = random_rollout(alg, state, teacher_actor, steps)
    after, loss = jax.jit(alg.update)(state, rollout)
    params, carry, reference_loss = reference_update(alg, state, rollout)
    assert float(loss) == pytest.approx(float(reference_loss), rel=1e-5)
    for ours, theirs in zip(jax.tree.leaves(after.student.params), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6, rtol=1e-5)
    # Where the next rollout begins with an episode, it resets the state itself.
    kept = ~rollout.steps.done[-1]
    for ours, theirs in zip(jax.tree.leaves(after.student_carry), jax.tree.leaves(carry), strict=True):
        np.testing.assert_allclose(ours[kept], theirs[kept], atol=1e-5)


def test_update_uses_the_old_normalizer_and_then_updates_it(make_distillation, teacher_actor):
    alg = make_distillation(GRU, 6, gradient_length=3)
    state = alg.init(jax.random.key(0), teacher_actor)
    rollout = random_rollout(alg, state, teacher_actor, 6)
    after, _ = alg.update(state, rollout)
    obs = np.asarray(rollout.steps.obs["student"]).reshape(-1, 22)
    np.testing.assert_allclose(after.student.normalizer.mean, obs.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(after.student.normalizer.var, obs.var(axis=0), rtol=1e-4)


@pytest.mark.full
@pytest.mark.parametrize(
    ("settings", "sources"),
    [
        ({"use_two_stage_training": True, "phase1_iterations": 2}, ["teacher", "teacher", "student", "student"]),
        ({"use_two_stage_training": True, "phase1_iterations": 0}, ["student", "student"]),
        ({"use_two_stage_training": False, "phase1_iterations": 2}, ["student", "student"]),
    ],
)
def test_the_phase_decides_whose_action_steps_the_environment(make_distillation, teacher_actor, settings, sources):
    alg = make_distillation(MLP, num_steps=4, **settings)
    state, collect = alg.init(jax.random.key(0), teacher_actor), jax.jit(alg.rollout)
    for iteration, source in enumerate(sources):
        _, rollout = collect(state.replace(iteration=jnp.array(iteration, jnp.int32)), teacher_actor)
        steps = rollout.steps
        executed = steps.pipeline_state.last_action[1:]  # What each step after the first one remembers.
        commands = {"teacher": steps.teacher_action[:-1], "student": steps.student_action[:-1]}
        other = "student" if source == "teacher" else "teacher"
        kept = ~steps.done[:-1]
        np.testing.assert_allclose(executed[kept], commands[source][kept], atol=1e-6)
        assert float(jnp.abs(executed - commands[other])[kept].max()) > 1e-2


@pytest.mark.full
def test_the_simulators_state_is_stored_only_if_somebody_reads_it(make_distillation, teacher_actor):
    alg = make_distillation(MLP, num_steps=40)
    state = jax.eval_shape(alg.init, jax.random.key(0), teacher_actor)
    steps = jax.eval_shape(alg.iteration, state, teacher_actor)[2]
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(steps.pipeline_state))

    def needed(*outputs: int) -> int:
        program = jax.jit(lambda *args: [alg.iteration(*args)[i] for i in outputs])
        memory = program.lower(state, teacher_actor).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    assert needed(0, 1) + size <= needed(0, 1, 2)


@pytest.mark.full
def test_rollout_stores_what_both_policies_say_of_the_same_observations(make_distillation, teacher_actor):
    alg = make_distillation(num_steps=12)
    state = alg.init(jax.random.key(0), teacher_actor)
    # Episodes end in the middle of the rollout, and one begins with its first step.
    ages = jnp.full(8, alg.env.max_episode_length - 6)
    info = {**state.env_state.info, "episode_length_buf": ages}
    env_state = state.env_state.replace(info=info, done=jnp.arange(8) == 3)
    carry = jax.tree.map(lambda x: x + 0.2, state.student_carry)
    metrics = {**env_state.metrics, "episode_length": jnp.ones(8)}
    state = state.replace(env_state=env_state.replace(metrics=metrics), student_carry=carry)
    after, rollout = jax.jit(alg.rollout)(state, teacher_actor)
    steps = rollout.steps
    assert steps.obs["student"].shape == (12, 8, 22) and steps.obs["teacher"].shape == (12, 8, 26)
    assert steps.reward.shape == steps.done.shape == (12, 8)
    assert steps.pipeline_state.pos.shape == (12, 8, 11)
    assert steps.is_first[0].tolist() == [i == 3 for i in range(8)] and steps.done.any()
    assert (steps.is_first[1:] == steps.done[:-1]).all()
    policy, teacher_state = teacher_actor.policy, teacher_actor.state
    _, teacher_actions = networks.act(policy, teacher_state, (), steps.obs["teacher"].reshape(-1, 26))
    np.testing.assert_allclose(steps.teacher_action.reshape(-1, 4), teacher_actions, atol=1e-6)
    initial = networks.initial_carry(alg.student, state.student, 8)
    for t in range(12):
        carry = jax.tree.map(lambda i, c, t=t: jnp.where(steps.is_first[t][:, None], i, c), initial, carry)
        carry, action = networks.act(alg.student, state.student, carry, steps.obs["student"][t])
        np.testing.assert_allclose(steps.student_action[t], action, atol=1e-6)
    assert leaves_equal(rollout.start_carry, state.student_carry), "the update starts where the rollout started"
    for ours, theirs in zip(jax.tree.leaves(after.student_carry), jax.tree.leaves(carry), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.full
def test_exploration_noise_is_in_the_rollout_and_not_in_the_teachers_actions(make_distillation, teacher_actor):
    noisy = make_distillation(MLP, num_steps=50, student_cfg=StudentCfg(init_noise_std=0.2))
    quiet = make_distillation(MLP, num_steps=50)
    state = noisy.init(jax.random.key(0), teacher_actor)
    first = [jax.jit(alg.rollout)(state, teacher_actor)[1].steps for alg in (noisy, quiet)]
    noise = np.asarray(first[0].student_action[0] - first[1].student_action[0])
    assert 0.1 < noise.std() < 0.3
    assert (first[0].teacher_action[0] == first[1].teacher_action[0]).all()


def test_iteration_trains_every_layer_in_either_phase(make_distillation, teacher_actor):
    alg = make_distillation(use_two_stage_training=True, phase1_iterations=1)
    state = alg.init(jax.random.key(0), teacher_actor)
    iteration = jax.jit(alg.iteration)
    for number in range(2):
        after, metrics, _ = iteration(state, teacher_actor)
        moved = [
            float(jnp.abs(x - y).max())
            for x, y in zip(jax.tree.leaves(after.student.params), jax.tree.leaves(state.student.params), strict=True)
        ]
        assert min(moved) > 0, "every layer learns, in either phase"
        assert int(after.iteration) == number + 1
        assert metrics.finite.all() and len(metrics.finite) == len(metrics.finite_names)
        state = after
    assert iteration._cache_size() == 1


@pytest.mark.full
def test_the_first_cause_of_what_is_not_finite_is_named(make_distillation, teacher_actor):
    """Of many groups too: the first in time, then in the order of cause and effect, and not in that of their names."""
    alg = make_distillation(MLP, num_steps=3, gradient_length=3)
    state = alg.init(jax.random.key(0), teacher_actor)
    steps = jax.jit(alg.rollout)(state, teacher_actor)[1].steps
    groups = {f"group {i}": jnp.zeros((3, 8, 2)) for i in range(12)}
    groups["group 2"] = groups["group 2"].at[1, 2].set(jnp.nan)
    groups["group 10"] = groups["group 10"].at[1, 2].set(jnp.inf)
    steps = steps._replace(obs=groups, reward=steps.reward.at[0, 0].set(jnp.nan))
    metrics = jax.jit(lambda *args: statistics.rollout_metrics(*args, list(groups)))(state, steps, jnp.array(0.0))
    broken = [name for name, ok in zip(metrics.finite_names, metrics.finite, strict=True) if not ok]
    assert broken == ["observation group 'group 2'", "observation group 'group 10'", "the reward"]
    assert metrics.first_cause(8) == "the reward of environment 0 at step 0"
    later = metrics.replace(first_broken=metrics.first_broken.at[metrics.finite_names.index("the reward")].set(10))
    assert later.first_cause(8) == "observation group 'group 2' of environment 2 at step 1"


@pytest.mark.full
def test_short_distillation_lowers_the_loss_tenfold(make_distillation, teacher_actor):
    alg = make_distillation(num_steps=100, use_two_stage_training=True, phase1_iterations=20)
    state = jax.jit(alg.init)(jax.random.key(0), teacher_actor)  # Compiled, it copies what will be donated.
    iteration = jax.jit(alg.iteration, donate_argnums=0)
    losses = []
    for _ in range(40):
        state, metrics, _ = iteration(state, teacher_actor)
        losses.append(float(metrics.scalars["Loss/behavior"]))
    assert losses[19] < losses[0] / 10, "in phase 1"
    assert losses[-1] < losses[0] / 10, "in phase 2"


@pytest.mark.full
def test_learning_rate_halves(make_distillation, teacher_actor):
    fixed, halved = (
        make_distillation(MLP, 6, gradient_length=6, num_learning_epochs=1, learning_rate_half_life=h)
        for h in (None, 10)
    )
    state = fixed.init(jax.random.key(0), teacher_actor).replace(iteration=jnp.array(20))
    rollout = random_rollout(fixed, state, teacher_actor, 6)

    def steps(alg):
        after, _ = alg.update(state, rollout)
        return jnp.concatenate(
            [
                (x - y).ravel()
                for x, y in zip(
                    jax.tree.leaves(after.student.params), jax.tree.leaves(state.student.params), strict=True
                )
            ]
        )

    np.testing.assert_allclose(steps(halved), steps(fixed) / 4, atol=1e-6)


def test_the_student_to_save_has_the_moving_average_of_its_parameters(make_distillation, teacher_actor):
    alg = make_distillation(GRU, 6, gradient_length=6, ema_decay=0.9)
    state = alg.init(jax.random.key(0), teacher_actor)
    first = jax.tree.map(np.asarray, state.student.params)
    expected = 0.0
    for n in range(100):
        newest = jax.tree.map(lambda x, n=n: x + n, first)
        state = state.replace(iteration=jnp.asarray(n), student=state.student.replace(params=newest))
        state = alg.average(state)
        decay = min(0.9, (n + 1) / (n + 10))
        expected = decay * expected + (1 - decay) * n
    saved = state.saved_student
    for mean, new, start in zip(*map(jax.tree.leaves, (saved.params, newest, first)), strict=True):
        np.testing.assert_allclose(mean - start, expected, rtol=1e-4)
        np.testing.assert_allclose(new - start, 99, rtol=1e-4)
    assert saved.normalizer is state.student.normalizer and 85 < expected < 95


def test_episode_ring_keeps_the_newest():
    ring = EpisodeBuffer.create()
    assert np.isnan(ring.means()[0])
    returns = []
    rng = np.random.default_rng(0)
    for _ in range(5):
        done = rng.random((30, 4)) < 0.5
        values = rng.normal(size=(30, 4)).astype(np.float32)
        returns += values[done].tolist()
        ring = ring.extend(jnp.array(done), jnp.array(values), jnp.array(2 * values))
        newest = np.array(returns[-EPISODES:])
        assert float(ring.means()[0]) == pytest.approx(newest.mean(), abs=1e-5)
        assert float(ring.means()[1]) == pytest.approx(2 * newest.mean(), abs=1e-5)
    assert len(returns) > 2 * EPISODES


@pytest.mark.full
def test_episode_statistics_start_anew_at_the_switch(make_distillation, teacher_actor):
    alg = make_distillation(MLP, num_steps=2, gradient_length=2, use_two_stage_training=True, phase1_iterations=3)
    state = alg.init(jax.random.key(0), teacher_actor)
    old = state.episodes.replace(count=jnp.array(50, jnp.int32), returns=jnp.full(EPISODES, 7.0))
    counts, iteration = {}, jax.jit(alg.iteration)
    for at in (2, 3, 4):
        after, *_ = iteration(state.replace(episodes=old, iteration=jnp.array(at, jnp.int32)), teacher_actor)
        counts[at] = int(after.episodes.count)
    assert counts[2] >= 50 and counts[4] >= 50 and counts[3] < 20
