"""What a run begins with: the student's network, the teacher, a dataset, the observation groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bridge.env import ObservationSpec, TrainingEnv
from bridge.nonfinite import restarting
from jdistill.core import observations
from jdistill.core.actor import PolicyActor
from jdistill.core.cnn import CNNCfg
from jdistill.core.cnn_cfg import cnn_cfgs
from jdistill.core.config import AgentCfg, StudentCfg
from jdistill.core.distillation import Distillation
from jdistill.core.networks import EncoderCfg, Normalizer, Policy, PolicyState, summary
from jdistill.core.sharding import WHOLE, Shards
from jdistill.core.teachers import TeacherBank
from jdistill.data.dataset import Recording, Relabeler, Seen, load
from jdistill.errors import ConfigError, ObservationError
from jdistill.export.brax_checkpoint import load_brax_checkpoint
from jdistill.export.brax_files import find_brax_checkpoint
from jdistill.export.policy_file import load_policy
from jdistill.export.rsl_rl_checkpoint import is_torch_file, load_teacher_checkpoint
from jdistill.run.compose import RunCfg
from jdistill.run.session import GROUPS


class Teacher(NamedTuple):
    """A frozen policy as :func:`jdistill.export.policy_file.load_policy` gives it, or many, with their
    ``teacher_ids`` in the description."""

    policy: Policy
    state: PolicyState
    description: dict[str, Any]

    def actor(self, agent: AgentCfg) -> PolicyActor | TeacherBank:
        """The teacher as the training's argument."""
        return make_actor("teacher", self, agent)


def make_actor(
    name: str, saved: tuple[Policy, PolicyState, dict[str, Any]], agent: AgentCfg, clip_actions: float | None = None
) -> PolicyActor | TeacherBank:
    """The policy ``saved`` as the ``student`` or the ``teacher`` of a run; several teachers are a bank of them."""
    policy, state, header = saved
    groups = tuple(agent.obs_groups[name])
    if (ids := header.get("teacher_ids")) is None:
        return PolicyActor(policy, state, groups, clip_actions)
    id_group = agent.teacher.id_group
    return TeacherBank.of(policy, state, ids, groups, id_group=id_group, clip_actions=clip_actions)


def make_student(
    cfg: StudentCfg, num_actions: int, encoders: tuple[EncoderCfg, ...] = (), cnns: tuple[CNNCfg, ...] = ()
) -> Policy:
    """The student's network, behind what encodes some of its observations."""
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
        encoders=encoders,
        cnns=cnns,
    )


def student_for(env: TrainingEnv, agent: AgentCfg) -> Policy:
    """The student's network for what it observes of ``env``.

    Raises:
        ConfigError: images and ``agent.student.cnn_cfg`` do not go together, or vectors and ``encoder_dims``.
    """
    entries, specs = agent.obs_groups["student"], env.obs_specs
    try:
        images = observations.images(entries, specs)
    except ObservationError as e:
        raise ConfigError(f"agent.obs_groups.student: {e}") from e
    cnns = cnn_cfgs(agent.student.cnn_cfg, images)
    return make_student(agent.student, env.num_actions, _encoders(agent.student, entries, specs), cnns)


def _encoders(cfg: StudentCfg, entries: Sequence[str], specs: Mapping[str, ObservationSpec]) -> tuple[EncoderCfg, ...]:
    found, start = [], 0
    for entry in entries:
        number = observations.size([entry], specs)
        if entry in cfg.encoder_dims and number:
            found.append(EncoderCfg(start, number, tuple(cfg.encoder_dims[entry])))
        start += number
    vectors = [entry for entry in entries if observations.size([entry], specs)]
    if unknown := [entry for entry in cfg.encoder_dims if entry not in vectors]:
        seen = ", ".join(vectors) or "none"
        raise ConfigError(f"agent.student.encoder_dims.{unknown[0]}: no vector that the student sees; there is {seen}")
    return tuple(found)


def load_student(file: Path, env: TrainingEnv, agent: AgentCfg) -> PolicyState:
    """What a student begins with in place of random parameters: a policy file, or the student of rsl_rl's distillation.

    Its normalizer comes along, or begins anew where it has none.

    Raises:
        PolicyFileError: it cannot be read.
        ConfigError: it is not the network that ``agent`` describes.
    """
    wanted = student_for(env, agent)
    policy, state, header = _read_student(file, env, agent)
    size = observations.size(agent.obs_groups["student"], env.obs_specs)
    if policy != wanted or header["obs_size"] != size:
        bare = PolicyState(params={}, normalizer=None)
        theirs, ours = summary(policy, bare, header["obs_size"]), summary(wanted, bare, size)
        theirs, ours = (text.removesuffix(", without normalizer") for text in (theirs, ours))
        difference = "the learned initial state" if theirs == ours else ours
        raise ConfigError(f"--student {file}: is {theirs}; agent.student describes another network ({difference})")
    normalizer = state.normalizer or (Normalizer.create(size) if agent.student.obs_normalization else None)
    return state.replace(normalizer=normalizer if agent.student.obs_normalization else None)


def _read_student(file: Path, env: TrainingEnv, agent: AgentCfg) -> tuple[Policy, PolicyState, dict[str, Any]]:
    """The student in ``file``; where that holds no activations, they are what ``agent`` says."""
    if not is_torch_file(file):
        return load_policy(file)
    asked = agent.student.activation, agent.student.output_activation
    images = observations.images(agent.obs_groups["student"], env.obs_specs)
    return load_teacher_checkpoint(file, env.num_actions, *asked, role="student", images=images)


def load_other_student(file: Path, env: TrainingEnv, agent: AgentCfg) -> PolicyActor:
    """A student of any network that sees what a run's student sees: a policy file, or one of rsl_rl's distillation.

    Raises:
        PolicyFileError: it cannot be read.
        ConfigError: it takes other observations, or gives other actions.
    """
    policy, state, header = _read_student(file, env, agent)
    groups = agent.obs_groups["student"]
    size = observations.size(groups, env.obs_specs)
    ours, theirs = (size, env.num_actions), (header["obs_size"], policy.num_actions)
    if theirs != ours:
        raise ConfigError(
            f"--student {file}: takes {theirs[0]} observations and gives {theirs[1]} actions; the run's student "
            f"takes {ours[0]} and gives {ours[1]}"
        )
    _check_images(file, "student", policy, observations.images(groups, env.obs_specs))
    _check_meaning(file, "student", header, groups, env)
    return PolicyActor(policy, state, tuple(groups), agent.clip_actions)


def make_algorithm(env: TrainingEnv, agent: AgentCfg, shards: Shards = WHOLE) -> Distillation:
    """The algorithm with the student that ``agent`` describes, on an environment that is one of the ``shards``.

    Raises:
        SettingError: ``agent.on_nonfinite=mask`` and an environment that cannot be restarted.
    """
    if agent.on_nonfinite == "mask":
        env = restarting(env)
    return Distillation(env, student_for(env, agent), agent, shards)


def resolve_obs_groups(agent: AgentCfg, env: TrainingEnv) -> None:
    """Where the environment has no group of the set's own name, let the set be another of
    :data:`jdistill.run.session.GROUPS`.

    A group that is a dictionary becomes its members, in the environment's order.
    """
    specs = env.obs_specs
    for name, groups in GROUPS.items():
        if agent.obs_groups[name] == [name]:
            present = (group for group in groups if observations.members(group, specs)[0] in specs)
            agent.obs_groups[name] = [next(present, name)]
        agent.obs_groups[name] = [x for entry in agent.obs_groups[name] for x in observations.members(entry, specs)]


def load_recording(env: TrainingEnv, cfg: RunCfg, teacher: Teacher, shards: Shards = WHOLE) -> Recording | None:
    """The datasets that the config names, for as many devices as there are ``shards``; None where it names none.

    Raises:
        DatasetError: one that cannot be read, or does not fit the environment.
        ConfigError: too much for the memory.
    """
    algorithm, groups = cfg.agent.algorithm, cfg.agent.obs_groups
    if not algorithm.dataset:
        return None
    seen = Seen(groups["student"], observations.shapes(groups["student"], env.obs_specs))
    relabeler = None
    if algorithm.relabel:
        actor = teacher.actor(cfg.agent)
        relabeler = Relabeler(actor, Seen(groups["teacher"], observations.shapes(groups["teacher"], env.obs_specs)))
    horizon = cfg.agent.num_steps_per_env
    return load(algorithm, seen, env.num_actions, env.num_envs, horizon, relabeler, shards.count)


def load_teacher(file: Path, env: TrainingEnv, cfg: RunCfg, old_output_activation: str = "identity") -> Teacher:
    """Read the teacher's policy file, or the checkpoint of rsl_rl's or Brax's PPO.

    ``old_output_activation`` ends the actors of rsl_rl 2.x and 3.x where the config does not say (see
    :func:`jdistill.export.rsl_rl_checkpoint.load_teacher_checkpoint`).

    Raises:
        PolicyFileError: it cannot be read.
        ConfigError: it does not fit the environment.
    """
    asked = cfg.agent.teacher.activation, cfg.agent.teacher.output_activation
    groups = cfg.agent.obs_groups["teacher"]
    expected = {name: _num_observed(name, cfg.agent, env) for name in ("student", "teacher")}
    images = observations.images(groups, env.obs_specs)
    if found := find_brax_checkpoint(file):
        teacher = Teacher(*load_brax_checkpoint(found, *asked))
    elif is_torch_file(file):
        teacher = Teacher(*load_teacher_checkpoint(file, env.num_actions, *asked, old_output_activation, images=images))
    else:
        teacher = Teacher(*load_policy(file, many=True))
    _check_images(file, "teacher", teacher.policy, images)
    if teacher.description["obs_size"] != expected["teacher"]:
        sizes = {group: observations.size([group], env.obs_specs) for group in groups}
        detail = " + ".join(f"'{g}'{f' ({size})' if len(sizes) > 1 else ''}" for g, size in sizes.items())
        seen = [group["name"] for group in teacher.description.get("observation", {}).get("groups", [])]
        raise ConfigError(
            f"{file}: the teacher takes {teacher.description['obs_size']} observations, "
            f"the environment's {detail} has {expected['teacher']}"
            + (f"; it was trained on {seen[0]}: set agent.obs_groups.teacher={seen[0]}" if len(seen) == 1 else "")
        )
    if teacher.policy.num_actions != env.num_actions:
        raise ConfigError(
            f"{file}: the teacher gives {teacher.policy.num_actions} actions, the environment takes {env.num_actions}"
        )
    _check_meaning(file, "teacher", teacher.description, groups, env)
    return teacher


def _num_observed(name: str, agent: AgentCfg, env: TrainingEnv) -> int:
    try:
        return observations.size(agent.obs_groups[name], env.obs_specs)
    except ObservationError as e:
        raise ConfigError(f"agent.obs_groups.{name}: {e}") from e


def _check_images(file: Path, role: str, policy: Policy, seen: Mapping[str, ObservationSpec]) -> None:
    """Raise :class:`ConfigError` unless a policy takes the images that are ``seen``."""
    if len(policy.cnns) != len(seen):
        theirs, ours = (", ".join(names) or "none" for names in ([cnn.group for cnn in policy.cnns], seen))
        raise ConfigError(
            f"{file}: the {role} takes {len(policy.cnns)} images ({theirs}), "
            f"agent.obs_groups.{role} has {len(seen)} ({ours})"
        )
    for cnn, (group, spec) in zip(policy.cnns, seen.items(), strict=True):
        if (cnn.shape, cnn.channels_first) != (spec.shape, spec.channels_first):
            theirs, ours = ("x".join(map(str, shape)) for shape in (cnn.shape, spec.shape))
            raise ConfigError(f"{file}: the {role}'s image '{cnn.group}' is {theirs}, this task's '{group}' {ours}")
        if cnn.group != group and cnn.group in seen:
            order = ", ".join(cnn.group for cnn in policy.cnns)
            raise ConfigError(f"{file}: the {role} sees {order} in this order, agent.obs_groups.{role} another")


def _check_meaning(file: Path, role: str, header: dict[str, Any], groups: Sequence[str], env: TrainingEnv) -> None:
    """Raise :class:`ConfigError` where a policy saw these numbers in another frame or order, or gives others than the
    environment takes; sizes would fit."""
    given, taken = (x.get("layout") for x in (header.get("action", {}), env.action_layout))
    if given and taken and list(given) != list(taken):
        raise ConfigError(f"{file}: the {role} gives {', '.join(given)}; the environment takes {', '.join(taken)}")
    seen = header.get("observation", {})
    frame, spec = seen.get("frame"), env.obs_specs.get(groups[0])
    actual = (spec and spec.frame) or frame
    if frame is not None and frame != actual:
        raise ConfigError(f"{file}: the {role} sees in the {frame} frame, '{groups[0]}' is in the {actual} frame")
    known = [part for group in seen.get("groups", [seen]) for part in group.get("layout") or ()]
    theirs, ours = (
        observations.part_names((p["name"], p["size"]) for p in known),
        observations.parts(groups, env.obs_specs),
    )
    if ours and theirs != ours and sorted(theirs) == sorted(ours):
        order, given = (", ".join(dict.fromkeys(n.partition("[")[0] for n in names)) for names in (theirs, ours))
        raise ConfigError(f"{file}: the {role} sees {order}; agent.obs_groups.{role}={','.join(groups)} is {given}")
