"""Checkpoints of point control's distillers, beside torch's own layers with the same weights."""

from __future__ import annotations

import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from torch import nn

from jdistill.cli.main import run_command
from jdistill.core import networks
from jdistill.errors import PolicyFileError
from jdistill.export.policy_file import load_policy
from jdistill.export.rsl_rl_checkpoint import load_teacher_checkpoint

STEPS, ENVS = 4, 3


class Custom(nn.Module):
    """``StudentTeacherRecurrentCustom`` with the head that it really builds."""

    def __init__(self):
        super().__init__()
        self.pre_rnn_mlp = nn.Sequential(nn.Linear(22, 16), nn.ELU())
        self.rnn = nn.GRU(16, 16)
        self.post_rnn_mlp = nn.Sequential(nn.Linear(16, 16), nn.ELU())
        widths = [16, 256, 256, 128]
        hidden = [x for i, o in itertools.pairwise(widths) for x in (nn.Linear(i, o), nn.ELU())]
        self.student = nn.Sequential(*hidden, nn.Linear(128, 4), nn.Tanh())
        self.teacher = nn.Sequential(nn.Linear(26, 64), nn.ELU(), nn.Linear(64, 4), nn.Tanh())
        self.std = nn.Parameter(torch.zeros(4))

    def forward(self, obs):
        """Actions (T, B, 4) from zero states."""
        return self.student(self.post_rnn_mlp(self.rnn(self.pre_rnn_mlp(obs))[0]))


class Bare(nn.Module):
    """The student of the distiller from many teachers."""

    def __init__(self):
        super().__init__()
        self.input_layer, self.gru, self.output_layer = nn.Linear(22, 16), nn.GRU(16, 16), nn.Linear(16, 4)

    def forward(self, obs):
        """Actions (T, B, 4) from zero states."""
        return self.output_layer(self.gru(torch.tanh(self.input_layer(obs)))[0])


def normalizer(size: int) -> dict[str, torch.Tensor]:
    moments = {"_mean": torch.randn(1, size), "_var": torch.rand(1, size) + 0.5, "count": torch.tensor(9)}
    return {**moments, "_std": moments["_var"].sqrt()}


def normalized(obs, moments):
    return (obs - moments["_mean"]) / (moments["_std"] + 1e-2)


def assert_acts(file: Path, expected, obs, role="student") -> networks.Policy:
    policy, state, header = load_teacher_checkpoint(file, 4, role=role)
    assert header["obs_size"] == obs.shape[-1]
    first = np.zeros(obs.shape[:2], bool)
    actions = jax.jit(networks.replay, static_argnums=0)(policy, state, obs.numpy(), first)
    np.testing.assert_allclose(actions, expected.detach().numpy(), atol=2e-5)
    return policy


@pytest.fixture
def custom(tmp_path):
    """The module, its normalizers, and its checkpoint."""
    torch.manual_seed(0)
    module, moments = Custom(), (normalizer(22), normalizer(26))
    content = {"model_state_dict": module.state_dict(), "iter": 9, "obs_norm_state_dict": moments[0]}
    content["privileged_obs_norm_state_dict"] = moments[1]
    return module, moments, content


@pytest.mark.parametrize("legacy", [False, True])
def test_a_custom_student_and_its_teacher(custom, tmp_path, legacy):
    module, moments, content = custom
    if legacy:
        renamed = {f"memory_s.{k}" if k.startswith("rnn.") else k: v for k, v in module.state_dict().items()}
        content["model_state_dict"] = renamed
    torch.save(content, file := tmp_path / "model_9.pt")
    obs = torch.randn(STEPS, ENVS, 22)
    policy = assert_acts(file, module(normalized(obs, moments[0])), obs)
    assert policy.pre_dims == (16,) and policy.hidden_dims == (16, 256, 256, 128)
    obs = torch.randn(STEPS, ENVS, 26)
    assert_acts(file, module.teacher(normalized(obs, moments[1])), obs, role="teacher")


def test_a_bare_student_has_the_activations_of_its_program(tmp_path):
    torch.manual_seed(1)
    module, obs = Bare(), torch.randn(STEPS, ENVS, 22)
    torch.save(module.state_dict(), file := tmp_path / "student_policy_best.pt")
    policy = assert_acts(file, module(obs), obs)
    assert_acts(file, module(obs), obs, role="teacher")
    assert policy == load_teacher_checkpoint(file, 4, "elu", "tanh", role="student")[0], "whatever anybody says"
    out = tmp_path / "student.safetensors"
    assert run_command("convert", [str(file), str(out), "--student"]) == 0
    policy, state, _ = load_policy(out)
    assert networks.num_parameters(state) == 2068 and policy.activation == "tanh"


@pytest.mark.parametrize("prefix", ["actor_architecture.actor.layers.", "actor.layers.", "actor."])
def test_a_wrapped_teacher(tmp_path, prefix):
    torch.manual_seed(2)
    module = nn.Sequential(nn.Linear(26, 8), nn.ELU(), nn.Linear(8, 4), nn.Tanh())
    model = {f"{prefix}{k}": v for k, v in module.state_dict().items()} | {"std": torch.ones(4)}
    torch.save({"model_state_dict": model}, file := tmp_path / "best_model.pt")
    policy, state, _ = load_teacher_checkpoint(file, 4, old_output_activation="tanh")
    obs = torch.randn(ENVS, 26)
    np.testing.assert_allclose(networks.act(policy, state, (), obs.numpy())[1], module(obs).detach().numpy(), atol=2e-5)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda m: [m.pop(k) for k in list(m) if k.startswith("student.")], "no student in it"),
        (lambda m: m.pop("post_rnn_mlp.0.bias"), r"no tensor 'mlp.0.bias'"),
        (lambda m: m.pop("rnn.weight_hh_l0"), "no tensor 'rnn.rnn.weight_hh_l0'"),
        (lambda m: m.update({"depth.0.weight": torch.zeros(2, 2)}), r"'depth.0.weight' \[2, 2\] belongs to no"),
        (lambda m: m["student.2.weight"].fill_(float("inf")), "holds NaN or infinity"),
    ],
)
def test_a_custom_student_that_is_spoilt(custom, tmp_path, spoil, complaint):
    module, _, content = custom
    content["model_state_dict"] = model = {k: v.clone() for k, v in module.state_dict().items()}
    spoil(model)
    torch.save(content, file := tmp_path / "model_9.pt")
    with pytest.raises(PolicyFileError, match=complaint) as error:
        load_teacher_checkpoint(file, 4, role="student")
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)
