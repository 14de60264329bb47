"""Modules by the names that they had before."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import jdistill
from jdistill import old_names
from jdistill.old_names import COMMANDS, LEFT, MOVED, OldNames
from tests.conftest import ROOT

pytestmark = pytest.mark.full


@pytest.mark.parametrize("name", MOVED)
def test_an_old_name_gives_the_very_module(name):
    module = importlib.import_module(f"jdistill.{name}")
    assert module is importlib.import_module(f"jdistill.{MOVED[name]}")
    assert module.__spec__.name == module.__name__ == f"jdistill.{MOVED[name]}"


@pytest.mark.parametrize("name", LEFT)
def test_a_module_by_its_old_name_has_what_has_left_it(name):
    module = importlib.import_module(f"jdistill.{name}")
    for home, names in LEFT[name].items():
        for left in names:
            assert getattr(module, left) is getattr(importlib.import_module(f"jdistill.{home}"), left)


def test_an_old_module_does_not_hide_the_function():
    importlib.import_module("jdistill.evaluate")
    assert callable(jdistill.evaluate) and "episodes" in jdistill.evaluate.__doc__
    from jdistill import networks

    assert networks is importlib.import_module("jdistill.core.networks")
    with pytest.raises(AttributeError, match="no attribute 'netwroks'"):
        jdistill.netwroks  # noqa: B018


def test_exported_files_name_models_that_are_found():
    """As rsl_rl resolves ``class_name``."""
    module = importlib.import_module("jdistill.interop.rsl_rl_models")
    assert module.RNNModel is importlib.import_module("jdistill.export.rsl_rl_models").RNNModel


def test_old_commands_run():
    code = "import runpy, sys\nfor name in sys.argv.pop().split():\n  sys.argv = [name, '--help']\n  try:\n"
    code += "    runpy.run_module(f'jdistill.{name}', run_name='__main__', alter_sys=True)\n"
    code += "  except SystemExit as stop:\n    assert stop.code == 0\n"
    assert OldNames().find_spec("jdistill.evaluate").origin == old_names.__file__, "JAX reads sys.argv, all of it"
    names = " ".join(name.removesuffix(".__main__") for name in COMMANDS)
    done = subprocess.run([sys.executable, "-c", code, names], capture_output=True, text=True, cwd=ROOT, check=True)
    for name in names.split():
        assert f"usage: jdistill {name} " in done.stdout
    done = subprocess.run([sys.executable, "-m", "jdistill.networks"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and done.stderr == "jdistill.networks is no command; jdistill --help lists them\n"
