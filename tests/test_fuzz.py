"""Odd settings, command lines and damaged files, by the hundred: what cannot be used is one line, never a traceback."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bridge.crazyflie import PointControlCfg
from jdistill.cli.main import COMMANDS
from jdistill.errors import UserError
from jdistill.evaluation.report import read_evaluation
from jdistill.export.policy_file import load_policy
from jdistill.run.compose import compose, flatten, load_file
from jdistill.run.folders import describe, note_start, starts, table
from jdistill.run.progress import last_row, read_progress
from tests.conftest import BUNDLED_TEACHER

pytestmark = pytest.mark.full
# The suite tries the same ones every time, ``python -m benchmarks.faults`` others and more of them.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
seeded = settings(
    derandomize=not EXAMPLES,
    deadline=None,
    max_examples=EXAMPLES or 150,
    database=None,
    suppress_health_check=list(HealthCheck),
)
DEFAULT = compose("crazyflie", PointControlCfg, [], [])
KNOWN = sorted(dict(flatten({name: dataclasses.asdict(getattr(DEFAULT, name)) for name in ("agent", "env", "bridge")})))
ODD = st.one_of(
    st.sampled_from(
        [
            *(
                "nan",
                ".inf",
                "-1",
                "0",
                "1e400",
                "-0.0",
                "9" * 400,
                "null",
                "None",
                "true",
                "[]",
                "{}",
                "[[]]",
                "()",
                "a: b",
            ),
            *(
                "''",
                "\x00",
                "\ud800",
                "${x}",
                "!!python/object:os.system x",
                "&a [*a]",
                "2026-02-30",
                "1_000",
                "0x10",
                "~",
            ),
            *("[1, a]", "{a: {b: 1}}", "- 1", "#", "|", "%", "@", "`", "\t", "\u202e", "é" * 300, "[" * 100, "'"),
        ]
    ),
    st.text(max_size=20),
    st.floats().map(str),
    st.integers().map(str),
)


def told(function) -> object:
    """What ``function`` returns; None if it raises an error of one line for users, and nothing else."""
    try:
        return function()
    except UserError as e:
        assert str(e) and "\n" not in str(e) and len(str(e)) < 2000
        return None


@seeded
@given(key=st.sampled_from(KNOWN), value=ODD)
def test_odd_values_of_settings(key, value):
    cfg = told(lambda: compose("crazyflie", PointControlCfg, [], [f"{key}={value}"]))
    if cfg is not None:
        yaml.safe_dump(dataclasses.asdict(cfg))


@seeded
@given(key=st.text(max_size=30), value=ODD)
def test_settings_that_there_are_not(key, value):
    told(lambda: compose("crazyflie", PointControlCfg, [], [f"agent.{key}={value}"]))


@seeded
@given(text=st.text(max_size=200))
def test_files_of_any_text(text, tmp_path_factory):
    file = tmp_path_factory.mktemp("fuzz") / "config.yaml"
    file.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    told(lambda: compose("crazyflie", PointControlCfg, [load_file(file)], []))


@st.composite
def command_lines(draw):
    name = draw(st.sampled_from(sorted(COMMANDS)))
    parser = importlib.import_module(f"jdistill.cli.{name}").make_parser()
    flags = [option for action in parser._actions for option in action.option_strings if option not in ("-h", "--help")]
    token = st.one_of(st.sampled_from(flags), ODD, st.sampled_from(KNOWN).map(lambda key: f"{key}=1"))
    return name, draw(st.lists(token, max_size=6))


@seeded
@given(command_lines())
def test_command_lines_are_read_or_refused_in_a_line(line):
    name, argv = line
    parser = importlib.import_module(f"jdistill.cli.{name}").make_parser()
    with contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            parser.parse_known_args(argv)
        except SystemExit as stop:
            assert stop.code == 2
    assert "Traceback" not in err.getvalue()


@st.composite
def damaged(draw, content: bytes):
    """``content`` with some bytes changed, cut out, doubled or put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(["change", "cut", "insert", "end"]))
        if kind == "change" and data:
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(min_size=1, max_size=8))
        else:
            del data[at:]
    assume(bytes(data) != content)
    return bytes(data)


POLICY = BUNDLED_TEACHER.read_bytes()
HEADER = 8 + int.from_bytes(POLICY[:8], "little")


@seeded
@given(head=damaged(POLICY[:HEADER]))
def test_policy_files_with_a_damaged_header(head, tmp_path_factory):
    file = tmp_path_factory.mktemp("fuzz") / "policy.safetensors"
    file.write_bytes(head + POLICY[HEADER:])
    told(lambda: load_policy(file))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run folder as the commands read it."""
    folder = tmp_path_factory.mktemp("logs") / "experiment" / "run"
    folder.mkdir(parents=True)
    DEFAULT.save(folder / "config.yaml")
    note_start(folder, "python train_jax.py", 0, {"platform": "cpu", "kind": "cpu", "count": 1})
    (folder / "progress.csv").write_text("iteration,Loss/behavior,Train/mean_reward\n0,0.5,\n1,0.25,3.5\n")
    (folder / "evaluation").mkdir()
    row = {"description": "as it is", "policies": {"student": {"survival": 1.0, "return": 3.0, "metrics": {}}}}
    content = {"format": 1, "scenarios": {"default": row}, "policies": {"student": {"parameters": 3}}}
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(content))
    return folder


READERS = {
    "config.yaml": lambda run: compose("crazyflie", PointControlCfg, [load_file(run / "config.yaml")], []),
    "run.json": starts,
    "progress.csv": lambda run: (read_progress(run), last_row(run)),
    "evaluation/evaluation.json": read_evaluation,
}


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_of_a_run(run, name):
    content = (run / name).read_bytes()

    @seeded
    @given(data=damaged(content))
    def check(data):
        (run / name).write_bytes(data)
        told(lambda: READERS[name](run))
        assert all(line.isprintable() for line in table([describe(run)]).splitlines())

    try:
        check()
    finally:
        (run / name).write_bytes(content)
