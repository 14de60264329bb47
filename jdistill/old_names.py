"""Modules that have moved, by the names that they had.

Exported ``policy.json`` files, scripts and habits name them: ``jdistill.interop.rsl_rl_models:RNNModel``,
``from jdistill.policy_file import load_policy``, ``python -m jdistill.evaluate RUN``. An old name gives the very same
module, and ``python -m`` with the old name of a command runs the command.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

MOVED = {
    "interop": "export",
    "interop.onnx": "export.onnx",
    "interop.raptor": "export.raptor",
    "interop.rsl_rl": "export.rsl_rl",
    "interop.rsl_rl_checkpoint": "export.rsl_rl_checkpoint",
    "interop.rsl_rl_models": "export.rsl_rl_models",
    "interop.torchscript": "export.torchscript",
    "checkpoint": "run.checkpoint",
    "compilation": "run.compilation",
    "config": "core.config",
    "console": "run.console",
    "dataset": "data.dataset",
    "distillation": "core.distillation",
    "episodes": "data.episode_writer",
    "evaluate": "evaluation.evaluate",
    "figures": "evaluation.figures",
    "flight": "evaluation.rollouts",
    "handover": "data.shared_buffer",
    "history": "core.history",
    "journal": "data.write_ahead_log",
    "log": "run.loggers",
    "networks": "core.networks",
    "observations": "core.observations",
    "play": "evaluation.play",
    "policy_file": "export.policy_file",
    "profiling": "run.profiling",
    "progress": "run.progress",
    "provenance": "run.provenance",
    "recorder": "data.recorder",
    "recurrence": "core.recurrence",
    "report": "evaluation.report",
    "run_folder": "run.saved_run",
    "runner": "run.runner",
    "runs": "run.folders",
    "samplers": "core.samplers",
    "schedule": "core.schedule",
    "video": "evaluation.video",
}
LEFT: dict[str, dict[str, tuple[str, ...]]] = {
    "config": {"run.compose": ("BridgeCfg", "RunCfg", "compose", "load_file")},
    "interop.rsl_rl_checkpoint": {"export.rsl_rl_export": ("actor_checkpoint", "distillation_checkpoint")},
    "runner": {"run.inputs": ("load_recording", "load_teacher", "make_student", "resolve_obs_groups")},
}
"""What is in another module now than the one that an old name gives, which has it too once that name was used."""
COMMANDS = ("convert", "dataset", "evaluate", "export.__main__", "play", "report", "runs")
"""What ``python -m jdistill.NAME`` runs; of a package, as ``jdistill.export`` is one now, that is its ``__main__``."""
_PACKAGE = __package__ + "."


class OldNames(MetaPathFinder):
    """Stands first in ``sys.meta_path``, or the files of ``jdistill.export`` would be found under ``interop``, too."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of an old name, None for any other."""
        name = fullname.removeprefix(_PACKAGE)
        if name == fullname or name not in (*MOVED, *COMMANDS):
            return None
        # With ``python -m`` the origin becomes sys.argv[0].
        return ModuleSpec(fullname, _Loader(), origin=__file__, is_package=name == "interop")


class _Loader(InspectLoader):
    def exec_module(self, module: ModuleType) -> None:
        """Put the module that is meant into the place of the new one."""
        name = module.__name__.removeprefix(_PACKAGE)
        sys.modules[module.__name__] = moved(name) or importlib.import_module(f"{_PACKAGE}cli.{name}")

    def get_code(self, fullname: str) -> CodeType:
        """What ``python -m`` runs."""
        name = fullname.removeprefix(_PACKAGE)
        if name in COMMANDS:
            command = name.removesuffix(".__main__")
            program = f"import sys\nfrom jdistill.cli.main import main\nsys.exit(main([{command!r}, *sys.argv[1:]]))"
        else:
            program = f"raise SystemExit('{fullname} is no command; jdistill --help lists them')"
        return compile(program, f"<{fullname}>", "exec")

    def get_source(self, fullname: str) -> None:
        """There is none."""
        return None


def install() -> None:
    """Let the old names be imported."""
    if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, OldNames())


def moved(name: str) -> ModuleType | None:
    """The module that ``jdistill.<name>`` was, None if it was none: for ``from jdistill import networks``."""
    if name not in MOVED:
        return None
    module = importlib.import_module(_PACKAGE + MOVED[name])
    for home, names in LEFT.get(name, {}).items():
        for left in names:
            setattr(module, left, getattr(importlib.import_module(_PACKAGE + home), left))
    return module
