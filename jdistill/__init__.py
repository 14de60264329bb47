"""Two-stage teacher-student distillation for robot learning as one compiled JAX program.

What is for others to use stands here, and is imported when it is first asked for::

    import jdistill

    run = jdistill.train("crazyflie", phase1=500)
    numbers = jdistill.evaluate(run)
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from jdistill import old_names

if TYPE_CHECKING:
    from bridge.env import Env, State
    from bridge.errors import UserError
    from bridge.tasks import Scenario, Task
    from jdistill.api import evaluate, make_env, train
    from jdistill.core.networks import Policy, PolicyState
    from jdistill.export.policy_file import load_policy, save_policy

__version__ = "0.1.0"
__all__ = [
    "Env",
    "Policy",
    "PolicyState",
    "Scenario",
    "State",
    "Task",
    "UserError",
    "__version__",
    "evaluate",
    "load_policy",
    "make_env",
    "save_policy",
    "train",
]

_HOMES = {
    "Env": "bridge.env",
    "Policy": "jdistill.core.networks",
    "PolicyState": "jdistill.core.networks",
    "Scenario": "bridge.tasks",
    "State": "bridge.env",
    "Task": "bridge.tasks",
    "UserError": "bridge.errors",
    "evaluate": "jdistill.api",
    "load_policy": "jdistill.export.policy_file",
    "make_env": "jdistill.api",
    "save_policy": "jdistill.export.policy_file",
    "train": "jdistill.api",
}


class _Package(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        # Whoever imports the old module jdistill.evaluate shall not hide the function from everybody else.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    if (module := old_names.moved(name)) is not None:
        return module
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package
old_names.install()
