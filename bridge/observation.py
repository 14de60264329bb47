"""What an observation group is: a vector, or an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Layout = tuple[tuple[str, int, str], ...]
"""Parts of an observation group in order: name, size, unit."""
FLOAT32: np.dtype[Any] = np.dtype(np.float32)


@dataclass(frozen=True)
class ObservationSpec:
    """What an observation group is, for each environment of the batch."""

    shape: tuple[int, ...]
    """Without the batch axis: (D,) of a vector, (height, width, channels) of an image."""
    dtype: np.dtype[Any] = FLOAT32
    """Of its numbers. A policy takes the bytes (uint8) of an image as 0 .. 255 / 255, and floats as they are."""
    layout: Layout = ()
    """What a vector is made of, where the environment says."""
    frame: str | None = None
    """The frame it is measured in, where the environment has a choice."""
    terms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    """What else is known of the parts of ``layout``: ``clip`` and ``scale``, applied in this order; ``history_length``,
    the steps that it holds, the oldest first; ``elements``, what its numbers are called."""
    channels_first: bool = False
    """Whether an image is (channels, height, width), as torch's and rsl_rl's networks take it."""

    @classmethod
    def of_layout(cls, layout: Layout, frame: str | None = None) -> ObservationSpec:
        """A float32 vector of these parts."""
        return cls((sum(size for _, size, _ in layout),), layout=layout, frame=frame)

    @property
    def is_image(self) -> bool:
        """Whether it has the shape and the type of an image."""
        return len(self.shape) == 3 and (self.dtype == np.uint8 or np.issubdtype(self.dtype, np.floating))

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


def looks_channels_first(shape: tuple[int, ...]) -> bool:
    """What an image of ``shape`` is taken for where nobody says: channels are fewer than the pixels of a row."""
    return len(shape) == 3 and shape[0] < shape[2]
