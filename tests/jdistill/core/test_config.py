"""Configs: defaults, layers, overrides, complaints."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import yaml

from bridge.crazyflie import PointControlCfg
from bridge.tasks import TASKS
from jdistill.core.config import AgentCfg, sampler_name
from jdistill.errors import ConfigError
from jdistill.run.compose import RunCfg, compose, flatten, load_file, with_obs_groups
from tests.conftest import ROOT


def run_cfg(*overrides: str, layers=(), task=None) -> RunCfg:
    task = task or TASKS["crazyflie"]()
    return compose(task.name, task.cfg_cls, layers, overrides)


def test_defaults_are_the_documented_ones():
    cfg = run_cfg().agent
    assert (cfg.max_iterations, cfg.num_steps_per_env, cfg.save_interval) == (1500, 400, 100)
    algorithm = cfg.algorithm
    assert (algorithm.num_learning_epochs, algorithm.learning_rate, algorithm.gradient_length) == (4, 1e-3, 15)
    assert (algorithm.max_grad_norm, algorithm.use_two_stage_training) == (1.0, False)
    assert cfg.experiment_name == "distillation"


def test_overrides_reach_every_level_and_keep_their_types():
    cfg = run_cfg(
        "agent.algorithm.learning_rate=5e-4",
        "agent.algorithm.max_grad_norm=null",
        "env.randomization.mass=0.1",
        "agent.student.hidden_dims=[32,32]",
        "agent.student.rnn_type=null",
        "agent.run_name=42",
        "agent.obs_groups.student=[student]",
    )
    assert cfg.agent.algorithm.learning_rate == 5e-4
    assert cfg.agent.algorithm.max_grad_norm is None
    assert cfg.env.randomization.mass == 0.1
    assert cfg.agent.student.hidden_dims == [32, 32] and cfg.agent.student.rnn_type is None
    assert cfg.agent.run_name == "42"
    assert isinstance(cfg.agent, AgentCfg) and isinstance(cfg.env, PointControlCfg)


def test_later_layers_win_and_overrides_win_over_all():
    layers = [
        {"agent": {"seed": 1, "max_iterations": 10, "algorithm": {"learning_rate": 0.1}}},
        {"agent": {"seed": 2, "algorithm": {"gradient_length": 5}}, "env": {"num_envs": 7}},
    ]
    cfg = run_cfg("agent.seed=3", layers=layers)
    assert (cfg.agent.seed, cfg.agent.max_iterations, cfg.env.num_envs) == (3, 10, 7)
    assert (cfg.agent.algorithm.learning_rate, cfg.agent.algorithm.gradient_length) == (0.1, 5)


def test_old_name_of_the_normaliser_switch():
    assert run_cfg("agent.empirical_normalization=false").agent.student.obs_normalization is False


def test_saved_configs_load_as_they_were(tmp_path):
    cfg = run_cfg("agent.algorithm.max_grad_norm=null", "env.reset.tilt=30", "agent.student.rnn_type=lstm")
    cfg.save(tmp_path / "config.yaml")
    again = run_cfg(layers=[load_file(tmp_path / "config.yaml")])
    assert again == cfg


@pytest.mark.parametrize("preset", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_presets_load(preset):
    data = load_file(preset)
    task = TASKS[data.pop("task")]()
    (data,), _ = with_obs_groups([data], [], task)
    cfg = run_cfg(layers=[data], task=task)
    said = dict(flatten(data))
    assert said, "a preset says something"
    for key, value in said.items():
        found = functools.reduce(
            lambda x, name: x[name] if isinstance(x, dict) else getattr(x, name), key.split("."), cfg
        )
        assert found == value, f"{key} is {found}, the preset says {value}"
    # And nothing else changes.
    plain = run_cfg(task=task)
    for section in ("agent", "env"):
        theirs, ours = (dict(flatten(dataclasses.asdict(getattr(c, section)))) for c in (plain, cfg))
        changed = {f"{section}.{key}" for key in ours if ours[key] != theirs.get(key)}
        assert changed <= said.keys(), changed - said.keys()
    with pytest.raises(ConfigError, match="unknown setting"):
        run_cfg(layers=[{**data, "env": {"no_such_setting": 1}}], task=task)


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("agent.algorithm.learning_rat=1", r"agent.algorithm.learning_rat: unknown.*agent.algorithm.learning_rate\?"),
        ("env.randomisation.mass=0.1", r"env.randomisation.mass: unknown.*env.randomization.mass\?"),
        ("agent.seed=abc", "agent.seed=abc"),
        ("agent.num_steps_per_env=1.5", "agent.num_steps_per_env=1.5"),
        ("agent.max_iterations=0", "agent.max_iterations=0: must be positive"),
        ("agent.algorithm.phase1_iterations=-1", "phase1_iterations=-1: not a count"),
        ("agent.algorithm.learning_rate=-1", "learning_rate=-1.0: must be positive"),
        ("agent.algorithm.loss_type=mae", "expected one of mse, huber"),
        ("agent.algorithm.optimizer=adan", r"adam.*\(did you mean adam\?\)"),
        ("agent.algorithm.gradient_length=100000", "gradient_length=100000"),
        ("agent.algorithm.sampler=stream", r"sampler=stream: expected.*did you mean streaming"),
        ("agent.algorithm.use_dagger=maybe", "use_dagger=maybe"),
        ("agent.algorithm.max_buffer_size=0", "max_buffer_size=0: must be positive"),
        ("agent.algorithm.history_dtype=float16", "expected one of float32, bfloat16"),
        ("agent.algorithm.carry_start=burnin", r"did you mean burn_in\?"),
        ("agent.algorithm.burn_in_steps=-1", "burn_in_steps=-1: must be positive"),
        ("agent.algorithm.num_mini_batches=4", "set agent.algorithm.sampler=minibatch"),
        ("agent.algorithm.gradient_steps=4", "the streaming sampler takes every window"),
        ("agent.algorithm.sampler=uniform", "draws from a history, set agent.algorithm.use_dagger=true"),
        ("agent.algorithm={dataset: [a], use_dagger: true}", "the dataset is the history already"),
        ("agent.algorithm={dataset: [a], carry_start: stored}", "a dataset keeps no states"),
        ("agent.algorithm.carry_start=zero", "streaming windows go on from each other"),
        ("agent.algorithm={use_dagger: true, row_length: 9}", "row_length=9: the uniform sampler has no rows"),
        ("agent.algorithm.relabel=true", "there is no dataset to relabel"),
        ("agent.algorithm.recency_half_life=0", "recency_half_life=0.0: must be positive"),
        ("agent.algorithm.beta_schedule=cosine", "expected one of two_stage, linear, exponential"),
        ("agent.algorithm.beta_per=env", "expected one of step, episode"),
        ("agent.algorithm.beta_half_life=-2", "beta_half_life=-2.0"),
        ("agent.algorithm.phase1_until_return=100", "there is no phase 1 to end"),
        ("agent.student.rnn_type=rnn", "expected one of gru, lstm"),
        ("agent.student.activation=elo", r"did you mean elu\?"),
        ("agent.logger=neptune", "expected one of tensorboard, wandb, none"),
        ("agent.run_name=a/b", "not the name of a folder"),
        ("agent.obs_groups.student=[]", "at least one observation group"),
        ("env.frame=moon", "expected body, world or start"),
        ("agent.seed", "expected key=value"),
        ("env.randomization={mass: 2.0}", "env.randomization.mass=2.0"),
        ("agent.algorithm=5", "agent.algorithm=5"),
        ("agent.student.hidden_dims=[a]", "hidden_dims"),
        ("agent.student.hidden_dims=[-3]", "hidden_dims=-3: must be positive"),
    ],
)
def test_bad_settings_are_named_in_one_line(override, complaint):
    with pytest.raises(ConfigError, match=complaint) as error:
        run_cfg(override)
    assert "\n" not in str(error.value)


def test_a_history_and_the_newest_rollout_are_two_things():
    with pytest.raises(ConfigError, match=r"sampler=minibatch: trains on the newest rollout alone; with use_dagger"):
        run_cfg("agent.algorithm.use_dagger=true", "agent.algorithm.sampler=minibatch")
    assert sampler_name(run_cfg().agent.algorithm) == "streaming"
    assert sampler_name(run_cfg("agent.algorithm.use_dagger=true").agent.algorithm) == "uniform"


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2", "5"])
def test_files_that_are_no_config(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad.yaml") as error:
        run_cfg(layers=[load_file(path)])
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"none.yaml"):
        load_file(tmp_path / "none.yaml")


def test_unknown_sections_of_a_file_are_named(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({"agents": {"seed": 1}}))
    with pytest.raises(ConfigError, match=r"agents.*did you mean agent"):
        run_cfg(layers=[load_file(path)])


@pytest.mark.parametrize("value", ["9" * 400, f"1{'0' * 309}", str(2**1100)])
def test_an_integer_that_no_float_can_hold_is_refused_wherever_a_float_is_wanted(value):
    cfg = run_cfg()
    known = flatten({"agent": dataclasses.asdict(cfg.agent), "env": dataclasses.asdict(cfg.env)})
    floats = [key for key, default in known if isinstance(default, float)]
    assert len(floats) > 20
    for key in floats:
        with pytest.raises(ConfigError, match=rf"^{key}=\d+: .*$"):
            run_cfg(f"{key}={value}")


def test_a_name_of_two_lines_is_told_in_one():
    with pytest.raises(ConfigError, match=r"^agent\.\\n\\x1b\[31m: unknown setting"):
        run_cfg("agent.\n\x1b[31m=1")
