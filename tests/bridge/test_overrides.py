"""Settings that simulators apply to their own configs, and mjlab's words for them; mjlab itself is elsewhere."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from bridge import registry
from bridge.mjlab.cfg import MjlabCfg, apply
from bridge.mjlab.simulator import Mjlab, as_overrides, scenarios
from bridge.overrides import locate, share
from bridge.tasks import Request
from jdistill.errors import SettingError


class Origin(enum.Enum):
    WORLD = 1
    ROBOT = 2


@dataclass
class Inner:
    weight: float = 1.0
    count: int = 3
    on: bool = False
    name: str = "foot"
    span: tuple[float, float] = (0.0, 1.0)
    cone: Literal["round", "flat"] = "round"
    origin: Origin = Origin.WORLD
    missing: str | None = None
    whole: float = 20
    function: Callable[[], Any] = print
    params: dict[str, Any] = field(default_factory=dict)


@dataclass
class Config:
    terms: dict[str, Inner] = field(default_factory=lambda: {"pose": Inner()})
    sensors: tuple[Inner, ...] = field(default_factory=lambda: (Inner(),))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("weight=2", 2.0),
        ("weight=-1e-4", -1e-4),
        ("count=5", 5),
        ("on=true", True),
        ("on=False", False),
        ("name=007", "007"),
        ("span=(-1, 2.5)", (-1, 2.5)),
        ("span=[0,1]", (0, 1)),
        ("cone=flat", "flat"),
        ("origin=robot", Origin.ROBOT),
        ("missing=2024", "2024"),
        ("missing=null", None),
        ("whole=0.5", 0.5),
        ("params={'a': [1]}", {"a": [1]}),
    ],
)
def test_values_are_read_as_what_was_there(override, expected):
    cfg = Config()
    apply(cfg, f"env.terms.pose.{override}")
    apply(cfg, f"env.sensors.0.{override}")
    for changed in (cfg.terms["pose"], cfg.sensors[0]):
        value = getattr(changed, override.partition("=")[0])
        assert value == expected and type(value) is type(expected)


def test_a_term_is_taken_out():
    cfg = Config()
    apply(cfg, "env.terms.pose=None")
    assert cfg.terms == {"pose": None}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("env.terms.poze=None", "env.terms.poze: no setting 'poze' in env.terms; there are pose"),
        ("env.terms.pose.weight.x=1", "no setting 'x' in env.terms.pose.weight; it is a single value"),
        ("env.sensors.1.weight=1", "no setting '1' in env.sensors; there are 0"),
        ("env.sensors.0=None", "set the whole of env.sensors, or what is in its element 0"),
        ("env.terms.pose.weight=much", "env.terms.pose.weight=much: expected a value like 1.0"),
        ("env.terms.pose.weight=None", "expected a value like 1.0"),
        ("env.terms.pose.count=1.5", "expected a value like 3"),
        ("env.terms.pose.count=True", "expected a value like 3"),
        ("env.terms.pose.on=1", "expected a value like False"),
        ("env.terms.pose.span=(1,)", "expected a value like (0.0, 1.0)"),
        ("env.terms.pose.span=(1,'a')", "expected a value like (0.0, 1.0)"),
        ("env.terms.pose.cone=flatt", "expected one of round, flat (did you mean flat?)"),
        ("env.terms.pose.origin=sky", "expected one of WORLD, ROBOT"),
        ("env.terms.pose=1", "is a section, set what is in it (weight, count"),
        ("env.terms.pose.function=print", "expected a value like <built-in function print>"),
        ("env.terms.pose.weight", "env.terms.pose.weight: expected key=value"),
    ],
)
def test_what_cannot_be_set_is_told(override, message):
    with pytest.raises(SettingError) as error:
        apply(Config(), override)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_section_is_no_setting():
    with pytest.raises(SettingError, match="env: is a section, set what is in it: sensors, terms"):
        locate(Config(), "env=1")


def test_environments_are_shared_out():
    assert share("task", 12, 4) == 3
    with pytest.raises(
        SettingError, match="its 10 environments cannot be divided among 4 processes; set --num_envs, 8"
    ):
        share("task", 10, 4)


def test_mjlabs_flags_become_settings():
    argv = [
        "--task",
        "T",
        "--env.scene.num-envs",
        "64",
        "--motion_file=a.npz",
        "--enable-nan-guard",
        "True",
        "agent.x=1",
    ]
    assert as_overrides(argv) == [
        *("--task", "T", "env.scene.num_envs=64", "env.commands.motion.motion_file=a.npz"),
        *("env.sim.nan_guard.enabled=True", "agent.x=1"),
    ]
    with pytest.raises(SettingError, match="--motion-file: expected a value after it"):
        as_overrides(["--motion-file", "--resume"])


def test_mjlabs_settings_are_kept_apart_from_ours():
    file = {"num_envs": 4, "rewards": {"pose": {"weight": 2}}, "overrides": ["env.decimation=2"]}
    sections, rest = Mjlab().separate([file], ["env.play=true", "agent.seed=1", "env.scene.env_spacing=3"])
    theirs = ["env.decimation=2", "env.rewards.pose.weight=2", "env.scene.env_spacing=3"]
    assert sections == [{"num_envs": 4}, {"overrides": theirs}] and rest == ["env.play=true", "agent.seed=1"]


def test_a_task_is_evaluated_in_its_play_variant_too():
    found = scenarios(MjlabCfg(4, ["env.decimation=2"]))
    assert [s.cfg.play for s in found.values()] == [False, True] and found["play"].cfg.overrides == ["env.decimation=2"]
    assert list(scenarios(found["play"].cfg)) == ["default"]


def test_mjlabs_names_are_known_without_it():
    assert registry.find(Request("Mjlab-Velocity-Flat-Unitree-Go1")).name == "mjlab"
    if not registry.is_installed(Mjlab()):
        with pytest.raises(SettingError, match="needs mjlab, use 'uv run --extra mjlab train_jax"):
            registry.check_installed(Mjlab(), Request("Mjlab-Cartpole-Balance", program="train_jax.py"))
