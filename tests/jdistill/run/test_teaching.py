"""The folder of teachers: a round, the gate, what an interruption leaves, what is refused."""

from __future__ import annotations

import csv
import os
import signal

import jax
import numpy as np
import pytest

from bridge.quadrotor_distribution import WIDE
from bridge.quadrotors import read_csv, to_csv
from jdistill.cli.main import main
from jdistill.core.apg import ApgCfg
from jdistill.core.networks import Policy
from jdistill.errors import ConfigError, TrainingError
from jdistill.export.policy_file import load_policy
from jdistill.run.held import HeldRun
from jdistill.run.teaching import TRAINING, TeachCfg, Teaching
from tests.lessons import PointMasses

SPECS = WIDE.sample(3, 1)


@pytest.fixture(scope="module")
def quads(tmp_path_factory):
    file = tmp_path_factory.mktemp("quads") / "quads.csv"
    file.write_text(to_csv(SPECS))
    return file


@pytest.fixture
def teach():
    """Trains three teachers in a folder; ``worth`` says what they are worth, in each round anew."""
    lesson = PointMasses([s.mass for s in SPECS])
    policy = Policy(num_actions=1, hidden_dims=(8,), output_activation="tanh")

    def teach(out, *worth, updates=1, seed=0, devices=1, kind=Teaching, **settings):
        rounds = iter(worth)

        def judge(policy, states):
            assert jax.tree.leaves(states)[0].shape[0] == len(SPECS)
            errors = next(rounds)
            return [{"survival": 1.0, "steady_error": e, "steady_error_p95": e} for e in errors]

        cfg = TeachCfg(ApgCfg(updates=updates, horizon=5), seed=seed, save_s=0.0, **settings)
        return kind(SPECS, lesson, policy, None, judge, cfg, out, {"begun_with": "test"}, jax.devices()[:devices])

    return teach


class Interrupted(Teaching):
    """Gets a signal when it has saved its seventh update."""

    def _save_training(self, number, update, *args):
        super()._save_training(number, update, *args)
        if update == 7:
            os.kill(os.getpid(), signal.SIGTERM)


def parameters(file):
    return [np.array(x) for x in jax.tree.leaves(load_policy(file)[1])]


def table(file):
    return list(csv.DictReader(file.read_text().splitlines()))


def test_weak_teachers_are_trained_longer_or_left_out(teach, tmp_path):
    out = tmp_path / "teachers"
    rows = teach(out, [0.01, 0.2, float("nan")], [9.0, 0.03, 0.3]).run()
    assert [(row["passed"], row["round"]) for row in rows] == [(True, 1), (True, 2), (False, 2)]
    # What is good enough is not trained again, and what is not is nowhere that distillation looks.
    assert [row["steady_error"] for row in rows] == [0.01, 0.03, 0.3]
    assert [row["id"] for row in table(out / "quality.csv")] == ["0", "1", "2"]
    assert {(row["id"], row["passed"]) for row in table(out / "teacher_dynamics.csv")} == {("0", "True"), ("1", "True")}
    assert sorted(p.name for p in out.glob("teacher_0*")) == ["teacher_0000", "teacher_0001"]
    assert [p.name for p in (out / "weak").iterdir()] == ["teacher_0002"] and not (out / TRAINING).exists()
    assert read_csv(out / "teacher_dynamics.csv") == SPECS[:2]
    header = load_policy(out / "teacher_0001" / "policy.safetensors")[2]
    assert header["obs_size"] == 3 and header["quadrotor"]["mass"] == SPECS[1].mass
    # The same command says the same again and trains nothing.
    assert teach(out).run() == rows


def test_the_better_one_of_two_teachers_is_kept(teach, tmp_path):
    out = tmp_path / "teachers"
    first = teach(out, [0.01, 0.2, 0.1], [0.01, 0.9, 0.08]).run()
    assert [row["steady_error"] for row in first] == [0.01, 0.2, 0.08]


def test_an_interrupted_run_ends_as_one_that_was_not(teach, tmp_path):
    """On another number of devices, too."""
    worth, updates = [0.01, 0.01, 0.01], 20
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    teach(whole, worth, updates=updates).run()
    with pytest.raises(TrainingError, match="interrupted after 7 updates"):
        teach(broken, worth, updates=updates, kind=Interrupted).run()
    assert not list(broken.glob("teacher_0*"))
    teach(broken, worth, updates=updates).run()
    for i in range(3):
        name = f"teacher_{i:04d}/policy.safetensors"
        for a, b in zip(parameters(whole / name), parameters(broken / name), strict=True):
            np.testing.assert_array_equal(a, b)
    divided = tmp_path / "divided"
    teach(divided, worth, updates=updates, devices=2).run()
    for a, b in zip(parameters(whole / name), parameters(divided / name), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3)


def test_a_folder_holds_the_teachers_of_one_command(teach, tmp_path):
    teach(tmp_path / "a", [0.01] * 3).run()
    with pytest.raises(ConfigError, match="another seed"):
        teach(tmp_path / "a", seed=1)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").touch()
    with pytest.raises(ConfigError, match="holds something else"):
        teach(tmp_path / "b")


def test_one_program_trains_them_and_damage_is_told(teach, tmp_path):
    out = tmp_path / "teachers"
    teach(out, [0.01] * 3).run()
    held, again = HeldRun(out), teach(out)
    with pytest.raises(TrainingError, match="is being trained by process"):
        again.run()
    held.release()
    assert len(again.run()) == 3
    for name, content in (("quality.csv", "id,passed\n0,perhaps\n"), ("teach.json", '{"quadrotors": ')):
        (out / name).write_text(content)
        with pytest.raises(ConfigError, match=f"{name}: damaged"):
            teach(out)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["{quads}", "--out", "{out}", "--init", "nix.safetensors"], "nix.safetensors: no such file"),
        (["nix.csv", "--out", "{out}"], "nix.csv: No such file"),
        (["{quads}", "--out", "{out}", "--min_survival", "2"], "not a number from 0 to 1"),
        (["{quads}", "--out", "{out}", "env.frame=moon"], "env.frame"),
        (["{quads}"], "--out"),
    ],
)
def test_mistakes_are_one_line(quads, tmp_path, capsys, arguments, named):
    given = [a.format(quads=quads, out=tmp_path / "teachers") for a in arguments]
    try:
        status = main(["teach", *given])
    except SystemExit as e:
        status = e.code
    told = capsys.readouterr().err
    assert status and named in told and told.count("\n") == 1
    assert not (tmp_path / "teachers").exists()


@pytest.mark.full
def test_the_command_teaches_and_measures(quads, tmp_path, capsys):
    out = tmp_path / "teachers"
    settings = ["env.physics_freq=100", "env.episode_length_s=3.5"]
    small = ["--num_envs", "2", "--horizon", "2", "--updates", "2", "--rounds", "1", "--max_error", "9"]
    assert main(["teach", str(quads), "--out", str(out), "--devices", "1", *small, *settings]) == 0
    told = capsys.readouterr().out
    rows = table(out / "quality.csv")
    weak = [row["id"] for row in rows if row["passed"] != "True"]
    assert len(rows) == 3 and f"{3 - len(weak)} teachers of 3 quadrotors" in told
    assert all(0 <= float(row["survival"]) <= 1 for row in rows) and {row["round"] for row in rows} == {"1"}
    assert [s.id for s in read_csv(out / "teacher_dynamics.csv")] == [i for i in range(3) if str(i) not in weak]
