"""Scalars that a simulator reports by itself, ``extras["log"]``, averaged as rsl_rl averages them."""

from __future__ import annotations

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
        means = {}
        for key in dict.fromkeys(key for log, _ in seen for key in log):
            values = [(log[key], count) for log, count in seen if key in log]
            # One transfer a tag: reading them one by one would wait for a GPU once a step.
            numbers = torch.stack([torch.as_tensor(v).detach().float().mean() for v, _ in values]).cpu()
            counts = torch.tensor([float(count) for _, count in values])
            means[key if "/" in key else f"Episode/{key}"] = float((numbers * counts).sum() / counts.sum())
        return means
