"""Evaluation: the bundled teacher's promise, the counting, the command."""

from __future__ import annotations

import csv
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jdistill
from bridge.crazyflie import PointControl, PointControlCfg
from bridge.crazyflie.cfg import TargetCfg
from bridge.env import AutoReset, State
from bridge.tasks import TASKS, Simulator
from jdistill.cli.main import run_command
from jdistill.core import networks
from jdistill.core.actor import PolicyActor
from jdistill.core.networks import Policy, PolicyState
from jdistill.errors import ConfigError
from jdistill.evaluation import evaluate as command
from jdistill.evaluation import rollouts
from jdistill.evaluation.evaluate import choose_devices, evaluate, header, row
from jdistill.evaluation.metrics import find_main_metric, outcome
from jdistill.evaluation.rollouts import Evaluator
from jdistill.export.policy_file import load_policy, save_policy
from jdistill.run.compose import compose, load_file
from tests.conftest import BUNDLED_TEACHER, ROOT

pytestmark = pytest.mark.full


def test_bundled_teacher_holds_a_point():
    policy, policy_state, _ = load_policy(BUNDLED_TEACHER)
    env = AutoReset(PointControl(PointControlCfg(num_envs=200, target=TargetCfg(kind="fixed"))))
    numbers = evaluate(env, policy, policy_state, ["teacher"], seed=5)
    assert numbers["survival"] >= 0.99
    assert numbers["steady"]["position_error"] <= 0.05
    assert numbers["length"] > 990 and numbers["return"] > 1000


def test_a_policy_that_falls_is_counted_as_such():
    env = AutoReset(PointControl(PointControlCfg(num_envs=50, episode_length_s=3.0, physics_freq=100)))
    policy = Policy(4, ())
    policy_state = networks.init(policy, jax.random.key(0), 22, normalize=False)
    off = jax.tree.map(jnp.zeros_like, policy_state.params)
    off["mlp_0"]["dense"]["bias"] = jnp.full(4, -1.0)
    numbers = evaluate(env, policy, policy_state.replace(params=off), ["student"], settle_s=0.0)
    assert numbers["survival"] == 0.0 and numbers["episodes"] == 50
    assert sum(numbers["terminations"].values()) >= 50, "free fall breaks the speed limit"
    assert 20 < numbers["length"] < 100
    assert numbers["return"] < 0
    assert numbers["action_change"] == pytest.approx(0.0)


class Line:
    """Three points on a line that begin at 0, 1 and 2 and move by their actions; beyond 2.5 an episode ends."""

    num_envs, num_actions, max_episode_length, step_dt = 3, 1, 4, 1.0

    def reset(self, rng) -> State:
        place = jnp.arange(3.0)
        return State(place, {"place": place[:, None]}, jnp.zeros(3), jnp.zeros(3, bool), self.metrics(place), {})

    def step(self, state: State, action) -> State:
        place = state.pipeline_state + action[:, 0]
        metrics = self.metrics(place)
        done = metrics["Episode_Termination/far"] > 0
        fields = {"pipeline_state": place, "obs": {"place": place[:, None]}, "reward": -place}
        return state.replace(**fields, done=done, metrics=metrics)

    def metrics(self, place):
        return {"Metrics/position_error": jnp.abs(place), "Episode_Termination/far": (place > 2.5).astype(jnp.float32)}

    def trace(self, state: State):
        return {"position": state.pipeline_state}


def linear(gain: float, offset: float) -> PolicyActor:
    """The actor ``action = gain * place + offset``."""
    params = {"mlp_0": {"dense": {"kernel": jnp.array([[gain]]), "bias": jnp.array([offset])}}}
    return PolicyActor(Policy(1, ()), PolicyState(params=params, normalizer=None), ("place",))


@pytest.fixture(scope="module")
def statistics():
    """A student that drifts up by half a meter a step, and a teacher that halves the place, on the line."""
    evaluator = Evaluator({"student": linear(0.0, 0.5), "teacher": linear(-0.5, 0.0)}, "teacher", settle_s=2.0)
    env = AutoReset(Line())
    return {name: evaluator.rollout(env, name, seed=0) for name in evaluator.actors}


def test_numbers_by_hand(statistics):
    """The student's points go 0 .5 1 1.5 2, 1 1.5 2 2.5 3 (ended by the last step), 2 2.5 3 (ended by the second)."""
    numbers = statistics["student"].numbers
    assert numbers["survival"] == pytest.approx(1 / 3) and numbers["terminations"] == {"far": 2}
    assert numbers["length"] == pytest.approx((4 + 4 + 2) / 3)
    assert numbers["return"] == pytest.approx(-(0.5 + 1 + 1.5 + 2 + 1.5 + 2 + 2.5 + 3 + 2.5 + 3) / 3)
    assert numbers["action_change"] == 0.0
    going_on = [0.5, 1.0, 1.5, 1.5, 2.0, 2.5, 2.5]  # Without the steps that ended an episode.
    error = numbers["metrics"]["position_error"]
    assert error["mean"] == pytest.approx(np.mean(going_on)) and error["p95"] == pytest.approx(2.5)
    assert error["steady"] == pytest.approx((1.5 + 2.5) / 2)
    assert sorted(statistics["student"].settled["position_error"]) == [1.5, 2.5]


def test_a_task_with_a_goal_says_how_many_reached_it(statistics):
    class Race(Line):
        """Beyond 2.5 is the goal."""

        def metrics(self, place):
            metrics = super().metrics(place)
            return {**metrics, "Episode_Success": metrics["Episode_Termination/far"]}

    actors = {"student": linear(0.0, 0.5), "teacher": linear(-0.5, 0.0)}
    evaluator = Evaluator(actors, "teacher")
    numbers = {name: evaluator.rollout(AutoReset(Race()), name, seed=0).numbers for name in actors}
    assert numbers["student"]["success"] == pytest.approx(2 / 3) and numbers["teacher"]["success"] == 0
    assert header(None, outcome(numbers["student"])).split()[2] == "success"
    shown = {**numbers["student"], "agreement": numbers["student"]["agreement"]["student"]}
    assert row("default", "student", shown, None).split()[2] == "66.7%"
    assert outcome(statistics["student"].numbers) == "survival"
    assert "success" not in statistics["student"].numbers


def test_agreement_by_hand(statistics):
    """On the student's own states, and on the teacher's: place 0, 1, 2 halved again and again."""
    drift = np.array([0, 0.5, 1, 1.5, 1, 1.5, 2, 2.5, 2, 2.5])
    for acting, places in (("student", drift), ("teacher", np.outer([1, 0.5, 0.25, 0.125], [0, 1, 2]).ravel())):
        expert = -0.5 * places
        agreement = statistics[acting].numbers["agreement"]
        assert agreement["student"]["rmse"] == pytest.approx(np.sqrt(np.mean((0.5 - expert) ** 2)), rel=1e-5)
        r2 = 1 - np.sum((0.5 - expert) ** 2) / np.sum((expert - expert.mean()) ** 2)
        assert agreement["student"]["r2"] == pytest.approx(r2, rel=1e-5)
        assert agreement["teacher"] == {"rmse": 0.0, "r2": 1.0}


def test_a_teacher_that_never_changes_has_no_r2():
    evaluator = Evaluator({"teacher": linear(0.0, 0.3)}, "teacher")
    numbers = evaluator.rollout(AutoReset(Line()), "teacher", seed=0).numbers
    assert np.isnan(numbers["agreement"]["teacher"]["r2"]) and numbers["agreement"]["teacher"]["rmse"] == 0
    assert np.isnan(numbers["metrics"]["position_error"]["steady"]), "no episode gets as far as three seconds"


def test_traces_end_with_their_episodes(statistics, monkeypatch):
    first, _, last = statistics["student"].traces
    assert last == {
        "time": [0.0, 1.0],
        "position": [2.0, 2.5],
        "main_metric": [2.0, 2.5],
        "action": [[0.5], [0.5]],
        "teacher_action": [[-1.0], [-1.25]],
    }
    assert first["position"] == [0.0, 0.5, 1.0, 1.5]
    monkeypatch.setattr(rollouts, "TRACE_POINTS", 3)
    kept = {"is_active": np.ones((10, 1), bool), "x": np.arange(10.0)[:, None]}
    (course,) = rollouts.traces(kept, 0.1)
    assert course == {"time": [0.0, 0.4, 0.8], "x": [0.0, 4.0, 8.0]}


def test_histograms_count_every_settled_step(statistics):
    policies = command.side_by_side(statistics)
    for name, settled in (("student", 2), ("teacher", 3)):
        histogram = policies[name]["histograms"]["position_error"]
        assert sum(histogram["counts"]) == settled and len(histogram["edges"]) == command.BINS + 1
    counts = policies["student"]["histograms"]["position_error"]["counts"]
    assert counts[-1] == 1, "beyond the last edge is in the last bin"
    assert policies["student"]["agreement_on_teacher"] == statistics["teacher"].numbers["agreement"]["student"]


class Track(Line):
    """The line with metrics of its own, and nothing to show."""

    def trace(self, state):
        return {}

    def metrics(self, place):
        return {"Metrics/speed": jnp.ones(3), "Metrics/distance": place, "Episode_Termination/far": jnp.zeros(3)}


class Bare(Line):
    """The line, measured by nothing."""

    def metrics(self, place):
        return {}

    def step(self, state, action):
        place = state.pipeline_state + action[:, 0]
        return state.replace(pipeline_state=place, obs={"place": place[:, None]}, reward=-place)


@pytest.mark.parametrize(("declared", "expected"), [("speed", 1.0), (None, 2.0), ("height", 2.0)])
def test_the_tasks_main_metric_is_followed(declared, expected):
    """The task's own, else the first by name."""
    evaluator = Evaluator({"student": linear(0.0, 0.5)}, main_metric=declared)
    found = evaluator.rollout(AutoReset(Track()), "student", seed=0)
    assert found.traces[2]["main_metric"][0] == expected and set(found.numbers["metrics"]) == {"speed", "distance"}
    main = find_main_metric(declared, found.numbers["metrics"])
    assert main == {1.0: "speed", 2.0: "distance"}[expected] and main in command.header(main)
    numbers = {**found.numbers, "agreement": {"rmse": 0.1, "r2": 0.5}}
    head, row = command.header(main).split(), command.row("track", "student", numbers, main).split()
    assert float(row[head.index(main)]) == pytest.approx(found.numbers["metrics"][main]["mean"], abs=1e-4)


def test_an_environment_without_metrics():
    found = Evaluator({"student": linear(0.0, 0.5)}, main_metric="speed").rollout(AutoReset(Bare()), "student", seed=0)
    assert found.numbers["metrics"] == {} and "main_metric" not in found.traces[0]
    assert found.numbers["survival"] == 1.0
    assert command.header(find_main_metric("speed", found.numbers["metrics"])).split()[2:5] == [
        "survival",
        "return",
        "change",
    ]


def test_actors_of_one_structure_share_a_program():
    evaluator = Evaluator({"student": linear(0.0, 0.5)})
    env = AutoReset(Line())
    first = evaluator.rollout(env, "student", seed=0).numbers
    evaluator.actors["student"] = linear(0.0, 0.25)
    second = evaluator.rollout(env, "student", seed=0).numbers
    assert len(evaluator._programs) == 1 and second["return"] > first["return"]


def same(found, expected) -> bool:
    """Whether two trees of numbers are equal to rounding, which for traces is to five decimals; NaN is NaN."""
    found, expected = (jax.tree.flatten(tree) for tree in (found, expected))
    leaves = zip(found[0], expected[0], strict=found[1] == expected[1])
    return found[1] == expected[1] and all(
        np.shape(a) == np.shape(b) and np.allclose(a, b, rtol=1e-5, atol=1.1e-5, equal_nan=True) for a, b in leaves
    )


@pytest.fixture
def rounds(monkeypatch):
    """The devices that each run of a program took, as they come."""
    found: list[set[jax.Device]] = []

    def drive(env, program, *args):
        out = jax.block_until_ready(program(*args))
        found.append(set.union(*(x.devices() for x in jax.tree.leaves(out))))
        return out

    monkeypatch.setattr(AutoReset, "drive", drive)
    return found


FLIGHTS = ("teacher", "student", "student", "teacher", "student")


@pytest.mark.parametrize("batches", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_devices_divide_the_flights(statistics, rounds, monkeypatch, count, batches):
    """One at a time each, or its share of all at once as on a GPU: a flight's numbers are those that it has alone."""
    monkeypatch.setattr(rollouts, "flies_batches", lambda device: batches)
    evaluator = Evaluator(
        {"student": linear(0.0, 0.5), "teacher": linear(-0.5, 0.0)}, "teacher", 2.0, devices=jax.devices()[:count]
    )
    env = AutoReset(Line())
    flights = evaluator.rollouts([(env, name) for name in FLIGHTS], seed=0)
    assert same(next(flights), statistics["teacher"]) and len(rounds) == 1, "the first is known after the first round"
    assert all(same(found, statistics[name]) for found, name in zip(flights, FLIGHTS[1:], strict=True))
    assert rounds == [set(jax.devices()[:count])] * (1 if batches else {1: 5, 2: 3, 4: 2}[count])
    assert len(evaluator._programs) == 1
    assert not same(statistics["teacher"], statistics["student"])


class Single:
    """The line as a simulator that is there once: no parameters, so that nobody may divide it."""

    num_envs, num_actions, max_episode_length, step_dt = 3, 1, 4, 1.0

    def __init__(self):
        self._env = AutoReset(Line())
        self.reset, self.step, self.drive = self._env.reset, self._env.step, self._env.drive


def test_a_simulator_that_is_called_back_flies_alone(statistics, rounds, monkeypatch):
    monkeypatch.setattr(rollouts, "flies_batches", lambda device: True)
    evaluator = Evaluator(
        {"student": linear(0.0, 0.5), "teacher": linear(-0.5, 0.0)}, "teacher", 2.0, devices=jax.devices()
    )
    env = Single()
    found = [flight.numbers for flight in evaluator.rollouts([(env, name) for name in FLIGHTS], seed=0)]
    assert same(found, [statistics[name].numbers for name in FLIGHTS])
    assert rounds == [set(jax.devices()[:1])] * 5


def test_flights_come_in_their_order_whatever_their_structure():
    class Short(Line):
        max_episode_length = 2

    worlds = [AutoReset(Line()), AutoReset(Short()), AutoReset(Line())]
    evaluator = Evaluator({"teacher": linear(-0.5, 0.0)})
    lengths = [found.numbers["length"] for found in evaluator.rollouts([(w, "teacher") for w in worlds], 0)]
    assert lengths == [4.0, 2.0, 4.0]


def test_inference_cost_of_one_layer():
    policy = Policy(4, ())
    actor = PolicyActor(policy, networks.init(policy, jax.random.key(0), 22, normalize=False), ("obs",))
    cost = rollouts.inference_cost(actor, {"obs": jax.ShapeDtypeStruct((1, 22), jnp.float32)})
    assert cost["parameters"] == 22 * 4 + 4
    assert 2 * 22 * 4 <= cost["flops"] <= 2 * 22 * 4 + 16
    assert cost["bytes"] >= 4 * (22 + 22 * 4 + 4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run folder with a student that has learnt nothing and the bundled teacher, of a task that compiles quickly."""
    folder = tmp_path_factory.mktemp("logs") / "distillation" / "2026-01-01_00-00-00"
    folder.mkdir(parents=True)
    task = TASKS["crazyflie"]()
    settings = ["env.physics_freq=100", "env.episode_length_s=0.1", "env.frame=world"]
    cfg = compose(task.name, task.cfg_cls, [load_file(ROOT / "configs" / "crazyflie.yaml")], settings)
    cfg.save(folder / "config.yaml")
    student = Policy(4, (16,), pre_dims=(16,), rnn_type="gru", output_activation="tanh")
    save_policy(
        folder / "student.safetensors", student, networks.init(student, jax.random.key(0), 22, True), {"iteration": 7}
    )
    shutil.copy(BUNDLED_TEACHER, folder / "teacher.safetensors")
    return folder


def test_the_command(run, capsys):
    assert run_command("evaluate", [str(run), "--episodes", "6", "--scenario", "hover,cf2x_T350", "--raptor"]) == 0
    out = capsys.readouterr().out
    assert out.split()[:6] == ["scenario", "policy", "survival", "return", "position_error", "95"]
    assert len({len(line) for line in out.splitlines()[:4]}) == 1, "the columns stand below each other"
    assert [line.split()[:2] for line in out.splitlines()[1:4]] == [
        ["hover", p] for p in ("student", "teacher", "raptor")
    ]
    results = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert (results["format"], results["task"], results["iteration"], results["episodes"]) == (1, "crazyflie", 7, 6)
    assert results["main_metric"] == "position_error"
    assert results["policies"]["raptor"]["parameters"] == 2084
    assert list(results["scenarios"]) == ["hover", "cf2x_T350"]
    policies = results["scenarios"]["hover"]["policies"]
    starts = {name: numbers["traces"][0]["position"][0] for name, numbers in policies.items()}
    assert starts["student"] == starts["teacher"] == starts["raptor"], "all begin in the same states"
    assert policies["teacher"]["agreement"] == {"rmse": 0.0, "r2": 1.0}
    assert policies["teacher"]["metrics"]["position_error"]["steady"] is None, "no episode lasts three seconds"
    course = policies["student"]["traces"][2]
    assert {name: np.shape(course[name]) for name in course} == {
        "time": (10,),
        "position": (10, 3),
        "target": (10, 3),
        "action": (10, 4),
        "teacher_action": (10, 4),
        "main_metric": (10,),
    }
    rows = list(csv.DictReader((run / "evaluation" / "evaluation.csv").open()))
    assert [(row["scenario"], row["policy"]) for row in rows[:3]] == [("hover", p) for p in policies]
    assert float(rows[0]["return"]) == policies["student"]["return"]
    assert out.splitlines()[-1] == str(run / "report.html") and "cf2x_T350" in (run / "report.html").read_text()


def test_many_devices_find_what_one_finds(run):
    """On the embedded environment: four flights on two devices."""
    settings = {"episodes": 6, "scenarios": ["hover", "cf2x_T350"]}
    found = [jdistill.evaluate(run, **settings, devices=count) for count in (1, 2)]
    assert [results["machine"]["devices"] for results in found] == [1, 2]
    one, two = ({name: s["policies"] for name, s in results["scenarios"].items()} for results in found)
    assert list(one) == list(two) == settings["scenarios"] and same(two, one)
    returns = [numbers["return"] for policies in one.values() for numbers in policies.values()]
    assert len(set(returns)) == 4, "no two flights are alike"


def test_choosing_devices():
    jax_like, other = Simulator(), Simulator()
    other.is_jax = False
    assert choose_devices("2", jax_like) == choose_devices(2, jax_like) == jax.devices()[:2]
    assert choose_devices(None, jax_like) == choose_devices("all", jax_like) == jax.devices()
    assert len(jax.devices()) == 4
    assert [choose_devices(asked, other) for asked in (None, "all", "1")] == [jax.devices()[:1]] * 3
    with pytest.raises(ConfigError, match="--devices 2: JAX steps one simulator, on one device"):
        choose_devices("2", other)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{run}", "--devices", "5"], "--devices 5: there are 4"),
        (["{run}", "--devices", "two"], "--devices two: expected a number or 'all'"),
        (["nowhere"], "nowhere: no such run; 'jdistill runs' lists those in logs"),
        (["{run}/.."], "no run folder (it has no config.yaml)"),
        (["{run}", "--scenario", "hoover"], "--scenario hoover: not known (did you mean hover?)"),
        (["{run}", "env.drone=cf9"], "env.drone='cf9': expected one of"),
        (["{run}", "env.drones=cf9"], "env.drones: unknown setting (did you mean env.drone?)"),
        (
            ["{run}", "env.teacher_sees_physics=true", "--scenario", "hover"],
            "the teacher takes 26 observations, teacher has 30",
        ),
        (["{run}", "env.policy_freq=50", "--raptor", "--scenario", "hover"], "--raptor: needs point control with 100"),
        (["{run}", "--episode", "3"], "unknown flag --episode"),
    ],
)
def test_bad_command_lines(run, capsys, arguments, expected):
    assert run_command("evaluate", [a.format(run=run) for a in arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("jdistill evaluate: error: ") and expected in line


def test_a_run_of_another_version(run, tmp_path, capsys):
    text = (run / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(text.replace("seed:", "sede:"))
    assert run_command("evaluate", [str(tmp_path)]) == 1
    assert "a run of another version, this is jdistill 0.1.0 (agent.sede: unknown" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text(text)
    assert run_command("evaluate", [str(tmp_path)]) == 1
    assert "student.safetensors: no such file" in capsys.readouterr().err


def test_raptor_is_an_extra(run, capsys, monkeypatch):
    from jdistill.export import raptor

    monkeypatch.setattr(raptor.importlib.util, "find_spec", lambda name: None)
    assert run_command("evaluate", [str(run), "--raptor"]) == 1
    assert "uv run --extra raptor" in capsys.readouterr().err
