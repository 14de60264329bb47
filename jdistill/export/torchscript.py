"""Policies as TorchScript modules that behave as rsl_rl's exported ``policy.pt``.

``policy(obs)`` maps (1, D) to (1, A); a recurrent policy keeps its state in buffers, and ``reset()`` begins an episode.
The normalizer and the output activation are inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from jdistill.core.activations import OUTPUT_ACTIVATIONS
from jdistill.errors import ExportError
from jdistill.export.formats import Exported, Student
from jdistill.export.layers import WEIGHTS, DenseLayer, Normalization, PolicyLayers, RecurrentLayer
from jdistill.export.verify import Start, Step


def export(student: Student, out: Path) -> Exported:
    """``policy.pt``, the format ``jit`` of :mod:`jdistill.export.formats`, named as by rsl_rl's exporter."""
    file = out / "policy.pt"
    write("jit", file, to_torchscript(student.layers).save)
    return Exported(file, torch_policy(torch.jit.load(str(file))))


def write(name: str, file: Path, save: Callable[[str], None]) -> None:
    """Let torch ``save`` the format ``name`` to ``file``.

    Raises:
        ExportError: torch cannot write there.
    """
    try:
        save(str(file))
    except RuntimeError as e:
        raise ExportError(f"{name}: cannot be written to {file.parent} ({str(e).splitlines()[0][:120]})") from e


def torch_policy(module: Any) -> Start:
    """A torch module with ``reset()``."""

    def act(obs: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.tensor(obs)).numpy()

    def start() -> Step:
        module.reset()
        return act

    return start


def to_torchscript(layers: PolicyLayers) -> torch.jit.ScriptModule:
    """A policy, one step of one environment, as a scripted module in evaluation mode."""
    before: list[nn.Module] = [] if layers.normalizer is None else [Affine(layers.normalizer)]
    inputs = nn.Sequential(*before, *_dense(layers.pre))
    outputs = nn.Sequential(*_dense(layers.mlp))
    module: nn.Module
    if layers.kind is None:
        module = FeedForward(inputs, outputs)
    else:
        wrapper: Any = {"gru": WithGRU, "lstm": WithLSTM}[layers.kind]
        initial = [_tensor(state) for state in layers.initial_states.values()]
        module = wrapper(inputs, _rnn(layers.recurrent), outputs, initial)
    return torch.jit.script(module.eval())


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
        initial_hidden_state: torch.Tensor
        hidden_state: torch.Tensor

    def __init__(self, before: nn.Module, rnn: nn.GRU, after: nn.Module, initial: list[torch.Tensor]):
        super().__init__()
        self.before, self.rnn, self.after = before, rnn, after
        self.register_buffer("initial_hidden_state", initial[0])
        self.register_buffer("hidden_state", initial[0].clone())

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Actions (1, A) for an observation (1, D); keeps its state."""
        x, hidden = self.rnn(self.before(obs).unsqueeze(0), self.hidden_state)
        self.hidden_state[:] = hidden
        return self.after(x.squeeze(0))

    @torch.jit.export
    def reset(self) -> None:
        """An episode begins."""
        self.hidden_state[:] = self.initial_hidden_state


class WithLSTM(nn.Module):
    """A policy with an LSTM; the states are buffers."""

    if TYPE_CHECKING:
        initial_hidden_state: torch.Tensor
        initial_cell_state: torch.Tensor
        hidden_state: torch.Tensor
        cell_state: torch.Tensor

    def __init__(self, before: nn.Module, rnn: nn.LSTM, after: nn.Module, initial: list[torch.Tensor]):
        super().__init__()
        self.before, self.rnn, self.after = before, rnn, after
        self.register_buffer("initial_hidden_state", initial[0])
        self.register_buffer("initial_cell_state", initial[1])
        self.register_buffer("hidden_state", initial[0].clone())
        self.register_buffer("cell_state", initial[1].clone())

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Actions (1, A) for an observation (1, D); keeps its state."""
        x, (hidden, cell) = self.rnn(self.before(obs).unsqueeze(0), (self.hidden_state, self.cell_state))
        self.hidden_state[:] = hidden
        self.cell_state[:] = cell
        return self.after(x.squeeze(0))

    @torch.jit.export
    def reset(self) -> None:
        """An episode begins."""
        self.hidden_state[:] = self.initial_hidden_state
        self.cell_state[:] = self.initial_cell_state


class Affine(nn.Module):
    """The normalizer: (obs - mean) / scale."""

    if TYPE_CHECKING:
        mean: torch.Tensor
        scale: torch.Tensor

    def __init__(self, normalizer: Normalization):
        super().__init__()
        self.register_buffer("mean", _tensor(normalizer.mean))
        self.register_buffer("scale", _tensor(normalizer.scale))

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Normalized observations."""
        return (obs - self.mean) / self.scale


class BetaMean(nn.Module):
    """:func:`jdistill.core.activations.beta_mean`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Raw alphas and betas (1, 2A) to actions (1, A)."""
        alpha, beta = torch.chunk(1.0 + nn.functional.softplus(x), 2, dim=-1)
        return 2.0 * alpha / (alpha + beta) - 1.0


COMPOSED: dict[str, type[nn.Module]] = {"beta": BetaMean}
"""The activations that torch has no class for."""


def activation_module(name: str) -> nn.Module:
    """The activation ``name`` of :mod:`jdistill.core.activations`."""
    cls = OUTPUT_ACTIVATIONS[name].torch
    return COMPOSED[name]() if cls is None else getattr(nn, cls)()


def _tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(x, np.float32, order="C"))


def _dense(layers: Sequence[DenseLayer]) -> list[nn.Module]:
    modules: list[nn.Module] = []
    for layer in layers:
        linear = nn.Linear(layer.inputs, layer.outputs)
        linear.load_state_dict({"weight": _tensor(layer.weight), "bias": _tensor(layer.bias)})
        modules += [linear, activation_module(layer.activation)]
    return modules


def _rnn(layers: Sequence[RecurrentLayer]) -> nn.GRU | nn.LSTM:
    cls = {"gru": nn.GRU, "lstm": nn.LSTM}[layers[0].kind]
    rnn = cls(layers[0].inputs, layers[0].outputs, len(layers))
    rnn.load_state_dict(
        {f"{name}_l{i}": _tensor(getattr(layer, name)) for i, layer in enumerate(layers) for name in WEIGHTS}
    )
    return rnn
