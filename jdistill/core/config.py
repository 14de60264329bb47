"""Settings of the learner, under rsl_rl's and Isaac Lab's names."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from jdistill.errors import ConfigError, nearest

LOSSES = ("mse", "huber")
OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop")
LOGGERS = ("tensorboard", "wandb", "none")
SAMPLERS = ("streaming", "minibatch", "uniform", "recent", "packed")
HISTORY_SAMPLERS = ("uniform", "recent", "packed")
CARRY_STARTS = ("stored", "zero", "burn_in")
BETA_SCHEDULES = ("two_stage", "linear", "exponential")


@dataclass
class AlgorithmCfg:
    """rsl_rl's ``RslRlDistillationAlgorithmCfg`` with the two-stage settings."""

    class_name: str = "Distillation"
    """The algorithm; there is one."""
    num_learning_epochs: int = 4
    """Passes over a rollout per iteration."""
    learning_rate: float = 1e-3
    """Step size of the optimizer."""
    learning_rate_half_life: float | None = None
    """Iterations after which the step size has halved, and halved again; null keeps it fixed, as rsl_rl does. (A decay
    over ``max_iterations`` would make a resumed run differ from an uninterrupted one.)"""
    max_grad_norm: float | None = 1.0
    """Gradients are scaled down to this global norm; null switches that off."""
    gradient_length: int = 15
    """Environment steps per gradient step, and how far gradients reach back in time."""
    loss_type: str = "mse"
    """``mse`` or ``huber``."""
    optimizer: str = "adam"
    """``adam``, ``adamw``, ``sgd`` or ``rmsprop``, each with torch's defaults."""
    use_two_stage_training: bool = False
    """Phase 1: the teacher's action steps the environment; phase 2: the student's. False: the student's throughout."""
    phase1_iterations: int = 600
    """Iterations 0 .. phase1_iterations - 1 are phase 1; a third to a half of ``max_iterations`` is usual."""
    phase1_until_return: float | None = None
    """Phase 1 ends earlier than that when the student's mean return reaches this; for that the student flies every
    tenth environment in phase 1 too, and only those episodes are counted."""
    beta_schedule: str = "two_stage"
    """How the probability ``beta`` that the teacher steps an environment falls from 1 when phase 1 is over (at once,
    without two-stage training): ``two_stage`` to 0, ``linear`` in ``beta_iterations``, ``exponential`` by half in
    ``beta_half_life`` iterations."""
    beta_iterations: int = 500
    """Iterations in which a linear ``beta`` falls to 0."""
    beta_half_life: float = 100.0
    """Iterations in which an exponential ``beta`` halves; below 0.01 it is 0."""
    beta_per: str = "step"
    """Whether the teacher or the student is drawn anew for every ``step`` or for every ``episode``."""
    use_dagger: bool = False
    """Train on a history of what was collected so far instead of on the newest rollout."""
    max_buffer_size: int = 1_000_000
    """Transitions that the history holds; the oldest rollout is overwritten first."""
    history_dtype: str = "float32"
    """``float32`` or ``bfloat16``, in which the history is stored."""
    dataset: list[str] = field(default_factory=list)
    """Recorded HDF5 files to train on in place of flying; they are the history."""
    relabel: bool = False
    """Whether the teacher labels a dataset's observations anew, in place of the recorded labels."""
    sampler: str | None = None
    """What a gradient step trains on: of the newest rollout ``streaming`` (rsl_rl's) or ``minibatch``, of the history
    ``uniform``, ``recent`` or ``packed`` (:mod:`jdistill.core.samplers`). null: streaming; uniform with a history."""
    num_mini_batches: int = 1
    """A gradient step takes ``num_envs / num_mini_batches`` sequences (all of ``streaming``'s)."""
    gradient_steps: int | None = None
    """Gradient steps per iteration on the history; null takes as many as pass over ``num_learning_epochs`` times the
    transitions of a rollout."""
    carry_start: str | None = None
    """What a recurrent student's sequences begin with: the state ``stored`` when it flew, ``zero`` (an episode's
    initial state), or ``burn_in``: that, ``burn_in_steps`` earlier. null: stored, or burn_in for a dataset."""
    burn_in_steps: int = 20
    """Steps that bring the state up to date and are not learnt from; beginnings of episodes never are such steps."""
    row_length: int | None = None
    """Steps of a row of the ``packed`` sampler, null takes the longest episode. Rows begin with episodes, so what of an
    episode lies beyond a row is not learnt from."""
    recency_half_life: float = 10.0
    """The ``recent`` sampler draws a rollout half as often as one that is this many rollouts newer."""


@dataclass
class StudentCfg:
    """The student's network: dense layers, recurrent layers, dense layers."""

    pre_dims: list[int] = field(default_factory=lambda: [16])
    """Widths of the dense layers before the recurrent ones."""
    rnn_type: str | None = "gru"
    """``gru``, ``lstm``, or null for a feed-forward student."""
    rnn_hidden_dim: int = 16
    """Width of each recurrent layer."""
    rnn_num_layers: int = 1
    """Number of recurrent layers."""
    hidden_dims: list[int] = field(default_factory=lambda: [16])
    """Widths of the dense layers between the recurrent ones and the output."""
    activation: str = "elu"
    """Activation of the dense layers, by rsl_rl's names."""
    output_activation: str = "tanh"
    """Activation of the output; ``identity`` is rsl_rl's own, ``beta`` is the mean of its Beta distribution."""
    learn_initial_carry: bool = False
    """Whether the recurrent state at an episode's start is learnt instead of zero."""
    obs_normalization: bool = True
    """Whether observations are normalised by their running mean and standard deviation."""
    init_noise_std: float = 0.0
    """Standard deviation of the noise on the student's actions in rollouts; labels and loss never see it."""


@dataclass
class TeacherCfg:
    """The teacher's policy. An rsl_rl checkpoint holds weights but no activations, so they can be said here."""

    file: str | None = None
    """A jdistill policy (``.safetensors``), an rsl_rl checkpoint (``.pt``), or the name of a bundled teacher
    (``crazyflie``, ``quadrotors``); null takes the task's own."""
    activation: str | None = None
    """Of the hidden layers of an rsl_rl checkpoint, by rsl_rl's names; null takes what ``params/agent.yaml`` beside the
    checkpoint says, else ``elu``."""
    output_activation: str | None = None
    """Of the output of an rsl_rl checkpoint: ``tanh`` for actors that end in one, ``beta`` for the mean of a Beta
    distribution. null takes what ``params/agent.yaml`` says, else ``identity``, which rsl_rl's own models have (but
    ``tanh`` for point control's checkpoints of rsl_rl 2.x and 3.x, whose actors end in one)."""


@dataclass
class AgentCfg:
    """rsl_rl's runner settings (Isaac Lab's ``RslRlDistillationRunnerCfg``)."""

    seed: int = 42
    """Seed of every random number."""
    num_steps_per_env: int = 400
    """Environment steps per environment and iteration."""
    max_iterations: int = 1500
    """Iterations of the whole run, those before a resume included."""
    save_interval: int = 100
    """Iterations between checkpoints."""
    max_checkpoints: int = 5
    """Checkpoints kept on disk, newest first; the best one is kept besides."""
    experiment_name: str = "distillation"
    """Folder of related runs."""
    run_name: str = ""
    """Appended to the run folder's name."""
    logger: str = "tensorboard"
    """``tensorboard``, ``wandb`` or ``none``."""
    log_project_name: str = "jdistill"
    """Project of a wandb run."""
    obs_groups: dict[str, list[str]] = field(default_factory=lambda: {"student": ["student"], "teacher": ["teacher"]})
    """Which of the environment's observation groups make up the observations of ``student`` and ``teacher``, whole
    (``policy``) or in part (``policy[:22]``, ``policy[0,2]``); see :mod:`jdistill.core.observations`."""
    clip_actions: float | None = None
    """Actions are clipped to [-clip_actions, clip_actions] before they step the environment; null leaves that to it."""
    empirical_normalization: bool | None = None
    """rsl_rl 2.x's name for ``student.obs_normalization``; wins over it unless null."""
    init_at_random_ep_len: bool = True
    """Whether the first episodes begin at random ages, so that time-outs do not fall together."""
    student: StudentCfg = field(default_factory=StudentCfg)
    """The student's network."""
    teacher: TeacherCfg = field(default_factory=TeacherCfg)
    """The teacher."""
    algorithm: AlgorithmCfg = field(default_factory=AlgorithmCfg)
    """The algorithm."""

    def validate(self) -> None:
        """Raise :class:`ConfigError` for the first setting that makes no sense."""
        algorithm, student = self.algorithm, self.student
        _positive("agent.num_steps_per_env", self.num_steps_per_env)
        _positive("agent.max_iterations", self.max_iterations)
        _positive("agent.save_interval", self.save_interval)
        _positive("agent.max_checkpoints", self.max_checkpoints)
        _positive("agent.algorithm.num_learning_epochs", algorithm.num_learning_epochs)
        _positive("agent.algorithm.gradient_length", algorithm.gradient_length)
        _positive("agent.student.rnn_hidden_dim", student.rnn_hidden_dim)
        _positive("agent.student.rnn_num_layers", student.rnn_num_layers)
        for name, widths in (("pre_dims", student.pre_dims), ("hidden_dims", student.hidden_dims)):
            for width in widths:
                _positive(f"agent.student.{name}", width)
        if not 0 <= algorithm.phase1_iterations < 2**31:
            raise ConfigError(f"agent.algorithm.phase1_iterations={algorithm.phase1_iterations}: not a count")
        if not 0 < algorithm.learning_rate < math.inf:
            raise ConfigError(f"agent.algorithm.learning_rate={algorithm.learning_rate}: must be positive")
        if algorithm.max_grad_norm is not None and not algorithm.max_grad_norm > 0:
            raise ConfigError(f"agent.algorithm.max_grad_norm={algorithm.max_grad_norm}: must be positive, or null")
        half_life = algorithm.learning_rate_half_life
        if half_life is not None and not half_life > 0:
            raise ConfigError(f"agent.algorithm.learning_rate_half_life={half_life}: must be positive")
        _check_schedule(algorithm)
        _check_sampling(algorithm)
        if student.init_noise_std < 0:
            raise ConfigError(f"agent.student.init_noise_std={student.init_noise_std}: must not be negative")
        if self.clip_actions is not None and not self.clip_actions > 0:
            raise ConfigError(f"agent.clip_actions={self.clip_actions}: must be positive, or null")
        steps = self.num_steps_per_env * algorithm.num_learning_epochs
        if steps < algorithm.gradient_length:
            raise ConfigError(
                f"agent.algorithm.gradient_length={algorithm.gradient_length}: longer than the {steps} steps of an "
                "iteration (num_steps_per_env * num_learning_epochs), so nothing would ever be learnt"
            )
        one_of("agent.algorithm.class_name", algorithm.class_name, ("Distillation",))
        one_of("agent.algorithm.loss_type", algorithm.loss_type, LOSSES)
        one_of("agent.algorithm.optimizer", algorithm.optimizer, OPTIMIZERS)
        one_of("agent.student.rnn_type", student.rnn_type, ("gru", "lstm", None))
        one_of("agent.logger", self.logger, LOGGERS)
        from jdistill.core.activations import ACTIVATIONS, OUTPUT_ACTIVATIONS

        one_of("agent.student.activation", student.activation, tuple(ACTIVATIONS))
        one_of("agent.student.output_activation", student.output_activation, tuple(OUTPUT_ACTIVATIONS))
        one_of("agent.teacher.activation", self.teacher.activation, (*ACTIVATIONS, None))
        one_of("agent.teacher.output_activation", self.teacher.output_activation, (*OUTPUT_ACTIVATIONS, None))
        for name in self.obs_groups:
            one_of("agent.obs_groups", name, ("student", "teacher"))
        for name in ("student", "teacher"):
            if not self.obs_groups.get(name):
                raise ConfigError(f"agent.obs_groups.{name}: name at least one observation group")
        for name in ("experiment_name", "run_name"):
            if "/" in getattr(self, name) or getattr(self, name) in (".", ".."):
                raise ConfigError(f"agent.{name}={getattr(self, name)}: not the name of a folder")
        if not self.experiment_name:
            raise ConfigError("agent.experiment_name: must not be empty")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"agent.seed={self.seed}: expected a number from 0 to {2**32 - 1}")


def sampler_name(cfg: AlgorithmCfg) -> str:
    """The sampler in use."""
    return cfg.sampler or ("uniform" if cfg.use_dagger or cfg.dataset else "streaming")


def _check_schedule(cfg: AlgorithmCfg) -> None:
    one_of("agent.algorithm.beta_schedule", cfg.beta_schedule, BETA_SCHEDULES)
    one_of("agent.algorithm.beta_per", cfg.beta_per, ("step", "episode"))
    _positive("agent.algorithm.beta_iterations", cfg.beta_iterations)
    if not 0 < cfg.beta_half_life < 2**24:
        raise ConfigError(f"agent.algorithm.beta_half_life={cfg.beta_half_life}: must be positive, and below {2**24}")
    goal = cfg.phase1_until_return
    if goal is not None and not math.isfinite(goal):
        raise ConfigError(f"agent.algorithm.phase1_until_return={goal}: expected a number, or null")
    if goal is not None and not (cfg.use_two_stage_training and cfg.phase1_iterations):
        raise ConfigError(f"agent.algorithm.phase1_until_return={goal}: there is no phase 1 to end, set --phase1 N")


def _check_sampling(cfg: AlgorithmCfg) -> None:
    one_of("agent.algorithm.sampler", cfg.sampler, (*SAMPLERS, None))
    one_of("agent.algorithm.history_dtype", cfg.history_dtype, ("float32", "bfloat16"))
    one_of("agent.algorithm.carry_start", cfg.carry_start, (*CARRY_STARTS, None))
    for name in ("max_buffer_size", "num_mini_batches", "burn_in_steps"):
        _positive(f"agent.algorithm.{name}", getattr(cfg, name))
    for name in ("gradient_steps", "row_length"):
        if getattr(cfg, name) is not None:
            _positive(f"agent.algorithm.{name}", getattr(cfg, name))
    if not cfg.recency_half_life > 0:
        raise ConfigError(f"agent.algorithm.recency_half_life={cfg.recency_half_life}: must be positive")
    sampler = sampler_name(cfg)
    if (cfg.use_dagger or cfg.dataset) and sampler not in HISTORY_SAMPLERS:
        raise ConfigError(
            f"agent.algorithm.sampler={sampler}: trains on the newest rollout alone; with use_dagger=true or a dataset "
            f"it is one of {', '.join(HISTORY_SAMPLERS)}"
        )
    if not (cfg.use_dagger or cfg.dataset) and sampler in HISTORY_SAMPLERS:
        raise ConfigError(
            f"agent.algorithm.sampler={sampler}: draws from a history, set agent.algorithm.use_dagger=true"
        )
    if cfg.use_dagger and cfg.dataset:
        raise ConfigError("agent.algorithm.use_dagger=true: the dataset is the history already, leave one of them out")
    if cfg.dataset and cfg.carry_start == "stored":
        raise ConfigError("agent.algorithm.carry_start=stored: a dataset keeps no states, choose zero or burn_in")
    if cfg.relabel and not cfg.dataset:
        raise ConfigError("agent.algorithm.relabel=true: there is no dataset to relabel, name one with --dataset")
    if sampler == "streaming" and cfg.carry_start is not None:
        raise ConfigError(
            f"agent.algorithm.carry_start={cfg.carry_start}: streaming windows go on from each other; only the other "
            "samplers leave the choice"
        )
    if sampler != "packed" and cfg.row_length is not None:
        raise ConfigError(f"agent.algorithm.row_length={cfg.row_length}: the {sampler} sampler has no rows")
    if sampler == "streaming" and cfg.num_mini_batches > 1:
        raise ConfigError(
            f"agent.algorithm.num_mini_batches={cfg.num_mini_batches}: streaming windows take all environments at "
            "once; set agent.algorithm.sampler=minibatch"
        )
    if sampler not in HISTORY_SAMPLERS and cfg.gradient_steps is not None:
        raise ConfigError(
            f"agent.algorithm.gradient_steps={cfg.gradient_steps}: the {sampler} sampler takes every window of a "
            "rollout, num_learning_epochs times; only a history (use_dagger=true) leaves the choice"
        )


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name}={value}: must be positive")
    if value >= 2**31:
        raise ConfigError(f"{name}={value}: too large, the most is {2**31 - 1}")


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise :class:`ConfigError` unless ``value`` is among the ``allowed`` ones."""
    if value not in allowed:
        hint = nearest(str(value), [str(a) for a in allowed])
        raise ConfigError(f"{name}={value}: expected one of {', '.join(str(a) for a in allowed)}{hint}")
