"""The history: what the ring keeps, and what it says it costs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdistill.core import memory
from jdistill.core.config import AlgorithmCfg
from jdistill.core.history import History
from jdistill.core.memory import plan_history
from jdistill.errors import ConfigError


def numbered(number: int, steps: int, columns: int) -> dict[str, np.ndarray]:
    """Rollout ``number``: observations say which step of which column they are, every seventh is a first one."""
    time = number * steps + np.arange(steps)
    obs = np.stack(np.broadcast_arrays(time[:, None], np.arange(columns)), axis=-1).astype(np.float32)
    is_first = (time[:, None] + np.arange(columns)) % 7 == 0
    return {"obs": obs, "teacher_action": -obs[..., :1], "is_first": is_first}


def filled(rollouts: int, slots: int, steps: int, columns: int, dtype=jnp.float32) -> History:
    obs, teacher_action = jnp.zeros((columns, 2)), jnp.zeros((columns, 1))
    history = History.create(slots * steps, obs, teacher_action, (), dtype)
    append = jax.jit(History.append, donate_argnums=0)
    for number in range(rollouts):
        history = append(history, **numbered(number, steps, columns), carry=())
    return history


@pytest.mark.parametrize("rollouts", [1, 3, 8])
def test_sequences_are_those_of_the_newest_rollouts_in_order(rollouts):
    slots, steps, columns = 3, 4, 2
    history = filled(rollouts, slots, steps, columns)
    kept = range(max(0, rollouts - slots), rollouts)
    parts = [numbered(number, steps, columns) for number in kept]
    line = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    length = len(kept) * steps
    assert history.length.tolist() == [length, length]
    column = jnp.array([0, 1, 1, 0])
    start = jnp.array([0, 1, length - 2, -3])
    there = history.sequences(start, column, 5)
    for n in range(4):
        for t in range(5):
            at = int(start[n]) + t
            assert bool(there.known[t, n]) == (0 <= at < length)
            if 0 <= at < length:
                assert there.obs[t, n].tolist() == line["obs"][at, column[n]].tolist()
                assert there.teacher_action[t, n].tolist() == line["teacher_action"][at, column[n]].tolist()
                assert there.is_first[t, n] == line["is_first"][at, column[n]]
            elif t < 4:
                assert there.reset[t + 1, n], "what is not known leaves no state behind"


def test_bfloat16_halves_the_memory_and_rounds():
    wide, narrow = filled(2, 2, 4, 2), filled(2, 2, 4, 2, jnp.bfloat16)
    assert narrow.obs.nbytes == wide.obs.nbytes // 2 and narrow.obs.dtype == jnp.bfloat16
    got = narrow.sequences(jnp.array([2]), jnp.array([1]), 3)
    assert got.obs.dtype == jnp.float32
    np.testing.assert_allclose(got.obs, wide.sequences(jnp.array([2]), jnp.array([1]), 3).obs, rtol=2**-8)


def test_the_plan_counts_bytes_and_refuses_what_does_not_fit(make_distillation, monkeypatch):
    alg = make_distillation(num_steps=30, use_dagger=True, max_buffer_size=1000)
    plan = plan_history(alg)
    assert (plan.rollouts, plan.transitions) == (4, 960), "rollouts of 30 steps in 8 environments"
    # 22 observations, 4 actions, one flag; a state of 16 for every 15th step.
    assert plan.nbytes == pytest.approx(960 * (4 * 26 + 1 + 4 * 16 / 15), abs=8 * 4 + 8)
    assert "4 rollouts, 960 transitions of 109.3 bytes" in plan.describe()
    monkeypatch.setattr(memory, "available_host_memory", lambda: 1.5 * plan.nbytes)
    with pytest.raises(
        ConfigError, match=r"max_buffer_size=1000: the history needs .* lower it, or set .*bfloat16"
    ) as e:
        plan_history(alg)
    assert "\n" not in str(e.value)
    monkeypatch.setattr(memory, "available_host_memory", lambda: 3 * plan.nbytes)
    plan_history(alg)


def test_sizes_that_do_not_go_together(make_distillation):
    with pytest.raises(ConfigError, match=r"max_buffer_size=239: smaller than one rollout, which has 240"):
        plan_history(make_distillation(num_steps=30, use_dagger=True, max_buffer_size=239))
    with pytest.raises(ConfigError, match=r"shorter than one row of 1000 steps in 8 environments; raise it to 8000"):
        plan_history(make_distillation(num_steps=30, use_dagger=True, max_buffer_size=7000, sampler="packed"))
    with pytest.raises(ConfigError, match=r"num_mini_batches=9: more than the 8 environments"):
        plan_history(make_distillation(sampler="minibatch", num_mini_batches=9))


def test_no_history_leaves_nothing_in_the_state(make_distillation, teacher_actor):
    shapes = jax.eval_shape(make_distillation().init, jax.random.key(0), teacher_actor)
    assert shapes.history is None and shapes.phase1_end is None and shapes.teacher_acts is None
    assert plan_history(make_distillation()) is None
    assert AlgorithmCfg().use_dagger is False
