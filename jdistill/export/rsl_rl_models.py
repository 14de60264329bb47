"""rsl_rl's models with what some of our policies have besides, for rsl_rl's runners to resolve by name.

``class_name="jdistill.export.rsl_rl_models:RNNModel"`` in the ``student``, ``teacher`` or ``actor`` entry of an rsl_rl
5.x config builds one. This module needs torch and rsl_rl, and no JAX.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from rsl_rl import models
from rsl_rl.modules import RNN, HiddenState
from rsl_rl.utils import resolve_callable, resolve_nn_activation
from tensordict import TensorDict
from torch import nn


class _AnyEnd:
    """What a model of rsl_rl's gets: an output activation, and ``hidden_dims=[]`` is allowed.

    Args:
        output_activation: applied to the last layer's output, before any distribution; by rsl_rl's names.
    """

    def __init__(
        self: Any,
        obs: TensorDict,
        obs_groups: dict[str, list[str]],
        obs_set: str,
        output_dim: int,
        *,
        hidden_dims: list[int],
        output_activation: str = "identity",
        **settings: Any,
    ):
        # Of rsl_rl's model, which stands beside this one.
        arguments = obs, obs_groups, obs_set, output_dim
        super().__init__(*arguments, hidden_dims=hidden_dims or [1], **settings)  # type: ignore[call-arg]
        self.mlp = finish_mlp(self.mlp, self._get_latent_dim(), bool(hidden_dims), output_activation)


class MLPModel(_AnyEnd, models.MLPModel):
    """rsl_rl's MLPModel, with an output activation, and with ``hidden_dims=[]`` allowed."""


class CNNModel(_AnyEnd, models.CNNModel):
    """rsl_rl's CNNModel, with an output activation, and with ``hidden_dims=[]`` allowed."""


class RNNModel(models.RNNModel):
    """rsl_rl's RNNModel, with dense layers before the recurrent ones, an output activation, a learned initial state.

    Args:
        hidden_dims: dense layers after the recurrent ones, possibly none.
        pre_dims: dense layers between the normalizer and the recurrent ones.
        output_activation: applied to the last layer's output, before any distribution; by rsl_rl's names.
        learn_initial_state: whether episodes start from a learned state instead of zero. It keeps its value in rsl_rl,
            whose algorithms send no gradients there.
    """

    def __init__(
        self,
        obs: TensorDict,
        obs_groups: dict[str, list[str]],
        obs_set: str,
        output_dim: int,
        *,
        hidden_dims: list[int],
        activation: str = "elu",
        rnn_type: str = "lstm",
        rnn_hidden_dim: int = 256,
        rnn_num_layers: int = 1,
        pre_dims: tuple[int, ...] | list[int] = (),
        output_activation: str = "identity",
        learn_initial_state: bool = False,
        **settings: Any,
    ):
        settings |= {"activation": activation, "rnn_type": rnn_type}
        settings |= {"rnn_hidden_dim": rnn_hidden_dim, "rnn_num_layers": rnn_num_layers}
        super().__init__(obs, obs_groups, obs_set, output_dim, hidden_dims=hidden_dims or [1], **settings)
        self.mlp: Any = finish_mlp(self.mlp, self._get_latent_dim(), bool(hidden_dims), output_activation)
        self.pre = nn.Sequential()
        width = self.obs_dim
        for dim in pre_dims:
            self.pre.extend([nn.Linear(width, dim), resolve_nn_activation(activation)])
            width = dim
        cls = LearnedStartRNN if learn_initial_state else RNN
        self.rnn = cls(width, rnn_hidden_dim, rnn_num_layers, rnn_type)

    def get_latent(
        self, obs: TensorDict, masks: torch.Tensor | None = None, hidden_state: HiddenState = None
    ) -> torch.Tensor:
        """Normalize, then the dense layers, then the recurrent ones: (B, D) to (B, H)."""
        latent = self.pre(models.MLPModel.get_latent(self, obs))
        return self.rnn(latent, masks, hidden_state).squeeze(0)

    def as_jit(self) -> nn.Module:
        """What rsl_rl's ``export_policy_to_jit`` scripts."""
        return self._with_pre(super().as_jit())

    def as_onnx(self, verbose: bool = False) -> nn.Module:
        """What rsl_rl's ``export_policy_to_onnx`` traces."""
        return self._with_pre(super().as_onnx(verbose))

    def _with_pre(self, exported: Any) -> nn.Module:
        if isinstance(self.rnn, LearnedStartRNN):
            raise NotImplementedError("rsl_rl's exporters start from a zero state; use 'python -m jdistill.export'")
        # rsl_rl's exported models begin with their normalizer, so what follows it joins it.
        exported.obs_normalizer = nn.Sequential(exported.obs_normalizer, copy.deepcopy(self.pre))
        return exported


class LearnedStartRNN(RNN):
    """rsl_rl's RNN whose episodes start from a learned state."""

    if TYPE_CHECKING:
        hidden_state: Any

    def __init__(self, input_size: int, hidden_dim: int, num_layers: int, type: str):
        super().__init__(input_size, hidden_dim, num_layers, type)
        for kind in "h" if isinstance(self.rnn, nn.GRU) else "hc":
            self.register_parameter(f"initial_{kind}", nn.Parameter(torch.zeros(num_layers, 1, hidden_dim)))

    def initial(self, batch: int) -> Any:
        """State of ``batch`` environments whose episodes begin: (layers, B, H), for an LSTM a pair of them."""
        parameters = [p for name, p in self.named_parameters(recurse=False) if name.startswith("initial_")]
        states = tuple(p.detach().repeat(1, batch, 1) for p in parameters)
        return states if len(states) > 1 else states[0]

    def forward(
        self, input: torch.Tensor, masks: torch.Tensor | None = None, hidden_state: HiddenState = None
    ) -> torch.Tensor:
        """As rsl_rl's, but a rollout without a state begins with the learned one."""
        if masks is None and self.hidden_state is None:
            self.hidden_state = self.initial(input.shape[0])
        return super().forward(input, masks, hidden_state)

    def reset(self, dones: torch.Tensor | None = None, hidden_state: HiddenState = None) -> None:
        """As rsl_rl's, but environments whose episodes end, ``dones`` (B,), go back to the learned state."""
        super().reset(dones, hidden_state)
        if dones is None or self.hidden_state is None:
            return
        ended = dones == 1
        current = self.hidden_state if isinstance(self.hidden_state, tuple) else (self.hidden_state,)
        first = self.initial(int(ended.sum()))
        for state, start in zip(current, first if isinstance(first, tuple) else (first,), strict=True):
            state[..., ended, :] = start


def finish_mlp(mlp: Any, latent_dim: int, has_hidden: bool, output_activation: str) -> nn.Sequential:
    """rsl_rl's MLP with an output activation; without its one hidden layer where there should be none.

    rsl_rl's MLP cannot do without a hidden layer, and its last layer may be followed by one that reshapes.
    """
    layers = list(mlp)
    if not has_hidden:
        layers = [nn.Linear(latent_dim, layers[2].out_features), *layers[3:]]
    end = [] if output_activation == "identity" else [resolve_nn_activation(output_activation)]
    return nn.Sequential(*layers, *end)


def load_model(
    cfg: dict[str, Any],
    state_dict: dict[str, torch.Tensor],
    obs_size: int,
    images: dict[str, tuple[int, int, int]],
) -> nn.Module:
    """The model that rsl_rl builds of ``cfg`` (see :func:`jdistill.export.rsl_rl.model_cfg`), with its tensors.

    It takes plain observations (B, ``obs_size``) instead of groups by name, a list of ``images`` (channels, height,
    width) where there are some, and has rsl_rl's ``reset``.

    Raises:
        RuntimeError: the tensors are not those of the model.
    """
    settings = dict(cfg)
    cls: Any = resolve_callable(settings.pop("class_name"))
    last = max((int(k.split(".")[1]), v.shape[0]) for k, v in state_dict.items() if k.startswith("mlp."))[1]
    num_actions = last // 2 if settings["distribution_cfg"]["class_name"] == "BetaDistribution" else last
    seen = {name: torch.zeros(1, *size) for name, size in images.items()}
    obs = TensorDict({"obs": torch.zeros(1, obs_size), **seen}, batch_size=[1])
    model = cls(obs, {"actor": ["obs", *images]}, "actor", num_actions, **settings)
    model.load_state_dict(state_dict, strict=True)
    return _Plain(model.eval(), list(images))


class _Plain(nn.Module):
    """A model whose one vector comes as it is, and its images in a list."""

    def __init__(self, model: Any, images: list[str]):
        super().__init__()
        self.model, self.images = model, images

    def forward(self, obs: torch.Tensor, images: list[torch.Tensor] | None = None) -> torch.Tensor:
        seen = dict(zip(self.images, images or [], strict=True))
        return self.model(TensorDict({"obs": obs, **seen}, batch_size=[obs.shape[0]]))

    def reset(self) -> None:
        self.model.reset()
