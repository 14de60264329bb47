"""Policies as TorchScript modules that behave as rsl_rl's exported ``policy.pt``.

``policy(obs)`` maps (1, D) to (1, A); a recurrent policy keeps its state in buffers and has ``reset()``. The normaliser
and the output activation are inside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from jdistill.core import networks
from jdistill.core.networks import Normalizer, Policy, PolicyState


class BetaMean(nn.Module):
    """:func:`jdistill.core.networks.beta_mean`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Raw alphas and betas (1, 2A) to actions (1, A)."""
        alpha, beta = torch.chunk(1.0 + nn.functional.softplus(x), 2, dim=-1)
        return 2.0 * alpha / (alpha + beta) - 1.0


ACTIVATION_MODULES: dict[str, type[nn.Module]] = {
    "elu": nn.ELU,
    "selu": nn.SELU,
    "relu": nn.ReLU,
    "crelu": nn.CELU,
    "lrelu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "gelu": nn.GELU,
    "swish": nn.SiLU,
    "mish": nn.Mish,
    "identity": nn.Identity,
    "beta": BetaMean,
}
"""torch's classes of our activations and what can end a policy."""


class FeedForward(nn.Module):
    """A policy without memory."""

    def __init__(self, before: nn.Module, after: nn.Module):
        super().__init__()
        self.before, self.after = before, after

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Actions (1, A) for an observation (1, D)."""
        return self.after(self.before(obs))

    @torch.jit.export
    def reset(self) -> None:
        """Nothing to forget."""


class WithGRU(nn.Module):
    """A policy with a GRU; the state is a buffer."""

    if TYPE_CHECKING:  # torch.jit would try to read these.
        first_hidden_state: torch.Tensor
        hidden_state: torch.Tensor

    def __init__(self, before: nn.Module, rnn: nn.GRU, after: nn.Module, first: list[torch.Tensor]):
        super().__init__()
        self.before, self.rnn, self.after = before, rnn, after
        self.register_buffer("first_hidden_state", first[0])
        self.register_buffer("hidden_state", first[0].clone())

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Actions (1, A) for an observation (1, D); remembers."""
        x, hidden = self.rnn(self.before(obs).unsqueeze(0), self.hidden_state)
        self.hidden_state[:] = hidden
        return self.after(x.squeeze(0))

    @torch.jit.export
    def reset(self) -> None:
        """An episode begins."""
        self.hidden_state[:] = self.first_hidden_state


class WithLSTM(nn.Module):
    """A policy with an LSTM; the states are buffers."""

    if TYPE_CHECKING:
        first_hidden_state: torch.Tensor
        first_cell_state: torch.Tensor
        hidden_state: torch.Tensor
        cell_state: torch.Tensor

    def __init__(self, before: nn.Module, rnn: nn.LSTM, after: nn.Module, first: list[torch.Tensor]):
        super().__init__()
        self.before, self.rnn, self.after = before, rnn, after
        self.register_buffer("first_hidden_state", first[0])
        self.register_buffer("first_cell_state", first[1])
        self.register_buffer("hidden_state", first[0].clone())
        self.register_buffer("cell_state", first[1].clone())

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Actions (1, A) for an observation (1, D); remembers."""
        x, (hidden, cell) = self.rnn(self.before(obs).unsqueeze(0), (self.hidden_state, self.cell_state))
        self.hidden_state[:] = hidden
        self.cell_state[:] = cell
        return self.after(x.squeeze(0))

    @torch.jit.export
    def reset(self) -> None:
        """An episode begins."""
        self.hidden_state[:] = self.first_hidden_state
        self.cell_state[:] = self.first_cell_state


class Affine(nn.Module):
    """The normaliser: (obs - mean) / scale."""

    if TYPE_CHECKING:
        mean: torch.Tensor
        scale: torch.Tensor

    def __init__(self, normalizer: Normalizer):
        super().__init__()
        self.register_buffer("mean", _tensor(normalizer.mean))
        self.register_buffer("scale", torch.sqrt(_tensor(normalizer.var)) + Normalizer.EPS)

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Normalised observations."""
        return (obs - self.mean) / self.scale


def to_torchscript(policy: Policy, state: PolicyState) -> torch.jit.ScriptModule:
    """The policy, one step of one environment, as a scripted module in evaluation mode."""
    activation = ACTIVATION_MODULES[policy.activation]
    before: list[nn.Module] = [] if state.normalizer is None else [Affine(state.normalizer)]
    for i in range(len(policy.pre_dims)):
        before += [_linear(state.params[f"pre_{i}"]), activation()]
    after: list[nn.Module] = []
    for i in range(len(policy.hidden_dims)):
        after += [_linear(state.params[f"mlp_{i}"]), activation()]
    after += [_linear(state.params[f"mlp_{len(policy.hidden_dims)}"]), ACTIVATION_MODULES[policy.output_activation]()]
    inputs, outputs = nn.Sequential(*before), nn.Sequential(*after)
    module: nn.Module
    if policy.rnn_type is None:
        module = FeedForward(inputs, outputs)
    else:
        wrapper: Any = {"gru": WithGRU, "lstm": WithLSTM}[policy.rnn_type]
        # Per layer a tuple of states (1, H); torch wants per state (layers, 1, H).
        carry = networks.initial_carry(policy, state, 1)
        first = [torch.stack([_tensor(x) for x in states]) for states in zip(*carry, strict=True)]
        module = wrapper(inputs, _rnn(policy, state), outputs, first)
    return torch.jit.script(module.eval())


def _tensor(x: Any) -> torch.Tensor:
    return torch.from_numpy(np.array(x, np.float32))


def _linear(layer: Any) -> nn.Linear:
    weight = _tensor(layer["dense"]["kernel"]).T
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    linear.load_state_dict({"weight": weight, "bias": _tensor(layer["dense"]["bias"])})
    return linear


def _rnn(policy: Policy, state: PolicyState) -> nn.GRU | nn.LSTM:
    cls = {"gru": nn.GRU, "lstm": nn.LSTM}[str(policy.rnn_type)]
    width = state.params["rnn_0"]["weight_ih"].shape[0]
    rnn = cls(width, policy.rnn_hidden_dim, policy.rnn_num_layers)
    layers = range(policy.rnn_num_layers)
    rnn.load_state_dict(
        {f"{k}_l{i}": _tensor(np.asarray(v).T) for i in layers for k, v in state.params[f"rnn_{i}"].items()}
    )
    return rnn
