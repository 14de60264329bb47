"""Teachers of rl_games and skrl act as they do there."""

from __future__ import annotations

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jdistill.core import networks
from jdistill.errors import PolicyFileError
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


def test_what_cannot_be_read_names_the_trainer(parts, tmp_path):
    layers, mean, var = parts
    recurrent = rl_games(layers, mean, var)
    recurrent["model"]["a2c_network.rnn.rnn.weight_ih_l0"] = torch.zeros(9, 5)
    torch.save(recurrent, file := tmp_path / "teacher.pth")
    with pytest.raises(PolicyFileError, match=r"a checkpoint of rl_games whose policy is more than an MLP \('a2c_net"):
        load_teacher_checkpoint(file, 3)
    torch.save(skrl(layers, mean, 0 * var), file)
    with pytest.raises(
        PolicyFileError, match=r"a checkpoint of skrl that has seen an observation with a deviation below"
    ):
        load_teacher_checkpoint(file, 3)
