"""Checkpoints of rl_games, skrl and RMA's kin as those of rsl_rl: the actor's tensors by rsl_rl's names.

Both put the actor's last layer apart, and normalize by formulas of their own:

- rl_games: (obs - mean) / sqrt(var + 1e-5)
- skrl: (obs - mean) / (sqrt(var) + 1e-8)

rsl_rl's is (obs - mean) / (sqrt(var) + 1e-2), so the variance is changed to give the same numbers. Both clip what comes
out to 5 deviations, which rsl_rl does not; such an observation is far from all that the teacher was trained on.

RMA's teachers (rapid motor adaptation, and forks of legged_gym after it) send what only the simulator knows through an
encoder, and give its outputs to the actor behind what the robot feels. Only where they call the encoder
``env_factor_encoder`` do all of them agree on what goes in and what ends it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jdistill.errors import PolicyFileError

EPSILON = 1e-2
"""rsl_rl's."""
PREFIXES = re.compile(r"^(_orig_mod\.|module\.)+")
"""What torch.compile and DistributedDataParallel put before the names of what they wrap."""


class Trainer(NamedTuple):
    """How a trainer's checkpoints are made."""

    title: str
    entries: tuple[str, ...]
    """By which they are known."""
    network: str
    """The entry with the actor."""
    hidden: str
    """Before a hidden layer's number."""
    last: str
    mean: str
    var: str
    """The names of the normalizer's, in the entry ``normalizer``."""
    normalizer: str
    others: str
    """Regular expression of names of other networks."""
    recurrent: str
    """Regular expression before the names of torch's GRU or LSTM, before the hidden layers or behind them."""
    deviation: Callable[[np.ndarray], np.ndarray]
    """What the trainer divides by, from the variance."""


TRAINERS = (
    Trainer(
        title="rl_games",
        entries=("model", "epoch"),
        network="model",
        hidden="a2c_network.actor_mlp.",
        last="a2c_network.mu.",
        mean="running_mean_std.running_mean",
        var="running_mean_std.running_var",
        normalizer="model",
        others=r"value_mean_std\..*|running_mean_std\.count|a2c_network\.(sigma|value|critic_mlp|c_rnn).*",
        recurrent=r"a2c_network\.(a_)?rnn\.rnn\.",
        deviation=lambda var: np.sqrt(var + 1e-5),
    ),
    Trainer(
        title="skrl",
        entries=("policy", "optimizer"),
        network="policy",
        hidden="net_container.",
        last="policy_layer.",
        mean="running_mean",
        var="running_variance",
        normalizer="state_preprocessor",
        others=r"log_std_parameter|value_layer.*|current_count",
        recurrent=r"(?!)",  # Its recurrent models are its users' own.
        deviation=lambda var: np.sqrt(var) + 1e-8,
    ),
)


def plain_names(content: Mapping[str, Any]) -> dict[str, Any]:
    """``content`` without the prefixes of wrappers in its names, and in those of the entries one level below."""

    def plain(tree: Any) -> Any:
        return {PREFIXES.sub("", str(k)): v for k, v in tree.items()} if isinstance(tree, Mapping) else tree

    return {name: plain(entry) for name, entry in plain(content).items()}


RMA = ("env_factor_encoder", ("actor_body", "actor"))
"""The parts of RMA's teachers."""
RMA_OTHERS = re.compile(r"(adaptation_module|critic_body|critic|decoder|estimator)\..*")
"""Names of other networks beside them."""
ENCODER = re.compile(r"(\w+\.)*(\w*encoder\w*|adaptation_module|\w*estimator\w*)\.(\w+\.)*\d+\.weight")


def encoder_policy(tensors: Mapping[str, Any]) -> dict[str, Any] | None:
    """RMA's teacher in a model's ``tensors`` by rsl_rl's names; None where there is no encoder.

    Raises:
        PolicyFileError: an encoder whose place is not known; one line, without the file's name.
    """
    encoder, bodies = RMA
    body = next((name for name in bodies if f"{name}.0.weight" in tensors), None)
    if body and f"{encoder}.0.weight" in tensors:
        parts = {f"{encoder}.": "encoder.", f"{body}.": "mlp."}
        kept = {name: x for name, x in tensors.items() if not RMA_OTHERS.fullmatch(name)}
        begun = {name: next((p for p in parts if name.startswith(p)), "") for name in kept}
        return {parts.get(p, "") + name.removeprefix(p): kept[name] for name, p in begun.items()}
    if found := next((name for name in tensors if ENCODER.fullmatch(name)), None):
        raise PolicyFileError(
            f"its policy has an encoder ('{found}'), and such names do not say what goes in and where its outputs go; "
            f"rename it to {encoder}.N and the actor to {bodies[0]}.N if it takes the last observations and its "
            "outputs come last, or record what the policy does and train on that (--dataset FILE)"
        )
    return None


def as_rsl_rl(content: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The trainer's name and the actor of its checkpoint ``content`` by rsl_rl's names; None for other content.

    Raises:
        PolicyFileError: a network of another kind, or a normalizer that rsl_rl's formula cannot give; one line, without
            the file's name.
    """
    trainer = next((t for t in TRAINERS if all(name in content for name in t.entries)), None)
    if trainer is None or not isinstance(content[trainer.network], Mapping):
        return None
    network = dict(content[trainer.network])
    if not any(name.startswith(trainer.last) for name in network):
        return None
    normalizer = content.get(trainer.normalizer) or {}
    tensors: dict[str, Any] = {}
    numbers = [int(m[1]) for name in network if (m := re.match(rf"{re.escape(trainer.hidden)}(\d+)\.", name))]
    hidden, last = ("pre", 0) if _is_behind(trainer, network, numbers) else ("mlp", max(numbers, default=-2) + 2)
    for name, tensor in network.items():
        if name.startswith(trainer.hidden):
            tensors[f"{hidden}.{name.removeprefix(trainer.hidden)}"] = tensor
        elif re.match(trainer.recurrent, name):
            tensors[re.sub(trainer.recurrent, "rnn.rnn.", name)] = tensor
        elif name.startswith(trainer.last):
            tensors[f"mlp.{last}.{name.removeprefix(trainer.last)}"] = tensor
        elif name not in (trainer.mean, trainer.var) and not re.fullmatch(trainer.others, name):
            raise PolicyFileError(
                f"a checkpoint of {trainer.title} whose policy has more than an MLP and a GRU or LSTM ('{name}'), "
                "which cannot be read"
            )
    if trainer.mean in normalizer:
        tensors |= _normalizer(trainer, normalizer)
    return trainer.title, tensors


def _is_behind(trainer: Trainer, network: Mapping[str, Any], numbers: list[int]) -> bool:
    """Whether a GRU or LSTM stands behind the hidden layers ``numbers``: the sizes say so."""
    shapes = {re.sub(trainer.recurrent, "rnn.", name): tuple(tensor.shape) for name, tensor in network.items()}
    if "rnn.weight_ih_l0" not in shapes or not numbers:
        return False
    inputs, units = shapes["rnn.weight_ih_l0"][1], shapes["rnn.weight_hh_l0"][1]
    first, end = (shapes[f"{trainer.hidden}{i}.weight"] for i in (min(numbers), max(numbers)))
    before, behind = first[1] == units, end[0] == inputs and shapes[f"{trainer.last}weight"][1] == units
    if before and behind:
        raise PolicyFileError(
            f"a checkpoint of {trainer.title} whose recurrent layer may stand before its MLP or behind: all sizes fit"
        )
    return behind


def _normalizer(trainer: Trainer, tensors: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    mean, var = tensors[trainer.mean].double(), tensors[trainer.var].double()
    root = trainer.deviation(var.numpy()) - EPSILON
    if (root < 0).any():
        raise PolicyFileError(
            f"a checkpoint of {trainer.title} that has seen an observation with a deviation below {EPSILON}, which "
            "rsl_rl's normalizer cannot have"
        )
    std = torch.tensor(root)
    return {
        "obs_normalizer._mean": mean[None],
        "obs_normalizer._var": std[None] ** 2,
        "obs_normalizer._std": std[None],
        "obs_normalizer.count": torch.tensor(1),
    }
