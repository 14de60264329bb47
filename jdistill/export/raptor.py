"""RAPTOR (arXiv 2509.11481), the published policy for many quadrotors, as one of ours.

The package ``foundation-policy`` holds its weights: 22 -> 16 ReLU -> GRU 16 -> 4 with a learned initial state. Its GRU
is torch's, so the network is a :class:`jdistill.core.networks.Policy`; what differs is what it observes.

Its observation is in the world frame: position minus target (3, m), rotation matrix (9, body to world, row major),
linear velocity (3, m/s), body rates (3, rad/s), previous action (4, -1..1). Actions are motor commands in [-1, 1],
front-right, back-right, back-left, front-left, 100 times a second.

It does not hold headings beyond about 90 degrees, so its world frame is turned about the vertical by the heading with
which an episode begins.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from bridge.env import TrainingEnv
from jdistill.core import networks
from jdistill.core.networks import Policy, PolicyState
from jdistill.errors import ConfigError
from jdistill.export.layers import DenseLayer, PolicyLayers, RecurrentLayer, build

PARTS = {
    "position_error": 3,
    "velocity_error": 3,
    "rotation_matrix": 9,
    "body_rates": 3,
    "previous_motor_commands": 4,
}
"""What an observation group must be made of, in this order."""
MOTORS = ["front_right", "back_right", "back_left", "front_left"]
RATE_HZ = 100


def check_installed() -> None:
    """Raise :class:`jdistill.errors.ConfigError` where the package is missing."""
    if importlib.util.find_spec("foundation_policy") is None:
        raise ConfigError("RAPTOR's package is missing, use 'uv run --extra raptor python -m jdistill.evaluate ...'")


def load() -> tuple[Policy, PolicyState]:
    """The network and its weights, from the installed package.

    Raises:
        ConfigError: the package is not installed, or holds another network.
    """
    import h5py

    check_installed()
    path = Path(str(files("foundation_policy"))) / "blob" / "checkpoint.h5"
    with h5py.File(path, "r") as file:
        stored = [file["actor"]["layers"][str(i)] for i in range(len(file["actor"]["layers"]))]
        kinds = [(layer.attrs["type"], layer.attrs.get("activation_function")) for layer in stored]
        if kinds != [("dense", "RELU"), ("gru", None), ("dense", "IDENTITY")]:
            raise ConfigError(f"{path}: holds {kinds}, not the network of foundation-policy 1.0")
        dense, gru, out = ({k: np.array(v["parameters"]) for k, v in layer.items()} for layer in stored)
    layers = PolicyLayers(
        normalizer=None,
        pre=(DenseLayer(dense["weights"], dense["biases"].ravel(), "relu"),),
        recurrent=(
            RecurrentLayer(
                kind="gru",
                weight_ih=gru["weights_input"],
                weight_hh=gru["weights_hidden"],
                bias_ih=gru["biases_input"].ravel(),
                bias_hh=gru["biases_hidden"].ravel(),
                initial_state=(gru["initial_hidden_state"].ravel(),),
            ),
        ),
        mlp=(DenseLayer(out["weights"], out["biases"].ravel(), "identity"),),
        learned_initial_state=True,
    )
    return build(layers)


class RaptorActor(struct.PyTreeNode):
    """RAPTOR on an observation group of point control; see :class:`jdistill.core.actor.Actor`."""

    policy: Policy = struct.field(pytree_node=False)
    """The network."""
    state: PolicyState
    """Its weights."""
    group: str = struct.field(pytree_node=False)
    """The observation group (B, 22)."""
    frame: str = struct.field(pytree_node=False)
    """In which the group's errors are."""

    def initial_carry(self, batch: int) -> Any:
        """Recurrent state, the turn from the world's frame to RAPTOR's, and whether that is known yet."""
        carry = networks.initial_carry(self.policy, self.state, batch)
        return carry, jnp.zeros((batch, 3, 3)), jnp.zeros(batch, bool)

    def act(self, carry: Any, obs: Mapping[str, Array]) -> tuple[Any, Array]:
        """See :class:`jdistill.core.actor.Actor`."""
        memory, turn, is_known = carry
        seen = obs[self.group]
        turn = jnp.where(is_known[:, None, None], turn, turn_back(seen))
        memory, action = networks.act(self.policy, self.state, memory, observe(seen, self.frame, turn))
        return (memory, turn, jnp.ones_like(is_known)), jnp.clip(action, -1.0, 1.0)

    @property
    def num_parameters(self) -> int:
        """Trained numbers."""
        return networks.num_parameters(self.state)


def make_actor(env: TrainingEnv, groups: Sequence[str]) -> RaptorActor:
    """RAPTOR on the student's observation group of point control.

    Raises:
        ConfigError: the environment or its observation is another, or the package is missing.
    """
    spec = env.obs_specs.get(groups[0])
    layout = {name: size for name, size, _ in spec.layout} if spec else {}
    frame = spec.frame if spec else None
    motors, rate = env.action_layout.get("layout"), env.action_layout.get("rate_hz")
    if len(groups) != 1 or layout != PARTS or frame is None or motors != MOTORS or rate != RATE_HZ:
        raise ConfigError(f"--raptor: needs point control with {RATE_HZ} commands a second and its whole observation")
    return RaptorActor(*load(), groups[0], frame)


def turn_back(obs: Array) -> Array:
    """Rotations about the vertical (B, 3, 3) that undo the heading in point control's observation (B, 22)."""
    forward = obs[:, 6:15:3][:, :2]  # The body's x axis on the ground.
    cos, sin = jnp.moveaxis(forward / jnp.linalg.norm(forward, axis=-1, keepdims=True), -1, 0)
    zero, one = jnp.zeros_like(cos), jnp.ones_like(cos)
    rows = [[cos, sin, zero], [-sin, cos, zero], [zero, zero, one]]
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def observe(obs: Array, frame: str, turn: Array) -> Array:
    """Point control's observation (B, 22) as RAPTOR's (B, 22).

    ``frame`` is that of the errors in ``obs``, ``turn`` (B, 3, 3) goes from the world frame to RAPTOR's.
    """
    rotation = obs[:, 6:15].reshape(-1, 3, 3)
    errors = jnp.stack([obs[:, 0:3], obs[:, 3:6]], axis=-1)  # (B, 3, 2)
    errors = turn @ (rotation @ errors if frame == "body" else errors)
    turned = (turn @ rotation).reshape(-1, 9)
    return jnp.concatenate([errors[..., 0], turned, errors[..., 1], obs[:, 15:18], 2.0 * obs[:, 18:22] - 1.0], axis=-1)
