"""What a run begins with: the student's network, the teacher, a dataset, the observation groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from bridge.env import TrainingEnv
from jdistill.core import observations
from jdistill.core.actor import PolicyActor
from jdistill.core.config import AgentCfg, StudentCfg
from jdistill.core.distillation import Distillation
from jdistill.core.networks import Normalizer, Policy, PolicyState, summary
from jdistill.core.sharding import WHOLE, Shards
from jdistill.data.dataset import Recording, Relabeler, load
from jdistill.errors import ConfigError, ObservationError
from jdistill.export.policy_file import load_policy
from jdistill.export.rsl_rl_checkpoint import is_torch_file, load_teacher_checkpoint
from jdistill.run.compose import RunCfg
from jdistill.run.session import STAND_INS


class Teacher(NamedTuple):
    """A frozen policy as :func:`jdistill.export.policy_file.load_policy` gives it."""

    policy: Policy
    state: PolicyState
    description: dict[str, Any]

    def actor(self, agent: AgentCfg) -> PolicyActor:
        """The teacher as the training's argument."""
        return PolicyActor(self.policy, self.state, tuple(agent.obs_groups["teacher"]))


def make_student(cfg: StudentCfg, num_actions: int) -> Policy:
    """The student's network."""
    return Policy(
        num_actions=num_actions,
        hidden_dims=tuple(cfg.hidden_dims),
        activation=cfg.activation,
        output_activation=cfg.output_activation,
        pre_dims=tuple(cfg.pre_dims),
        rnn_type=cfg.rnn_type,
        rnn_hidden_dim=cfg.rnn_hidden_dim,
        rnn_num_layers=cfg.rnn_num_layers,
        learn_initial_carry=cfg.learn_initial_carry,
    )


def load_student(file: Path, env: TrainingEnv, agent: AgentCfg) -> PolicyState:
    """What a student begins with in place of random parameters: a policy file, or the student of rsl_rl's distillation.

    Its normalizer comes along, or begins anew where it has none.

    Raises:
        PolicyFileError: it cannot be read.
        ConfigError: it is not the network that ``agent`` describes.
    """
    wanted = make_student(agent.student, env.num_actions)
    if is_torch_file(file):
        asked = wanted.activation, wanted.output_activation
        policy, state, header = load_teacher_checkpoint(file, env.num_actions, *asked, role="student")
    else:
        policy, state, header = load_policy(file)
    size = observations.size(agent.obs_groups["student"], env.obs_specs)
    if policy != wanted or header["obs_size"] != size:
        bare = PolicyState(params={}, normalizer=None)
        theirs, ours = summary(policy, bare, header["obs_size"]), summary(wanted, bare, size)
        theirs, ours = (text.removesuffix(", without normalizer") for text in (theirs, ours))
        difference = "the learned initial state" if theirs == ours else ours
        raise ConfigError(f"--student {file}: is {theirs}; agent.student describes another network ({difference})")
    normalizer = state.normalizer or (Normalizer.create(size) if agent.student.obs_normalization else None)
    return state.replace(normalizer=normalizer if agent.student.obs_normalization else None)


def make_algorithm(env: TrainingEnv, agent: AgentCfg, shards: Shards = WHOLE) -> Distillation:
    """The algorithm with the student that ``agent`` describes, on an environment that is one of the ``shards``."""
    return Distillation(env, make_student(agent.student, env.num_actions), agent, shards)


def resolve_obs_groups(agent: AgentCfg, env: TrainingEnv) -> None:
    """Let a set whose own name is no group be ``policy``, as rsl_rl does, or ``actor`` where there is only that."""
    stand_in = next((group for group in STAND_INS if group in env.obs_specs), None)
    for name in ("student", "teacher"):
        if stand_in and agent.obs_groups[name] == [name] and name not in env.obs_specs:
            agent.obs_groups[name] = [stand_in]


def load_recording(env: TrainingEnv, cfg: RunCfg, teacher: Teacher, shards: Shards = WHOLE) -> Recording | None:
    """The datasets that the config names, for as many devices as there are ``shards``; None where it names none.

    Raises:
        DatasetError: one that cannot be read, or does not fit the environment.
        ConfigError: too much for the memory.
    """
    algorithm, groups = cfg.agent.algorithm, cfg.agent.obs_groups
    if not algorithm.dataset:
        return None
    sizes = (observations.size(groups["student"], env.obs_specs), env.num_actions)
    relabeler = None
    if algorithm.relabel:
        relabeler = Relabeler(teacher.policy, teacher.state, groups["teacher"], teacher.description["obs_size"])
    horizon = cfg.agent.num_steps_per_env
    return load(algorithm, groups["student"], sizes, env.num_envs, horizon, relabeler, shards.count)


def load_teacher(file: Path, env: TrainingEnv, cfg: RunCfg, old_output_activation: str = "identity") -> Teacher:
    """Read the teacher's policy file or rsl_rl checkpoint.

    ``old_output_activation`` ends the actors of rsl_rl 2.x and 3.x where the config does not say (see
    :func:`jdistill.export.rsl_rl_checkpoint.load_teacher_checkpoint`).

    Raises:
        PolicyFileError: it cannot be read.
        ConfigError: it does not fit the environment.
    """
    if is_torch_file(file):
        asked = cfg.agent.teacher.activation, cfg.agent.teacher.output_activation
        teacher = Teacher(*load_teacher_checkpoint(file, env.num_actions, *asked, old_output_activation))
    else:
        teacher = Teacher(*load_policy(file))
    expected = {}
    for name in ("student", "teacher"):
        try:
            expected[name] = observations.size(cfg.agent.obs_groups[name], env.obs_specs)
        except ObservationError as e:
            raise ConfigError(f"agent.obs_groups.{name}: {e}") from e
    groups = cfg.agent.obs_groups["teacher"]
    if teacher.description["obs_size"] != expected["teacher"]:
        detail = " + ".join(f"'{g}' {observations.size([g], env.obs_specs)}" for g in groups)
        raise ConfigError(
            f"{file}: the teacher takes {teacher.description['obs_size']} observations, "
            f"the environment's {detail} has {expected['teacher']}"
        )
    if teacher.policy.num_actions != env.num_actions:
        raise ConfigError(
            f"{file}: the teacher gives {teacher.policy.num_actions} actions, the environment takes {env.num_actions}"
        )
    frame = teacher.description.get("observation", {}).get("frame")
    spec = env.obs_specs.get(groups[0])
    actual = (spec and spec.frame) or frame
    if frame is not None and frame != actual:
        raise ConfigError(f"{file}: the teacher sees in the {frame} frame, '{groups[0]}' is in the {actual} frame")
    return teacher
