"""A recording as a dataset of LeRobot, read back as LeRobot's loader reads it: Parquet and JSON."""

from __future__ import annotations

import json
import re

import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest

from jdistill.cli.main import run_command
from jdistill.data.episode_writer import EpisodeFile

LENGTHS = [3, 1, 4]
ENV_ARGS = {
    "env_name": "walk",
    "step_dt": 0.02,
    "obs_groups": {"student": ["policy/joint[:2]", "policy/height"], "teacher": ["critic"]},
    "names": {"policy/joint": ["hip", "knee", "toe"], "policy/height": ["height"], "actions": ["hip", "knee"]},
}


def record(path, env_args=ENV_ARGS, actions=2):
    """Episodes of random numbers, one after the other; returns what was seen."""
    rng, steps = np.random.default_rng(0), sum(LENGTHS)
    done = np.zeros((steps, 1), bool)
    done[np.cumsum(LENGTHS) - 1] = True
    sizes = {"policy/joint": 3, "policy/height": 1, "critic": 5}
    obs = {name: rng.normal(size=(steps, 1, size)).astype("f") for name, size in sizes.items()}
    file = EpisodeFile(path, dict(env_args), np.ones(1, bool), None)
    rollout = {
        name: rng.normal(size=(steps, 1, actions)).astype("f") for name in ("student_actions", "teacher_actions")
    }
    file.add(
        {
            **rollout,
            "teacher_acts": np.ones(steps, bool),
            "rewards": done.astype("f"),
            "dones": done,
            "nonfinite": np.zeros_like(done),
            "states": {},
            "obs": obs,
        }
    )
    file.close()
    return {name: x[:, 0] for name, x in {**obs, **rollout}.items()}


@pytest.fixture
def exported(tmp_path, capsys):
    """A folder, and what was recorded."""
    seen = record(tmp_path / "walk.hdf5")
    assert run_command("dataset", ["export", str(tmp_path / "walk.hdf5"), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: 3 episodes, 8 steps at 50 a second\n"
    return tmp_path / "out", seen


def test_columns(exported):
    folder, seen = exported
    info = json.loads((folder / "meta" / "info.json").read_text())
    table = pq.read_table(folder / info["data_path"].format(chunk_index=0, file_index=0))
    assert table.column_names == list(info["features"])
    column = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    for name, feature in info["features"].items():
        assert column[name].shape == ((8,) if feature["shape"] == [1] else (8, *feature["shape"])), name
        kind = table.schema.field(name).type
        assert str(getattr(kind, "value_type", kind)).replace("float", "float32") == feature["dtype"]
    state = np.concatenate([seen["policy/joint"][:, :2], seen["policy/height"]], axis=1)
    np.testing.assert_array_equal(column["observation.state"], state)
    np.testing.assert_array_equal(column["observation.environment_state"], seen["critic"])
    np.testing.assert_array_equal(column["action"], seen["teacher_actions"])
    assert info["features"]["observation.state"]["names"] == ["hip", "knee", "height"]
    assert info["features"]["action"]["names"] == ["hip", "knee"]
    assert info["features"]["observation.environment_state"]["names"][4] == "observation.environment_state[4]"
    assert column["frame_index"].tolist() == [0, 1, 2, 0, 0, 1, 2, 3] and column["index"].tolist() == list(range(8))
    assert column["episode_index"].tolist() == [0, 0, 0, 1, 2, 2, 2, 2] and not column["task_index"].any()
    np.testing.assert_allclose(column["timestamp"], 0.02 * column["frame_index"], rtol=1e-6)
    assert column["next.done"].tolist() == [False, False, True, True, False, False, False, True]
    assert pq.ParquetFile(folder / "data/chunk-000/file-000.parquet").num_row_groups == 3, "one for each episode"


def test_meta(exported):
    folder, seen = exported
    info = json.loads((folder / "meta" / "info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["total_episodes"], info["total_frames"]) == ("v3.0", 50, 3, 8)
    episodes = pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [(e["dataset_from_index"], e["dataset_to_index"], e["length"]) for e in episodes] == [
        (0, 3, 3),
        (3, 4, 1),
        (4, 8, 4),
    ]
    assert [(e["data/chunk_index"], e["data/file_index"], e["tasks"]) for e in episodes] == [(0, 0, ["walk"])] * 3
    np.testing.assert_allclose(episodes[2]["stats/action/mean"], seen["teacher_actions"][4:].mean(0), atol=1e-6)
    stats = json.loads((folder / "meta" / "stats.json").read_text())
    assert stats.keys() == info["features"].keys()
    for name, function in (("min", np.min), ("max", np.max), ("mean", np.mean), ("std", np.std)):
        wanted = function(seen["teacher_actions"].astype(np.float64), axis=0)
        np.testing.assert_allclose(stats["action"][name], wanted, atol=1e-6, err_msg=name)
    assert stats["action"]["count"] == [8] and stats["next.reward"]["mean"] == [3 / 8]
    tasks = pq.read_table(folder / "meta" / "tasks.parquet")
    assert tasks.to_pylist() == [{"task_index": 0, "task": "walk"}]
    assert json.loads(tasks.schema.metadata[b"pandas"])["index_columns"] == ["task"]


def test_a_file_of_another_program_says_less(tmp_path, capsys):
    """Isaac Lab Mimic's: observations and actions alone; and a camera."""
    with h5py.File(path := tmp_path / "mimic.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"], demo["obs/eef_pos"] = np.ones((4, 1), "f"), np.zeros((4, 3))
        demo["obs/wrist"] = np.zeros((4, 2, 2, 3), np.uint8)
    command = ["export", str(path), "--out", str(tmp_path / "out")]
    assert run_command("dataset", command) == 1
    assert "does not say how long a step is; say it with --fps N" in capsys.readouterr().err
    assert run_command("dataset", [*command, "--fps", "30", "--describe", "Stack the cubes."]) == 0
    assert capsys.readouterr().out.endswith("1 episodes, 4 steps at 30 a second; left out, being no vectors: wrist\n")
    info = json.loads((tmp_path / "out" / "meta" / "info.json").read_text())
    assert info["features"]["observation.state"]["shape"] == [3] and info["features"]["action"]["shape"] == [1]
    assert "next.reward" not in info["features"] and "next.done" in info["features"]


def test_labels_and_limits(tmp_path, monkeypatch):
    """The teacher's actions in place of those that stepped; and files no larger than LeRobot's."""
    monkeypatch.setattr("jdistill.data.lerobot.FILE_MB", 400 / 2**20)
    seen = record(tmp_path / "walk.hdf5")
    arguments = ["export", str(tmp_path / "walk.hdf5"), "--out", str(tmp_path / "out"), "--action", "student_actions"]
    assert run_command("dataset", arguments) == 0
    files = sorted((tmp_path / "out" / "data").glob("*/*.parquet"))
    assert [file.name for file in files] == ["file-000.parquet", "file-001.parquet"]
    actions = [row for file in files for row in pq.read_table(file)["action"].to_pylist()]
    np.testing.assert_array_equal(np.array(actions, "f"), seen["student_actions"])
    places = pq.read_table(tmp_path / "out/meta/episodes/chunk-000/file-000.parquet")["data/file_index"].to_pylist()
    assert places == [0, 0, 1]


@pytest.mark.parametrize(
    ("spoil", "arguments", "complaint"),
    [
        (lambda path: None, ["--action", "labels"], r"data/demo_0: has no labels; there are actions, "),
        (lambda path: (path.parent / "out").mkdir(), [], r"--out .*: exists already, and an export never overwrites"),
        (lambda path: change(path, "obs/critic", np.zeros((1, 4))), [], r"demo_1: obs.critic|is not what was recorded"),
        (lambda path: change(path, "obs/policy.height", None), [], r"demo_1: obs lacks what the student sees"),
        (lambda path: path.unlink(), [], "no such file"),
    ],
)
def test_complaints(tmp_path, capsys, spoil, arguments, complaint):
    record(path := tmp_path / "walk.hdf5")
    spoil(path)
    before = sorted(tmp_path.rglob("*"))
    assert run_command("dataset", ["export", str(path), "--out", str(tmp_path / "out"), *arguments]) == 1
    assert re.search(complaint, capsys.readouterr().err)
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left"


def change(path, name, value):
    with h5py.File(path, "r+") as file:
        del file[f"data/demo_1/{name}"]
        if value is not None:
            file[f"data/demo_1/{name}"] = value
