"""Teachers of Brax's PPO act as they do there, from both of the forms that Brax saves."""

from __future__ import annotations

import functools
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brax.io import model
from brax.training import types
from brax.training.acme import running_statistics
from brax.training.agents.ppo import checkpoint
from brax.training.agents.ppo import networks as ppo

from jdistill.cli.main import run_command
from jdistill.core import networks
from jdistill.errors import PolicyFileError
from jdistill.export.brax_checkpoint import load_brax_checkpoint
from jdistill.export.brax_files import find_brax_checkpoint

ACTIONS = 2
SIZES = {"state": (5,), "privileged_state": (7,)}


def trained(observations, normalize=True, **settings):
    """What Brax's PPO has in the end: (normalizer, policy, value), its networks, and how they are made."""
    factory = functools.partial(ppo.make_ppo_networks, policy_hidden_layer_sizes=(8, 6), **settings)
    preprocess = running_statistics.normalize if normalize else types.identity_observation_preprocessor
    made = factory(observations, ACTIONS, preprocess_observations_fn=preprocess)
    keys = jax.random.split(jax.random.key(1), 3)
    example = jax.tree.map(lambda n: jnp.zeros(n), observations, is_leaf=lambda x: isinstance(x, (int, tuple)))
    statistics = running_statistics.init_state(example)
    # The last number never changes, so that its deviation is the least that Brax has.
    seen = jax.tree.map(lambda x: 3.0 * jax.random.normal(keys[2], (50, *x.shape)).at[:, -1].set(0.5), example)
    statistics = running_statistics.update(statistics, seen)
    return (statistics, made.policy_network.init(keys[0]), made.value_network.init(keys[1])), made, factory


def test_a_folder_of_orbax(tmp_path):
    params, made, factory = trained(SIZES, policy_obs_key="privileged_state", activation=jax.nn.elu)
    config = checkpoint.network_config(SIZES, ACTIONS, True, factory)
    for step in (90, 100):
        checkpoint.save(tmp_path, step, params, config)
    assert find_brax_checkpoint(tmp_path).name == "000000000100"
    policy, state, about = load_brax_checkpoint(find_brax_checkpoint(tmp_path))
    assert (policy.activation, policy.output_activation, about["obs_size"]) == ("elu", "tanh", 7)
    assert about["observation"]["groups"] == [{"name": "privileged_state", "size": 7}]
    compare(policy, state, params, made, "privileged_state")

    (tmp_path / "000000000100" / "ppo_network_config.json").write_text(
        json.dumps({"network_factory_kwargs": {"activation": "gelu"}})
    )
    with pytest.raises(PolicyFileError, match="activation gelu, of Brax's elu, selu"):
        load_brax_checkpoint(find_brax_checkpoint(tmp_path))


def test_a_folder_without_normalizer_and_with_a_plain_normal_distribution(tmp_path):
    params, made, factory = trained(5, normalize=False, distribution_type="normal")
    checkpoint.save(tmp_path, 7, params, checkpoint.network_config(5, ACTIONS, False, factory))
    policy, state, _ = load_brax_checkpoint(find_brax_checkpoint(tmp_path))
    assert policy.output_activation == "identity" and state.normalizer is None
    compare(policy, state, params, made)


def test_a_pickle(tmp_path):
    params, made, _ = trained(5)
    model.save_params(str(tmp_path / "params"), params)
    assert run_command("convert", [str(tmp_path / "params"), str(tmp_path / "teacher.safetensors")]) == 0
    policy, state, about = load_brax_checkpoint(find_brax_checkpoint(tmp_path / "params"))
    assert policy.activation == "swish" and "observation" not in about
    compare(policy, state, params, made)


def test_what_is_refused(tmp_path):
    statistics = trained(5)[0][0]
    (tmp_path / "harmful").write_bytes(pickle.dumps((statistics, print)))
    with pytest.raises(PolicyFileError, match=r"refused, because it holds more than arrays .*print"):
        load_brax_checkpoint(tmp_path / "harmful")
    (tmp_path / "short").write_bytes((tmp_path / "harmful").read_bytes()[:250])
    with pytest.raises(PolicyFileError, match="truncated"):
        load_brax_checkpoint(tmp_path / "short")
    (tmp_path / "other").write_bytes(pickle.dumps((statistics, {"params": {"LayerNorm_0": {}}})))
    with pytest.raises(PolicyFileError, match=r"no policy of Brax's PPO that is an MLP .it has 'LayerNorm_0'"):
        load_brax_checkpoint(tmp_path / "other")
    assert find_brax_checkpoint(tmp_path) is None and find_brax_checkpoint(tmp_path / "none") is None


def compare(policy, state, params, made, group=None):
    obs = 3.0 * jax.random.normal(jax.random.key(3), (4, 7 if group else 5)).at[:, -1].set(0.5)
    theirs = {group: obs, "state": jnp.zeros((4, 5))} if group else obs
    expected, _ = ppo.make_inference_fn(made)(params, deterministic=True)(theirs, jax.random.key(0))
    _, action = networks.act(policy, state, (), obs)
    np.testing.assert_allclose(action, expected, atol=3e-6)
