"""Craft by craft: the numbers of flights, and the command."""

from __future__ import annotations

import csv

import jax
import numpy as np
import pytest

from bridge.quadrotor_distribution import WIDE
from bridge.quadrotors import to_csv
from jdistill.cli.main import main
from jdistill.core import networks
from jdistill.core.networks import Policy
from jdistill.core.teachers import TeacherBank
from jdistill.evaluation import held_out
from jdistill.evaluation.crafts import Flights
from jdistill.export.policy_file import save_policy
from jdistill.run.folders import QUADROTORS


@pytest.fixture
def flights() -> Flights:
    """Two craft in two environments each, 5 s at 10 Hz; the last episode ends after 4 s."""
    active = np.ones((50, 4), bool)
    active[40:, 3] = False
    position = np.broadcast_to([0.1, 0.2, 0.3, 0.4], (50, 4)).copy()
    position[:30] = 9.0  # Not settled yet.
    position[40:, 3] = 9.0  # Another episode.
    course = {name: np.zeros((50, 3)) for name in ("position", "target", "velocity", "target_velocity")}
    survived = np.array([True, True, True, False])
    return Flights(0.1, active, survived, position, 10 * position, {**course, "action": np.zeros((50, 4))})


def test_a_crafts_numbers_are_those_of_its_settled_steps(flights):
    first, second = (flights.of(i, 2).numbers() for i in range(2))
    assert (first["survival"], second["survival"]) == (1.0, 0.5)
    assert first["position_mean"] == pytest.approx(0.2) and first["position_std"] == pytest.approx(0.1)
    assert second["position_mean"] == pytest.approx((20 * 0.2 + 10 * 0.4) / 30)
    assert second["position_max"] == second["position_p95"] == pytest.approx(0.4)
    assert first["velocity_median"] == pytest.approx(2.0)


def test_flights_are_written_as_tracking_tools_read_them(flights, tmp_path):
    held_out.write_flights(flights, tmp_path)
    errors, course = (np.load(tmp_path / f"{name}.npz") for name in ("tracking_errors", "trajectory_data"))
    assert set(errors) == {"position_errors", "velocity_errors"} and errors["position_errors"].shape == (50, 4)
    assert np.isnan(errors["position_errors"]).sum() == 10
    assert course["actual_pos"].shape == course["desired_vel"].shape == (50, 3)
    assert course["actions"].shape == (50, 4) and course["timestamps"][-1] == pytest.approx(4.9)
    assert course["position_error"].shape == (50,)


@pytest.mark.full
def test_the_command_flies_every_craft(small_run, tmp_path, capsys):
    file, out = tmp_path / "held_out.csv", tmp_path / "out"
    file.write_text(to_csv(WIDE.sample(2, 9)))
    settings = ["env.physics_freq=100", "env.episode_length_s=3.2"]
    wanted = ["--quadrotors", str(file), "--episodes", "6", "--scenario", "hover", "--out", str(out)]
    beside = ["--student", str(small_run), "--seed", "7,8"]
    assert main(["evaluate", str(small_run), *wanted, *beside, *settings]) == 0
    told = capsys.readouterr().out
    assert "2 quadrotors, 6 episodes each" in told and "quadrotors.html" in told
    rows = list(csv.DictReader((out / "quadrotors.csv").read_text().splitlines()))
    policies = ("student", "teacher", small_run.name)
    flown = [(row["policy"], row["seed"], row["id"]) for row in rows]
    assert flown == [(policy, seed, i) for policy in policies for seed in "78" for i in "01"]
    numbers = [[x for name, x in row.items() if name != "policy"] for row in rows]
    assert numbers[:4] == numbers[8:] and numbers[0] != numbers[2], "the same student once more; another seed"
    assert float(rows[0]["mass"]) == WIDE.draw(0, 9).mass
    page = (out / "quadrotors.html").read_text()
    assert page.count('class="grid" id="overview"') == 1 and "thrust-to-weight ratio" in page
    assert (out / "hover_student" / "trajectory_data.npz").exists()
    assert main(["evaluate", str(small_run), "--quadrotors", str(tmp_path / "nix.csv")]) == 1
    assert "nix.csv: No such file" in capsys.readouterr().err


def test_of_several_teachers_each_flies_its_own_craft_only(tmp_path):
    """Ids begin at 0 in every file, so an id alone tells nothing."""
    policy = Policy(4, (8,))
    states = [networks.init(policy, jax.random.key(key), 26, normalize=False) for key in range(2)]
    bank = TeacherBank.of(policy, jax.tree.map(lambda *x: np.stack(x), *states), [0, 1], ["teacher"])
    taught, others = WIDE.sample(2, 9), WIDE.sample(2, 10)
    (tmp_path / QUADROTORS).write_text(to_csv(taught))
    assert held_out.flies_all(bank, tmp_path, taught) and held_out.flies_all(bank, tmp_path, taught[1:])
    assert not held_out.flies_all(bank, tmp_path, others) and not held_out.flies_all(bank, tmp_path / "none", taught)
    assert held_out.flies_all(bank.teacher(0), tmp_path, others), "a teacher alone flies everything"


@pytest.mark.full
def test_students_that_see_something_else_are_told(small_run, tmp_path, capsys):
    policy = Policy(4, (8,))
    state = networks.init(policy, jax.random.key(0), 9, normalize=False)
    save_policy(tmp_path / "other.safetensors", policy, state, {})
    assert main(["evaluate", str(small_run), "--student", str(tmp_path / "other.safetensors")]) == 1
    assert "other.safetensors: takes 9 observations and gives 4 actions; the run's" in capsys.readouterr().err
    assert main(["evaluate", str(small_run), "--student", "env.x=1"]) == 1
    assert "env.x=1: no such file" in capsys.readouterr().err
    for seeds in ("1,2", "1,1", "a"):
        with pytest.raises(SystemExit) as stop:
            main(["evaluate", str(small_run), "--seed", seeds])
        assert stop.value.code == 2 and "--seed" in capsys.readouterr().err
