"""Values of settings, as people and tools write them."""

from __future__ import annotations

import pytest

from bridge.crazyflie import PointControlCfg
from jdistill.cli.parser import Parser
from jdistill.errors import ConfigError
from jdistill.run.compose import compose, load_file
from jdistill.run.training import changes


def made(*overrides: str, layers=()):
    return compose("crazyflie", PointControlCfg, layers, overrides)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("agent.algorithm.learning_rate=5e-4", 5e-4),
        ("agent.algorithm.max_grad_norm=None", None),
        ("agent.algorithm.max_grad_norm=null", None),
        ("agent.student.hidden_dims=(64, 32)", [64, 32]),
        ("agent.student.hidden_dims=(64,)", [64]),
        ("agent.algorithm.use_dagger=True", True),
        ("agent.run_name=2026-02-30", "2026-02-30"),
        ("agent.run_name=2026-02-03", "2026-02-03"),
        ("agent.run_name=007", "007"),
    ],
)
def test_values_are_what_people_mean(override, value):
    node = made(override)
    for name in override.partition("=")[0].split("."):
        node = getattr(node, name)
    assert node == value and type(node) is type(value)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("agent.algorithm.learning_rate=nan", "agent.algorithm.learning_rate=nan: expected a finite number"),
        ("agent.student.init_noise_std=.inf", "agent.student.init_noise_std=inf: expected a finite number"),
        ("env.wind.force=nan", "env.wind.force=nan: expected a finite number"),
        ("agent.clip_actions=.nan", "agent.clip_actions=nan: expected a finite number"),
        ("agent.run_name=${oc.env:HOME}", "is not filled in here"),
        ("agent.algorithm={}", "sets nothing"),
        ("agent.student.hidden_dims=[", "not valid YAML"),
        ("agent.run_name=!!timestamp 2026-02-30", "not valid YAML"),
        ("agent.algorithm", "expected key=value"),
        ("agent.algorithm.learning_rate=" + "[" * 2000, "not valid YAML"),
        ("agent.experiment_name= ..", "not the name of a folder"),
        ("agent.run_name='a\x1b[31mb'", "not valid YAML"),
        ("agent.run_name=a\nb", "not the name of a folder"),
        ("agent.experiment_name=" + "x" * 200, "not the name of a folder"),
    ],
)
def test_values_that_make_no_sense_are_one_line(override, complaint):
    with pytest.raises(ConfigError) as told:
        made(override)
    assert complaint in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("agent: {algorithm: {learning_rate: .nan}}", "expected a finite number"),
        ("agent: {run_name: '${oc.env:HOME}'}", "is not filled in here"),
        ("agent: &a {student: *a}", "nested more than"),
        ("agent: {1: 2}", "the names of settings are text"),
        ("- agent", "expected the keys task and sim"),
        ("\x00", "not valid YAML"),
    ],
)
def test_files_that_make_no_sense_are_one_line(tmp_path, text, complaint):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as told:
        made(layers=[load_file(file)])
    assert complaint in str(told.value) and "\n" not in str(told.value)


def test_every_changed_setting_is_told():
    before, after = made(), made("agent.num_steps_per_env=10", "env.wind.force=0.5", "agent.student.hidden_dims=[8]")
    wind = f"env.wind.force: {before.env.wind.force} -> 0.5"
    told = changes(before, after)
    assert "agent.num_steps_per_env: 400 -> 10" in told and wind in told and len(told) == 3
    assert changes(before, made()) == []


class TestCommandLines:
    @staticmethod
    def parser() -> Parser:
        parser = Parser(prog="tool")
        parser.add_argument("--record")
        parser.add_argument("overrides", nargs="*")
        return parser

    @pytest.mark.parametrize("argv", [["--record", ""], ["--record="], ["--record", "  "], ["", "agent.seed=1"]])
    def test_what_is_empty_is_an_error(self, argv, capsys):
        with pytest.raises(SystemExit):
            self.parser().parse_args(argv)
        assert "is empty; leave it out, or say what it is" in capsys.readouterr().err

    def test_sweeps_write_overrides_as_flags(self):
        argv = ["--agent.algorithm.learning_rate=0.001", "--record", "x.hdf5", "--env.wind.force=0.1", "agent.seed=3"]
        args, unknown = self.parser().parse_known_intermixed_args([*argv, "--bridge.mode"])
        assert args.overrides == ["agent.algorithm.learning_rate=0.001", "env.wind.force=0.1", "agent.seed=3"]
        assert unknown == ["--bridge.mode"] and args.record == "x.hdf5"
