"""Observations with images as rsl_rl's exported policies take them: the numbers, and each image by itself.

An image is (1, channels, height, width) float32, whatever it was in the environment; bytes are divided by 255 before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jdistill.core.cnn import BYTE, CNNCfg
from jdistill.core.observations import Observation, vector_of


def inputs(cnns: Sequence[CNNCfg], obs: Any) -> tuple[np.ndarray, list[np.ndarray]]:
    """The numbers (1, D) of an observation, and its images."""
    images = obs.images if isinstance(obs, Observation) else ()
    return vector_of(obs), [_image(cfg, image) for cfg, image in zip(cnns, images, strict=True)]


def drawn(cnns: Sequence[CNNCfg], vector: np.ndarray, rng: np.random.Generator) -> Any:
    """An observation of these numbers (1, D) and of images drawn at random, each pixel in [0, 1]."""
    images = tuple(rng.random((1, *cfg.shape), np.float32) for cfg in cnns)
    return Observation(vector, images) if images else vector


def _image(cfg: CNNCfg, image: np.ndarray) -> np.ndarray:
    floats = image.astype(np.float32)
    floats = floats / np.float32(BYTE) if image.dtype == np.uint8 else floats
    return floats if cfg.channels_first else np.ascontiguousarray(np.moveaxis(floats, -1, 1))
