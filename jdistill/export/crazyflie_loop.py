"""The controller of the Crazyflie app in a loop on this machine: built by its C compiler, with a stand-in for the
firmware around it (``crazyflie_sil``), for as many craft as there are to fly."""

from __future__ import annotations

import ctypes
import math
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdistill.errors import ExportError
from jdistill.export import c
from jdistill.export.verify import Start, Step

APP, SIL = (Path(__file__).parent / name for name in ("crazyflie_app", "crazyflie_sil"))
"""What is the same in every app, and what stands in for the firmware."""
INCLUDES = (
    *("app.h", "FreeRTOS.h", "task.h", "controller.h", "controller_pid.h", "attitude_controller.h"),
    *("position_controller.h", "platform_defaults.h", "log.h", "param.h"),
)
"""The firmware's headers that the controller includes."""
LIMITS: dict[str, tuple[Any, str]] = {
    "DISTANCE": ("2.0f", "m, from the setpoint"),
    "TILT": ("80.0f", "degrees"),
    "SPEED": ("4.0f", "m/s"),
    "RATE": ("35.0f", "rad/s"),
}
"""Beyond them the PID controller flies."""


class Loop:
    """The controller as this machine's compiler builds it, with the stand-in for the firmware around it."""

    def __init__(self, library: Any, motors: Mapping[str, Any]):
        self.library, self.motors = library, motors

    @staticmethod
    def compiled(compiler: Sequence[str], sources: Path, motors: Mapping[str, Any]) -> Loop | None:
        """From the folder ``sources`` of an app; None where the compiler builds for another machine.

        Raises:
            ExportError: it does not compile.
        """
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "sil.so"
            flags = build_flags(Path(folder), motors)
            files = [str(SIL / "sil.c"), str(sources / "policy.c")]
            command = [*compiler, *flags, f"-I{sources}", "-shared", "-fPIC", *files, "-o", str(library), "-lm"]
            built = subprocess.run(command, capture_output=True, text=True)
            if built.returncode:
                said = next((line for line in built.stderr.splitlines() if "error" in line), "no error message")
                raise ExportError(f"crazyflie: {compiler[0]} does not compile the controller: {said}")
            try:
                return Loop(ctypes.CDLL(str(library)), motors)
            except OSError:
                return None

    def craft(self, count: int) -> Craft:
        """As many craft, whose controllers have just been started, with their limits."""
        self.library.sil_limits(*(ctypes.c_float(float(value.rstrip("f"))) for value, _ in LIMITS.values()))
        return Craft(self, count)

    def policy(self, order: Sequence[int], frame: str) -> Start:
        """What the controller makes of the student's observation, which must be all 22 numbers; see :meth:`Craft.act`.

        The state that it is given is one that looks like that: the setpoint is the world's origin, and the episode
        begins with heading 0 where the frame is ``start``. No limit makes the PID controller fly.
        """

        def start() -> Step:
            craft = self.craft(1)
            self.library.sil_limits(*map(ctypes.c_float, (math.inf, 180.0, math.inf, math.inf)))

            def act(obs: np.ndarray) -> np.ndarray:
                seen = np.zeros((1, 22), np.float32)
                seen[:, list(order)] = obs
                rotation = seen[:, 6:15].reshape(-1, 3, 3)
                errors = np.stack([seen[:, :3], seen[:, 3:6]], axis=-1)
                if frame == "body":
                    errors = rotation @ errors
                state = np.concatenate([errors[..., 0], errors[..., 1], quaternions(rotation), seen[:, 15:18]], axis=1)
                return craft.act(state, np.zeros((1, 6), np.float32))[0]

            return act

        return start


class Craft:
    """Controllers in flight, and what they remember."""

    def __init__(self, loop: Loop, count: int):
        self.loop, self.count, self.steps = loop, count, 0
        self.memory = ctypes.create_string_buffer(loop.library.sil_size() * count)
        loop.library.sil_begin(count, self.memory)

    def act(self, state: np.ndarray, setpoint: np.ndarray, mode: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """A control step, with everything in the firmware's units on its way.

        Args:
            state: (B, 13) position (m), velocity (m/s), quaternion (xyzw), body rates (rad/s).
            setpoint: (B, 6) position and velocity, world frame.
            mode: the firmware's mode of the setpoint; 1 is a position.

        Returns:
            The actions (B, 4) in [-1, 1] of the rotor speeds that the motors are given; why the PID controller flies,
            (B,) uint8, 0 where the policy does.
        """
        degrees = np.concatenate([state[:, :10], np.rad2deg(state[:, 10:])], axis=1)
        seen = np.concatenate([degrees, setpoint, np.full((self.count, 1), mode)], axis=1)
        seen = np.ascontiguousarray(seen, np.float32)
        newtons, fallback = np.zeros((self.count, 4), np.float32), np.zeros(self.count, np.uint8)
        self.loop.library.sil_step(
            *(self.count, self.memory, seen.ctypes, self.steps), *(newtons.ctypes, fallback.ctypes)
        )
        self.steps += 1
        (low, high), (c0, c1, c2) = self.loop.motors["rpm"], self.loop.motors["thrust"]
        rpm = (-c1 + np.sqrt(np.maximum(c1 * c1 - 4 * c2 * (c0 - newtons.astype(np.float64)), 0.0))) / (2 * c2)
        return (2 * (rpm - low) / (high - low) - 1).astype(np.float32), fallback


def build_flags(folder: Path, motors: Mapping[str, Any]) -> list[str]:
    """A compiler's flags for the controller without a firmware; ``folder`` gets what stands for its headers."""
    for name in INCLUDES:
        (folder / name).write_text('#include "firmware.h"\n')
    top = thrust(motors, motors["rpm"][1])
    low, high = motors["rpm"]
    hover = thrust(motors, low + motors["hover_command"] * (high - low))
    return [
        *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{folder}", f"-I{SIL}", f"-I{APP / 'src'}"),
        *(f"-DSIL_THRUST_MAX={c.literal(top)}", f"-DSIL_HOVER_THRUST={c.literal(hover)}"),
    ]


def quaternions(rotation: np.ndarray) -> np.ndarray:
    """Of rotation matrices (B, 3, 3): (B, 4) xyzw, by the largest of the four numbers (Shepperd's method)."""
    r = rotation.astype(np.float64)
    trace = np.trace(r, axis1=1, axis2=2)
    squares = np.stack([*(1 + 2 * r[:, i, i] - trace for i in range(3)), 1 + trace], axis=1)  # 4 q_i^2
    products = np.zeros((len(r), 4, 4))  # 4 q_i q_j
    for i, j, value in (
        (0, 1, r[:, 1, 0] + r[:, 0, 1]),
        (0, 2, r[:, 0, 2] + r[:, 2, 0]),
        (1, 2, r[:, 2, 1] + r[:, 1, 2]),
        (0, 3, r[:, 2, 1] - r[:, 1, 2]),
        (1, 3, r[:, 0, 2] - r[:, 2, 0]),
        (2, 3, r[:, 1, 0] - r[:, 0, 1]),
    ):
        products[:, i, j] = products[:, j, i] = value
    products[:, range(4), range(4)] = squares
    row = products[np.arange(len(r)), squares.argmax(axis=1)]
    return (row / np.linalg.norm(row, axis=1, keepdims=True)).astype(np.float32)


def thrust(motors: Mapping[str, Any], rpm: Any) -> Any:
    """N at a rotor speed in rpm."""
    c0, c1, c2 = motors["thrust"]
    return c0 + rpm * (c1 + rpm * c2)
