"""What importing the packages costs, and what it must not need."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

from tests.conftest import ROOT


def modules_after(code: str) -> set[str]:
    """Top-level modules loaded in a fresh interpreter after ``code``."""
    code += "\nimport sys; print(' '.join({m.split('.')[0] for m in sys.modules}))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(out.stdout.split())


def test_the_learner_imports_no_torch_and_no_simulator():
    files = [p.relative_to(ROOT).with_suffix("") for p in (ROOT / "jdistill").rglob("*.py")]
    names = [".".join(p.parts) for p in files if p.stem not in ("__init__", "__main__", "rsl_rl_models", "torchscript")]
    assert "jdistill.core.distillation" in names and "jdistill.cli.train" in names
    loaded = modules_after("\n".join(f"import {name}" for name in names))
    assert "jdistill" in loaded and "jax" in loaded
    assert not loaded & {"torch", "crazyflow", "mujoco", "isaaclab", "gymnasium", "wandb", "tensorboardX"}


def test_task_names_cost_no_simulator():
    loaded = modules_after("from bridge import registry; assert 'crazyflie' in registry.task_names()")
    assert not loaded & {"jax", "torch", "crazyflow", "mujoco", "isaaclab", "jdistill"}


def test_the_public_names_cost_nothing_until_they_are_used():
    assert not modules_after("import jdistill; assert jdistill.__version__") & {"jax", "numpy", "torch", "crazyflow"}


def test_the_bridge_does_not_know_the_learner():
    loaded = modules_after(
        "from bridge.tasks import TASKS, make_env; t = TASKS['crazyflie'](); make_env(t, t.cfg_cls(num_envs=1))"
    )
    assert "crazyflow" in loaded and not loaded & {"jdistill", "torch"}


def test_the_isaaclab_task_brings_no_jax():
    loaded = modules_after("import bridge.isaaclab_tasks.point_control.env")
    assert "isaaclab" in loaded and not loaded & {"jax", "crazyflow", "jdistill"}


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
        named = {name for name in names_in(file.read_text()) if re.search("isaac|crazyfl", name, re.IGNORECASE)}
        assert not named, f"{file.relative_to(ROOT)} names {named}"
