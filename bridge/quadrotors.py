"""Quadrotors as data: a craft is a row of a CSV file. Imports neither JAX nor torch nor a simulator.

The first columns, :data:`REQUIRED`, are those of ``teacher_dynamics.csv`` as many-teacher training scripts write it;
the others have defaults, so that such a file can be flown as it is.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from bridge.errors import SettingError, nearest

GRAVITY = 9.81
"""m/s^2."""
REQUIRED = ("id", "mass", "arm_length", "Ixx", "Iyy", "Izz", "twr", "motor_tau")
"""Columns that every file has."""
ALIASES = {"thrust_to_weight": "twr", "motor_tau_up": "motor_tau"}
"""Other names of columns."""
OF_TEACHERS = ("survival", "steady_error", "passed")
"""Further columns that a file may have: what the craft's teacher is worth. They are nothing of the craft's."""
NOT_NEGATIVE = ("thrust_c0", "drag_x", "drag_y", "drag_z")
"""Numbers that may be zero; ``thrust_c1`` may be negative too, and all others are positive."""
MAX_ID = 2**31 - 1


@dataclass(frozen=True)
class QuadrotorSpec:
    """A quadrotor with four equal arms in X configuration, its axes forward, left and up being the principal ones.

    Each motor's speed u is counted from 0, the slowest, to 1, the fastest. It pulls with

        twr m g / 4 * (thrust_c0 + thrust_c1 u + thrust_c2 u^2)   N.
    """

    id: int
    """Its own in its file, not negative; the number of its teacher too."""
    mass: float
    """kg."""
    arm_length: float
    """From the centre to a motor, m."""
    Ixx: float
    """Moment of inertia about the axis forward, kg m^2."""
    Iyy: float
    """To the left."""
    Izz: float
    """Up."""
    twr: float
    """Thrust of the four motors at full speed over weight, where the coefficients of the thrust sum to 1."""
    motor_tau: float
    """Time constant with which a motor gains speed, s."""
    motor_tau_down: float = math.nan
    """With which it loses speed, s; not a number takes ``motor_tau``."""
    torque_coefficient: float = 0.005964552
    """Drag torque of a propeller over its thrust, m. The default is a Crazyflie's."""
    thrust_c0: float = 0.0074
    """Thrust of the slowest motor over that of the fastest. Defaults are a Crazyflie's between 1200 and 24000 rpm."""
    thrust_c1: float = -0.0020
    """What grows with the speed."""
    thrust_c2: float = 0.9946
    """What grows with its square; positive."""
    drag_x: float = 0.0
    """Drag of the air forward, N/(m/s)."""
    drag_y: float = 0.0
    """To the left."""
    drag_z: float = 0.0
    """Up."""
    seed: int | None = None
    """Of the sample it was drawn in; None for craft that were not drawn."""
    name: str = ""
    """What people call it."""

    def __post_init__(self) -> None:
        if math.isnan(self.motor_tau_down):
            object.__setattr__(self, "motor_tau_down", self.motor_tau)

    @property
    def weight(self) -> float:
        """N."""
        return self.mass * GRAVITY

    @property
    def max_thrust(self) -> float:
        """Of the four motors together, N."""
        return self.twr * self.weight * self.curve(1.0)

    @property
    def roll_acceleration(self) -> float:
        """When the two motors of one side run at full speed and the others stand still, rad/s^2.

        Their lever is ``arm_length / sqrt(2)``, so the torque is ``sqrt(2) arm_length`` times one motor's thrust.
        """
        return math.sqrt(2) * self.arm_length * self.max_thrust / 4 / self.Ixx

    @property
    def size_mass_ratio(self) -> float:
        """Cube root of the mass over the arm, kg^(1/3)/m; the same for craft that differ in scale alone."""
        return self.mass ** (1 / 3) / self.arm_length

    @cached_property
    def hover(self) -> float:
        """The motors' speed that carries the craft, 0..1; not a number where none does."""
        a, b, c = self.thrust_c2, self.thrust_c1, self.thrust_c0 - 1 / self.twr
        inside = b * b - 4 * a * c
        return (-b + math.sqrt(inside)) / (2 * a) if inside >= 0 else math.nan

    def curve(self, speed: float) -> float:
        """Thrust of a motor at ``speed`` (0..1) in units of ``twr m g / 4``."""
        return self.thrust_c0 + speed * (self.thrust_c1 + speed * self.thrust_c2)

    def fault(self) -> str | None:
        """What makes it no quadrotor that could fly, in a few words; None where nothing does."""
        numbers = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("id", "seed", "name")}
        for name, value in numbers.items():
            if not math.isfinite(value):
                return f"{name} is {value}, expected a number"
            if name != "thrust_c1" and (value < 0 or (value == 0 and name not in NOT_NEGATIVE)):
                return f"{name} is {value:g}, expected a positive number"
        if not 0 <= self.id <= MAX_ID:
            return f"id is {self.id}, expected 0, 1, ..."
        if not 0 < self.hover < 1:
            return f"twr is {self.twr:g}, and so no speed of its motors carries its weight"
        small, middle, large = sorted((self.Ixx, self.Iyy, self.Izz))
        if large > 1.000001 * (small + middle):
            moments = f"{self.Ixx:g}, {self.Iyy:g}, {self.Izz:g}"
            return f"inertia ({moments}): no body has one moment larger than the others' sum"
        return None


COLUMNS = tuple(f.name for f in fields(QuadrotorSpec))
"""All columns, in their order."""


# -- files ---------------------------------------------------------------------------------------------------------


def to_csv(quadrotors: Iterable[QuadrotorSpec]) -> str:
    """The file's text. Numbers are written so that the very same are read back."""
    table = io.StringIO(newline="")
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(COLUMNS)
    for q in quadrotors:
        writer.writerow("" if (value := getattr(q, name)) is None else value for name in COLUMNS)
    return table.getvalue()


def read_csv(path: str | Path) -> list[QuadrotorSpec]:
    """The quadrotors of a file, in its order.

    Raises:
        SettingError: it cannot be read, or something in it makes no sense; one line that says where.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as e:
        raise SettingError(f"{path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise SettingError(f"{path}: no CSV file of quadrotors (not UTF-8)") from e
    lines = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True)
    try:
        rows = [(lines.line_num, [cell.strip() for cell in row]) for row in lines if any(map(str.strip, row))]
    except csv.Error as e:
        raise SettingError(f"{path}: no CSV file of quadrotors ({e})") from e
    if not rows:
        raise SettingError(f"{path}: is empty; its first line names the columns: {','.join(REQUIRED)}")
    names = _columns(path, rows[0][1])
    found = [_parse(f"{path}, line {number}", names, row) for number, row in rows[1:]]
    if not found:
        raise SettingError(f"{path}: names columns and no quadrotor")
    seen: dict[int, int] = {}
    for (number, _), quadrotor in zip(rows[1:], found, strict=True):
        if quadrotor.id in seen:
            raise SettingError(
                f"{path}, line {number}: id {quadrotor.id} again, it is that of line {seen[quadrotor.id]}"
            )
        seen[quadrotor.id] = number
    return found


def _columns(path: str | Path, header: Sequence[str]) -> list[str]:
    names = [ALIASES.get(name, name) for name in header]
    for name in names:
        if name not in COLUMNS + OF_TEACHERS:
            raise SettingError(f"{path}: unknown column {name!r}{nearest(name, COLUMNS)}; known: {', '.join(COLUMNS)}")
        if names.count(name) > 1:
            raise SettingError(f"{path}: two columns {name}")
    if missing := [name for name in REQUIRED if name not in names]:
        raise SettingError(f"{path}: no column {', '.join(missing)}; a file has at least {','.join(REQUIRED)}")
    return names


def _parse(where: str, names: Sequence[str], row: Sequence[str]) -> QuadrotorSpec:
    if len(row) != len(names):
        raise SettingError(f"{where}: {len(row)} cells, the first line names {len(names)} columns")
    values: dict[str, Any] = {}
    for name, cell in zip(names, row, strict=True):
        if name in OF_TEACHERS or (not cell and name not in REQUIRED):
            continue
        kind: Any = {"id": int, "seed": int, "name": str}.get(name, float)
        try:
            values[name] = kind(cell)
        except ValueError as e:
            raise SettingError(f"{where}: {name} is {cell!r}, expected a number") from e
    quadrotor = QuadrotorSpec(**values)
    if fault := quadrotor.fault():
        raise SettingError(f"{where}: {fault}")
    return quadrotor
