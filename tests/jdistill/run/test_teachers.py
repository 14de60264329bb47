"""A run with many teachers from its folder of files to its evaluation, and what can be wrong with such a folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import jax
import numpy as np
import pytest
import torch

import jdistill
from bridge.quadrotors import read_csv
from jdistill.cli.main import run_command
from jdistill.cli.train import make_parser, parse
from jdistill.core import networks
from jdistill.core.config import AgentCfg, TeacherCfg
from jdistill.core.networks import Policy
from jdistill.errors import ConfigError, SettingError
from jdistill.export.policy_file import load_policy, save_policy
from jdistill.export.rsl_rl import ACTOR, to_tensors
from jdistill.run.folders import run_folders
from jdistill.run.saved_run import load_config
from jdistill.run.teachers import TABLE, quadrotors, spans, teachers_in
from jdistill.run.training import Job, folder_suffix
from tests.conftest import ROOT

HEADER = "id,mass,arm_length,Ixx,Iyy,Izz,twr,motor_tau"
IDS = (7, 2, 5, 3)
"""In the order of the file."""
NETWORK = Policy(4, (8,), activation="elu", output_activation="tanh")
SWARM = ["--task", f"{ROOT}/tests/masses.py:swarm", "--num_envs", "8", "--device", "cpu", "--devices", "1"]
AGENT = [
    "agent.num_steps_per_env=16",
    "agent.student.rnn_type=null",
    "agent.algorithm.num_learning_epochs=1",
    "agent.logger=none",
    "agent.teacher.output_activation=tanh",
]


def row(key: int) -> str:
    return f"{key},0.{key}1,0.05,1e-3,1e-3,2e-3,2.{key},0.05"


def teacher_state(key: int, policy: Policy = NETWORK):
    state = networks.init(policy, jax.random.key(key), 26, normalize=True)
    return state.replace(normalizer=state.normalizer.replace(mean=np.full(26, 0.1 * key, np.float32)))


def write_teacher(folder: Path, key: int, policy: Policy = NETWORK, name: str = "best_model.pt") -> None:
    """As rsl_rl 2.x writes an actor, its normalizer apart."""
    tensors = {k: torch.tensor(v) for k, v in to_tensors(policy, teacher_state(key, policy), ACTOR).items()}
    apart = f"{ACTOR.normalizer}."
    normalizer = {k.removeprefix(apart): v for k, v in tensors.items() if k.startswith(apart)}
    model = {k: v for k, v in tensors.items() if not k.startswith(apart)} | {"std": torch.ones(policy.num_actions)}
    (place := folder / f"teacher_{key:04d}").mkdir(exist_ok=True)
    torch.save({"model_state_dict": model, "obs_norm_state_dict": normalizer}, place / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Four teachers and their quadrotors."""
    folder = tmp_path_factory.mktemp("teachers")
    (folder / TABLE).write_text("\n".join([HEADER, *map(row, IDS)]) + "\n")
    for key in IDS:
        write_teacher(folder, key)
    return folder


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_a_run_from_its_folder_to_its_evaluation(folder, tmp_path, capsys):
    logs, flown = tmp_path / "logs", tmp_path / "flown.hdf5"
    argv = [*SWARM, "--logdir", str(logs), *AGENT]
    whole = [*argv, "--teacher_dir", str(folder), "--phase1", "1", "--max_iterations", "2", "--record", str(flown)]
    assert run_command("train", whole) == 0
    (run,) = run_folders(str(logs))
    out = capsys.readouterr().out
    assert "4 (ids 2, 3, 5, 7), each 26 observations" in out and "not in the order of their ids" in out
    assert read_csv(run / "quadrotors.csv") == read_csv(folder / TABLE)
    _policy, _state, header = load_policy(run / "teacher.safetensors", many=True)
    assert header["teacher_ids"] == [2, 3, 5, 7]
    with h5py.File(flown) as file:
        episodes = [{k: v[()] for k, v in (*g["obs"].items(), *g.items()) if k != "obs"} for g in file["data"].values()]
    assert {int(k) for e in episodes for k in e["teacher_id"]} == {2, 3, 5, 7}
    act = jax.jit(lambda state, obs: networks.act(NETWORK, state, (), obs)[1])
    for episode in episodes[:20]:
        (key,) = set(episode["teacher_id"].tolist())
        obs = np.zeros((12, 26), np.float32)
        obs[: len(episode["teacher"])] = episode["teacher"]
        expected = act(teacher_state(key), obs)[: len(episode["teacher"])]
        np.testing.assert_allclose(episode["teacher_actions"], expected, atol=1e-5)
    # The run needs the folder no more, and may be moved.
    run = Path(shutil.move(run, run.with_name("moved")))
    assert load_config(run).env.quadrotors == str(run / "quadrotors.csv")
    again = [*argv, "--resume", "--load_run", str(run), "--max_iterations", "3", "env.num_envs=8"]
    assert run_command("train", again) == 0
    found = jdistill.evaluate(run, episodes=4, devices=1)
    assert found["scenarios"]["default"]["policies"]["teacher"]["agreement"]["rmse"] == 0
    assert found["policies"]["teacher"]["parameters"] == 26 * 8 + 8 + 8 * 4 + 4
    capsys.readouterr()
    relabelled = [
        *argv,
        "--teacher",
        str(run / "teacher.safetensors"),
        "--dataset",
        str(flown),
        "--max_iterations",
        "1",
    ]
    with h5py.File(flown, "r+") as file:
        for group in file["data"].values():  # As recorded by another teacher.
            group["teacher_actions"][...] = 9
    relabelled += ["agent.algorithm.relabel=true", "agent.algorithm.check_dataset=false"]
    assert run_command("train", relabelled) == 0
    assert 0 < float(capsys.readouterr().out.split("Mean behavior loss:")[1].split()[0]) < 4
    assert run_command("export", [str(run), "--format", "rsl_rl"]) == 1
    assert "its checkpoints hold one teacher, the run has 4" in capsys.readouterr().err


def test_an_id_that_no_teacher_has_is_told_before_anything_is_learned(tmp_path, capsys):
    for key in (0, 1):
        save_policy(tmp_path / f"{key}.safetensors", NETWORK, teacher_state(key), {})
    files = [str(tmp_path / f"{key}.safetensors") for key in (0, 1)]
    argv = ["--max_iterations", "1", "--logdir", str(tmp_path / "logs"), "--teacher", *files]
    assert run_command("train", [*SWARM, *argv, *AGENT]) == 1
    assert "an environment has the teacher_id 7; the teachers' ids are 0, 1" in capsys.readouterr().err
    assert run_command("train", [*SWARM, *argv, *AGENT, "agent.teacher.id_group=skill"]) == 1
    error = capsys.readouterr().err
    assert "agent.teacher.id_group=skill: nothing says which teacher" in error and "teacher_id" in error
    assert run_command("train", ["--task", f"{ROOT}/tests/masses.py:masses", *argv]) == 1


def test_one_of_the_folder_alone(folder):
    """That craft's row and its teacher."""
    teachers = teachers_in(folder, 5)
    assert teachers.files == {5: folder / "teacher_0005" / "best_model.pt"} and teachers.alone
    cfg = SimpleNamespace(env=SimpleNamespace(quadrotors=""), agent=AgentCfg(teacher=TeacherCfg(dir="x", id=5)))
    assert [quadrotor.mass for quadrotor in quadrotors(cfg, teachers).rows.values()] == [0.51]
    assert folder_suffix(cfg) == "distill_T5"
    cfg.agent.run_name = "try"
    assert folder_suffix(cfg) == "try_distill_T5"
    with pytest.raises(ConfigError, match=r"teacher_dynamics.csv: no row of id 4; there are 2, 3, 5, 7$"):
        teachers_in(folder, 4)


def test_quadrotors_of_the_users_own_are_held_against_the_teachers(folder, tmp_path):
    cfg, teachers = SimpleNamespace(env=SimpleNamespace(quadrotors="")), teachers_in(folder)
    own = tmp_path / "own.csv"
    cfg.env.quadrotors = str(own)
    own.write_text(f"{HEADER.replace('twr', 'thrust_to_weight')},name\n{row(3)},a\n{row(7)},b\n")
    assert list(quadrotors(cfg, teachers).rows) == [3, 7]
    own.write_text(f"{HEADER}\n{row(3)}\n{row(7).replace('0.71', '0.72')}\n")
    with pytest.raises(ConfigError, match=r"own.csv: mass of id 7 is 0.72, that of its teacher's quadrotor is 0.71"):
        quadrotors(cfg, teachers)
    own.write_text(f"{HEADER}\n{row(4)}\n")
    with pytest.raises(ConfigError, match=r"own.csv: the quadrotor of id 4 has no teacher: no such row in"):
        quadrotors(cfg, teachers)
    assert quadrotors(SimpleNamespace(env=SimpleNamespace()), teachers) is None


def test_which_file_is_a_teachers_policy(copy):
    place = copy / "teacher_0005"
    for name in ("model_200.pt", "model_1000.pt"):
        write_teacher(copy, 5, name=name)
    assert teachers_in(copy).files[5].name == "best_model.pt"
    (place / "best_model.pt").rename(place / "model.pt")
    assert teachers_in(copy).files[5].name == "model.pt"
    (place / "model.pt").unlink()
    assert teachers_in(copy).files[5].name == "model_1000.pt"
    for path in place.iterdir():
        path.unlink()
    (place / "mine.safetensors").touch()
    assert teachers_in(copy).files[5].name == "mine.safetensors"


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ([row(2), row(3), row(2)], "teacher_dynamics.csv, line 4: id 2 again, it is that of line 2"),
        ([row(2), "x" + row(3)], "teacher_dynamics.csv, line 3: id is 'x3', expected a number"),
        ([row(2), "3,1"], "teacher_dynamics.csv, line 3: 2 cells, the first line names 8"),
        ([*map(row, IDS), row(11)], "teacher_0011: no such folder, but a row in .*: train it, or delete the row"),
        ([row(2), row(3), row(5)], "teacher_0007: .*teacher_dynamics.csv has no row of id 7; add it, or move"),
        ([], "teacher_dynamics.csv: names columns and no quadrotor"),
        (None, "no column id, "),
    ],
)
def test_a_table_that_does_not_go_with_the_folder(copy, table, complaint):
    (copy / TABLE).write_text("\n".join([HEADER, *table]) if table is not None else "mass\n1\n")
    with pytest.raises(SettingError, match=complaint) as error:
        teachers_in(copy)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_none(copy, tmp_path):
    (copy / "teacher_0003" / "best_model.pt").unlink()
    with pytest.raises(ConfigError, match=r"teacher_0003: holds no best_model.pt, model.pt, model_N.pt or policy.saf"):
        teachers_in(copy)
    (copy / TABLE).unlink()
    with pytest.raises(ConfigError, match=r"has no teacher_dynamics.csv; teachers of no quadrotors: --teacher A.pt"):
        teachers_in(copy)
    with pytest.raises(ConfigError, match="no such folder"):
        teachers_in(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda f: write_teacher(f, 5, Policy(4, (8, 8), output_activation="tanh")), "all teachers have one network"),
        (lambda f: write_teacher(f, 5, Policy(3, (8,), output_activation="tanh")), "gives 3 actions"),
        (
            lambda f: torch.save({"model_state_dict": {"actor.0.weight": torch.tensor([[float("nan")]])}}, f / "x.pt"),
            "",
        ),
    ],
)
def test_a_teacher_that_does_not_go_with_the_others(copy, tmp_path, capsys, spoil, complaint):
    spoil(copy)
    if (copy / "x.pt").exists():
        (copy / "x.pt").replace(copy / "teacher_0005" / "best_model.pt")
        complaint = "holds NaN or infinity"
    argv = [*SWARM, "--teacher_dir", str(copy), "--logdir", str(tmp_path / "logs"), *AGENT]
    assert run_command("train", argv) == 1
    error = capsys.readouterr().err
    assert f"{copy / 'teacher_0005' / 'best_model.pt'}" in error and complaint in error and error.count("\n") == 1
    assert not run_folders(str(tmp_path / "logs"))


def test_the_command_line_tells_teachers_from_settings():
    args = parse(make_parser(), ["--teacher", "a.pt", "b.pt", "agent.seed=3", "--phase1", "2", "env.x=1"])
    assert args.teacher == ["a.pt", "b.pt"] and set(args.overrides) == {"agent.seed=3", "env.x=1"}
    assert Job(teacher=args.teacher).settings()["agent"]["teacher"]["files"] == ["a.pt", "b.pt"]
    assert parse(make_parser(), ["--teacher", "a.pt", "agent.seed=3"]).teacher == "a.pt"
    for argv in (["--teacher_id", "3"], ["--teacher_dir", "x", "--teacher", "y"]):
        with pytest.raises(SystemExit):
            parse(make_parser(), argv)


def test_ids_in_a_sentence():
    assert spans(range(4)) == "0 to 3" and spans([7, 2]) == "2, 7"
    assert spans([1, 3, 5, 7, 9, 11, 13]) == "1, 3, 5, 7, 9 and 2 more"
