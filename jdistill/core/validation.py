"""Which values the settings may have, and which settings go together.

The rules are tables. Each names a setting by its path below ``agent`` and says what is wrong with it, in the words that
follow ``agent.<path>=<value>:`` in the error. :meth:`jdistill.core.config.AgentCfg.validate` applies them in the order
of this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

from jdistill.core.activations import ACTIVATIONS, OUTPUT_ACTIVATIONS
from jdistill.core.cnn_cfg import check_cnn_cfg
from jdistill.core.config import (
    BETA_SCHEDULES,
    CARRY_STARTS,
    HISTORY_SAMPLERS,
    LOGGERS,
    LOSSES,
    ON_NONFINITE,
    OPTIMIZERS,
    SAMPLERS,
    AgentCfg,
    one_of,
    sampler_name,
    steps_of_iteration,
)
from jdistill.errors import ConfigError

COUNTS = (
    "num_steps_per_env",
    "max_iterations",
    "save_interval",
    "max_checkpoints",
    "algorithm.num_learning_epochs",
    "algorithm.gradient_length",
    "algorithm.beta_iterations",
    "algorithm.max_buffer_size",
    "algorithm.num_mini_batches",
    "algorithm.burn_in_steps",
    "algorithm.gradient_steps",
    "algorithm.row_length",
    "student.rnn_hidden_dim",
    "student.rnn_num_layers",
    "student.pre_dims",
    "student.hidden_dims",
)
"""From 1 to 2**31 - 1, each entry of a list; null where a setting allows it."""

CHOICES: dict[str, tuple[Any, ...]] = {
    "algorithm.class_name": ("Distillation",),
    "algorithm.loss_type": LOSSES,
    "algorithm.optimizer": OPTIMIZERS,
    "algorithm.beta_schedule": BETA_SCHEDULES,
    "algorithm.beta_per": ("step", "episode"),
    "algorithm.sampler": (*SAMPLERS, None),
    "algorithm.history_dtype": ("float32", "bfloat16"),
    "algorithm.carry_start": (*CARRY_STARTS, None),
    "student.rnn_type": ("gru", "lstm", None),
    "student.activation": tuple(ACTIVATIONS),
    "student.output_activation": tuple(OUTPUT_ACTIVATIONS),
    "teacher.activation": (*ACTIVATIONS, None),
    "teacher.output_activation": (*OUTPUT_ACTIVATIONS, None),
    "logger": LOGGERS,
    "on_nonfinite": ON_NONFINITE,
}
"""Settings that are one of several names."""


class Range(NamedTuple):
    """The values that one setting may have."""

    setting: str
    allows: Callable[[Any], bool]
    """Called with values other than null."""
    complaint: str


RANGES = (
    Range("algorithm.phase1_iterations", lambda x: 0 <= x < 2**31, "not a count"),
    Range("algorithm.learning_rate", lambda x: 0 < x < math.inf, "must be positive"),
    Range("algorithm.max_grad_norm", lambda x: x > 0, "must be positive, or null"),
    Range("algorithm.learning_rate_half_life", lambda x: x > 0, "must be positive"),
    Range("algorithm.ema_decay", lambda x: 0 < x < 1, "must be between 0 and 1"),
    Range("algorithm.beta_half_life", lambda x: 0 < x < 2**24, f"must be positive, and below {2**24}"),
    Range("algorithm.phase1_until_return", math.isfinite, "expected a number, or null"),
    Range("algorithm.recency_half_life", lambda x: x > 0, "must be positive"),
    Range("student.init_noise_std", lambda x: x >= 0, "must not be negative"),
    Range("clip_actions", lambda x: x > 0, "must be positive, or null"),
    Range("save_minutes", lambda x: x > 0, "must be positive, or null"),
    Range("teacher.id", lambda x: 0 <= x < 2**31, "expected the id of a teacher, 0 or more"),
    Range("seed", lambda x: 0 <= x < 2**32, f"expected a number from 0 to {2**32 - 1}"),
)


def _has_history(cfg: AgentCfg) -> bool:
    return cfg.algorithm.use_dagger or bool(cfg.algorithm.dataset)


def _sampler(cfg: AgentCfg) -> str:
    return sampler_name(cfg.algorithm)


class Conflict(NamedTuple):
    """A setting that makes no sense beside the others."""

    setting: str
    applies: Callable[[AgentCfg], bool]
    complaint: str
    """May hold ``{sampler}`` and ``{steps}``."""


CONFLICTS = (
    Conflict(
        "teacher.dir",
        lambda c: c.teacher.dir is not None and bool(c.teacher.file or c.teacher.files),
        "agent.teacher.file or files names the teacher already, leave one of them out",
    ),
    Conflict(
        "teacher.files",
        lambda c: bool(c.teacher.file and c.teacher.files),
        "agent.teacher.file names the teacher already, leave one of them out",
    ),
    Conflict(
        "teacher.id",
        lambda c: c.teacher.id is not None and c.teacher.dir is None,
        "chooses one teacher of a folder, name that with --teacher_dir DIR",
    ),
    Conflict(
        "algorithm.phase1_until_return",
        lambda c: (
            c.algorithm.phase1_until_return is not None
            and not (c.algorithm.use_two_stage_training and c.algorithm.phase1_iterations)
        ),
        "there is no phase 1 to end, set --phase1 N",
    ),
    Conflict(
        "algorithm.sampler",
        lambda c: _has_history(c) and _sampler(c) not in HISTORY_SAMPLERS,
        "trains on the newest rollout alone; with use_dagger=true or a dataset it is one of "
        + ", ".join(HISTORY_SAMPLERS),
    ),
    Conflict(
        "algorithm.sampler",
        lambda c: not _has_history(c) and _sampler(c) in HISTORY_SAMPLERS,
        "draws from a history, set agent.algorithm.use_dagger=true",
    ),
    Conflict(
        "algorithm.use_dagger",
        lambda c: c.algorithm.use_dagger and bool(c.algorithm.dataset),
        "the dataset is the history already, leave one of them out",
    ),
    Conflict(
        "algorithm.carry_start",
        lambda c: bool(c.algorithm.dataset) and c.algorithm.carry_start == "stored",
        "a dataset keeps no states, choose zero or burn_in",
    ),
    Conflict(
        "on_nonfinite",
        lambda c: c.on_nonfinite == "mask" and bool(c.algorithm.dataset),
        "a dataset steps no environments that could break",
    ),
    Conflict(
        "algorithm.relabel",
        lambda c: c.algorithm.relabel and not c.algorithm.dataset,
        "there is no dataset to relabel, name one with --dataset",
    ),
    Conflict(
        "algorithm.carry_start",
        lambda c: c.algorithm.carry_start is not None and _sampler(c) == "streaming",
        "streaming windows go on from each other; only the other samplers leave the choice",
    ),
    Conflict(
        "algorithm.row_length",
        lambda c: c.algorithm.row_length is not None and _sampler(c) != "packed",
        "the {sampler} sampler has no rows",
    ),
    Conflict(
        "algorithm.num_mini_batches",
        lambda c: c.algorithm.num_mini_batches > 1 and _sampler(c) == "streaming",
        "streaming windows take all environments at once; set agent.algorithm.sampler=minibatch",
    ),
    Conflict(
        "algorithm.gradient_steps",
        lambda c: c.algorithm.gradient_steps is not None and _sampler(c) not in HISTORY_SAMPLERS,
        "the {sampler} sampler takes every window of a rollout, num_learning_epochs times; only a history "
        "(use_dagger=true) leaves the choice",
    ),
    Conflict(
        "algorithm.gradient_length",
        lambda c: c.algorithm.gradient_length > steps_of_iteration(c),
        "longer than the {steps} steps of an iteration (num_steps_per_env * num_learning_epochs), so nothing would "
        "ever be learned",
    ),
)


def validate(cfg: AgentCfg) -> None:
    """Raise :class:`jdistill.errors.ConfigError` for the first setting that makes no sense."""
    for setting in COUNTS:
        value = attrgetter(setting)(cfg)
        for count in value if isinstance(value, list) else [value]:
            _check_count(setting, count)
    for setting, choices in CHOICES.items():
        one_of(f"agent.{setting}", attrgetter(setting)(cfg), choices)
    for setting, allows, complaint in RANGES:
        value = attrgetter(setting)(cfg)
        if value is not None and not allows(value):
            raise ConfigError(f"agent.{setting}={value}: {complaint}")
    for setting, applies, complaint in CONFLICTS:
        if applies(cfg):
            value = _sampler(cfg) if setting == "algorithm.sampler" else attrgetter(setting)(cfg)
            written = str(value).lower() if isinstance(value, bool) else value
            raise ConfigError(
                f"agent.{setting}={written}: {complaint.format(sampler=_sampler(cfg), steps=steps_of_iteration(cfg))}"
            )
    check_cnn_cfg(cfg.student.cnn_cfg)
    for group, dims in cfg.student.encoder_dims.items():
        if not dims:
            raise ConfigError(f"agent.student.encoder_dims.{group}={dims}: name the width of at least one layer")
        for width in dims:
            _check_count(f"student.encoder_dims.{group}", width)
    _check_names(cfg)


def _check_count(setting: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ConfigError(f"agent.{setting}={value}: must be positive")
    if value is not None and value >= 2**31:
        raise ConfigError(f"agent.{setting}={value}: too large, the most is {2**31 - 1}")


def _check_names(cfg: AgentCfg) -> None:
    """Observation groups and folders."""
    for name in cfg.obs_groups:
        one_of("agent.obs_groups", name, ("student", "teacher"))
    for name in ("student", "teacher"):
        if not cfg.obs_groups.get(name):
            raise ConfigError(f"agent.obs_groups.{name}: name at least one observation group")
    for name in ("experiment_name", "run_name"):
        folder = getattr(cfg, name)
        if "/" in folder or folder.strip() in (".", "..") or not folder.isprintable() or len(folder.encode()) > 150:
            raise ConfigError(f"agent.{name}={folder!r}: not the name of a folder")
    if not cfg.experiment_name.strip():
        raise ConfigError("agent.experiment_name: must not be empty")
