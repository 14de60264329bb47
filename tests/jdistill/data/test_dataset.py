"""Recording, reading back, and files that are none."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import h5py
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jdistill.cli.main import run_command
from jdistill.core import networks
from jdistill.core.actor import PolicyActor
from jdistill.core.config import AlgorithmCfg
from jdistill.core.networks import Policy, PolicyState
from jdistill.core.rollout import Transition
from jdistill.core.samplers import make_sampler
from jdistill.core.sampling import HistoryData
from jdistill.data.dataset import Relabeler, Seen, info, load, open_dataset, with_siblings
from jdistill.data.recorder import Recorder, check_new
from jdistill.errors import ConfigError, DatasetError, UserError
from tests.conftest import ROOT

STEPS, ENVS = 10, 3
IS_FIRST = np.array([True, True, False])


def rollout(number: int) -> Transition:
    """A rollout with random content and ends."""
    rng = np.random.default_rng(number)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=(STEPS, ENVS, *shape)).astype(np.float32))

    return Transition(
        pipeline_state={"pos": draw(3), "age": jnp.asarray(rng.integers(0, 9, (STEPS, ENVS)))},
        obs={"student": draw(5), "teacher": draw(7)},
        student_action=draw(2),
        teacher_action=draw(2),
        is_first=jnp.zeros((STEPS, ENVS), bool),
        teacher_acts=jnp.asarray(rng.random((STEPS, ENVS)) < 0.5) if number % 2 else jnp.ones(STEPS, bool),
        reward=draw(),
        done=jnp.asarray(rng.random((STEPS, ENVS)) < 0.15),
        metrics={"unused": draw()},
        student_carry=(),
    )


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A file of four rollouts, and those."""
    path = tmp_path_factory.mktemp("recorded") / "rollouts.hdf5"
    recorder, rollouts = Recorder(path, {"env_name": "crazyflie"}, IS_FIRST, 1.0), [rollout(n) for n in range(4)]
    for r in rollouts:
        recorder.put(r)
    message = recorder.close()
    return path, rollouts, message


def test_episodes_are_whole_and_in_robomimics_layout(recorded):
    path, rollouts, message = recorded
    line = jax.tree.map(
        lambda *x: np.concatenate(x), *[r._replace(teacher_acts=None, is_first=None, metrics={}) for r in rollouts]
    )
    expected = []
    for env in range(ENVS):
        ends = [-1, *np.flatnonzero(line.done[:, env])]
        first = 0 if IS_FIRST[env] else 1
        expected += [(end, env, start + 1) for start, end in list(pairwise(ends))[first:]]
    # By the rollout in which they end, then by environment.
    expected.sort(key=lambda e: (e[0] // STEPS, e[1], e[0]))
    with h5py.File(path) as file:
        data = file["data"]
        assert data.attrs["total"] == sum(end - start + 1 for end, _, start in expected)
        assert json.loads(data.attrs["env_args"]) == {
            "env_name": "crazyflie",
            "states": [["age", 1], ["pos", 3]],
        }
        assert set(data) == {f"demo_{n}" for n in range(len(expected))}
        assert message == f"Recorded {len(expected)} episodes, {data.attrs['total']} steps in {path}"
        for number, (end, env, start) in enumerate(expected):
            group, part = data[f"demo_{number}"], slice(start, end + 1)
            assert group.attrs["num_samples"] == end + 1 - start
            np.testing.assert_array_equal(group["obs/student"], line.obs["student"][part, env])
            np.testing.assert_array_equal(group["obs/teacher"], line.obs["teacher"][part, env])
            np.testing.assert_array_equal(group["teacher_actions"], line.teacher_action[part, env])
            np.testing.assert_array_equal(group["rewards"], line.reward[part, env])
            np.testing.assert_array_equal(group["states"][:, 1:], line.pipeline_state["pos"][part, env])
            assert group["dones"][()].tolist() == [0] * (end - start) + [1]
            by_teacher = group["phase"][()][:, None] == 1
            action = np.where(by_teacher, group["teacher_actions"], group["student_actions"])
            np.testing.assert_array_equal(group["actions"], np.clip(action, -1, 1))
    assert not path.with_name(path.name + ".journal").exists()


def test_info_tells_what_is_in_it(recorded, capsys):
    path, _, message = recorded
    assert run_command("dataset", ["info", str(path)]) == 0
    text = capsys.readouterr().out
    episodes, steps = message.split()[1], message.split()[3]
    assert f"episodes  {episodes}\n" in text and f"steps     {steps} (" in text and "task crazyflie" in text
    with h5py.File(path) as file:
        returns = [g["rewards"][()].sum() for g in file["data"].values()]
        lowest = min(float(g["obs/student"][()].min()) for g in file["data"].values())
    assert f"returns   {min(returns):.2f} to {max(returns):.2f}, mean {np.mean(returns):.2f}" in text
    assert f"{lowest:>12.5g}" in text and "obs/student              T x 5" in text


def seen(size: int, entry: str = "student") -> Seen:
    return Seen([entry], jax.ShapeDtypeStruct((size,), np.dtype(np.float32)))


def test_loaded_episodes_stand_behind_each_other(recorded):
    path = recorded[0]
    cfg = AlgorithmCfg(dataset=[str(path), str(path)])
    recording = load(cfg, seen(4, "student[:4]"), 2, num_columns=2, horizon=8)
    history = recording.history
    assert history.obs.shape[0] % 8 == 0
    with open_dataset(path) as episodes:
        obs = [group["obs/student"][:, :4] for _, group in episodes]
    wanted = sorted(x.tobytes() for x in obs + obs)
    found = []
    for column in range(2):
        length = int(history.length[column])
        starts = [*np.flatnonzero(history.is_first[:length, column]), length]
        assert starts[0] == 0 and not history.is_first[length:, column].any()
        found += [np.asarray(history.obs[a:b, column]).tobytes() for a, b in pairwise(starts)]
    assert sorted(found) == wanted
    everything = np.concatenate(obs)
    np.testing.assert_allclose(recording.normalizer.mean, everything.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(recording.normalizer.var, everything.var(axis=0), rtol=1e-4)
    assert recording.summary.startswith(f"Dataset: {2 * len(obs)} episodes, {2 * len(everything)} steps")


def test_a_teacher_relabels_a_dataset(recorded):
    policy = Policy(2, (4,), rnn_type="gru", rnn_hidden_dim=4)
    state = networks.init(policy, jax.random.key(0), 7, normalize=False)
    cfg = AlgorithmCfg(dataset=[str(recorded[0])])
    relabeler = Relabeler(PolicyActor(policy, state, ("teacher",)), seen(7, "teacher"))
    history = load(cfg, seen(5), 2, 1, 1, relabeler).history
    at = 0
    with open_dataset(recorded[0]) as episodes:
        for _, group in episodes:
            carry = networks.initial_carry(policy, state, 1)
            for obs in group["obs/teacher"][()]:
                carry, action = networks.act(policy, state, carry, jnp.asarray(obs)[None])
                np.testing.assert_allclose(history.teacher_action[at, 0], action[0], atol=1e-5)
                at += 1
    assert at == int(history.length[0])


def test_relabelling_needs_no_recorded_teacher_actions(recorded, tmp_path):
    """Other programs' recordings have none."""
    policy = Policy(2, (4,))
    state = networks.init(policy, jax.random.key(0), 5, normalize=False)
    relabeler = Relabeler(PolicyActor(policy, state, ("student",)), seen(5))
    path = tmp_path / "bare.hdf5"
    with h5py.File(recorded[0]) as source, h5py.File(path, "w") as file:
        file["data/demo_0/obs/student"] = source["data/demo_0/obs/student"][()]
    with pytest.raises(
        DatasetError, match=r"no teacher_actions to learn from; .*relabel=true lets the teacher make them"
    ):
        load(AlgorithmCfg(dataset=[str(path)]), seen(5), 2, 1, 1)
    history = load(AlgorithmCfg(dataset=[str(path)]), seen(5), 2, 1, 1, relabeler).history
    assert history.teacher_action.shape == (int(history.length[0]), 1, 2) and bool(
        jnp.abs(history.teacher_action).min() > 0
    )


def test_files_of_one_run_come_together(tmp_path):
    main, other, third = (tmp_path / f"flown{number}.hdf5" for number in ("", ".1", ".2"))
    for path in (main, other, third, tmp_path / "flown.4.hdf5"):
        path.touch()
    assert with_siblings([main]) == [main, other, third]
    assert with_siblings([other, str(main)]) == [other, main, third], "each once"
    assert with_siblings([main, main]) == [main, other, third] * 2, "twice what is asked for twice"


@pytest.mark.parametrize("sampler", ["uniform", "recent", "packed"])
def test_of_a_small_dataset_every_sequence_is_worth_something(recorded, sampler):
    """Fewer episodes than environments, shorter than a rollout: nothing is drawn where nothing is."""
    algorithm = AlgorithmCfg(dataset=[str(recorded[0])], sampler=sampler, gradient_length=3, burn_in_steps=2)
    history = load(algorithm, seen(5), 2, num_columns=500, horizon=400).history
    assert 3 < history.length.size < 20 and int(history.length.max()) < 40
    drawn = make_sampler(algorithm, 500, 400, 30)
    data = HistoryData(history, PolicyState(params={}, normalizer=None), jax.random.key(0))
    batch = drawn.batch(data, jnp.array(0), (), ((jnp.zeros((500, 4)),),), drawn.length)
    assert bool((batch.weight > 0).any(axis=0).all())
    # Each column counts for as much as it has steps.
    obs, weight = np.asarray(batch.obs[drawn.burn_in]), np.asarray(batch.weight[drawn.burn_in])
    per_column = [
        sum(weight[(obs == x).all(axis=1)].sum() for x in np.asarray(history.obs[:n, c])) for c, n in lengths(history)
    ]
    share = np.array(per_column) / weight.sum()
    np.testing.assert_allclose(share, history.length / history.length.sum(), rtol=1e-5)


def lengths(history):
    return enumerate(history.length.tolist())


def test_another_byte_anywhere_in_its_numbers_is_noticed(recorded, tmp_path):
    whole = recorded[0].read_bytes()
    with open_dataset(recorded[0]) as episodes:
        arrays = [group[name] for _, group in episodes for name in ("obs/student", "teacher_actions", "states")]
        places = [array.id.get_offset() + array.nbytes // 2 for array in arrays]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1
        (path := tmp_path / "damaged.hdf5").write_bytes(damaged)
        algorithm = AlgorithmCfg(dataset=[str(path)])
        with pytest.raises(DatasetError, match="is not what was recorded: the file is damaged"):
            load(algorithm, seen(5), 2, 1, 1)
        assert re.search(r"^damaged   data/demo_\d+: .* is not what was recorded", info(path), re.MULTILINE)
        load(dataclasses.replace(algorithm, check_dataset=False), seen(5), 2, 1, 1)


def test_a_few_other_bytes_anywhere_are_told_or_mean_nothing(recorded, tmp_path):
    whole, rng, told = recorded[0].read_bytes(), random.Random(5), 0
    wanted = load(AlgorithmCfg(dataset=[str(recorded[0])]), seen(5), 2, 1, 1).history
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (path := tmp_path / "damaged.hdf5").write_bytes(damaged)
        try:
            history = load(AlgorithmCfg(dataset=[str(path)]), seen(5), 2, 1, 1).history
        except UserError as e:
            told += "\n" not in str(e)
        else:
            for a, b in zip(jax.tree.leaves(history), jax.tree.leaves(wanted), strict=True):
                np.testing.assert_array_equal(a, b)
        with contextlib.suppress(UserError):
            info(path)
    assert 10 < told < 50


def test_demonstrations_have_actions_alone(recorded, tmp_path):
    shutil.copy(recorded[0], path := tmp_path / "demonstrations.hdf5")
    with h5py.File(path, "r+") as file:
        for demo in file["data"].values():
            del demo["teacher_actions"]
    with pytest.raises(DatasetError, match="has no teacher_actions to learn from"):
        load(AlgorithmCfg(dataset=[str(path)]), seen(5), 2, 1, 1)  # Some are the student's own.
    with h5py.File(path, "r+") as file:
        wanted = file["data/demo_0/actions"][()]
        for demo in file["data"].values():
            del demo["student_actions"]
    recording = load(AlgorithmCfg(dataset=[str(path)]), seen(5), 2, 1, 1)
    np.testing.assert_array_equal(recording.history.teacher_action[: len(wanted), 0], wanted)
    assert recording.summary.endswith("; the labels are the actions of the demonstrations")
    both = load(AlgorithmCfg(dataset=[str(path), str(recorded[0])]), seen(5), 2, 1, 1).summary
    assert re.search(r"; the labels are the actions of \d+ episodes, which have no teacher_actions$", both)


def test_members_of_a_group_by_the_names_that_others_give_them(recorded, tmp_path):
    """Isaac Lab Mimic's recorder leaves the group's name out; ours has a point in place of the slash."""
    with h5py.File(path := tmp_path / "mimic.hdf5", "w") as file:
        demo = file.create_group("data/demo_0")
        demo["actions"], demo["obs/eef_pos"] = np.ones((4, 2)), np.full((4, 3), 2.0)
        demo["obs/policy.gripper"] = np.full((4, 1), 3.0)
    entries = ["policy/eef_pos", "policy/gripper"]
    history = load(AlgorithmCfg(dataset=[str(path)]), Seen(entries, seen(4).shapes), 2, 1, 1).history
    np.testing.assert_array_equal(history.obs[:4, 0], [[2, 2, 2, 3]] * 4)
    with pytest.raises(DatasetError, match=r"no observation group 'critic/eef_pos'; there are eef_pos, policy.gripper"):
        load(AlgorithmCfg(dataset=[str(path)]), seen(3, "critic/eef_pos"), 2, 1, 1)


def test_all_that_robomimics_loader_reads(recorded):
    """What robomimic 0.3 asks of a file, whose packages do not go with ours: the number of an episode behind its
    name's underscore, whole lengths, no groups within ``obs``, a reader in SWMR mode."""
    with h5py.File(recorded[0], "r", swmr=True, libver="latest") as file:
        assert {"env_name", "type", "env_kwargs"} >= json.loads(file["data"].attrs["env_args"]).keys() - {"states"}
        for number, name in enumerate(sorted(file["data"], key=lambda name: int(name[5:]))):
            demo = file["data"][name]
            assert name == f"demo_{number}" and list(range(demo.attrs["num_samples"]))
            for array in (*demo["obs"].values(), demo["actions"], demo["rewards"], demo["dones"]):
                assert isinstance(array, h5py.Dataset) and len(array) == demo.attrs["num_samples"]
            assert demo["rewards"].ndim == demo["dones"].ndim == 1 and demo["actions"].ndim == 2


@pytest.mark.parametrize("kind", ["link", "raw", "virtual", "huge"])
def test_a_file_that_leads_elsewhere_is_not_followed(recorded, tmp_path, kind):
    shutil.copy(recorded[0], path := tmp_path / "file.hdf5")
    with h5py.File(tmp_path / "secret.hdf5", "w") as file:
        file["x"] = np.ones((4, 2), np.float32)
    (tmp_path / "secret.raw").write_bytes(bytes(32))
    with h5py.File(path, "r+") as file:
        demo = file["data/demo_0"]
        del demo["teacher_actions"]
        if kind == "link":
            demo["teacher_actions"] = h5py.ExternalLink("secret.hdf5", "/x")
        elif kind == "raw":
            raw = [(str(tmp_path / "secret.raw"), 0, 32)]
            demo.create_dataset("teacher_actions", (4, 2), np.float32, external=raw)
        elif kind == "virtual":
            layout = h5py.VirtualLayout((4, 2), np.float32)
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.hdf5"), "x", (4, 2))
            demo.create_virtual_dataset("teacher_actions", layout)
        else:
            demo.create_dataset("teacher_actions", (2**40, 2), np.float32)
    for read in (lambda: load(AlgorithmCfg(dataset=[str(path)]), seen(5), 2, 1, 1), lambda: info(path)):
        with pytest.raises(DatasetError, match=r"another file|too small for"):
            read()


def cut(path: Path, keep: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])


def foreign(path: Path, name: str = "images", size: int = 3) -> None:
    with h5py.File(path, "w") as file:
        file[name] = np.zeros((4, size))


def replaced(path: Path, *pairs) -> None:
    """Another content of arrays of the second episode."""
    with h5py.File(path, "r+") as file:
        for name, value in zip(pairs[::2], pairs[1::2], strict=True):
            del file[f"data/demo_1/{name}"]
            file[f"data/demo_1/{name}"] = value


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda p: p.unlink(), "no such file"),
        (lambda p: p.write_text("hello"), "truncated, damaged or no HDF5 file"),
        (lambda p: cut(p, 0.5), "truncated, damaged or no HDF5 file"),
        (lambda p: cut(p, 0.99), "truncated, damaged or no HDF5 file"),
        (lambda p: foreign(p), "an HDF5 file without the group 'data'"),
        (lambda p: foreign(p, "data/images"), "holds no complete episode"),
        (lambda p: foreign(p, "data/demo_0/actions"), "data/demo_0: has no obs"),
        (lambda p: replaced(p, "obs", np.zeros((4, 5))), "data/demo_1: has no obs"),
        (lambda p: replaced(p, "obs/student", 1.0), "data/demo_1: obs/student is [], expected [steps, size]"),
        (lambda p: replaced(p, "teacher_actions", [b"text"]), "teacher_actions is no array of numbers"),
        (lambda p: replaced(p, "teacher_actions", h5py.Empty("f")), "teacher_actions is no array of numbers"),
        (lambda p: replaced(p, "teacher_actions", np.zeros((1, 2))), "teacher_actions has 1 steps, the student's obs"),
        (lambda p: replaced(p, "actions", 1.0, "teacher_actions", np.full((4, 2), np.inf)), "data/demo_1: "),
    ],
    ids=[
        "missing",
        "text",
        "half",
        "nearly whole",
        "foreign",
        "empty",
        "without observations",
        "obs an array",
        "obs a number",
        "actions text",
        "actions nothing",
        "actions too short",
        "actions a number",
    ],
)
def test_files_that_cannot_be_used_are_told_in_one_line(recorded, tmp_path, spoil, expected):
    path = tmp_path / "spoilt.hdf5"
    path.write_bytes(recorded[0].read_bytes())
    spoil(path)
    with pytest.raises(DatasetError) as error:
        load(AlgorithmCfg(dataset=[str(path)]), seen(5), 2, 1, 1)
    assert expected in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)
    # Whatever has actions can be looked into.
    assert run_command("dataset", ["info", str(path)]) == (
        0 if "demo_" in str(error.value) and expected != "data/demo_1: " else 1
    )


def test_a_recording_under_way_is_told_from_a_broken_file(tmp_path):
    recorder = Recorder(tmp_path / "f.hdf5", {}, IS_FIRST, None)
    with pytest.raises(DatasetError, match=r"f.hdf5: is being recorded; try again when that run has ended"):
        info(tmp_path / "f.hdf5")
    recorder.close()


@pytest.mark.parametrize(
    ("entries", "sizes", "expected"),
    [
        (["student"], (6, 2), "obs student is"),
        (["student"], (5, 4), "the environment takes 4 actions"),
        (["policy"], (5, 2), "there are student, teacher, recorded on crazyflie: --task names the task"),
        (["student[:9]"], (9, 2), "reaches beyond the group, which has 5 numbers"),
    ],
)
def test_other_dimensions_are_told(recorded, entries, sizes, expected):
    with pytest.raises(DatasetError) as error:
        load(AlgorithmCfg(dataset=[str(recorded[0])]), Seen(entries, seen(sizes[0]).shapes), sizes[1], 1, 1)
    assert expected in str(error.value) and "data/demo_0" in str(error.value)


@pytest.mark.parametrize("header", [None, "{", "[]", "3", "{}"])
def test_a_file_that_does_not_name_its_task(recorded, tmp_path, header):
    path = shutil.copy(recorded[0], tmp_path / "other.hdf5")
    with h5py.File(path, "r+") as file:
        del file["data"].attrs["env_args"]
        if header is not None:
            file["data"].attrs["env_args"] = header
    assert info(path).startswith(f"{path}: task unknown\n")
    with pytest.raises(DatasetError, match=r"has no observation group 'policy'; there are student, teacher$"):
        load(AlgorithmCfg(dataset=[str(path)]), Seen(["policy"], seen(5).shapes), 2, 1, 1)


def test_more_than_the_memory_holds(recorded, monkeypatch):
    from jdistill.core import memory

    monkeypatch.setattr(memory, "available_host_memory", lambda: 100)
    with pytest.raises(ConfigError, match=r"the dataset needs .* train on fewer files"):
        load(AlgorithmCfg(dataset=[str(recorded[0])]), seen(5), 2, 1, 1)


def test_recordings_overwrite_nothing(recorded, tmp_path):
    with pytest.raises(DatasetError, match="exists already"):
        check_new(recorded[0])
    with pytest.raises(DatasetError, match="no folder that can be written to"):
        check_new(tmp_path / "nowhere" / "x.hdf5")


def test_a_disk_that_takes_no_more_stops_the_run_with_a_line(tmp_path):
    recorder = Recorder(tmp_path / "f.hdf5", {}, IS_FIRST, None)
    resource.prlimit(recorder.process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    message = r"f.hdf5: cannot be written \(File too large\); it holds [1-9]\d* episodes"
    with pytest.raises(DatasetError, match=message):
        for number in range(100):
            recorder.put(rollout(number % 4))
    with pytest.raises(DatasetError, match=message) as error:
        recorder.close()
    with open_dataset(tmp_path / "f.hdf5") as episodes:
        assert f"it holds {len(episodes)} episodes" in str(error.value)


def test_a_writer_that_is_killed_stops_the_run_with_a_line(tmp_path):
    recorder = Recorder(tmp_path / "f.hdf5", {}, IS_FIRST, None)
    for number in range(20):
        recorder.put(rollout(number % 4))
    recorder.process.kill()
    with pytest.raises(DatasetError, match=r"f.hdf5: cannot be written \(the writing process ended with status -9\)"):
        for number in range(100):
            recorder.put(rollout(number % 4))
    with open_dataset(tmp_path / "f.hdf5") as episodes:
        assert len(episodes) > 10


def test_a_writer_outlives_what_ends_a_run(tmp_path):
    """A terminal's Ctrl-C and a batch system's SIGTERM reach it as well; the run still has something to save."""
    recorder = Recorder(tmp_path / "f.hdf5", {}, IS_FIRST, None)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        recorder.process.send_signal(number)
    recorder.put(rollout(0))
    assert recorder.close().startswith("Recorded 3 episodes")
    assert recorder.process.returncode == 0


def test_a_recording_that_cannot_begin_is_told(recorded):
    with pytest.raises(DatasetError, match=r"rollouts.hdf5: cannot be written \(File exists\); it holds 0 episodes"):
        Recorder(recorded[0], {}, IS_FIRST, None)


def test_a_recording_leaves_nothing_open(tmp_path):
    for number in range(3):
        before = set(os.listdir("/proc/self/fd"))
        recorder = Recorder(tmp_path / f"{number}.hdf5", {}, IS_FIRST, None)
        recorder.put(rollout(0))
        recorder.close()
        del recorder
        assert number == 0 or set(os.listdir("/proc/self/fd")) == before


@pytest.mark.full
def test_a_program_that_forgets_to_close_ends_and_leaves_a_whole_file(tmp_path):
    code = ENDLESS.replace("itertools.count()", "range(4)")
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "f.hdf5")], check=True, timeout=60, cwd=ROOT)
    with open_dataset(tmp_path / "f.hdf5") as episodes:
        assert len(episodes) == 7


ENDLESS = """
import itertools, pathlib, sys
from jdistill.data.recorder import Recorder
from tests.jdistill.data.test_dataset import IS_FIRST, rollout
recorder = Recorder(pathlib.Path(sys.argv[1]), {"env_name": "crazyflie"}, IS_FIRST, None)
rollouts = [rollout(n) for n in range(4)]
for number in itertools.count():
    recorder.put(rollouts[number % 4])
    print(number, flush=True)
"""


@pytest.mark.full
def test_a_killed_recording_holds_its_complete_episodes(tmp_path):
    moment = 40
    path = tmp_path / "killed.hdf5"
    command = [sys.executable, "-c", ENDLESS, str(path)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True, cwd=ROOT)
    for line in process.stdout:
        if int(line) == moment:
            time.sleep(0.0003 * moment)
            break
    process.send_signal(signal.SIGKILL)
    assert process.communicate()[1] == "", "nor is there a traceback of the writer"
    # Rollouts in the queue may be lost, and the one being copied. What the other process has, it still writes.
    for _ in range(100):
        with contextlib.suppress(DatasetError), open_dataset(path):
            break
        time.sleep(0.1)
    done = sum(int(rollout(n % 4).done.sum()) for n in range(moment - 3)) - 1
    with open_dataset(path) as episodes:
        assert len(episodes) >= done > 20
        for _, group in episodes:
            assert group["dones"][()].tolist() == [0] * (group.attrs["num_samples"] - 1) + [1]
            assert group["obs/student"].shape == (group.attrs["num_samples"], 5)
        total = episodes[0][1].parent.attrs["total"]
        assert total == sum(group.attrs["num_samples"] for _, group in episodes)
    assert "episodes" in info(path)
