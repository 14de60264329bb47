"""Policy files: what is written comes back, and damage is told."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jdistill.core import networks
from jdistill.core.networks import Policy
from jdistill.errors import PolicyFileError
from jdistill.export.policy_file import load_policy, save_policy
from jdistill.export.rsl_rl_checkpoint import is_torch_file
from tests.conftest import BUNDLED_TEACHER

GRU = Policy(4, (), pre_dims=(16,), rnn_type="gru", activation="relu", learn_initial_carry=True)


@pytest.fixture
def saved(tmp_path):
    state = networks.init(GRU, jax.random.key(0), 22, normalize=True)
    path = tmp_path / "policy.safetensors"
    save_policy(path, GRU, state, {"task": "test"})
    return path, state


def test_round_trip(saved):
    path, state = saved
    policy, again, header = load_policy(path)
    assert policy == GRU and header["task"] == "test" and header["obs_size"] == 22
    carry, obs = networks.initial_carry(policy, again, 3), jax.random.normal(jax.random.key(1), (3, 22))
    ours, theirs = (networks.act(policy, s, carry, obs)[1] for s in (state, again))
    assert (ours == theirs).all()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_a_header_of_any_length_is_no_pickle(tmp_path, protocol):
    """A file begins with its header's length, which may be what a pickle begins with."""
    state = networks.init(Policy(2, ()), jax.random.key(0), 3, normalize=False)
    file, wanted = tmp_path / "policy.safetensors", 0x80 + 256 * protocol
    for length in range(0, 2000, 4):  # The header is padded, so that not every character makes it longer.
        save_policy(file, Policy(2, ()), state, {"task": "x" * length})
        if int.from_bytes(file.read_bytes()[:8], "little") >= wanted:
            break
    assert file.read_bytes()[:2] == bytes([0x80, protocol]), "no header of this length"
    assert not is_torch_file(file) and load_policy(file)[0] == Policy(2, ())


def test_bundled_teacher_describes_itself():
    policy, state, header = load_policy(BUNDLED_TEACHER)
    assert policy.hidden_dims == (64, 64, 64) and policy.activation == "elu" and policy.output_activation == "tanh"
    assert sum(part["size"] for part in header["observation"]["layout"]) == header["obs_size"] == 26
    assert header["observation"]["frame"] == "body" and state.normalizer is not None
    assert header["numbers"]["mixed"]["survival"] >= 0.99
    assert header["numbers"]["fixed"]["steady"]["position_error"] <= 0.05


def test_readable_with_numpy_alone():
    code = (
        "import json, sys; from safetensors import safe_open\n"
        f"f = safe_open({str(BUNDLED_TEACHER)!r}, 'numpy')\n"
        "print(json.loads(f.metadata()['jdistill'])['network']['hidden_dims'], 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["[64,", "64,", "64]", "False"]


def test_damage_is_told(saved, tmp_path):
    path, _ = saved
    data = path.read_bytes()
    for name, content in (("cut", data[: len(data) // 2]), ("empty", b""), ("text", b"hello, this is no weights file")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PolicyFileError, match=rf"{name}: truncated or no safetensors file"):
            load_policy(tmp_path / name)
    with pytest.raises(PolicyFileError, match=r"nowhere: no such file"):
        load_policy(tmp_path / "nowhere")


def test_foreign_and_inconsistent_files_are_told(saved, tmp_path):
    path, _ = saved
    tensors = load_file(path)
    other = tmp_path / "other.safetensors"
    save_file(tensors, other)
    with pytest.raises(PolicyFileError, match="not written by jdistill"):
        load_policy(other)
    header = load_policy(path)[2]
    save_file(tensors, other, metadata={"jdistill": json.dumps({**header, "format": 99})})
    with pytest.raises(PolicyFileError, match="format 99"):
        load_policy(other)
    wrong = {**tensors, "params/pre_0/dense/kernel": np.zeros((5, 16), np.float32)}
    save_file(wrong, other, metadata={"jdistill": json.dumps(header)})
    with pytest.raises(PolicyFileError, match=r"'params/pre_0/dense/kernel' is \[5, 16\].*asks for \[22, 16\]"):
        load_policy(other)
    fewer = {k: v for k, v in tensors.items() if k != "params/mlp_0/dense/kernel"}
    save_file(fewer, other, metadata={"jdistill": json.dumps(header)})
    with pytest.raises(PolicyFileError, match=r"'params/mlp_0/dense/kernel' is missing.*asks for \[16, 4\]"):
        load_policy(other)
