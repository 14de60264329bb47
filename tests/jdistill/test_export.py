"""Exports of real runs, read back by what will read them: torch, onnxruntime, rsl_rl."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import onnxruntime
import pytest
import torch
from rsl_rl.models import RNNModel
from tensordict import TensorDict

from bridge.crazyflie import PointControlCfg
from jdistill import export, networks
from jdistill.config import compose
from jdistill.interop.onnx import to_onnx
from jdistill.interop.torchscript import to_torchscript
from jdistill.networks import ACTIVATIONS, Policy
from jdistill.policy_file import load_policy, save_policy
from jdistill.runner import make_student

STUDENTS = {
    "gru": Policy(4, (8,), rnn_type="gru", rnn_hidden_dim=8),
    "fork": Policy(4, (16,), pre_dims=(16,), rnn_type="gru", output_activation="tanh"),
    "lstm": Policy(4, (8,), rnn_type="lstm", rnn_hidden_dim=6, rnn_num_layers=2, learn_initial_carry=True),
    "mlp": Policy(4, (8, 8), activation="relu"),
}


def learnt(policy: Policy, normalize: bool = True):
    """Parameters of a policy that has seen something."""
    state = networks.init(policy, jax.random.key(0), 22, normalize)
    if state.normalizer:
        state = state.replace(
            normalizer=state.normalizer.update(2 + 3 * jax.random.normal(jax.random.key(1), (99, 22)))
        )
    return state.replace(params=jax.tree.map_with_path(lambda p, x: x + 0.2 * ("initial" in str(p)), state.params))


def act_of_onnx(policy, state):
    session = onnxruntime.InferenceSession(to_onnx(policy, state, 22).SerializeToString())
    carry = export.initial_states(policy, state)

    def act(obs):
        action, *states = session.run(None, {"obs": obs, **{f"{k}_in": v for k, v in carry.items()}})
        carry.update(zip(carry, states, strict=True))
        return action

    return act


def act_of_torch(policy, state):
    module = to_torchscript(policy, state)
    return lambda obs: module(torch.tensor(obs)).detach().numpy()


@pytest.mark.parametrize("make", [act_of_onnx, act_of_torch], ids=["onnx", "torchscript"])
@pytest.mark.parametrize("kind", STUDENTS)
def test_every_network_acts_alike(make, kind):
    policy, state = STUDENTS[kind], learnt(STUDENTS[kind], normalize=kind != "mlp")
    original, exported = export.jax_actor(policy, state), make(policy, state)
    for t in range(30):
        obs = np.asarray(jax.random.normal(jax.random.key(t), (1, 22)))
        np.testing.assert_allclose(exported(obs), original(obs), atol=2e-6)


@pytest.mark.parametrize("make", [act_of_onnx, act_of_torch], ids=["onnx", "torchscript"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_acts_alike(make, activation):
    policy = Policy(4, (8,), activation=activation, output_activation=activation)
    state = learnt(policy)
    obs = np.asarray(jax.random.normal(jax.random.key(0), (1, 22))) * 3
    np.testing.assert_allclose(make(policy, state)(obs), export.jax_actor(policy, state)(obs), atol=5e-6)


def test_torchscript_forgets_on_reset():
    policy = STUDENTS["lstm"]
    module = to_torchscript(policy, learnt(policy))
    obs = torch.ones(1, 22)
    first, second = module(obs).clone(), module(obs).clone()
    module.reset()
    assert (module(obs) == first).all() and (first != second).any()


@pytest.fixture(params=["gru", "mlp"])
def run(tmp_path, request):
    """A run folder with a student that has learnt something."""
    policy = STUDENTS[request.param]
    overrides = ["agent.student.pre_dims=[]", f"agent.student.hidden_dims={list(policy.hidden_dims)}"]
    cfg = compose("crazyflie", PointControlCfg, [], overrides)
    cfg.save(tmp_path / "config.yaml")
    save_policy(tmp_path / "student.safetensors", policy, learnt(policy), {"iteration": 7, "action": {"rate_hz": 100}})
    return tmp_path


def test_all_formats_of_a_run(run, capsys):
    assert export.main([str(run), "--format", "rsl_rl,jit,onnx,safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].rsplit("/", 1)[1] for line in lines] == [
        "model_7.pt",
        "policy.pt",
        "policy.onnx",
        "policy.safetensors",
    ]
    assert all("100 steps beside the original, largest difference" in line for line in lines)
    sidecar = json.loads((run / "exported" / "policy.json").read_text())
    assert sidecar["observation"] == {"groups": [{"name": "student", "size": 22}], "size": 22}
    assert sidecar["control_rate_hz"] == 100.0 and sidecar["action"] == {"size": 4, "rate_hz": 100}
    assert sidecar["versions"]["jax"] == jax.__version__
    assert all(entry["largest_difference"] <= 1e-5 for entry in sidecar["files"].values())


def test_rsl_rls_own_model_takes_the_student(tmp_path):
    policy = Policy(4, (8,), rnn_type="gru", rnn_hidden_dim=8)
    state = learnt(policy)
    file, _ = export.export_rsl_rl(policy, state, {"iteration": 3, "obs_size": 22}, tmp_path)
    obs = TensorDict({"student": torch.randn(5, 22)}, batch_size=[5])
    settings = {"hidden_dims": [8], "rnn_type": "gru", "rnn_hidden_dim": 8, "obs_normalization": True}
    theirs = RNNModel(obs, {"student": ["student"]}, "student", 4, **settings)
    theirs.load_state_dict(torch.load(file, weights_only=True)["student_state_dict"], strict=True)
    theirs.eval()
    carry = networks.initial_carry(policy, state, 5)
    for _ in range(10):
        carry, action = networks.act(policy, state, carry, jnp.array(obs["student"].numpy()))
        np.testing.assert_allclose(theirs(obs).detach().numpy(), action, atol=1e-5)


def test_complaints(tmp_path, capsys, monkeypatch):
    def complaint(*arguments: str) -> str:
        assert export.main(list(arguments)) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.startswith("jdistill.export: error: ")
        return err

    assert "no run folder" in complaint(str(tmp_path))
    cfg = compose("crazyflie", PointControlCfg, [], [])
    cfg.save(tmp_path / "config.yaml")
    assert "student.safetensors: no such file" in complaint(str(tmp_path))
    policy = make_student(cfg.agent.student, 4)
    save_policy(tmp_path / "student.safetensors", policy, learnt(policy), {})
    assert "--format tflite: expected some of" in complaint(str(tmp_path), "--format", "tflite")
    assert "this student ends in tanh" in complaint(str(tmp_path), "--format", "rsl_rl")
    plain = replace(policy, output_activation="identity")
    save_policy(tmp_path / "student.safetensors", plain, learnt(plain), {})
    assert "no dense layers before the recurrent ones" in complaint(str(tmp_path), "--format", "rsl_rl")
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    assert "differ by" in complaint(str(tmp_path), "--format", "onnx")
    assert not (tmp_path / "exported" / "policy.onnx").exists()
    assert load_policy(tmp_path / "student.safetensors")
