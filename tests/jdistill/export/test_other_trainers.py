"""Teachers of rl_games and skrl act as they do there."""

from __future__ import annotations

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jdistill.core import networks
from jdistill.errors import ExportError, PolicyFileError
from jdistill.export.policy_file import load_policy, save_policy
from jdistill.export.rsl_rl import to_tensors
from jdistill.export.rsl_rl_checkpoint import load_teacher_checkpoint

SIZES = (5, 16, 8, 3)


@pytest.fixture
def parts():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(SIZES)]
    mean, var = torch.randn(5, dtype=torch.float64), torch.rand(5, dtype=torch.float64) + 0.01
    return layers, mean, var


def rl_games(layers, mean, var, prefix="") -> dict:
    model = {"running_mean_std.running_mean": mean, "running_mean_std.running_var": var}
    model |= {"running_mean_std.count": torch.tensor(1e6, dtype=torch.float64)}
    model |= {
        f"value_mean_std.{k}": torch.ones(1, dtype=torch.float64) for k in ("running_mean", "running_var", "count")
    }
    model |= {"a2c_network.sigma": torch.zeros(3), "a2c_network.value.weight": torch.zeros(1, 8)}
    names = [f"actor_mlp.{2 * i}" for i in range(len(layers) - 1)] + ["mu"]
    for name, layer in zip(names, layers, strict=True):
        model |= {f"a2c_network.{name}.weight": layer.weight.data, f"a2c_network.{name}.bias": layer.bias.data}
    return {"model": {prefix + k: v for k, v in model.items()}, "epoch": 3, "optimizer": {}}


def skrl(layers, mean, var, prefix="") -> dict:
    policy = {"log_std_parameter": torch.zeros(3)}
    names = [f"net_container.{2 * i}" for i in range(len(layers) - 1)] + ["policy_layer"]
    for name, layer in zip(names, layers, strict=True):
        policy |= {f"{name}.weight": layer.weight.data, f"{name}.bias": layer.bias.data}
    state = {"running_mean": mean, "running_variance": var, "current_count": torch.tensor(9.0, dtype=torch.float64)}
    policy = {prefix + k: v for k, v in policy.items()}
    return {"policy": policy, "value": {}, "optimizer": {}, "state_preprocessor": state}


DIVISORS = {rl_games: lambda var: torch.sqrt(var + 1e-5), skrl: lambda var: torch.sqrt(var) + 1e-8}


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("make", [rl_games, skrl])
def test_the_actor_is_read_with_its_normalizer(make, prefix, parts, tmp_path):
    layers, mean, var = parts
    torch.save(make(layers, mean, var, prefix), file := tmp_path / "teacher.pt")
    policy, state, about = load_teacher_checkpoint(file, 3, "elu", "identity")
    obs = torch.randn(7, 5)
    with torch.no_grad():
        x = ((obs - mean) / DIVISORS[make](var)).float()
        for layer in layers[:-1]:
            x = torch.nn.functional.elu(layer(x))
        wanted = layers[-1](x)
    _, actions = networks.act(policy, state, (), jnp.asarray(obs.numpy()))
    np.testing.assert_allclose(actions, wanted, atol=1e-5)
    assert about["obs_size"] == 5


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize(("name", "before"), [("rnn", True), ("a_rnn", False)])
def test_recurrent_policies_of_rl_games(kind, name, before, tmp_path):
    """A memory before the hidden layers, or behind them; and the critic's."""
    torch.manual_seed(1)
    memory = getattr(torch.nn, kind)(5 if before else 8, 6)
    layers = [torch.nn.Linear(6 if before else 5, 7), torch.nn.Linear(7, 8), torch.nn.Linear(8 if before else 6, 3)]
    content = rl_games(layers, torch.zeros(5).double(), torch.full((5,), 4.0).double())
    for prefix in (name, "c_rnn"):
        content["model"] |= {f"a2c_network.{prefix}.rnn.{k}": v for k, v in memory.state_dict().items()}
    torch.save(content, file := tmp_path / "teacher.pth")
    policy, state, _ = load_teacher_checkpoint(file, 3, "elu", "identity")
    obs = torch.randn(4, 2, 5)
    hidden = torch.nn.Sequential(layers[0], torch.nn.ELU(), layers[1], torch.nn.ELU())
    with torch.no_grad():
        x = obs / torch.sqrt(torch.tensor(4.0 + 1e-5))
        wanted = layers[2](hidden(memory(x)[0]) if before else memory(hidden(x))[0])
    actions = networks.replay(policy, state, jnp.asarray(obs.numpy()), jnp.zeros((4, 2), bool))
    np.testing.assert_allclose(actions, wanted, atol=1e-5)


def test_what_cannot_be_read_names_the_trainer(parts, tmp_path):
    layers, mean, var = parts
    file = tmp_path / "teacher.pth"
    for name, complaint in {
        "layer_norm.weight": r"rl_games whose policy has more than an MLP and a GRU or LSTM \('a2c_network.layer_norm",
        "rnn.rnn.weight_ih_l0": r"rl_games whose recurrent layer may stand before its MLP or behind: all sizes fit",
    }.items():
        content = rl_games([torch.nn.Linear(8, 8), torch.nn.Linear(8, 3)], torch.zeros(8), torch.ones(8))
        content["model"] |= {
            f"a2c_network.{name}": torch.zeros(24, 8),
            "a2c_network.rnn.rnn.weight_hh_l0": torch.zeros(24, 8),
        }
        if name.startswith("layer"):
            del content["model"]["a2c_network.rnn.rnn.weight_hh_l0"]
        torch.save(content, file)
        with pytest.raises(PolicyFileError, match=f"a checkpoint of {complaint}"):
            load_teacher_checkpoint(file, 3)
    torch.save(skrl(layers, mean, 0 * var), file)
    with pytest.raises(
        PolicyFileError, match=r"a checkpoint of skrl that has seen an observation with a deviation below"
    ):
        load_teacher_checkpoint(file, 3)


class RapidMotorAdaptation(torch.nn.Module):
    """A teacher of RMA's kind, with the parts that others have beside it."""

    def __init__(self, seen=5, hidden=4, latent=2):
        super().__init__()
        elu = torch.nn.ELU
        self.env_factor_encoder = torch.nn.Sequential(torch.nn.Linear(hidden, 8), elu(), torch.nn.Linear(8, latent))
        self.adaptation_module = torch.nn.Sequential(torch.nn.Linear(30, 8), elu(), torch.nn.Linear(8, latent))
        self.actor_body = torch.nn.Sequential(torch.nn.Linear(seen + latent, 16), elu(), torch.nn.Linear(16, 3))
        self.critic_body = torch.nn.Sequential(torch.nn.Linear(seen + latent, 16), elu(), torch.nn.Linear(16, 1))
        self.std = torch.nn.Parameter(torch.ones(3))
        self.hidden = hidden

    def forward(self, obs):
        latent = self.env_factor_encoder(obs[:, -self.hidden :])
        return self.actor_body(torch.cat([obs[:, : -self.hidden], latent], dim=-1))


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model_state_dict": x, "iter": 3}])
def test_teachers_with_an_encoder(wrap, tmp_path):
    """They act alike step by step and along a window, and from a policy file; rsl_rl has no such model."""
    torch.manual_seed(0)
    theirs = RapidMotorAdaptation()
    torch.save(wrap(theirs.state_dict()), file := tmp_path / "ac_weights.pt")
    policy, state, about = load_teacher_checkpoint(file, 3)
    save_policy(tmp_path / "t.safetensors", policy, state, about)
    policy, state, about = load_policy(tmp_path / "t.safetensors")
    assert about["obs_size"] == 9 and policy.encoders == ((5, 4, (8, 2)),)
    obs = torch.randn(7, 9)
    with torch.no_grad():
        wanted = theirs(obs)
    _, actions = networks.act(policy, state, (), jnp.asarray(obs.numpy()))
    np.testing.assert_allclose(actions, wanted, atol=1e-6)
    along = networks.replay(policy, state, jnp.asarray(obs.numpy())[:, None], jnp.zeros((7, 1), bool))
    np.testing.assert_allclose(along[:, 0], wanted, atol=1e-6)
    assert "9 observations, of which an encoder takes 4-8-2, 16-3, elu" in networks.summary(policy, state, 9)
    with pytest.raises(ExportError, match="rsl_rl has no model with an encoder"):
        to_tensors(policy, state)


@pytest.mark.parametrize("name", ["priv_encoder", "actor.priv_encoder", "encoder.encoder", "estimator"])
def test_other_encoders_are_named(name, tmp_path):
    tensors = {
        f"{name}.0.weight": torch.zeros(2, 4),
        "actor.0.weight": torch.zeros(3, 7),
        "actor.0.bias": torch.zeros(3),
    }
    torch.save({"model_state_dict": tensors}, file := tmp_path / "model_1.pt")
    with pytest.raises(PolicyFileError, match=rf"its policy has an encoder \('{name}.0.weight'\), .*--dataset FILE"):
        load_teacher_checkpoint(file, 3, "elu", "identity")
