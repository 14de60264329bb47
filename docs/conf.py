"""Sphinx: the pages of this folder, and the API reference from the docstrings. Building them needs no network.

uv run --group docs sphinx-build -W -n -q --keep-going docs docs/_build
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "jdistill"
author = "jdistill contributors"
project_copyright = "2026, jdistill contributors"
extensions = ["myst_parser", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "jdistill"

myst_heading_anchors = 3

apidoc_modules = [
    {
        "path": str(ROOT / package),
        "destination": f"api/{package}",
        "exclude_patterns": [str(ROOT / "bridge" / "isaaclab_tasks"), str(ROOT / "jdistill" / "__main__.py")],
        "separate_modules": True,
        "module_first": True,
        "automodule_options": {"members", "ignore-module-all"},
    }
    for package in ("jdistill", "bridge")
]
autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
# Never imported: the pages are the same whatever is installed, and soon there.
autodoc_mock_imports = [
    *("crazyflow", "gymnasium", "isaaclab", "isaaclab_rl", "isaaclab_tasks", "mujoco", "rsl_rl", "tensordict", "torch")
]
# Links to the pages of other packages would need the network. Type variables have none, and neither have annotations
# that stay text, as those of a class one of which Python cannot evaluate.
EXTERNAL = "argparse|collections|contextlib|datetime|flax|h5py|jax|jaxlib|mujoco|np|numpy|omegaconf|onnx|optax|pathlib"
EXTERNAL += "|plotly|rich|rsl_rl|tensordict|torch|types"
nitpick_ignore_regex = [(r"py:.*", rf"({EXTERNAL})\..*"), (r"py:class", r"(.*\.)?[A-Z]|Array|Path|(dict|tuple)\[\w+")]


def keep_whole(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Begin attributes' docstrings with an empty comment, as Napoleon takes what precedes a colon there for a type."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def find_in_any_module(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Resolve names as their module knows them: ``ConfigError`` may be imported there."""
    if node.get("refdomain") != "py" or node.get("refspecific"):
        return None
    node["refspecific"] = True
    domain, target = env.get_domain("py"), node["reftarget"]
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], target, node, contnode)


def setup(app: Any) -> None:
    """Sphinx's hook."""
    app.connect("autodoc-process-docstring", keep_whole, priority=100)
    app.connect("missing-reference", find_in_any_module)
