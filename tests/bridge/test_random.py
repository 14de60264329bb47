"""The counter-based generator: JAX's own numbers, independent streams, the right distributions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32 as reference

from bridge.crazyflie.random import Stream, threefry_2x32


def np_of(x) -> np.ndarray:
    return np.asarray(x, np.float64)


def test_words_are_those_of_jax():
    counters = jnp.asarray(np.random.default_rng(0).integers(0, 2**32, 2000, np.uint32))
    for key in ((0, 0), (1, 2**31), (0xDEADBEEF, 42)):
        words = jnp.array(key, jnp.uint32)
        ours = jnp.concatenate(threefry_2x32((words[0], words[1]), (counters[:1000], counters[1000:])))
        assert (ours == reference(words, counters)).all()


def test_streams_depend_on_key_step_and_purpose_alone():
    stream = Stream.create(jax.random.key(0), 100)
    words = np.stack(stream.bits(3, 5))
    assert len(np.unique(words)) == words.size
    for other in (Stream.create(jax.random.key(1), 100), stream.next()):
        assert not np.isin(np.stack(other.bits(3, 5)), words).any()
    assert not np.isin(np.stack(stream.bits(4, 5)), words).any()
    keys = jax.random.split(jax.random.key(0), 100)
    half = Stream.create(keys[50:], 50)
    assert (np.stack(half.bits(3, 5)) == words[:, 50:]).all(), "a share of the environments draws its own numbers"
    assert (np.stack(stream.bits(3, 2)) == words[:2]).all(), "however many are drawn"


def test_numbers_have_their_distributions():
    stream = Stream.create(jax.random.key(2), 40_000)
    (uniform,) = map(np_of, stream.uniform(0, 1))
    assert 0 < uniform.min() < 1e-3 and 1 - 1e-3 < uniform.max() < 1
    counts, _ = np.histogram(uniform, 20, (0, 1))
    assert np.abs(counts - 2000).max() < 5 * 2000**0.5
    a, b, c = map(np_of, stream.normal(1, 3))
    for values in (a, b, c):
        assert abs(values.mean()) < 0.03 and values.std() == pytest.approx(1, abs=0.02)
        assert np.mean(np.abs(values) < 1.96) == pytest.approx(0.95, abs=0.006)
        assert 3.5 < np.abs(values).max() < 5.5
    assert np.abs(np.corrcoef([a, b, c])[np.triu_indices(3, 1)]).max() < 0.02
    later = np_of(stream.next().normal(1, 1)[0])
    assert abs(np.corrcoef(a, later)[0, 1]) < 0.02


def test_points_fill_the_unit_ball():
    points = np_of(Stream.create(jax.random.key(3), 20_000).in_unit_ball(0).array)
    radius = np.linalg.norm(points, axis=1)
    assert 0.99 < radius.max() <= 1 + 1e-5 and np.mean(radius < 0.5) == pytest.approx(1 / 8, abs=0.01)
    assert np.abs(points.mean(axis=0)).max() < 0.02


def test_a_gpu_draws_the_same(monkeypatch):
    stream = Stream.create(jax.random.key(3), 10)
    ours = [np.stack(stream.bits(2, count)) for count in (1, 2, 5)]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    for words, count in zip(ours, (1, 2, 5), strict=True):
        np.testing.assert_array_equal(np.stack(stream.bits(2, count)), words)
