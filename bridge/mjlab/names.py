"""mjlab's tasks by name, read from the sources that register them: importing mjlab takes half a minute."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

GROUP = "mjlab.tasks"
"""Entry points of packages that register tasks of their own, and mjlab's module of them."""
REGISTERED = re.compile(r"""register_mjlab_task\(\s*(?:task_id\s*=\s*)?["']([^"'{]+)["']""")


@functools.cache
def task_names() -> Sequence[str]:
    """Every task that an installed package registers under a name that stands in its sources."""
    modules = [GROUP, *(point.module for point in importlib.metadata.entry_points(group=GROUP))]
    files = {file for module in modules for file in _sources(module)}
    return sorted({name for file in files for name in REGISTERED.findall(file.read_text(errors="replace"))})


def _sources(module: str) -> Iterator[Path]:
    """The files of a module, or of a package with all that is in it; nothing is imported."""
    top, *inner = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return
    if spec.submodule_search_locations is None and spec.origin:
        yield Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, *inner)
        yield from path.rglob("*.py")
        yield from (file for file in [path.with_suffix(".py")] if file.is_file())
