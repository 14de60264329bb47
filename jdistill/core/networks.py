"""Policies (Flax Linen): an MLP, or dense layers around a GRU or LSTM, behind one interface; before them what encodes
images and parts of the observation.

Every policy maps ``(carry, observation) -> (carry, action)``; the carry of a feed-forward policy is the empty tuple.
``step`` serves the rollout, one step for all environments; ``unroll`` serves the update, a whole window at once, in
which only the recurrence runs step by step.

Recurrent layers hold the parameters of their torch counterparts, both biases included: torch trains ``b_ih`` and
``b_hh`` as two parameters, and an optimizer that normalizes gradients (Adam) moves their sum twice as fast as a
single bias, so a layer with one bias would not learn the same student.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax import Array

from jdistill.core import initializers, recurrence
from jdistill.core.activations import ACTIVATIONS, OUTPUT_ACTIVATIONS
from jdistill.core.cnn import CNN, CNNCfg
from jdistill.core.observations import Observation, flat, vector_of, with_vector
from jdistill.core.recurrence import State
from jdistill.core.sharding import WHOLE, Shards

Carry = tuple[State, ...]
"""Recurrent states of all layers; () for a feed-forward policy."""


WINDOW_ROWS = 2048
"""Observations that :func:`follow` takes at once: enough for matrix products to be fast, few enough for the caches."""


class Normalizer(struct.PyTreeNode):
    """Running mean and variance of observations, rsl_rl's ``EmpiricalNormalization``."""

    mean: Array
    """(D,)"""
    var: Array
    """(D,) biased variance."""
    count: Array
    """() float32, number of observations seen."""

    EPS: ClassVar[float] = 1e-2
    FORMULA: ClassVar[str] = "(obs - mean) / (sqrt(var) + 1e-2)"
    """What a call computes; policy files tell it to readers that have the moments alone."""

    @staticmethod
    def create(size: int) -> Normalizer:
        """Start from mean 0 and variance 1."""
        return Normalizer(mean=jnp.zeros(size), var=jnp.ones(size), count=jnp.zeros(()))

    def __call__(self, obs: Array) -> Array:
        """Observations (..., D), normalized."""
        return (obs - self.mean) / self.scale

    @property
    def std(self) -> Array:
        """(D,) standard deviation."""
        return jnp.sqrt(self.var)

    @property
    def scale(self) -> Array:
        """(D,) what centred observations are divided by."""
        return self.std + self.EPS

    def update(self, obs: Array, shards: Shards = WHOLE, counts: Array | None = None) -> Normalizer:
        """Merge the moments of ``obs`` (..., D), all leading axes together (parallel variance, Chan et al. 1979).

        The other ``shards`` hold as many observations each. Where ``counts`` (...) is False there is none.
        """
        obs = flat(obs, obs.ndim - 1)
        mean, var, number = shards.moments(obs, None if counts is None else counts.reshape(-1))
        count = jnp.maximum(self.count + number, 1)
        rate = number / count
        delta = mean - self.mean
        new_mean = self.mean + rate * delta
        new_var = self.var + rate * (var - self.var + delta * (mean - new_mean))
        return Normalizer(mean=new_mean, var=new_var, count=count)


class PolicyState(struct.PyTreeNode):
    """Parameters and normalizer of a policy."""

    params: Any
    """Linen parameters."""
    normalizer: Normalizer | None
    """None where observations go in as they are."""

    def normalize(self, obs: Any) -> Any:
        """Observations as the network wants them; of images nothing is known that could be taken away."""
        return obs if self.normalizer is None else with_vector(obs, self.normalizer(vector_of(obs)))


class Dense(nn.Module):
    """Affine layer with torch's default initialisation, U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weight and bias."""

    features: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., I) to (..., features)."""
        init = initializers.uniform(x.shape[-1] ** -0.5)
        return nn.Dense(self.features, kernel_init=init, bias_init=init, name="dense")(x)


class RecurrentLayer(nn.Module):
    """What GRU and LSTM share: torch's parameters, one step, and a whole window of them."""

    hidden_dim: int
    gates: int = 0
    unroll: ClassVar[Callable[..., tuple[State, Array]]]
    """The layer's function in :mod:`jdistill.core.recurrence`."""

    @nn.compact
    def __call__(self, x: Array, state: State, reset: Array | None = None, reset_carry: State | None = None) -> Any:
        """One step: inputs (B, I) to the next state and the output (B, hidden).

        With ``reset`` (T, B) a whole window (T * B, I), to the state after it and the outputs (T, B, hidden).
        """
        init = initializers.uniform(self.hidden_dim**-0.5)
        width = self.gates * self.hidden_dim
        weight_ih = self.param("weight_ih", init, (x.shape[-1], width))
        weight_hh = self.param("weight_hh", init, (self.hidden_dim, width))
        bias_ih = self.param("bias_ih", init, (width,))
        bias_hh = self.param("bias_hh", init, (width,))
        projected = x @ weight_ih + bias_ih
        if reset is None:
            return self.cell(projected, state[0] @ weight_hh + bias_hh, state)
        return self.unroll(projected.reshape(*reset.shape, width), weight_hh, bias_hh, state, reset, reset_carry)

    def cell(self, from_input: Array, from_hidden: Array, state: State) -> tuple[State, Array]:
        """The gate equations of one step."""
        raise NotImplementedError

    def initial(self) -> State:
        """Zero state of one environment, each (hidden,)."""
        raise NotImplementedError


class GRU(RecurrentLayer):
    """torch.nn.GRU, one layer; gates in torch's order r, z, n."""

    gates: int = 3
    unroll = staticmethod(recurrence.gru)

    def cell(self, from_input: Array, from_hidden: Array, state: State) -> tuple[State, Array]:
        """h' = (1 - z) n + z h with n = tanh(x_n + r h_n)."""
        rz = nn.sigmoid(from_input[..., : 2 * self.hidden_dim] + from_hidden[..., : 2 * self.hidden_dim])
        r, z = jnp.split(rz, 2, axis=-1)
        n = jnp.tanh(from_input[..., 2 * self.hidden_dim :] + r * from_hidden[..., 2 * self.hidden_dim :])
        h = n + z * (state[0] - n)
        return (h,), h

    def initial(self) -> State:
        """(h,)."""
        return (jnp.zeros(self.hidden_dim),)


class LSTM(RecurrentLayer):
    """torch.nn.LSTM, one layer; gates in torch's order i, f, g, o."""

    gates: int = 4
    unroll = staticmethod(recurrence.lstm)

    def cell(self, from_input: Array, from_hidden: Array, state: State) -> tuple[State, Array]:
        """c' = f c + i g; h' = o tanh(c')."""
        i, f, g, o = jnp.split(from_input + from_hidden, 4, axis=-1)
        c = nn.sigmoid(f) * state[1] + nn.sigmoid(i) * jnp.tanh(g)
        h = nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    def initial(self) -> State:
        """(h, c)."""
        return (jnp.zeros(self.hidden_dim), jnp.zeros(self.hidden_dim))


RNN_TYPES: dict[str, type[RecurrentLayer]] = {"gru": GRU, "lstm": LSTM}


class EncoderCfg(NamedTuple):
    """Dense layers of their own for some of an observation's numbers, whose outputs take their place.

    RMA's teachers (Kumar et al. 2021) have one for what the simulator knows, walking robots one for the heights around
    them. The last layer is linear.
    """

    start: int
    """The first of the numbers."""
    inputs: int
    """How many they are."""
    dims: tuple[int, ...]
    """Widths of the layers."""


class Policy(nn.Module):
    """Dense layers, recurrent layers, dense layers; any of the three may be empty.

    Observations arrive normalized (see :meth:`PolicyState.normalize`). What the first of these layers takes are the
    observation's numbers, some of which :attr:`encoders` have replaced, and behind them the features of each image.
    """

    num_actions: int
    hidden_dims: tuple[int, ...] = ()
    activation: str = "elu"
    output_activation: str = "identity"
    pre_dims: tuple[int, ...] = ()
    rnn_type: str | None = None
    rnn_hidden_dim: int = 16
    rnn_num_layers: int = 1
    learn_initial_carry: bool = False
    encoders: tuple[EncoderCfg, ...] = ()
    """In the order of the numbers that they take."""
    cnns: tuple[CNNCfg, ...] = ()
    """Of the images, in the order in which they are observed; where there are some, observations are
    :class:`jdistill.core.observations.Observation`."""

    def setup(self) -> None:
        """Create the layers."""
        self.encoder = [[Dense(width) for width in encoder.dims] for encoder in self.encoders]
        self.cnn = [CNN(cfg) for cfg in self.cnns]
        self.pre = [Dense(width) for width in self.pre_dims]
        layers = self.rnn_num_layers if self.rnn_type else 0
        self.rnn = [RNN_TYPES[self.rnn_type or "gru"](self.rnn_hidden_dim) for _ in range(layers)]
        self.mlp = [Dense(width) for width in (*self.hidden_dims, self.num_outputs)]
        if self.learn_initial_carry:
            self.first = [
                [self.param(f"initial_{i}_{j}", nn.initializers.zeros, x.shape) for j, x in enumerate(layer.initial())]
                for i, layer in enumerate(self.rnn)
            ]

    @property
    def num_outputs(self) -> int:
        """Width of the last layer."""
        return self.num_actions * (2 if self.output_activation == "beta" else 1)

    @property
    def is_recurrent(self) -> bool:
        """Whether the carry is anything but ()."""
        return self.rnn_type is not None

    def initial_carry(self, batch: int) -> Carry:
        """Carry of ``batch`` environments whose episodes begin: zeros, or the trained state."""
        first = self.first if self.learn_initial_carry else [layer.initial() for layer in self.rnn]
        return tuple(tuple(jnp.broadcast_to(x, (batch, x.shape[0])) for x in state) for state in first)

    def step(self, carry: Carry, obs: Any) -> tuple[Carry, Array]:
        """One step: carry and observations (B, D) to the next carry and actions (B, A)."""
        x = self._before(obs)
        states = []
        for layer, state in zip(self.rnn, carry, strict=True):
            state, x = layer(x, state)
            states.append(state)
        return tuple(states), self._after(x)

    def unroll(self, carry: Carry, obs: Any, reset: Array, reset_carry: Carry) -> tuple[Carry, Array]:
        """A window of steps: observations (T, B, D) to the carry after the window and actions (T, B, A).

        Before step t the carry becomes ``reset_carry[t]`` where ``reset[t]``; ``reset`` is (T, B) bool, the leaves of
        ``reset_carry`` are (T, B, hidden) or can be broadcast to that.
        """
        steps, batch = reset.shape
        # Rows without a time axis: that is what XLA's matrix products, and their gradients, are fast at.
        x = self._before(flat(obs))
        states = []
        for layer, start, new in zip(self.rnn, carry, reset_carry, strict=True):
            every = tuple(jnp.broadcast_to(s, (steps, batch, self.rnn_hidden_dim)) for s in new)
            state, out = layer(x, start, reset, every)
            x = out.reshape(steps * batch, self.rnn_hidden_dim)
            states.append(state)
        return tuple(states), self._after(x).reshape(steps, batch, self.num_actions)

    def _encoded(self, obs: Any) -> Array:
        x, parts, end = vector_of(obs), [], 0
        for cfg, layers in zip(self.encoders, self.encoder, strict=True):
            latent = x[..., cfg.start : cfg.start + cfg.inputs]
            for layer in layers[:-1]:
                latent = ACTIVATIONS[self.activation](layer(latent))
            parts += [x[..., end : cfg.start], layers[-1](latent)]
            end = cfg.start + cfg.inputs
        images = obs.images if isinstance(obs, Observation) else ()
        features = [cnn(image) for cnn, image in zip(self.cnn, images, strict=True)]
        parts = [part for part in (*parts, x[..., end:], *features) if part.shape[-1]]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=-1)

    def _before(self, obs: Any) -> Array:
        x = self._encoded(obs)
        for layer in self.pre:
            x = ACTIVATIONS[self.activation](layer(x))
        return x

    def _after(self, x: Array) -> Array:
        for layer in self.mlp[:-1]:
            x = ACTIVATIONS[self.activation](layer(x))
        return OUTPUT_ACTIVATIONS[self.output_activation](self.mlp[-1](x))

    def __call__(self, obs: Any) -> Array:
        """Actions for observations (B, D) at the start of an episode; creates all parameters."""
        return self.step(self.initial_carry(vector_of(obs).shape[0]), obs)[1]


@partial(jax.jit, static_argnames=("policy", "obs_size", "normalize"))
def init(policy: Policy, rng: Array, obs_size: int, normalize: bool) -> PolicyState:
    """Fresh parameters for observations of ``obs_size`` numbers, and of the images that the policy takes."""
    vector = jnp.zeros((1, obs_size))
    images = tuple(jnp.zeros((1, *cfg.shape)) for cfg in policy.cnns)
    params = policy.init(rng, Observation(vector, images) if images else vector)["params"]
    params = initializers.drawn(rng, params)
    return PolicyState(params=params, normalizer=Normalizer.create(obs_size) if normalize and obs_size else None)


def initial_carry(policy: Policy, state: PolicyState, batch: int) -> Carry:
    """Carry of ``batch`` environments whose episodes begin."""
    carry: Carry = policy.apply({"params": state.params}, batch, method=Policy.initial_carry)  # type: ignore[assignment]
    return carry


def act(policy: Policy, state: PolicyState, carry: Carry, obs: Any) -> tuple[Carry, Array]:
    """Deterministic actions (B, A) for raw observations (B, D), and the next carry."""
    args = carry, state.normalize(obs)
    out: tuple[Carry, Array] = policy.apply({"params": state.params}, *args, method=Policy.step)  # type: ignore[assignment]
    return out


def follow(policy: Policy, state: PolicyState, carry: Carry, obs: Any, is_first: Array) -> tuple[Carry, Array]:
    """Deterministic actions (T, B, A) along raw observations (T, B, D) from ``carry`` on, and the carry after them.

    Episodes begin at the steps ``is_first`` (T, B); there, and only there, the policy forgets.
    """
    steps, batch = is_first.shape
    initial = initial_carry(policy, state, batch)
    length = min(steps, max(1, WINDOW_ROWS // batch))
    count, left_over = divmod(steps, length)

    def window(carry: Carry, start: Array | int, length: int = length) -> tuple[Carry, Array]:
        # Slices, as scanning over windows would copy all of the observations first.
        part, first = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, length), (obs, is_first))
        args = carry, state.normalize(part), first, initial
        out: tuple[Carry, Array] = policy.apply({"params": state.params}, *args, method=Policy.unroll)  # type: ignore[assignment]
        return out

    carry, actions = jax.lax.scan(window, carry, length * jnp.arange(count))
    actions = actions.reshape(count * length, batch, -1)
    if left_over:
        carry, last = window(carry, count * length, left_over)
        actions = jnp.concatenate([actions, last])
    return carry, actions


def replay(policy: Policy, state: PolicyState, obs: Any, is_first: Array) -> Array:
    """Actions (T, B, A) along recorded raw observations (T, B, D), which begin with an episode: see :func:`follow`."""
    return follow(policy, state, initial_carry(policy, state, is_first.shape[1]), obs, is_first)[1]


def num_parameters(state: PolicyState) -> int:
    """Trainable numbers in the policy."""
    return sum(x.size for x in jax.tree.leaves(state.params))


def summary(policy: Policy, state: PolicyState, obs_size: int) -> str:
    """One line about a policy: what it sees, its layers, what it ends in."""
    memory = [f"{policy.rnn_type} {policy.rnn_hidden_dim}"] * policy.rnn_num_layers if policy.rnn_type else []
    layers = "-".join(map(str, [*policy.pre_dims, *memory, *policy.hidden_dims, policy.num_actions]))
    end = "" if policy.output_activation == "identity" else f", {policy.output_activation} at the output"
    normalizer = "with" if state.normalizer else "without"
    for encoder in reversed(policy.encoders):
        layers = f"of which an encoder takes {'-'.join(map(str, [encoder.inputs, *encoder.dims]))}, {layers}"
    for cnn in reversed(policy.cnns):
        image, channels = "x".join(map(str, cnn.shape)), "-".join(map(str, cnn.output_channels))
        layers = f"image {cnn.group} {image} by a CNN {channels} to {cnn.num_features}, {layers}"
    return f"{obs_size} observations, {layers}, {policy.activation}{end}, {normalizer} normalizer"
