"""Which room may import which, how long files and functions get, and what importing the packages costs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import OPTIONAL, ROOT

BELOW = {
    "bridge": set(),
    "jdistill.errors": {"bridge.errors"},
    "jdistill.files": set(),
    "jdistill.core": {"jdistill.errors", "bridge.env", "bridge.errors", "bridge.keys", "bridge.teaching"},
    "jdistill.data": {"jdistill.core", "jdistill.errors", "jdistill.files", "bridge.errors"},
    "jdistill.export": {"jdistill.core", "jdistill.errors", "jdistill.files", "bridge.env", "bridge.errors"},
    "jdistill.run": {
        "jdistill.export",
        "jdistill.data",
        "jdistill.core",
        "jdistill.errors",
        "jdistill.files",
        "bridge",
    },
    "jdistill.evaluation": {
        "jdistill.run",
        "jdistill.export",
        "jdistill.data",
        "jdistill.core",
        "jdistill.errors",
        "jdistill.files",
        "bridge",
    },
    "jdistill.cli": {"jdistill", "bridge"},
}
"""What each room may import of ours, beside itself."""
SIMULATORS = (
    *("bridge.isaaclab", "bridge.isaaclab_tasks", "bridge.mjlab", "bridge.crazyflie"),
    *("bridge.brax", "bridge.playground", "bridge.gymnax"),
    *("isaaclab", "mjlab", "crazyflow", "mujoco", "brax", "mujoco_playground", "gymnax"),
)
"""Only the bridge knows these."""
MODULES = sorted([*(ROOT / "jdistill").rglob("*.py"), *(ROOT / "bridge").rglob("*.py")])
DOORS = {"jdistill", "jdistill.__main__", "jdistill.api", "jdistill.old_names", "jdistill.export.__main__"}
"""They lie in no room and may import all."""
FIRMWARE = {"crazyflie", "jdistill.export.crazyflie:export"}
"""The export format for the Crazyflie's firmware, by its name and its place."""
MAX_FILE, MAX_FUNCTION = 400, 60


def is_within(name: str, packages: Iterator[str] | set[str] | tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """All that a module imports, within functions too; ``from a import b`` as ``a.b``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import hides the room"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("room", sorted(BELOW))
def test_a_room_imports_only_rooms_below_it(room):
    modules = [path for path in MODULES if is_within(module_name(path), (room,)) and module_name(path) not in DOORS]
    allowed = BELOW[room] | {room}
    found = {
        f"{module_name(path)} imports {name}"
        for path in modules
        for name in imports(path)
        # ``import jdistill`` and ``from jdistill import __version__`` ask for no room.
        if is_within(name, ("jdistill", "bridge")) and name not in ("jdistill", "jdistill.__version__")
        if not is_within(name, allowed)
    }
    assert modules and not found, "\n".join(sorted(found))


def test_every_module_is_in_a_room():
    outside = {name for name in map(module_name, MODULES) if not is_within(name, set(BELOW))}
    assert outside == {name for name in DOORS if not is_within(name, set(BELOW))}


def test_only_the_bridge_knows_simulators():
    found = {
        f"{module_name(path)} imports {name}"
        for path in MODULES
        if not is_within(module_name(path), ("bridge",))
        for name in imports(path)
        if is_within(name, SIMULATORS)
    }
    assert not found, "\n".join(sorted(found))


def test_files_and_functions_are_short():
    """What is longer usually holds two things."""
    long = []
    for path in [*MODULES, ROOT / "train_jax.py"]:
        text = path.read_text()
        if (lines := len(text.splitlines())) > MAX_FILE:
            long.append(f"{path.relative_to(ROOT)}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION:
                    long.append(f"{path.relative_to(ROOT)}: {node.name} has {lines} lines")
    assert not long, "\n".join(long)


@pytest.mark.full
def test_the_quick_tests_import_no_optional_package():
    code = f"""
import sys
sys.modules.update(dict.fromkeys({sorted(OPTIONAL)}))  # None: importing one raises.
import pytest
sys.exit(pytest.main(["--collect-only", "-q", "-m", "unit", "-p", "no:cacheprovider", "-p", "xdist", "-n", "0"]))
"""
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tests/jdistill/core/test_distillation.py::" in done.stdout


def modules_after(code: str) -> set[str]:
    """Top-level modules loaded in a fresh interpreter after ``code``."""
    code += "\nimport sys; print(' '.join({m.split('.')[0] for m in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(out.stdout.split())


TORCH_MODULES = {f"jdistill.export.{name}" for name in ("rsl_rl_export", "rsl_rl_models", "torchscript")}
"""They are written in torch."""


@pytest.mark.full
def test_the_learner_imports_no_torch_and_no_simulator():
    names = [n for n in map(module_name, MODULES) if n not in TORCH_MODULES and not n.endswith("__main__")]
    assert {"jdistill.core.distillation", "jdistill.cli.train", "jdistill.api"} <= set(names)
    names = [n for n in names if is_within(n, ("jdistill",))]
    loaded = modules_after("\n".join(f"import {name}" for name in names))
    assert "jdistill" in loaded and "jax" in loaded
    assert not loaded & {"torch", "crazyflow", "mujoco", "isaaclab", "gymnasium", "wandb", "tensorboardX"}


def test_task_names_cost_no_simulator():
    loaded = modules_after("from bridge import registry; assert 'crazyflie' in registry.task_names()")
    assert not loaded & {"jax", "torch", "crazyflow", "mujoco", "isaaclab", "brax", "gymnax", "jdistill"}


def test_the_public_names_cost_nothing_until_they_are_used():
    assert not modules_after("import jdistill; assert jdistill.__version__") & {"jax", "numpy", "torch", "crazyflow"}


@pytest.mark.full
def test_the_embedded_task_needs_neither_the_learner_nor_what_only_draws_it():
    loaded = modules_after(
        "from bridge.tasks import TASKS, make_env; t = TASKS['crazyflie'](); make_env(t, t.cfg_cls(num_envs=1))"
    )
    assert "jax" in loaded and not loaded & {"jdistill", "torch", "crazyflow", "mujoco"}


@pytest.mark.full
def test_the_isaaclab_task_brings_no_jax():
    loaded = modules_after("import bridge.isaaclab_tasks.point_control.env")
    assert "isaaclab" in loaded and not loaded & {"jax", "crazyflow", "jdistill"}


@pytest.mark.full
def test_registering_the_isaaclab_task_costs_no_simulator():
    loaded = modules_after("import bridge.isaaclab_tasks")
    assert "gymnasium" in loaded and not loaded & {"isaaclab", "torch", "jax", "warp"}


def names_in(code: str) -> set[str]:
    """Imports, identifiers and strings of a program; docstrings, those of attributes among them, aside."""
    tree = ast.parse(code)
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            found.add(node.value)
        found |= {
            value
            for field in ("id", "attr", "name", "arg", "module", "asname")
            if isinstance(value := getattr(node, field, None), str)
        }
    return found


def test_simulators_are_named_in_the_bridge_alone():
    assert names_in("'''isaaclab'''\nx = 1\n'''isaaclab'''") == {"x"}
    assert names_in("from bridge.isaaclab import agent as a\nb = f'{a.c}d'") == {
        *("bridge.isaaclab", "agent", "a", "b", "c", "d")
    }
    for file in [ROOT / "train_jax.py", *(ROOT / "jdistill").rglob("*.py")]:
        named = {name for name in names_in(file.read_text()) if re.search("isaac|mjlab|crazyfl", name, re.IGNORECASE)}
        if file.parent.name == "export":  # A craft with a firmware too, for which there is a format.
            named = {name for name in named if not file.stem.startswith("crazyflie") and name not in FIRMWARE}
        assert not named, f"{file.relative_to(ROOT)} names {named}"
