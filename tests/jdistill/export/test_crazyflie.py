"""The Crazyflie app: its controller, compiled, in flight, with a stand-in for the firmware around it."""

from __future__ import annotations

import functools
import json
import subprocess
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from benchmarks.crazyflie_app import agree, fly, in_c, in_jax
from bridge.crazyflie import PointControl, PointControlCfg
from bridge.env import AutoReset
from jdistill.core import networks, observations
from jdistill.core.config import AgentCfg
from jdistill.core.networks import Policy
from jdistill.errors import ExportError
from jdistill.export import c, exporters
from jdistill.export import crazyflie as app
from jdistill.export import crazyflie_loop as loops
from jdistill.export.formats import Student
from jdistill.export.layers import DenseLayer, PolicyLayers, build, describe
from jdistill.export.policy_file import load_policy
from tests.conftest import BUNDLED_TEACHER

pytestmark = pytest.mark.full

GROUPS = {"student": ["student"], "teacher": ["teacher"]}
FLYING, NO_POSITION, NOT_FINITE, TOO_OLD, TOO_FAR, TOO_TILTED, TOO_FAST, _, OFF, RECOVERING = range(10)
rng = np.random.default_rng(0)


@functools.cache
def untrained():
    """A network, and a state that has seen something."""
    policy = Policy(4, (), pre_dims=(16,), rnn_type="gru", output_activation="tanh", learn_initial_carry=True)
    state = networks.init(policy, jax.random.key(0), 22, True)
    seen = 0.2 + rng.normal(size=(99, 22)).astype("f")
    return policy, state.replace(normalizer=state.normalizer.update(jax.numpy.asarray(seen)))


def student_of(frame: str = "body", entries=("student",), **parts) -> Student:
    """An untrained student of a task; ``parts`` go over its header."""
    env = PointControl(PointControlCfg(num_envs=1, frame=frame))
    header = {**observations.describe(env, list(entries)), "network": {}, "iteration": 5, **parts}
    return Student(*untrained(), header, AgentCfg(obs_groups=GROUPS | {"student": list(entries)}), BUNDLED_TEACHER)


def able_student() -> Student:
    """The bundled teacher, with previous motor commands in place of the rotor speeds, which a student does not see."""
    layers = describe(*load_policy(BUNDLED_TEACHER)[:2])
    first = layers.mlp[0]
    weight = first.weight.astype(np.float64) / layers.normalizer.scale
    bias = first.bias - weight @ layers.normalizer.mean
    weight = np.concatenate([weight[:, :18], weight[:, 18:22] + weight[:, 22:]], axis=1)
    mlp = (DenseLayer(weight.astype("f"), bias.astype("f"), first.activation), *layers.mlp[1:])
    policy, state = build(PolicyLayers(None, (), (), mlp))
    return replace(student_of(), policy=policy, state=state)


def loop_of(student: Student, out: Path) -> loops.Loop:
    app.export(student, out)
    loop = loops.Loop.compiled(["cc"], out / app.NAME / "src", student.header["motors"])
    assert loop is not None
    return loop


def test_it_flies_as_well_as_the_student(crazyflie, tmp_path):
    """From the same states, with the same targets; the 1000 episodes are ``python -m benchmarks.crazyflie_app``'s."""
    student, count = able_student(), crazyflie.num_envs
    loop = loop_of(student, tmp_path)
    ours, theirs = (fly(crazyflie, act, steps=200) for act in (in_jax(student, count), in_c(loop, count)))
    assert agree(ours, theirs), (ours, theirs)
    assert ours.survival == 1.0 and ours.steady_error < 0.2 and theirs.fallbacks == 0


@pytest.mark.parametrize(
    ("frame", "entries"),
    [("body", ["student"]), ("world", ["student[15:22]", "student[:15]"]), ("start", ["student[0:3,6:15,3:6,15:22]"])],
)
def test_what_it_observes_is_what_the_task_says(frame, entries, tmp_path):
    """Units, frames and order, against observations put together by hand."""
    student, craft = student_of(frame, entries), 6
    flying = loop_of(student, tmp_path).craft(craft)
    (columns,) = observations.select({"student": np.arange(22)[None]}, entries)
    carry = networks.initial_carry(student.policy, student.state, craft)
    command = np.full((craft, 4), student.header["motors"]["hover_command"])
    heading = rng.uniform(-3, 3, (craft, 1))
    for step in range(12):
        attitude = Rotation.from_euler("ZYX", np.c_[heading, rng.uniform(-0.6, 0.6, (craft, 2))])
        if step == 0:
            x = attitude.as_matrix()[:, :, 0]
            start = Rotation.from_euler("Z", np.arctan2(x[:, 1], x[:, 0])[:, None])
        heading = heading + rng.uniform(-0.2, 0.2, (craft, 1))
        position, velocity, rates = (scale * rng.normal(size=(craft, 3)) for scale in (0.4, 0.5, 2.0))
        target, target_velocity = rng.normal(size=(craft, 3)), 0.3 * rng.normal(size=(craft, 3))
        turn = {"body": attitude, "world": Rotation.identity(craft), "start": start}[frame].inv()
        seen = attitude if frame != "start" else turn * attitude
        parts = [turn.apply(position), turn.apply(velocity), seen.as_matrix().reshape(-1, 9), rates, command]
        obs = np.concatenate(parts, axis=1).astype("f")[:, columns]
        carry, expected = networks.act(student.policy, student.state, carry, jax.numpy.asarray(obs))
        state = np.concatenate([position + target, velocity + target_velocity, attitude.as_quat(), rates], axis=1)
        actions, fallback = flying.act(state, np.concatenate([target, target_velocity], axis=1))
        assert not fallback.any()
        np.testing.assert_allclose(actions, expected, atol=2e-3)
        command = 0.5 * (np.asarray(expected) + 1)


def hovering(craft: int = 1) -> np.ndarray:
    """A state at the setpoint, with an estimator's noise."""
    state = np.zeros((craft, 13), np.float32)
    state[:, 9] = 1.0
    state[:, :3] = 1e-3 * rng.normal(size=(craft, 3))
    return state


def test_the_stock_controller_takes_over(tmp_path):
    loop = loop_of(able_student(), tmp_path)
    here, count = np.zeros((1, 6), np.float32), loop.library.sil_pid_resets

    def fallback(change=lambda state: state, setpoint=here, mode=1, steps=1) -> int:
        for _ in range(steps):
            actions, reason = craft.act(change(hovering()), setpoint, mode)
            assert np.isfinite(actions).all(), "the stand-in gives NaN where it is given NaN"
        return int(reason[0])

    def put(at, value):
        return lambda state: np.concatenate([state[:, :at], [[value]], state[:, at + 1 :]], axis=1)

    tilted = lambda state: np.concatenate([state[:, :6], [[0.7, 0, 0, 0.7]], state[:, 10:]], axis=1)  # noqa: E731
    faults = {
        TOO_FAR: [put(0, 2.5), put(2, -2.5)],
        TOO_TILTED: [tilted],
        TOO_FAST: [put(4, 4.5), put(11, 36.0)],
        NOT_FINITE: [put(i, value) for i in (1, 3, 8, 12) for value in (np.nan, np.inf)] + [lambda s: 0 * s],
    }
    for reason, changes in faults.items():
        for change in changes:
            craft = loop.craft(1)
            assert fallback() == FLYING and count() == 0
            assert fallback(change) == reason and count() == 1 and loop.library.sil_pid_steps() > 0
            assert fallback(steps=100) == RECOVERING and fallback() == FLYING and count() == 1
    craft = loop.craft(1)
    assert fallback(mode=0) == NO_POSITION and fallback(mode=2) == NO_POSITION and fallback() == FLYING, "at once"
    assert fallback(setpoint=np.full((1, 6), np.nan, np.float32)) == NOT_FINITE
    craft, still = loop.craft(1), hovering()
    reasons = [int(craft.act(still, here)[1][0]) for _ in range(12)]
    assert reasons[:10] == [FLYING] * 10 and reasons[10:] == [TOO_OLD] * 2, "0.1 s"
    craft = loop.craft(1)
    loop.library.sil_enable(0)
    assert fallback() == OFF
    loop.library.sil_enable(1)
    assert fallback() == FLYING


def test_motors_stay_within_their_limits(tmp_path):
    """Below THRUST_MIN the firmware would stop a motor: the slowest command is a hair above it."""
    student = able_student()
    loop, motors = loop_of(student, tmp_path), student.header["motors"]
    attitude = Rotation.random(200, rng=rng).as_quat()
    state = np.concatenate([rng.normal(size=(200, 6)), attitude, rng.normal(size=(200, 3))], axis=1)
    actions, fallback = loop.craft(200).act(state, np.zeros((200, 6)))
    flown = actions[fallback == FLYING]
    assert len(flown) > 20 and -1.0 <= flown.min() < -0.99 and 0.99 < flown.max() <= 1.0001
    low, high = motors["rpm"]
    slowest = loops.thrust(motors, low + 0.5 * (flown.min() + 1) * (high - low))
    assert 0 <= slowest - loops.thrust(motors, low) < 4 * loops.thrust(motors, high) / 65535


def test_the_firmwares_compiler_takes_it(tmp_path):
    student = student_of("start")
    app.export(student, tmp_path)
    sources, stubs = tmp_path / app.NAME / "src", tmp_path / "stubs"
    stubs.mkdir()
    flags = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-Os", "-Wdouble-promotion"]
    flags += loops.build_flags(stubs, student.header["motors"])
    for name in ("controller.c", "policy.c"):
        command = ["arm-none-eabi-gcc", *flags, "-fstack-usage", "-c", str(sources / name), "-o", str(tmp_path / "x.o")]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0 and not done.stderr, done.stderr
    stack = [int(line.split("\t")[1]) for line in (tmp_path / "x.su").read_text().splitlines()]
    assert sum(stack) < 400, "the arrays are elsewhere: the control loop has 1800 bytes in all"


def test_the_app_is_what_the_firmware_wants(tmp_path, capsys):
    student, env = student_of(), AutoReset(PointControl(PointControlCfg(num_envs=1)))
    exporters.export(student, ["crazyflie"], tmp_path, env)
    lines = capsys.readouterr().out.splitlines()
    assert "crazyflie_app: 100 steps beside the original" in lines[0] and "(0.002 is allowed)" in lines[0]
    assert "by itself, what it saw differs by" in lines[1]
    folder = tmp_path / app.NAME
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    sources = {"src/controller.c", "src/policy.c", "src/policy.h", "src/policy_task.h", "src/Kbuild"}
    assert found == sources | {"Kbuild", "Makefile", "README.md", "app-config"}
    config = (folder / "app-config").read_text()
    assert "CONFIG_CONTROLLER_OOT=y\n" in config and "CONFIG_CRAZYFLIE_LEGACY_PROPELLERS=y\n" in config
    task = (folder / "src" / "policy_task.h").read_text()
    assert "#define FRAME FRAME_BODY" in task and "#define LIMIT_RECOVERY_STEPS 100 " in task
    assert "iteration 5 of a student" in (folder / "README.md").read_text()
    content = json.loads((tmp_path / "policy.json").read_text())
    assert content["files"]["crazyflie"]["airframe"] == content["motors"]["airframe"] == "cf2x_L250"
    with pytest.raises(ExportError, match="crazyflie_app: exists; remove it, or name another folder by --out"):
        exporters.export(student, ["crazyflie"], tmp_path, env)


def test_what_the_firmware_cannot_fly_is_refused(tmp_path, monkeypatch, capsys):
    unknown = [{"name": "image", "size": 22, "layout": []}]
    for student, complaint in (
        (student_of(entries=["teacher"]), "observes rotor_speeds; the firmware gives position_error, velocity_error"),
        (student_of(entries=["student[:18]"]), "observes a part of position_error, "),
        (student_of(observation={"groups": unknown}), "observes numbers that nobody named"),
        (student_of(observation={}), "observes numbers that nobody named"),
        (student_of(observation={"groups": [{"name": "depth", "shape": [8, 8, 1]}]}), r"sees images \(depth\)"),
        (student_of(action={"layout": ["slider"]}), "actions are not front_right"),
        (student_of(control_rate_hz=60.0), "60.0 actions a second do not divide"),
        (student_of(motors=None), "nothing says how the motors pull"),
    ):
        with pytest.raises(ExportError, match=f"crazyflie: .*{complaint}") as told:
            exporters.export(student, ["crazyflie"], tmp_path / "out")
        assert "\n" not in str(told.value) and not (tmp_path / "out").exists()
    monkeypatch.setenv("CC", "cc -DRADIANS=oops")
    with pytest.raises(ExportError, match=r"crazyflie: cc does not compile the controller: .*error"):
        exporters.export(student_of(), ["crazyflie"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(c.shutil, "which", lambda name: None)
    exporters.export(student_of(), ["crazyflie"], tmp_path / "out")
    assert "crazyflie_app: written, but not compared" in capsys.readouterr().out


def test_rotations_become_quaternions():
    rotation = Rotation.concatenate([Rotation.random(50, rng=rng), Rotation.from_euler("xyz", np.eye(3) * np.pi)])
    found = Rotation.from_quat(loops.quaternions(rotation.as_matrix()))
    assert (found * rotation.inv()).magnitude().max() < 1e-6
