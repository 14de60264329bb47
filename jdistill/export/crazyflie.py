"""Students of point control as an app for the Crazyflie's firmware: an out-of-tree controller, built by the firmware.

``crazyflie_app/`` is what the firmware's app layer wants: ``Makefile``, ``Kbuild``, ``app-config``, and in ``src/`` the
controller, the policy in C (:mod:`jdistill.export.c`), and ``policy_task.h``, which says what the controller is to know
of the task. The controller is the same for all students: ``crazyflie_app`` beside this module. ``crazyflie_sil`` stands
in for the firmware, so that this machine's C compiler builds the controller as it is and it flies in the simulator.
"""

from __future__ import annotations

import ctypes
import math
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdistill.errors import ExportError
from jdistill.export import c
from jdistill.export.formats import Exported, Student
from jdistill.export.raptor import MOTORS, PARTS
from jdistill.export.verify import Start, Step

HERE = Path(__file__).parent
APP, SIL = HERE / "crazyflie_app", HERE / "crazyflie_sil"
NAME = "crazyflie_app"
"""Of the folder that is written."""
INCLUDES = (
    *("app.h", "FreeRTOS.h", "task.h", "controller.h", "controller_pid.h", "attitude_controller.h"),
    *("position_controller.h", "platform_defaults.h", "log.h", "param.h"),
)
"""The firmware's headers that the controller includes."""
SCRATCH = "/* The stack of the firmware's control loop is small. */\n#define POLICY_SCRATCH static\n\n"
PLATFORMS = {
    "cf2x_L250": "CONFIG_PLATFORM_CF2=y\nCONFIG_CRAZYFLIE_LEGACY_PROPELLERS=y\n",
    "cf2x_P250": "CONFIG_PLATFORM_CF2=y\nCONFIG_CRAZYFLIE_21_PLUS=y\n",
    "cf2x_T350": "CONFIG_PLATFORM_CF2=y\nCONFIG_CRAZYFLIE_THRUST_UPGRADE_KIT=y\n",
    "cf21B_500": "CONFIG_PLATFORM_CF21BL=y\n",
}
"""The firmware's settings of an airframe, by Crazyflow's name of it."""
LIMITS: dict[str, tuple[Any, str]] = {
    "DISTANCE": ("2.0f", "m, from the setpoint"),
    "TILT": ("80.0f", "degrees"),
    "SPEED": ("4.0f", "m/s"),
    "RATE": ("35.0f", "rad/s"),
}
"""Beyond them the PID controller flies."""
TOLERANCE = {"body": 2e-3, "world": 2e-3, "start": 5e-2}
"""How far actions may be from the student's by the frame: thrusts are shares in 16 bits and motors never quite stand
still; and the heading in which an episode starts is what the sensors say of it, noise and all."""


def export(student: Student, out: Path) -> Exported:
    """``crazyflie_app/``, the format ``crazyflie`` of :mod:`jdistill.export.formats`.

    The machine's C compiler builds the controller, which is compared with the student and flies by itself. Where there
    is none the app is written all the same.

    Raises:
        ExportError: the controller cannot give the student what it observes, ``crazyflie_app`` exists, or the compiler
            refuses the code.
    """
    header = student.header
    order, frame, motors = _observed(header), _frame(header), _motors(header)
    folder = out / NAME
    if folder.exists():
        raise ExportError(f"{folder}: exists; remove it, or name another folder by --out")
    with tempfile.TemporaryDirectory(dir=out, prefix=".") as temporary:
        part = Path(temporary) / NAME
        for file in filter(Path.is_file, APP.rglob("*")):
            copy = part / file.relative_to(APP)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
        (part / "src" / "policy.h").write_text(c.header_text("policy", student.layers, header))
        (part / "src" / "policy.c").write_text(SCRATCH + c.source_text("policy", student.layers))
        (part / "src" / "policy_task.h").write_text(task_header(order, frame, motors, int(header["control_rate_hz"])))
        (part / "app-config").write_text(_config(motors["airframe"]))
        (part / "README.md").write_text(_readme(student, motors))
        compiler = c.find_compiler()
        loop = None if compiler is None else Loop.compiled(compiler, part / "src", motors)
        part.rename(folder)
    start = None if loop is None else loop.policy(order, frame)
    return Exported(folder, start, notes={"airframe": motors["airframe"]}, tolerance=TOLERANCE[frame], flies=True)


# -- what the controller must know of the task ---------------------------------------------------------------------


def _observed(header: Mapping[str, Any]) -> list[int]:
    """Which of the controller's 22 numbers each number of the observation is."""
    places = dict(zip(PARTS, np.cumsum([0, *PARTS.values()]).tolist(), strict=False))
    order: list[int] = []
    parts = [part for group in header.get("observation", {}).get("groups", []) for part in group.get("layout") or [{}]]
    for part in parts or [{}]:
        named = re.fullmatch(r"(\w+)(?:\[(\d+):(\d+)\])?", part.get("name", ""))
        if named is None or named[1] not in PARTS:
            what = part.get("name") or "numbers that nobody named"
            raise ExportError(f"crazyflie: the student observes {what}; the firmware gives {', '.join(PARTS)}")
        first, last = int(named[2] or 0), int(named[3] or PARTS[named[1]])
        order += range(places[named[1]] + first, places[named[1]] + last)
    if sorted(order) != list(range(sum(PARTS.values()))):
        raise ExportError(f"crazyflie: the student observes a part of {', '.join(PARTS)}; all is wanted, once")
    return order


def _frame(header: Mapping[str, Any]) -> str:
    frames = {str(group.get("frame")) for group in header["observation"]["groups"]}
    if len(frames) > 1 or not frames <= {"body", "world", "start"}:
        found = ", ".join(sorted(frames))
        raise ExportError(f"crazyflie: the student's errors are in the frame {found}; body, world or start is wanted")
    return frames.pop()


def _motors(header: Mapping[str, Any]) -> dict[str, Any]:
    action, rate = header.get("action", {}), header.get("control_rate_hz")
    if action.get("layout") != MOTORS or action.get("range") != [-1, 1]:
        raise ExportError(f"crazyflie: the student's actions are not {', '.join(MOTORS)} in [-1, 1]")
    if not rate or 1000 % rate or rate % 1:
        raise ExportError(f"crazyflie: {rate} actions a second do not divide the firmware's loop, 1000 times a second")
    if "motors" not in header:
        raise ExportError(
            "crazyflie: nothing says how the motors pull; students of the embedded point control on one env.drone do"
        )
    return dict(header["motors"])


def thrust(motors: Mapping[str, Any], rpm: Any) -> Any:
    """N at a rotor speed in rpm."""
    c0, c1, c2 = motors["thrust"]
    return c0 + rpm * (c1 + rpm * c2)


def task_header(order: Sequence[int], frame: str, motors: Mapping[str, Any], rate: int) -> str:
    """``policy_task.h``."""
    numbers = {
        "HOVER_COMMAND": (motors["hover_command"], "0 to 1, carries the craft"),
        "RPM_MIN": (motors["rpm"][0], "rotor speed at the command 0"),
        "RPM_MAX": (motors["rpm"][1], "and 1"),
        **{f"THRUST_{i}": (x, f"N / rpm^{i}, of a motor") for i, x in enumerate(motors["thrust"])},
        "MOTOR_THRUST_MIN": (thrust(motors, motors["rpm"][0]), "N"),
    }
    lines = [f"#define {name} {c.literal(value)} /* {text} */" for name, (value, text) in numbers.items()]
    steps = {
        "STILL_STEPS": (max(rate // 10, 2), "with the very same estimate: 0.1 s"),
        "RECOVERY_STEPS": (rate, "without a fault before the policy flies again: 1 s"),
    }
    lines += [f"#define LIMIT_{name} {value} /* {text} */" for name, (value, text) in (LIMITS | steps).items()]
    return f"""/* What the controller is to know of the task; thrusts are those of {motors["airframe"]}. */
#ifndef POLICY_TASK_H
#define POLICY_TASK_H

enum {{ FRAME_BODY, FRAME_WORLD, FRAME_START }};
#define FRAME FRAME_{frame.upper()} /* of position and velocity errors */
#define OBSERVATION_ORDER {{{", ".join(map(str, order))}}}
{chr(10).join(lines)}

#endif
"""


def _config(airframe: str) -> str:
    """``app-config``: settings that go over the firmware's defaults."""
    return f"""CONFIG_APP_ENABLE=y
CONFIG_APP_PRIORITY=1
CONFIG_APP_STACKSIZE=350
CONFIG_CONTROLLER_OOT=y
CONFIG_ENABLE_THRUST_BAT_COMPENSATED=y
{PLATFORMS.get(airframe, "# Which craft it is (CONFIG_PLATFORM_..., CONFIG_CRAZYFLIE_...): say it here." + chr(10))}"""


def _readme(student: Student, motors: Mapping[str, Any]) -> str:
    text = (APP / "README.md").read_text()
    iteration = student.header.get("iteration", "?")
    return text.replace("AIRFRAME", motors["airframe"]).replace("ITERATION", str(iteration))


# -- software in the loop ------------------------------------------------------------------------------------------


class Loop:
    """The controller as this machine's compiler builds it, with the stand-in for the firmware around it."""

    def __init__(self, library: ctypes.CDLL, motors: Mapping[str, Any]):
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
