"""Which craft the environments fly: one, or those of a file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bridge.crazyflie.airframe import Airframe
from bridge.crazyflie.constants import Constants
from bridge.errors import SettingError
from bridge.isaaclab_tasks.point_control.dynamics import Quadrotor
from bridge.quadrotors import read_csv

MAX_ID = 2**24
"""Observations are single precision, which has every whole number up to here."""


@dataclass
class Fleet:
    """The craft, one or many."""

    quadrotors: Quadrotor
    """N of them."""
    ids: Tensor | None
    """(N,) float32, see :class:`bridge.quadrotors.QuadrotorSpec`; None where they come out of no file."""

    @staticmethod
    def of_drone(drone: str) -> Fleet:
        """One of Crazyflow's.

        Raises:
            SettingError: it has none of that name.
        """
        return Fleet(Quadrotor.of(Constants.of(Airframe.load(drone))), None)

    @staticmethod
    def read(file: str) -> Fleet:
        """The craft of a CSV file.

        Raises:
            SettingError: it cannot be flown; one line.
        """
        specs = read_csv(file)
        ids = [spec.id for spec in specs]
        if max(ids) > MAX_ID:
            raise SettingError(
                f"{file}: id is {max(ids)}, on Isaac Lab expected at most {MAX_ID}: it is observed as a float"
            )
        return Fleet(Quadrotor.of(Constants.of_rows(specs)), torch.tensor(ids, dtype=torch.float32))

    @property
    def size(self) -> int:
        """N."""
        return len(self.quadrotors.mass)

    def to(self, device: str) -> Fleet:
        """The same on ``device``."""
        return Fleet(self.quadrotors.to(device), None if self.ids is None else self.ids.to(device))
