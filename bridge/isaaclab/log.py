"""Scalars that a simulator reports by itself, ``extras["log"]``, averaged as rsl_rl averages them."""

from __future__ import annotations

import math
from typing import Any

import torch


class ScalarLog:
    """Collects a mapping of scalars per step. A step costs a few dictionary look-ups; all arithmetic waits for ``pop``.

    An environment may repeat what it said before until it has something new (Isaac Lab does between resets); repeats
    count, as they do in rsl_rl.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[dict[str, Any], int]] = []

    def add(self, log: dict[str, Any] | None) -> None:
        """Take one step's scalars: numbers or tensors of one element."""
        if not log:
            return
        if self._seen:
            last, count = self._seen[-1]
            if last.keys() == log.keys() and all(last[k] is v for k, v in log.items()):
                self._seen[-1] = (last, count + 1)
                return
        self._seen.append((dict(log), 1))

    def pop(self) -> dict[str, float]:
        """Means since the last call; a tag without a slash gets rsl_rl's prefix ``Episode/``."""
        seen, self._seen = self._seen, []
        said = [(key, value, count) for log, count in seen for key, value in log.items()]
        totals: dict[str, float] = {}
        counts: dict[str, int] = {}
        for (key, _, count), number in zip(said, _numbers([value for _, value, _ in said]), strict=True):
            if not math.isfinite(number):  # Of a broken environment, or a mean over none.
                continue
            totals[key] = totals.get(key, 0.0) + number * count
            counts[key] = counts.get(key, 0) + count
        return {key if "/" in key else f"Episode/{key}": total / counts[key] for key, total in totals.items()}


def _numbers(values: list[Any]) -> list[float]:
    """The values, one transfer for all tensors of a device: reading them one by one would wait for a GPU each time."""
    tensors = [torch.as_tensor(value).detach() for value in values]
    numbers = [0.0] * len(values)
    for device in {tensor.device for tensor in tensors}:
        places = [i for i, tensor in enumerate(tensors) if tensor.device == device]
        together = torch.stack([tensors[i].float().mean() for i in places]).tolist()
        for i, number in zip(places, together, strict=True):
            numbers[i] = number
    return numbers
