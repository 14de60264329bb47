"""Sphinx: the pages of this folder, and the API reference from the docstrings. Building them needs no network.

uv run --group docs sphinx-build -W -n -q --keep-going docs docs/_build
"""

from __future__ import annotations

import os
import re
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

# What a module takes from elsewhere has its page there. (For packages apidoc reads the environment, and that alone.)
apidoc_automodule_options = {"members", "ignore-module-all"}
os.environ["SPHINX_APIDOC_OPTIONS"] = ",".join(apidoc_automodule_options)
apidoc_modules = [
    {
        "path": str(ROOT / package),
        "destination": f"api/{package}",
        "exclude_patterns": [str(ROOT / "bridge" / "isaaclab_tasks"), str(ROOT / "jdistill" / "__main__.py")],
        "separate_modules": True,
        "module_first": True,
    }
    for package in ("jdistill", "bridge")
]
autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
# Never imported: the pages are the same whatever is installed, and soon there.
autodoc_mock_imports = [
    *("crazyflow", "gymnasium", "isaaclab", "isaaclab_rl", "isaaclab_tasks", "mjlab", "mujoco", "rsl_rl", "tensordict"),
    "torch",
]
# Links to the pages of other packages would need the network. Type variables and private names have no page.
EXTERNAL = (
    "argparse|collections|contextlib|datetime|flax|h5py|importlib|io|jax|jaxlib|mjlab|mujoco|np|numpy|omegaconf|onnx"
)
EXTERNAL += "|optax|pathlib|plotly|rich|rsl_rl|tensordict|torch|types"
nitpick_ignore_regex = [(r"py:.*", rf"_?({EXTERNAL}|frozen_importlib)\..*"), (r"py:class", r"(.*\.)?([A-Z]|_\w+)")]
# Of annotations that Python cannot evaluate, Sphinx looks up the parts.
nitpick_ignore_regex += [(r"py:class", r"(dict|tuple)\[~?[\w.]+|AbstractContextManager")]


def keep_whole(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Begin attributes' docstrings with an empty comment, as Napoleon takes what precedes a colon there for a type."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]


def find_as_imported(app: Any, env: Any, node: Any, contnode: Any) -> Any:
    """Resolve a name as the module knows it that mentions it: ``ConfigError`` where that is imported."""
    found = getattr(sys.modules.get(node.get("py:module")), node["reftarget"], None)
    if node.get("refdomain") != "py" or not hasattr(found, "__qualname__"):
        return None
    target = f"{found.__module__}.{found.__qualname__}"
    if re.match(EXTERNAL, target):
        return contnode
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], target, node, contnode)


def setup(app: Any) -> None:
    """Sphinx's hook."""
    app.connect("autodoc-process-docstring", keep_whole, priority=100)
    app.connect("missing-reference", find_as_imported)
