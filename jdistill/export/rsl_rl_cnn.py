"""The CNNs of rsl_rl's models: their tensors by name, to and from ours.

``cnns.<group>.<place>.weight`` is of a torch ``Sequential``, in which convolution, norm, activation and pooling have a
place each. A checkpoint holds neither strides nor the sizes of images: those settings are in ``params/agent.yaml``
beside it, the sizes are the environment's. Batch norms, whose moments do not change once a network is trained, become
part of the convolutions before them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bridge.env import ObservationSpec
from jdistill.core.cnn import NORM_EPS, CNNCfg
from jdistill.core.cnn_cfg import cnn_cfgs, is_by_group
from jdistill.errors import ConfigError, PolicyFileError
from jdistill.export.layers import ImageEncoder

Tensors = Mapping[str, np.ndarray]
CNNS = "cnns"
_NAME = re.compile(rf"{CNNS}\.(?P<group>.+)\.(?P<place>\d+)\.(?P<kind>\w+)")
_COUNT = "num_batches_tracked"


def image_groups(tensors: Tensors) -> list[str]:
    """The observation groups that the network has a CNN for, in order."""
    return list(dict.fromkeys(match["group"] for name in tensors if (match := _NAME.fullmatch(name))))


def recorded_cnns(
    settings: Mapping[str, Any] | None, tensors: Tensors, images: Mapping[str, ObservationSpec]
) -> tuple[CNNCfg, ...]:
    """The CNNs of a network's ``tensors``, given rsl_rl's ``cnn_cfg`` and the ``images`` of the environment.

    Raises:
        PolicyFileError: an image that there is not, settings that are not recorded or that make no sense.
    """
    groups = image_groups(tensors)
    if missing := [group for group in groups if group not in images]:
        seen = f"its images are {', '.join(images)}" if images else "no image is observed"
        raise PolicyFileError(f"the network sees the image '{missing[0]}', and in agent.obs_groups {seen}")
    if not groups:
        return ()
    if not settings:
        raise PolicyFileError(
            "the network has a CNN, whose strides are not in the file: put the run's params/agent.yaml beside it"
        )
    by_group = settings if is_by_group(settings) else dict.fromkeys(groups, settings)
    plain = {group: {**by_group.get(group, {}), "norm": "none"} for group in groups}
    for group, part in plain.items():
        norms = by_group.get(group, {}).get("norm", "none")
        each = norms if isinstance(norms, list | tuple) else [norms] * len(part.get("output_channels", ()))
        part["norm"] = ["none" if norm == "batch" else norm for norm in each] or "none"
    try:
        return cnn_cfgs(plain, {group: images[group] for group in groups}, "cnn_cfg")
    except ConfigError as e:
        raise PolicyFileError(f"params/agent.yaml: {e}") from e


def from_tensors(tensors: Tensors, cnns: Sequence[CNNCfg]) -> tuple[tuple[ImageEncoder, ...], list[str]]:
    """The CNNs ``cnns`` with the weights of ``tensors``, and the names of those that they are made of.

    Raises:
        PolicyFileError: a tensor is missing or does not fit.
    """
    found = [_one(tensors, cfg) for cfg in cnns]
    return tuple(encoder for encoder, _ in found), [name for _, names in found for name in names]


def _one(tensors: Tensors, cfg: CNNCfg) -> tuple[ImageEncoder, list[str]]:
    prefix, place, used = f"{CNNS}.{cfg.group}", 0, list[str]()
    params: dict[str, np.ndarray] = {}

    def take(kind: str, shape: tuple[int, ...]) -> np.ndarray:
        name = f"{prefix}.{place}.{kind}"
        if name not in tensors or tensors[name].shape != shape:
            found = f"is {list(tensors[name].shape)}" if name in tensors else "is missing"
            raise PolicyFileError(f"tensor '{name}' {found}, expected {list(shape)}")
        used.append(name)
        return tensors[name]

    for i, layer in enumerate(cfg.layers):
        outputs = layer.weight_shape[:1]
        weight, bias = take("weight", layer.weight_shape), take("bias", outputs)
        place += 1
        if layer.norm == "layer":
            params |= {f"norm_{kind}_{i}": take(kind, layer.convolved) for kind in ("weight", "bias")}
            place += 1
        elif f"{prefix}.{place}.running_mean" in tensors:
            kinds = ("weight", "bias", "running_mean", "running_var")
            scale, shift, mean, var = (take(kind, outputs) for kind in kinds)
            used.append(f"{prefix}.{place}.{_COUNT}")
            scale = scale / np.sqrt(var + NORM_EPS)
            weight, bias = weight * scale[:, None, None, None], (bias - mean) * scale + shift
            place += 1
        params |= {f"weight_{i}": weight, f"bias_{i}": bias}
        place += 1 + layer.max_pool
    return ImageEncoder(cfg, params), used


def to_tensors(cnns: Sequence[ImageEncoder]) -> dict[str, np.ndarray]:
    """The inverse of :func:`from_tensors`."""
    tensors = {}
    for cnn in cnns:
        place = 0
        for i, layer in enumerate(cnn.cfg.layers):
            for prefix in ("", *(["norm_"] if layer.norm == "layer" else [])):
                for kind in ("weight", "bias"):
                    tensors[f"{CNNS}.{cnn.cfg.group}.{place}.{kind}"] = cnn.params[f"{prefix}{kind}_{i}"]
                place += 1
            place += 1 + layer.max_pool
    return tensors


def settings_of(cfg: CNNCfg) -> dict[str, Any]:
    """rsl_rl's ``cnn_cfg`` of one image."""
    names = ("output_channels", "kernel_size", "stride", "dilation", "norm", "max_pool")
    lists = {name: list(getattr(cfg, name)) for name in names}
    return {**lists, "padding": cfg.padding, "activation": cfg.activation, "global_pool": cfg.global_pool}
