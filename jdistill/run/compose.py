"""How files, flags and overrides become the config of a run.

It has five parts: ``task`` and ``sim`` (names), ``agent`` (:class:`jdistill.core.config.AgentCfg`), ``env`` (the task's
own dataclass) and ``bridge`` (:class:`BridgeCfg`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf, StringNode
from omegaconf.errors import OmegaConfBaseException

from bridge.tasks import Simulator, Task
from jdistill.core.config import AgentCfg, one_of, steps_of_iteration
from jdistill.errors import ConfigError, nearest
from jdistill.files import replace_file
from jdistill.run.values import check_finite, parse_file, parse_override

WHOLE = ("agent.student.cnn_cfg", "agent.student.encoder_dims")
"""Settings whose keys make sense together: said as a mapping on a command line, they replace what was said before."""
WINDOW = "agent.algorithm.gradient_length"
"""Nothing is learned from an iteration that is shorter."""
OPEN = ("agent.obs_groups", *WHOLE)
"""What is below these has the user's own names, or is checked elsewhere."""


@dataclass
class BridgeCfg:
    """How a simulator that is not JAX is reached."""

    mode: str = "auto"
    """``callback``: stepped from inside the compiled program; ``host``: the same, by the main thread, for simulators
    that insist on it; ``auto``: ``host`` where the simulator needs it (Isaac Sim's Kit does), else ``callback``. The
    numbers are the same."""

    def validate(self) -> None:
        """Raise :class:`ConfigError` for a mode that there is not."""
        one_of("bridge.mode", self.mode, ("auto", "callback", "host"))


@dataclass
class RunCfg:
    """Everything a run is made of."""

    task: str
    """Name of the task."""
    agent: AgentCfg
    """The learner's settings."""
    env: Any
    """The task's settings, an instance of its dataclass."""
    bridge: BridgeCfg = field(default_factory=BridgeCfg)
    """How the simulator is reached."""
    sim: str | None = None
    """Name of the simulator, as ``--sim`` says it; None in runs of versions that did not record it."""

    def save(self, path: Path) -> None:
        """Write as YAML that :func:`load_file` reads."""
        data: dict[str, Any] = {"task": self.task, **({"sim": self.sim} if self.sim else {})}
        data |= {name: dataclasses.asdict(getattr(self, name)) for name in ("agent", "env", "bridge")}
        replace_file(path, yaml.safe_dump(data, sort_keys=False))


def load_file(path: Path) -> dict[str, Any]:
    """Read a YAML config (``task``, ``sim``, ``agent``, ``env``, ``bridge``; all optional)."""
    data = parse_file(path)
    data = {} if data is None else data
    sections = [data, *(data.get(k) or {} for k in ("agent", "env", "bridge"))] if isinstance(data, dict) else [data]
    well_formed = all(isinstance(section, dict) for section in sections)
    if not well_formed or not isinstance(data.get("task", ""), str) or not isinstance(data.get("sim") or "", str):
        raise ConfigError(f"{path}: expected the keys task and sim (names), agent, env and bridge (settings)")
    return data


def with_obs_groups(
    layers: Sequence[dict[str, Any]], overrides: Sequence[str], task: Task
) -> tuple[list[dict[str, Any]], list[str]]:
    """Layers and overrides with the observation groups that ``agent.obs_groups=NAME`` means in ``task``.

    Raises:
        ConfigError: the task knows no such name.
    """

    def expanded(layer: dict[str, Any]) -> dict[str, Any]:
        agent = layer.get("agent") or {}
        if not isinstance(name := agent.get("obs_groups"), str):
            return layer
        if name not in task.obs_groups:
            there = f"; there is {', '.join(task.obs_groups)}" if task.obs_groups else ""
            raise ConfigError(f"agent.obs_groups={name}: {task.name} has no observations of that name{there}")
        return {**layer, "agent": {**agent, "obs_groups": {k: list(v) for k, v in task.obs_groups[name].items()}}}

    named = [o for o in overrides if o.startswith("agent.obs_groups=") and not o.endswith("}")]
    last = [{"agent": {"obs_groups": o.partition("=")[2]}} for o in named[-1:]]
    return [expanded(layer) for layer in [*layers, *last]], [o for o in overrides if o not in named]


def names_window(layers: Iterable[dict[str, Any]], overrides: Iterable[str]) -> bool:
    """Whether somebody says what the setting :data:`WINDOW` is to be."""
    said = any(WINDOW in dict(flatten(layer)) for layer in layers)
    return said or any(WINDOW.rpartition(".")[2] in override for override in overrides)


def compose_task(
    task: str,
    env_cls: type,
    simulator: Simulator,
    layers: Sequence[dict[str, Any]],
    overrides: Sequence[str],
    window_yields: bool = False,
) -> RunCfg:
    """:func:`compose` for a task of ``simulator``, which may take some of the settings to apply them by itself."""
    sections, overrides = simulator.separate([layer.get("env") or {} for layer in layers], overrides)
    ours = [{k: v for k, v in layer.items() if k != "env"} for layer in layers]
    layers = [*ours, *({"env": dict(section)} for section in sections)]
    return compose(task, env_cls, layers, overrides, simulator.name, window_yields)


def compose(
    task: str,
    env_cls: type,
    layers: Iterable[dict[str, Any]],
    overrides: Iterable[str],
    sim: str | None = None,
    window_yields: bool = False,
) -> RunCfg:
    """Merge the defaults, the ``layers`` (nested dicts, later wins), then dotted ``overrides`` (``key=value``).

    With ``window_yields``, a window that is longer than an iteration becomes as long as that. Else it is an error.

    Raises:
        ConfigError: an unknown key (with the nearest known one), a value of the wrong type, or one that makes no sense.
    """
    sections = {"agent": AgentCfg, "env": env_cls, "bridge": BridgeCfg}
    try:
        cfg = OmegaConf.create({name: OmegaConf.structured(cls) for name, cls in sections.items()})
    except OmegaConfBaseException as e:
        raise ConfigError(f"{task}: its settings are of a kind that cannot be set ({str(e).splitlines()[0]})") from e
    known = sorted(_keys(cfg))
    for layer in layers:
        part = {k: v for k, v in layer.items() if k not in ("task", "sim")}
        for key, value in flatten(part):
            _set(cfg, known, key, value)
    for override in overrides:
        key, value = parse_override(override)
        if isinstance(value, (int, float)) and _is_text(cfg, key):
            value = override.partition("=")[2]  # 007 is a name there.
        whole = key in WHOLE or not isinstance(value, dict)
        for path, part in [(key, value)] if whole else flatten({key: value}):
            _set(cfg, known, path, part)
    agent: Any = OmegaConf.to_object(cfg.agent)
    env: Any = OmegaConf.to_object(cfg.env)
    bridge: Any = OmegaConf.to_object(cfg.bridge)
    if agent.empirical_normalization is not None:
        agent.student.obs_normalization = agent.empirical_normalization
    if window_yields:
        agent.algorithm.gradient_length = min(agent.algorithm.gradient_length, steps_of_iteration(agent))
    for name, settings in (("agent", agent), ("env", env)):
        check_finite(dataclasses.asdict(settings), name)
    agent.validate()
    bridge.validate()
    try:
        env.validate()
    except ValueError as e:  # What a task of somebody else's raises for a setting that makes no sense.
        raise ConfigError(str(e)) from e
    return RunCfg(task=task, agent=agent, env=env, bridge=bridge, sim=sim)


def _set(cfg: Any, known: list[str], key: str, value: Any) -> None:
    if key not in known and not key.startswith(tuple(f"{path}." for path in OPEN)):
        # Dotted names share their sections, and many letters by chance.
        hint = nearest(key, known, likeness=0.65) or f"; there are {', '.join(_siblings(key, known))}"
        raise ConfigError(f"{key}: unknown setting{hint}")
    if key.startswith("agent.obs_groups.") and isinstance(value, str):
        value = [value]
    if key in WHOLE and value is None:
        value = {}
    if key in ("agent", "env", "bridge"):
        raise ConfigError(f"{key}={value}: is a section, set what is in it: {', '.join(_siblings(key + '.', known))}")
    try:
        OmegaConf.update(cfg, key, value, merge=False)
    except (OmegaConfBaseException, OverflowError) as e:  # An integer may be too large for a float.
        raise ConfigError(f"{key}={value}: {str(e).splitlines()[0]}") from e


def _is_text(cfg: Any, key: str) -> bool:
    """Whether the setting ``key`` is a string."""
    section, _, name = key.rpartition(".")
    above: Any = OmegaConf.select(cfg, section) if section else None
    return OmegaConf.is_dict(above) and name in above and isinstance(above._get_node(name), StringNode)


def _siblings(key: str, known: list[str]) -> list[str]:
    """The known names at the deepest level up to which ``key`` makes sense."""
    above = key
    while above:
        above = above.rpartition(".")[0]
        if names := [k for k in known if k.rpartition(".")[0] == above]:
            return names
    return []


def flatten(tree: dict[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The settings of nested sections by dotted names."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        elif value is not None or prefix:  # An empty section of a file is None.
            yield f"{prefix}{key}", value


def _keys(cfg: Any, prefix: str = "") -> Iterable[str]:
    for key in cfg:
        child = cfg._get_node(key)
        yield f"{prefix}{key}"
        if OmegaConf.is_dict(child) and not child._is_none():
            yield from _keys(child, f"{prefix}{key}.")
