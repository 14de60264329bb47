"""``agent.student.cnn_cfg``: rsl_rl's settings of CNNs, for all images or by their groups, read and checked.

The names and defaults are those of rsl_rl 5.5's ``CNN``: ``output_channels`` and ``kernel_size`` must be said. Two of
its values are refused. ``norm=batch`` makes an image's features hang on which others are computed beside it, so that a
window of the update would not see the features that the rollout acted by; a teacher's is taken in, with the moments
that it was trained with. ``flatten=false`` leaves no vector, which rsl_rl's models refuse too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bridge.env import ObservationSpec
from jdistill.core.activations import ACTIVATIONS
from jdistill.core.cnn import GLOBAL_POOLS, NORMS, PADDINGS, CNNCfg
from jdistill.errors import ConfigError, nearest

DEFAULTS: dict[str, Any] = {
    "output_channels": None,
    "kernel_size": None,
    "stride": 1,
    "dilation": 1,
    "padding": "none",
    "norm": "none",
    "activation": "elu",
    "max_pool": False,
    "global_pool": "none",
    "flatten": True,
}
"""rsl_rl's; None must be said."""
EXAMPLE = "{output_channels: [16,32], kernel_size: 3, stride: 2}"


def is_count(value: Any) -> bool:
    """A number of something, 1 or more."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 2**15


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "output_channels": (is_count, "channels of each layer, as in [16,32]"),
    "kernel_size": (is_count, "a number of pixels, or one for each layer"),
    "stride": (is_count, "a number of pixels, or one for each layer"),
    "dilation": (is_count, "a number of pixels, or one for each layer"),
    "norm": (lambda x: x in NORMS, f"{' or '.join(NORMS)}, or one for each layer"),
    "max_pool": (lambda x: isinstance(x, bool), "true or false, or one for each layer"),
    "padding": (lambda x: x in PADDINGS, f"one of {', '.join(PADDINGS)}"),
    "activation": (lambda x: x in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
    "global_pool": (lambda x: x in GLOBAL_POOLS, f"one of {', '.join(GLOBAL_POOLS)}"),
    "flatten": (lambda x: x is True, "true, as what follows takes a vector"),
}
"""What each setting, or each entry of its list, may be, and what was expected."""
LISTS = ("output_channels", "kernel_size", "stride", "dilation", "norm", "max_pool")
"""Settings with a value for each layer, or one for all but the first of them."""


def cnn_cfgs(
    settings: Mapping[str, Any], images: Mapping[str, ObservationSpec], setting: str = "agent.student.cnn_cfg"
) -> tuple[CNNCfg, ...]:
    """The CNNs of ``images`` (by group, in order) that ``settings`` describe; ``setting`` is what errors call them.

    Raises:
        ConfigError: images without settings or settings without images, an unknown setting, or one that does not fit.
    """
    if settings and not images:
        raise ConfigError(f"{setting}: there is no image to encode; name its group in agent.obs_groups.student")
    if images and not settings:
        first = next(iter(images))
        raise ConfigError(f"{setting}: '{first}' is an image, say which CNN encodes it, as in {setting}={EXAMPLE}")
    by_group = settings if is_by_group(settings) else dict.fromkeys(images, settings)
    if unknown := [group for group in by_group if group not in images]:
        seen = ", ".join(images)
        raise ConfigError(f"{setting}.{unknown[0]}: is no image that is observed; there is {seen}")
    if missing := [group for group in images if group not in by_group]:
        raise ConfigError(f"{setting}: '{missing[0]}' is an image, say which CNN encodes it: {setting}.{missing[0]}")
    prefix = f"{setting}.%s" if by_group is settings else setting
    return tuple(
        one(by_group[group], group, spec, prefix % group if "%" in prefix else prefix) for group, spec in images.items()
    )


def is_by_group(settings: Mapping[str, Any]) -> bool:
    """Whether ``settings`` are several, by group."""
    return all(isinstance(value, Mapping) for value in settings.values())


def check_cnn_cfg(settings: Mapping[str, Any], setting: str = "agent.student.cnn_cfg") -> None:
    """Raise :class:`ConfigError` for what is wrong whatever the images are."""
    if not settings:
        return
    for group, part in settings.items() if is_by_group(settings) else [("", settings)]:
        checked(part, f"{setting}.{group}" if group else setting)


def one(settings: Mapping[str, Any], group: str, spec: ObservationSpec, setting: str) -> CNNCfg:
    """The CNN of one image."""
    known = checked(settings, setting)
    number = len(known["output_channels"])
    lists: dict[str, Any] = {name: _each(known[name], number) for name in LISTS}
    image = spec.shape if spec.channels_first else (spec.shape[2], *spec.shape[:2])
    whole: dict[str, Any] = {name: known[name] for name in ("padding", "activation", "global_pool")}
    size = (image[0], image[1], image[2])
    cfg = CNNCfg(group=group, image=size, channels_first=spec.channels_first, **lists, **whole)
    try:
        _ = cfg.layers
    except ConfigError as e:
        raise ConfigError(f"{setting}: '{group}' is {spec}; {e}") from e
    return cfg


def checked(settings: Mapping[str, Any], setting: str) -> dict[str, Any]:
    """``settings`` with rsl_rl's defaults.

    Raises:
        ConfigError: an unknown one, one that is missing, or a value that it cannot have.
    """
    for name in settings:
        if name not in DEFAULTS:
            hint = nearest(str(name), list(DEFAULTS)) or f"; there are {', '.join(DEFAULTS)}"
            raise ConfigError(f"{setting}.{name}: unknown setting{hint}")
    known = {**DEFAULTS, **settings}
    for name, value in known.items():
        allows, expected = RULES[name]
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        entries = value if is_list else [value]
        if name == "norm" and "batch" in entries:
            raise ConfigError(f"{setting}.norm={value}: the rollout and the update would see other features; use layer")
        may_be = is_list if name == "output_channels" else name in LISTS or not is_list
        if not (may_be and entries and all(map(allows, entries))):
            raise ConfigError(f"{setting}.{name}={value}: expected {expected}")
        if is_list and len(entries) < (number := len(known["output_channels"])):
            raise ConfigError(f"{setting}.{name}={value}: has {len(entries)} entries for {number} output_channels")
    return known


def _each(value: Any, number: int) -> tuple[Any, ...]:
    entries = value if isinstance(value, Sequence) and not isinstance(value, str) else [value] * number
    return tuple(entries[:number])
