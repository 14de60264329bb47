"""Values of settings as people write them: YAML without its traps, and a few habits of Python.

- ``5e-4`` is a number and ``2026-02-30`` a string; YAML 1.1 has it the other way round.
- ``None`` and tuples, as Python prints them, are null and lists.
- ``${...}`` is refused: filled in when a run begins, it would write what it stands for, an environment variable for
  one, into ``config.yaml``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from jdistill.errors import ConfigError

DEPTH = 20
"""The most that settings may be nested."""
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; dates are strings."""

    yaml_implicit_resolvers = {  # noqa: RUF012  PyYAML's own name and form.
        first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def parse(text: str, what: str) -> Any:
    """``text`` as YAML; ``what`` names it in errors.

    Raises:
        ConfigError: it is none, or none that settings could be.
    """
    try:
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise ConfigError(f"{what}: not valid YAML ({' '.join(str(e).split())[:200]})") from e
    _check(value, what)
    return value


def parse_file(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        ConfigError: it cannot be read, or is no YAML that settings could be.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not valid YAML ({e})") from e
    return parse(text, str(path))


def parse_override(override: str) -> tuple[str, Any]:
    """``key=value`` of a command line; a value that is not a number, list, mapping, true, false or null is a string.

    Raises:
        ConfigError: anything else.
    """
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"{override}: expected key=value")
    plain = text.strip()
    if plain == "None":
        return key, None
    if plain.startswith("(") and plain.endswith(")"):
        plain = f"[{plain[1:-1].strip().removesuffix(',')}]"
        return key, parse(plain, override)
    value = parse(text, override)
    if value == {}:
        raise ConfigError(f"{override}: sets nothing")
    # OmegaConf makes a number of a string where a setting is one.
    return key, text if isinstance(value, str) else value


def check_finite(tree: Any, name: str) -> None:
    """Raise :class:`ConfigError` for a number in ``tree`` that is NaN or infinite; ``name`` is that of the tree."""
    for path, value in _leaves(tree, name):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{path}={value}: expected a finite number")


def _leaves(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    yield from (leaf for key, child in children for leaf in _leaves(child, f"{path}.{key}"))
    if not isinstance(tree, (dict, list, tuple)):
        yield path, tree


def _check(value: Any, what: str, depth: int = 0) -> None:
    if depth > DEPTH:
        raise ConfigError(f"{what}: nested more than {DEPTH} deep")
    if isinstance(value, str) and "${" in value:
        raise ConfigError(f"{what}: ${{...}} is not filled in here; write the value itself")
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ConfigError(f"{what}: the names of settings are text")
        value = [*value, *value.values()]
    for child in value if isinstance(value, list) else ():
        _check(child, what, depth + 1)
