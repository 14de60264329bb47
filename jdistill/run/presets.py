"""Config files that come with the project, by name; those of a task always apply to it."""

from __future__ import annotations

from pathlib import Path

import jdistill
from jdistill.errors import ConfigError, nearest

_PACKAGE = Path(jdistill.__file__).parent
FOLDER = next(folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir())
"""In the wheel the files lie in the package, in a checkout at its root."""


def preset(name: str) -> Path:
    """The file of the preset ``name``."""
    return FOLDER / f"{name}.yaml"


def config_path(text: str) -> Path:
    """What ``--config`` means: a file, or the name of a preset.

    Raises:
        ConfigError: there is neither.
    """
    named = preset(text.removesuffix(".yaml"))
    for path in (Path(text), named):
        if path.is_file():
            return path
    names = sorted(p.stem for p in FOLDER.glob("*.yaml"))
    raise ConfigError(f"--config {text}: no such file or preset{nearest(text, names)}; presets: {', '.join(names)}")
