"""The formats of ``jdistill export --format``.

A format is a function ``(Student, folder) -> Exported`` in a file of its own, and a line in :data:`FORMATS`. Another
package adds one by an entry point in its ``pyproject.toml``::

    [project.entry-points."jdistill.exports"]
    tflite = "my_package.tflite:export"
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from jdistill.core.config import AgentCfg
from jdistill.core.networks import Policy, PolicyState
from jdistill.errors import ExportError
from jdistill.export.layers import PolicyLayers, describe
from jdistill.export.verify import Start

GROUP = "jdistill.exports"
"""The entry points of other packages' formats."""
FORMATS = {
    "rsl_rl": "jdistill.export.rsl_rl_export:export",
    "jit": "jdistill.export.torchscript:export",
    "onnx": "jdistill.export.onnx:export",
    "safetensors": "jdistill.export.policy_file:export",
    "c": "jdistill.export.c:export",
    "crazyflie": "jdistill.export.crazyflie:export",
    "px4": "jdistill.export.px4:export",
}
"""Our own formats, ``module:function`` by name. Nothing is imported before it is asked for."""


@dataclass(frozen=True)
class OnnxCfg:
    """How an ONNX graph is to look; the defaults are what rsl_rl's look like."""

    batch: int | None = 1
    """Environments that it takes at once; None for any number."""
    opset: int = 20
    """ONNX's version of the operators; 20 is the first with an exact GELU."""
    rnn: str = "operator"
    """A recurrent layer is ONNX's ``operator``, or one step of it ``unrolled`` into products and sigmoids."""
    state: str = "separate"
    """The recurrent state has inputs and outputs of its own, ``separate``, or stands ``inside``: behind the observation
    in ``obs``, behind the actions in ``actions``."""
    dtype: str = "float32"
    """Of weights and arithmetic, or ``float16``. What goes in and comes out is float32, and so is the normalizer."""


@dataclass(frozen=True, eq=False)
class Student:
    """What is exported, with what the formats need to know of its run."""

    policy: Policy
    state: PolicyState
    header: Mapping[str, Any]
    """Of its policy file."""
    agent: AgentCfg
    """The settings that it was trained with."""
    teacher_file: Path
    """Its teacher's policy file, which only some formats need."""
    actor_std: float = 0.1
    """Standard deviation with which rsl_rl's PPO begins to explore around the student."""
    name: str = "policy"
    """What the names in exported C code begin with."""
    onnx: OnnxCfg = OnnxCfg()
    """How the ONNX graph is to look."""

    @cached_property
    def layers(self) -> PolicyLayers:
        """What most formats need of policy and state."""
        return describe(self.policy, self.state)


@dataclass(frozen=True, eq=False)
class Exported:
    """What a format has written."""

    file: Path
    """A file, or a folder."""
    start: Start | None
    """The policy, read back from the file; its actions are compared with the student's. None where nothing on this
    machine can run it."""
    more_files: tuple[Path, ...] = ()
    """Files beside it."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What ``policy.json`` tells of it beside its name."""
    tolerance: float | None = None
    """The largest difference from the student's actions that counts as none; None for
    :data:`jdistill.export.verify.TOLERANCE`. A format with less precision has its own, and its line tells."""
    flies: bool = False
    """Whether what was written has a control loop of its own: it is compared in a simulator alone, where it has to fly
    the task by itself too."""


Format = Callable[[Student, Path], Exported]
"""Writes a student into a folder that exists, under a name that the format chooses.

It raises :class:`jdistill.errors.ExportError` where the student cannot be written like that. Packages that it needs are
imported by its module, so that a missing one is told before anything is written.
"""


def known_formats() -> dict[str, EntryPoint]:
    """Every format by name, our own first; nothing is imported."""
    ours = {name: EntryPoint(name, value, GROUP) for name, value in FORMATS.items()}
    return ours | {entry.name: entry for entry in entry_points(group=GROUP) if entry.name not in ours}


def load(name: str) -> Format:
    """The format ``name``; imports what it needs.

    Raises:
        ExportError: there is no such format, or a package is missing.
    """
    if name not in (known := known_formats()):
        raise ExportError(f"--format {name or '(empty)'}: expected some of {', '.join(known)}")
    try:
        export: Format = known[name].load()
    except ModuleNotFoundError as e:
        hint = "; use 'uv run --extra torch --extra onnx ...'" if name in FORMATS else ""
        raise ExportError(f"{name}: {e.name} is not installed{hint}") from e
    return export
