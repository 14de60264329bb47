"""Students of point control as an app for the Crazyflie's firmware: an out-of-tree controller, built by the firmware.

``crazyflie_app/`` is what the firmware's app layer wants: ``Makefile``, ``Kbuild``, ``app-config``, and in ``src/`` the
controller, the policy in C (:mod:`jdistill.export.c`), and ``policy_task.h``, which says what the controller is to know
of the task. The controller is the same for all students: ``crazyflie_app`` beside this module.
:mod:`jdistill.export.crazyflie_loop` flies it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdistill.errors import ExportError
from jdistill.export import c
from jdistill.export.crazyflie_loop import APP, LIMITS, Loop, thrust
from jdistill.export.formats import Exported, Student
from jdistill.export.raptor import MOTORS, PARTS

NAME = "crazyflie_app"
"""Of the folder that is written."""
SCRATCH = "/* The stack of the firmware's control loop is small. */\n#define POLICY_SCRATCH static\n\n"
PLATFORMS = {
    "cf2x_L250": "CONFIG_PLATFORM_CF2=y\nCONFIG_CRAZYFLIE_LEGACY_PROPELLERS=y\n",
    "cf2x_P250": "CONFIG_PLATFORM_CF2=y\nCONFIG_CRAZYFLIE_21_PLUS=y\n",
    "cf2x_T350": "CONFIG_PLATFORM_CF2=y\nCONFIG_CRAZYFLIE_THRUST_UPGRADE_KIT=y\n",
    "cf21B_500": "CONFIG_PLATFORM_CF21BL=y\n",
}
"""The firmware's settings of an airframe, by Crazyflow's name of it."""
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
    groups = header.get("observation", {}).get("groups", [])
    if images := [group["name"] for group in groups if "shape" in group]:
        raise ExportError(f"crazyflie: the student sees images ({', '.join(images)}); the firmware has none")
    parts = [part for group in groups for part in group.get("layout") or [{}]]
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
    if not header.get("motors"):
        raise ExportError(
            "crazyflie: nothing says how the motors pull; students of the embedded point control on one env.drone do"
        )
    return dict(header["motors"])


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
