"""Policies as C, on this machine, on a Cortex-M4F and on a RISC-V: the same actions everywhere."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from jdistill.core import networks
from jdistill.core.activations import ACTIVATIONS, OUTPUT_ACTIVATIONS
from jdistill.core.config import AgentCfg
from jdistill.core.networks import Policy
from jdistill.errors import ExportError
from jdistill.export import c, c_functions, exporters, verify
from jdistill.export.formats import Student
from jdistill.export.layers import describe

BOARDS = Path(__file__).parent / "boards"
EPISODE, STEPS = 10, 20
STRICT = [*c.FLAGS, "-Wshadow", "-Wconversion", "-Wno-sign-conversion"]
POLICIES = {
    "gru": Policy(4, (16,), pre_dims=(16,), rnn_type="gru", output_activation="tanh", learn_initial_carry=True),
    "lstm": Policy(3, (8,), rnn_type="lstm", rnn_hidden_dim=6, rnn_num_layers=2, activation="mish"),
    "mlp": Policy(4, (64, 64, 64), activation="gelu", output_activation="beta"),
}
"""What is flown, and two that have everything else."""
LAYOUT = [{"name": "position error", "size": 3, "unit": "m"}, {"name": "spin", "size": 19, "unit": "rad/s */"}]
HEADER = {
    "observation": {"groups": [{"name": "policy", "size": 22, "frame": "body", "layout": LAYOUT}]},
    "action": {"size": 4, "layout": ["front_right", "back right"], "range": [-1, 1]},
    "control_rate_hz": 100.0,
    "network": {},
}


def student_of(policy: Policy, name: str = "policy") -> Student:
    """A policy that has seen something, and whose initial state is none of zeros."""
    state = networks.init(policy, jax.random.key(0), 22, normalize=True)
    seen = 2 + 3 * np.random.default_rng(1).normal(size=(99, 22)).astype("f")
    params = jax.tree.map_with_path(lambda p, x: x + 0.2 * ("initial" in str(p)), state.params)
    state = state.replace(params=params, normalizer=state.normalizer.update(jax.numpy.asarray(seen)))
    return Student(policy, state, HEADER, AgentCfg(), Path("teacher.safetensors"), name=name)


def table(name: str, rows: np.ndarray) -> str:
    lines = ", ".join("{" + ", ".join(c.literal(x) for x in row) + "}" for row in rows)
    return f"static const float {name}[{len(rows)}][{rows.shape[1]}] = {{{lines}}};\n"


@pytest.fixture(params=POLICIES, scope="module")
def golden(request, tmp_path_factory) -> Path:
    """A folder with an exported policy, and two episodes of what JAX makes of it."""
    folder = tmp_path_factory.mktemp(request.param)
    student = student_of(POLICIES[request.param])
    c.export(student, folder)
    observations = (2 + 3 * np.random.default_rng(2).normal(size=(STEPS, 1, 22))).astype("f")
    actions: list[np.ndarray] = []
    for first in range(0, STEPS, EPISODE):
        act = verify.jax_policy(student.policy, student.state)()
        actions += [act(obs)[0] for obs in observations[first : first + EPISODE]]
    text = f"#define STEPS {STEPS}\n#define EPISODE {EPISODE}\n"
    text += table("observations", observations[:, 0]) + table("actions", np.array(actions))
    (folder / "golden.h").write_text(text)
    return folder


def build(folder: Path, board: str, *command: str) -> Path:
    program = folder / "program"
    sources = [str(folder / "policy.c"), str(BOARDS / "golden.c")]
    built = subprocess.run(
        [*command, *STRICT, f"-I{folder}", f"-I{BOARDS / board}", *sources, "-o", str(program), "-lm"],
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0 and not built.stderr, built.stderr
    return program


def reported(*command: str) -> dict[str, int]:
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and "runtime error" not in ran.stderr, ran.stderr
    # Semihosting writes where errors go.
    return {name: int(value) for name, value in re.findall(r"(\w+) (\d+)\n", ran.stdout + ran.stderr)}


@pytest.mark.parametrize("library", [[], ["-DPOLICY_NO_LIBM"]], ids=["libm", "no libm"])
def test_nothing_is_undefined_and_the_actions_are_those_of_jax(golden, library):
    program = build(golden, "hosted", "cc", "-fsanitize=undefined", "-fno-sanitize-recover", *library)
    assert reported(str(program))["difference_1e9"] < 2000


def test_on_a_cortex_m4f(golden):
    """Without the C library's mathematics; an action must fit into 1 ms at 168 MHz, so into 168 000 cycles."""
    flags = ["-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-nostartfiles"]
    linker = ["--specs=nano.specs", f"-T{BOARDS / 'cortex_m' / 'board.ld'}"]
    program = build(golden, "cortex_m", "arm-none-eabi-gcc", *flags, *linker, "-DPOLICY_NO_LIBM")
    machine = ["qemu-system-arm", "-M", "mps2-an386", "-nographic", "-semihosting", "-icount", "shift=0"]
    found = reported(*machine, "-kernel", str(program))
    assert found["difference_1e9"] < 2000
    print(f"{found['instructions']} instructions a step")
    assert 1000 < found["instructions"] < 120_000


def test_on_a_risc_v(golden):
    program = build(golden, "hosted", "riscv64-linux-gnu-gcc", "-static")
    assert reported("qemu-riscv64", str(program))["difference_1e9"] < 2000


@pytest.mark.parametrize("activation", OUTPUT_ACTIVATIONS)
def test_every_activation_without_the_library(activation, tmp_path):
    hidden = activation if activation in ACTIVATIONS else "elu"
    student = student_of(Policy(4, (8,), activation=hidden, output_activation=activation))
    c.export(student, tmp_path)
    own = c.compiled(["cc", "-DPOLICY_NO_LIBM"], tmp_path / "policy.c", "policy", student.layers)
    act, expected = own(), verify.jax_policy(student.policy, student.state)()
    for scale in (0.01, 1.0, 30.0, 1000.0):
        obs = (scale * np.random.default_rng(3).normal(size=(1, 22))).astype("f")
        ours, theirs = act(obs), expected(obs)
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * max(1.0, np.abs(theirs).max()))
    assert np.isnan(act(np.full((1, 22), np.nan, "f"))).any() or activation in ("relu", "lrelu")


def test_the_header_says_what_each_number_is(tmp_path):
    student = student_of(POLICIES["gru"], name="fly")
    c.export(student, tmp_path)
    text = (tmp_path / "fly.h").read_text()
    for line in (
        "FLY_OBS_POSITION_ERROR = 0, /* 3 numbers, m, body frame */",
        "FLY_OBS_SPIN = 3 /* 19 numbers, rad/s * /, body frame */",
        "FLY_ACTION_FRONT_RIGHT = 0, /* -1 to 1 */",
        "FLY_ACTION_BACK_RIGHT = 1 /* -1 to 1 */",
        "#define FLY_RATE_HZ 100.0f",
        "void fly_step(fly_state *state, const float obs[FLY_OBS_SIZE], float action[FLY_NUM_ACTIONS]);",
    ):
        assert line in text
    groups = [{"name": name, "size": 2, "layout": []} for name in ("a/b", "a.b")]
    assert c.observation_parts({"observation": {"groups": groups}})[1][:2] == ("a.b_a.b", 2)


def test_the_export_compares_or_says_that_it_cannot(tmp_path, monkeypatch, capsys):
    student = student_of(POLICIES["lstm"])
    exporters.export(student, ["c"], tmp_path / "compared")
    entry = json.loads((tmp_path / "compared" / "policy.json").read_text())["files"]["c"]
    assert entry["largest_difference"] < 1e-6 and entry["header"] == "policy.h"
    layers = describe(student.policy, student.state)
    weights = sum(x.size for x in jax.tree.leaves(student.state.params)) + 2 * 22
    assert entry["constant_bytes"] == 4 * weights and entry["state_bytes"] == 4 * c.state_size(layers) == 96
    monkeypatch.setattr(c.shutil, "which", lambda name: None)
    exporters.export(student, ["c"], tmp_path / "alone")
    assert json.loads((tmp_path / "alone" / "policy.json").read_text())["files"]["c"]["largest_difference"] is None
    assert "policy.c: written, but not compared" in capsys.readouterr().out
    assert (tmp_path / "alone" / "policy.c").read_text() == (tmp_path / "compared" / "policy.c").read_text()


def test_what_c_cannot_hold_is_refused(tmp_path, monkeypatch):
    for name in ("2fly", "a-b", "", "fl\u00fcg", "x/../y"):
        with pytest.raises(ExportError, match="not a C identifier"):
            c.export(student_of(POLICIES["gru"], name=name), tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("CC", "cc -DHIDDEN=oops")
    with pytest.raises(ExportError, match=r"policy.c: cc does not compile it: .*error"):
        c.export(student_of(POLICIES["gru"]), tmp_path)
    assert not list(tmp_path.iterdir()), "nothing is left"
    monkeypatch.setenv("CC", "riscv64-linux-gnu-gcc")
    assert c.export(student_of(POLICIES["gru"]), tmp_path).start is None, "it is for another machine"


def test_every_activation_has_its_function():
    assert {*c_functions.ACTIVATIONS, "identity"} == set(OUTPUT_ACTIVATIONS)
