"""Policies as TorchScript modules that behave as rsl_rl's exported ``policy.pt``.

``policy(obs)`` maps (1, D) to (1, A); a recurrent policy keeps its state in buffers, and ``reset()`` begins an episode.
The normalizer and the output activation are inside. Where there are images it is ``policy(obs, images)``, a list of (1,
channels, height, width) in the order in which they are observed, see :mod:`jdistill.export.images`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from jdistill.core.activations import OUTPUT_ACTIVATIONS
from jdistill.core.cnn import NORM_EPS, CNNCfg
from jdistill.errors import ExportError
from jdistill.export import images
from jdistill.export.formats import Exported, Student
from jdistill.export.layers import WEIGHTS, DenseLayer, ImageEncoder, Normalization, PolicyLayers, RecurrentLayer
from jdistill.export.verify import Start, Step


def export(student: Student, out: Path) -> Exported:
    """``policy.pt``, the format ``jit`` of :mod:`jdistill.export.formats`, named as by rsl_rl's exporter."""
    file = out / "policy.pt"
    write("jit", file, to_torchscript(student.layers).save)
    cnns = [cnn.cfg for cnn in student.layers.cnns]
    return Exported(file, torch_policy(torch.jit.load(str(file)), cnns))


def write(name: str, file: Path, save: Callable[[str], None]) -> None:
    """Let torch ``save`` the format ``name`` to ``file``.

    Raises:
        ExportError: torch cannot write there.
    """
    try:
        save(str(file))
    except RuntimeError as e:
        raise ExportError(f"{name}: cannot be written to {file.parent} ({str(e).splitlines()[0][:120]})") from e


def torch_policy(module: Any, cnns: Sequence[CNNCfg] = ()) -> Start:
    """A torch module with ``reset()``, which takes a list of images too where there are ``cnns``."""

    def act(obs: Any) -> np.ndarray:
        vector, pictures = images.inputs(cnns, obs)
        more = ([torch.tensor(picture) for picture in pictures],) if cnns else ()
        with torch.no_grad():
            return module(torch.tensor(vector), *more).numpy()

    def start() -> Step:
        module.reset()
        return act

    return start


def to_torchscript(layers: PolicyLayers) -> torch.jit.ScriptModule:
    """A policy, one step of one environment, as a scripted module in evaluation mode."""
    before: list[nn.Module] = [] if layers.normalizer is None else [Affine(layers.normalizer)]
    encodes = bool(layers.encoders or layers.cnns)
    inputs = nn.Sequential(*([] if encodes else before), *_dense(layers.pre))
    outputs = nn.Sequential(*_dense(layers.mlp))
    module: nn.Module
    if layers.kind is None:
        module = FeedForward(inputs, outputs)
    else:
        wrapper: Any = {"gru": WithGRU, "lstm": WithLSTM}[layers.kind]
        initial = [_tensor(state) for state in layers.initial_states.values()]
        module = wrapper(inputs, _rnn(layers.recurrent), outputs, initial)
    if encodes:
        encode = Encode(nn.Sequential(*before), layers)
        module = WithImages(encode, module) if layers.cnns else WithEncoders(encode, module)
    return torch.jit.script(module.eval())


class Encode(nn.Module):
    """What the first layer takes: parts of the normalized numbers encoded, and behind them the images' features."""

    def __init__(self, normalize: nn.Module, layers: PolicyLayers):
        super().__init__()
        self.normalize = normalize
        self.encoders = nn.ModuleList([nn.Sequential(*_dense(encoder.layers)) for encoder in layers.encoders])
        self.cnns = nn.ModuleList([cnn_module(cnn) for cnn in layers.cnns])
        sizes, end = [], 0
        for encoder in layers.encoders:
            sizes += [encoder.start - end, encoder.layers[0].inputs]
            end = encoder.start + encoder.layers[0].inputs
        self.sizes: list[int] = [*sizes, layers.obs_size - end]

    def forward(self, obs: torch.Tensor, images: list[torch.Tensor]) -> torch.Tensor:
        """Numbers (1, D) and images (1, channels, height, width) to (1, F)."""
        parts = list(torch.split(self.normalize(obs), self.sizes, dim=1))
        for i, encoder in enumerate(self.encoders):
            parts[2 * i + 1] = encoder(parts[2 * i + 1])
        for i, cnn in enumerate(self.cnns):
            parts.append(cnn(images[i]))
        return torch.cat(parts, dim=1)


class WithImages(nn.Module):
    """A policy behind what encodes its observation, images among it."""

    def __init__(self, encode: nn.Module, policy: nn.Module):
        super().__init__()
        self.encode, self.policy = encode, policy

    def forward(self, obs: torch.Tensor, images: list[torch.Tensor]) -> torch.Tensor:
        """Actions (1, A) for numbers (1, D) and images, each (1, channels, height, width)."""
        return self.policy(self.encode(obs, images))

    @torch.jit.export
    def reset(self) -> None:
        """An episode begins."""
        self.policy.reset()


class WithEncoders(nn.Module):
    """A policy behind what encodes parts of its observation."""

    def __init__(self, encode: nn.Module, policy: nn.Module):
        super().__init__()
        self.encode, self.policy = encode, policy

    def forward(self, obs: torch.Tensor) -> torch.Tensor:
        """Actions (1, A) for numbers (1, D)."""
        images: list[torch.Tensor] = []
        return self.policy(self.encode(obs, images))

    @torch.jit.export
    def reset(self) -> None:
        """An episode begins."""
        self.policy.reset()


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


def cnn_module(cnn: ImageEncoder) -> nn.Sequential:
    """Images (N, channels, height, width) to features (N, F), as in :mod:`jdistill.core.cnn`."""
    modules: list[nn.Module] = []
    padding = "zeros" if cnn.cfg.padding == "none" else cnn.cfg.padding
    for i, layer in enumerate(cnn.cfg.layers):
        sizes: Any = layer.inputs[0], layer.convolved[0], layer.kernel_size, layer.stride, layer.around, layer.dilation
        conv: nn.Module = nn.Conv2d(*sizes, padding_mode=padding)
        held: dict[str, nn.Module] = {"": conv}
        if layer.norm == "layer":
            held["norm_"] = nn.LayerNorm(list(layer.convolved), eps=NORM_EPS)
        for prefix, module in held.items():
            module.load_state_dict({k: _tensor(cnn.params[f"{prefix}{k}_{i}"]) for k in ("weight", "bias")})
        modules += [*held.values(), activation_module(cnn.cfg.activation)]
        modules += [nn.MaxPool2d(3, stride=2, padding=1)] if layer.max_pool else []
    pools = {"max": nn.AdaptiveMaxPool2d, "avg": nn.AdaptiveAvgPool2d}
    modules += [pools[cnn.cfg.global_pool](1)] if cnn.cfg.global_pool != "none" else []
    return nn.Sequential(*modules, nn.Flatten(1))


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
