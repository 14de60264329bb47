"""Settings of the learner, under rsl_rl's and Isaac Lab's names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jdistill.errors import ConfigError, nearest

LOSSES = ("mse", "huber")
OPTIMIZERS = ("adam", "adamw", "sgd", "rmsprop")
LOGGERS = ("tensorboard", "wandb", "none")
SAMPLERS = ("streaming", "minibatch", "uniform", "recent", "packed")
HISTORY_SAMPLERS = ("uniform", "recent", "packed")
CARRY_STARTS = ("stored", "zero", "burn_in")
ON_NONFINITE = ("stop", "mask")
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
    ema_decay: float | None = None
    """The student that is saved has the exponential moving average of its parameters, which keeps this much of itself
    in every iteration n (in the first ones (n + 1) / (n + 10), if that is less); null saves the newest parameters. The
    newest ones step the environment and learn."""
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
    """Phase 1 ends earlier than that when the student's mean return reaches this. To measure it, the student's actions
    step every tenth environment in phase 1 too, and only those episodes are counted."""
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
    """Recorded HDF5 files to train on in place of rollouts; they are the history."""
    check_dataset: bool = True
    """Whether the checksums of a dataset's arrays are held against them, which reads all of its files once more."""
    relabel: bool = False
    """Whether the teacher's actions on a dataset's observations replace the recorded ones."""
    sampler: str | None = None
    """What a gradient step trains on: of the newest rollout ``streaming`` (rsl_rl's) or ``minibatch``, of the history
    ``uniform``, ``recent`` or ``packed`` (:mod:`jdistill.core.samplers`). null: streaming; uniform with a history."""
    num_mini_batches: int = 1
    """A gradient step takes ``num_envs / num_mini_batches`` sequences (all of ``streaming``'s)."""
    gradient_steps: int | None = None
    """Gradient steps per iteration on the history; null takes as many as pass over ``num_learning_epochs`` times the
    transitions of a rollout."""
    carry_start: str | None = None
    """What a recurrent student's sequences begin with: the state ``stored`` in the rollout, ``zero`` (an episode's
    initial state), or ``burn_in``: that, ``burn_in_steps`` earlier. null: stored, or burn_in for a dataset."""
    burn_in_steps: int = 20
    """Steps that bring the state up to date and are not trained on; the first steps of an episode never are such."""
    row_length: int | None = None
    """Steps of a row of the ``packed`` sampler, null takes the longest episode. Rows begin with episodes, so what
    of an episode lies beyond a row is not trained on."""
    recency_half_life: float = 10.0
    """The ``recent`` sampler draws a rollout half as often as one that is this many rollouts newer."""


@dataclass
class StudentCfg:
    """The student's network: dense layers, recurrent layers, dense layers; before them what encodes images."""

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
    """Whether the recurrent state at an episode's start is trained, instead of zero."""
    obs_normalization: bool = True
    """Whether observations are normalized by their running mean and standard deviation."""
    cnn_cfg: dict[str, Any] = field(default_factory=dict)
    """The CNN of images among the observations: rsl_rl's settings (``output_channels``, ``kernel_size``, ...), for all
    images, or for each by its group; see :mod:`jdistill.core.cnn_cfg`."""
    encoder_dims: dict[str, list[int]] = field(default_factory=dict)
    """By group, widths of dense layers that this group alone passes first, the last one linear: ``{height_scan: [128,
    64]}``."""
    init_noise_std: float = 0.0
    """Standard deviation of the noise on the student's actions in rollouts; the loss never sees it."""


@dataclass
class TeacherCfg:
    """The teacher's policy. An rsl_rl checkpoint holds weights but no activations, so they can be said here."""

    file: str | None = None
    """A jdistill policy (``.safetensors``), an rsl_rl checkpoint (``.pt``), or the name of a bundled teacher
    (``crazyflie``, ``quadrotors``); null takes the task's own."""
    files: list[str] = field(default_factory=list)
    """In place of ``file`` several teachers, whose ids are 0, 1, ... in this order."""
    dir: str | None = None
    """In place of ``file`` a folder of teachers: ``teacher_dynamics.csv`` has a row for each with its ``id``, whose
    policy is in the folder ``teacher_0000``, ``teacher_0001``, ... of that id (:mod:`jdistill.run.teachers`)."""
    id: int | None = None
    """Of that folder this teacher alone."""
    id_group: str = "teacher_id"
    """Where there are several teachers: the observation group, a part of one (``policy[45]``), or the entry of the
    State's ``info`` that holds the id of each environment's."""
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
    save_minutes: float | None = 5.0
    """Minutes after which there is a checkpoint in any case; null leaves it to ``save_interval``."""
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
    on_nonfinite: str = "stop"
    """What follows when an environment gives NaN or infinity: ``stop`` ends the run, ``mask`` restarts the environment
    and leaves the steps of that episode out of the loss and the normalizer."""
    init_at_random_ep_len: bool = True
    """Whether the first episodes begin at random ages, so that time-outs do not fall together."""
    student: StudentCfg = field(default_factory=StudentCfg)
    """The student's network."""
    teacher: TeacherCfg = field(default_factory=TeacherCfg)
    """The teacher."""
    algorithm: AlgorithmCfg = field(default_factory=AlgorithmCfg)
    """The algorithm."""

    def validate(self) -> None:
        """Raise :class:`jdistill.errors.ConfigError` for the first setting that makes no sense."""
        # The names of activations come from the networks, which take a second to import.
        from jdistill.core.validation import validate

        validate(self)


def steps_of_iteration(cfg: AgentCfg) -> int:
    """Steps of an environment that an iteration trains on."""
    return cfg.num_steps_per_env * cfg.algorithm.num_learning_epochs


def sampler_name(cfg: AlgorithmCfg) -> str:
    """The sampler in use."""
    return cfg.sampler or ("uniform" if cfg.use_dagger or cfg.dataset else "streaming")


def one_of(name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raise :class:`jdistill.errors.ConfigError` unless ``value`` is among the ``allowed`` ones."""
    if value not in allowed:
        hint = nearest(str(value), [str(a) for a in allowed])
        raise ConfigError(f"{name}={value}: expected one of {', '.join(str(a) for a in allowed)}{hint}")
