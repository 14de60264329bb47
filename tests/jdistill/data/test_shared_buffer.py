"""Messages with arrays, from one view of the memory to another."""

from __future__ import annotations

import os

import numpy as np
import pytest

from jdistill.data.shared_buffer import HALVES, SharedBuffer, shared_memory


@pytest.fixture(params=["memory", "file"])
def views(request, monkeypatch):
    """Two views of the memory, as two processes have; where the system cannot share memory alone, a file does."""
    if request.param == "file":
        monkeypatch.delattr(os, "memfd_create")
    descriptor = shared_memory()
    assert os.fstat(descriptor).st_nlink == 0, "nothing stays behind"
    writer, reader = SharedBuffer(descriptor), SharedBuffer(os.dup(descriptor))
    yield writer, reader
    writer.close()
    reader.close()


def message(number: int) -> dict:
    """Arrays of several types and layouts, some empty, between other things."""
    rng = np.random.default_rng(number)
    return {
        "number": number,
        "plain": rng.normal(size=(7, 5)).astype(np.float32),
        "turned": rng.normal(size=(3, 4)).T,
        "skipping": rng.integers(0, 9, (6, 6))[::2],
        "deep": {"flags": rng.random(13) < 0.5, "none": np.zeros((0, 4)), "scalar": np.float32(number)},
    }


def test_what_is_got_is_what_was_put(views):
    writer, reader = views
    for number in range(5):
        ticket = writer.put(message(number), number % HALVES)
        got, wanted = reader.get(ticket), message(number)
        np.testing.assert_equal(got, wanted)
        assert got["plain"].dtype == np.float32 and got["plain"].base is not None


def test_a_message_stays_until_its_half_is_used_again(views):
    writer, reader = views
    first = reader.get(writer.put(message(0), 0))
    writer.put(message(1), 1)
    np.testing.assert_equal(first, message(0))
    writer.put(message(2), 0)
    np.testing.assert_equal(first["plain"], message(2)["plain"])


def test_a_message_without_content(views):
    writer, reader = views
    assert reader.get(writer.put({"empty": np.zeros(0)}, 1))["empty"].size == 0
