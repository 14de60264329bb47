"""What a manager-based environment says of its observations, actions and robot: names, sizes, scales.

It reads the managers of Isaac Lab and those of mjlab, which are alike. Whoever deploys a policy needs all of it: what
stands where in the observation, what was done to it, and what an action means.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bridge.env import Layout


@dataclass(frozen=True)
class ManagerNames:
    """What an environment's managers know; empty of what there is none."""

    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """The terms of each observation group, in order. A group that is a dictionary is one group for each of its terms,
    ``group/term``."""
    terms: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)
    """Of each group and term: see :attr:`bridge.observation.ObservationSpec.terms`."""
    action_layout: Mapping[str, Any] = field(default_factory=dict)
    """See :attr:`bridge.env.TrainingEnv.action_layout`; ``terms`` says of each action term its ``name``, ``type``,
    ``size``, ``scale`` and ``offset``, by which an action becomes a target (offset + scale * action), and ``clip``."""
    deployment: Mapping[str, Any] = field(default_factory=dict)
    """``robot`` (``joint_names``, ``default_joint_pos``, ``joint_stiffness``, ``joint_damping``), ``command_names``,
    ``physics_dt`` (s), ``decimation`` (physics steps per control step)."""


def names_of(env: Any) -> ManagerNames:
    """What the managers of ``env`` say; nothing where it has none.

    Much of it stands in attributes that other versions may call otherwise. Names that cannot be read are no reason not
    to train: a line on stderr says so.
    """
    if not hasattr(env, "observation_manager") or not hasattr(env, "action_manager"):
        return ManagerNames()
    try:
        joints = _joints(env)
        action = _action_layout(env)
        layouts, terms = _observations(env, joints.get("joint_names", []), action["layout"])
        return ManagerNames(layouts, terms, action, _deployment(env, joints))
    except Exception as e:  # Of whatever kind: it is another package's inside.
        what = " ".join(str(e).split())[:150]
        print(
            f"No names in policy.json: the environment's managers are others ({type(e).__name__}: {what})",
            file=sys.stderr,
        )
        return ManagerNames()


# -- observations --------------------------------------------------------------------------------------------------


def _observations(env: Any, joints: Sequence[str], actions: Sequence[str]) -> tuple[dict, dict]:
    """Layouts and terms of all groups."""
    manager = env.observation_manager
    layouts: dict[str, Layout] = {}
    about: dict[str, dict[str, dict[str, Any]]] = {}
    for group, names in manager.active_terms.items():
        shapes, cfgs = manager.group_obs_term_dim[group], manager._group_obs_term_cfgs[group]
        terms = {name: _term(cfg, shape, joints, actions) for name, cfg, shape in zip(names, cfgs, shapes, strict=True)}
        sizes = {name: int(np.prod(shape)) for name, shape in zip(names, shapes, strict=True)}
        if not manager.group_obs_concatenate[group]:
            layouts |= {f"{group}/{name}": ((name, sizes[name], ""),) for name in names}
            about |= {f"{group}/{name}": {name: terms[name]} for name in names}
        elif all(len(shape) <= 1 for shape in shapes):
            parts = tuple((name, sizes[name], "") for name in names)
            if getattr(manager, "_group_obs_time_major", {}).get(group) and len(names) > 1:
                steps = cfgs[0].history_length
                parts = tuple((name, sizes[name] // steps, "") for _ in range(steps) for name in names)
                terms = {name: {**term, "history_order": "time"} for name, term in terms.items()}
            layouts[group], about[group] = parts, terms
    return layouts, about


def _term(cfg: Any, shape: Sequence[int], joints: Sequence[str], actions: Sequence[str]) -> dict[str, Any]:
    """What is said of an observation term of ``shape`` (without the batch axis, history included)."""
    function = getattr(cfg.func, "__name__", type(cfg.func).__name__)
    term: dict[str, Any] = {"function": function}
    if cfg.scale is not None:
        scale = np.asarray(numbers(cfg.scale)).tolist()
        term["scale"] = scale
    if cfg.clip:
        term["clip"] = [float(x) for x in cfg.clip]
    steps = int(getattr(cfg, "history_length", 0) or 0)
    if steps:
        term |= {"history_length": steps, "flatten_history_dim": bool(cfg.flatten_history_dim)}
    if elements := _elements(cfg, function, int(np.prod(shape)) // max(steps, 1), joints, actions):
        term["elements"] = elements
    return term


def _elements(cfg: Any, function: str, size: int, joints: Sequence[str], actions: Sequence[str]) -> list[str]:
    """Names of a term's numbers (of one step), where it is one for each joint or each action."""
    chosen = [x for x in (cfg.params or {}).values() if hasattr(x, "joint_names") and hasattr(x, "joint_ids")]
    named: Sequence[str] = joints if "joint" in function and not chosen else ()
    if chosen and "joint" in function:
        ids = chosen[0].joint_ids
        named = joints if isinstance(ids, slice) else [joints[i] for i in numbers(ids).astype(int) if i < len(joints)]
    elif "action" in function:
        named = actions
    return list(named) if len(named) == size else []


# -- actions -------------------------------------------------------------------------------------------------------


def _action_layout(env: Any) -> dict[str, Any]:
    terms = [_action(env.action_manager.get_term(name), name) for name in env.action_manager.active_terms]
    every = [name for term in terms for name in term.pop("elements")]
    counts = Counter(every)
    owners = [term["name"] for term in terms for _ in range(term["size"])]
    layout = [name if counts[name] == 1 else f"{owner}/{name}" for owner, name in zip(owners, every, strict=True)]
    return {"layout": layout, "rate_hz": round(1.0 / float(env.step_dt), 6), "terms": terms}


def _action(term: Any, name: str) -> dict[str, Any]:
    """An action term; ``elements`` are the names of its numbers."""
    size = int(term.action_dim)
    found: Any = next((x for x in (getattr(term, a, None) for a in ("_joint_names", "target_names")) if x), ())
    plain = [name] if size == 1 else [f"{name}[{i}]" for i in range(size)]
    about: dict[str, Any] = {
        "name": name,
        "type": type(term).__name__,
        "size": size,
        "elements": list(found) if len(found) == size else plain,
    }
    for key in ("scale", "offset"):
        value = getattr(term, f"_{key}", None)
        if value is not None and (row := _row(value, size)) is not None:
            about[key] = row
    if getattr(term.cfg, "clip", None) and hasattr(term, "_clip"):
        about["clip"] = numbers(term._clip)[0].tolist()
    return about


def _row(value: Any, size: int) -> list[float] | None:
    """One environment's numbers of ``value``: a number, (size,), or (num_envs, size), whose mean it is."""
    array = numbers(value)
    array = array.mean(axis=0) if array.ndim == 2 else array
    return np.broadcast_to(array, (size,)).tolist() if array.shape in ((), (1,), (size,)) else None


# -- the robot -----------------------------------------------------------------------------------------------------


def _deployment(env: Any, joints: Mapping[str, Any]) -> dict[str, Any]:
    about: dict[str, Any] = {"robot": dict(joints)} if joints else {}
    commands = list(getattr(getattr(env, "command_manager", None), "active_terms", ()))
    about |= {"command_names": commands}
    if hasattr(env, "physics_dt"):
        about["physics_dt"] = float(env.physics_dt)
        about["decimation"] = round(float(env.step_dt) / float(env.physics_dt))
    return about


def _joints(env: Any) -> dict[str, Any]:
    """Joints of the robot that the actions move, in the simulator's order; nothing where it has none.

    Default positions are in rad or m, stiffness in N m/rad or N/m, damping in N m s/rad or N s/m. What differs between
    the environments is their mean, and its name stands in ``randomized``.
    """
    terms = [env.action_manager.get_term(name) for name in env.action_manager.active_terms]
    assets = [x for x in (getattr(t, "_asset", None) or getattr(t, "_entity", None) for t in terms) if x is not None]
    asset = next((x for x in assets if getattr(x, "joint_names", None)), None)
    if asset is None:
        return {}
    about: dict[str, Any] = {"joint_names": list(asset.joint_names)}
    known = {"default_joint_pos": numbers(asset.data.default_joint_pos), **dict(_gains(env, asset))}
    randomized = []
    for name, rows in known.items():
        rows = np.atleast_2d(rows)
        about[name] = (rows[0] if (same := (rows == rows[0]).all()) else rows.mean(axis=0)).tolist()
        randomized += [] if same else [name]
    return {**about, **({"randomized": randomized} if randomized else {})}


def _gains(env: Any, asset: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Stiffness and damping (num_envs, joints), or (joints,), of the asset's joints."""
    if hasattr(asset.data, "joint_stiffness"):
        for gain in ("stiffness", "damping"):
            rows = numbers(getattr(asset.data, f"joint_{gain}")).copy()
            # Joints whose motor Isaac Lab computes itself are without stiffness for the solver.
            for actuator in getattr(asset, "actuators", {}).values():
                value, ids = getattr(actuator, gain, None), actuator.joint_indices
                if value is not None:
                    rows[:, ids if isinstance(ids, slice) else numbers(ids).astype(int)] = numbers(value)
            yield f"joint_{gain}", rows
    elif (model := getattr(env.sim, "mj_model", None)) is not None and hasattr(asset, "spec"):
        motors = {actuator.target.rpartition("/")[2]: actuator.id for actuator in asset.spec.actuators}
        # MuJoCo's position servo: force = kp * control - kp * position - kd * velocity.
        gains = {"stiffness": model.actuator_gainprm[:, 0], "damping": -model.actuator_biasprm[:, 2]}
        for gain, by_motor in gains.items():
            yield f"joint_{gain}", np.array([by_motor[motors[x]] if x in motors else 0.0 for x in asset.joint_names])


def numbers(value: Any) -> np.ndarray:
    """``value`` on the host: a number, a sequence, a tensor of torch, or one of Isaac Lab 3, which wraps Warp's."""
    value = getattr(value, "torch", value)
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=np.float64)
