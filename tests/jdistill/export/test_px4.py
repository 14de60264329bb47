"""Archives for PX4's ``mc_raptor``: RAPTOR's own weights bit for bit, and students whose observation is another."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import h5py
import jax
import numpy as np
import pytest

from bridge.crazyflie import PointControl, PointControlCfg
from jdistill.core import networks, observations
from jdistill.core.config import AgentCfg
from jdistill.core.networks import Policy
from jdistill.errors import ExportError
from jdistill.export import px4, raptor, verify
from jdistill.export.formats import Student
from jdistill.export.layers import build
from tests.conftest import BUNDLED_TEACHER

RAPTORS = Policy(4, (), pre_dims=(16,), rnn_type="gru", activation="relu", learn_initial_carry=True)
MODULES = [{"name": n, "size": s, "unit": "-1..1" if "motor" in n else "m"} for n, s in px4.PARTS.items()]
HEADER = {
    "observation": {"groups": [{"name": "module", "size": 22, "frame": "start", "layout": MODULES}], "size": 22},
    "action": {"layout": raptor.MOTORS, "range": [-1, 1], "size": 4},
    "control_rate_hz": 100.0,
    "network": {},
    "iteration": 7,
}
"""Of a student that observes what the module does."""


def student_of(policy: Policy = RAPTORS, header=HEADER, normalize=False, **parts) -> Student:
    state = networks.init(policy, jax.random.key(0), 22, normalize)
    if normalize:
        seen = 0.3 + np.linspace(0.05, 3, 22) * np.random.default_rng(1).normal(size=(99, 22))
        state = state.replace(normalizer=state.normalizer.update(jax.numpy.asarray(seen, "f")))
    state = state.replace(params=jax.tree.map_with_path(lambda p, x: x + 0.2 * ("initial" in str(p)), state.params))
    return Student(policy, state, {**header, **parts}, AgentCfg(), BUNDLED_TEACHER)


def entries(file: Path) -> dict[str, bytes]:
    with tarfile.open(file) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_raptors_own_weights_have_their_structure_and_come_back_bit_for_bit(tmp_path):
    policy, state = raptor.load()
    exported = px4.export(Student(policy, state, HEADER, AgentCfg(), BUNDLED_TEACHER), tmp_path)
    found = entries(exported.file)
    with h5py.File(str(files("foundation_policy")) + "/blob/checkpoint.h5") as theirs:
        tensors = {}
        theirs.visititems(lambda name, x: tensors.update({name: np.array(x)}) if hasattr(x, "shape") else None)
        about = {name: dict(theirs[name].attrs) for name in ("actor", *(f"actor/layers/{i}" for i in range(3)))}
    assert {name.removesuffix("/data") for name in found if name.endswith("/data")} == tensors.keys()
    for name, value in tensors.items():
        meta = px4._meta(found[f"{name}/meta"])
        # A dense layer's biases are a matrix of one row in HDF5, a vector in what the module loads.
        shape = value.shape[-1:] if name.endswith("biases/parameters") else value.shape
        assert (meta["type"], meta["dtype"], int(meta["num_dims"])) == ("tensor", "float32", len(shape))
        assert tuple(int(meta[f"dim_{i}"]) for i in range(len(shape))) == shape
        if name.startswith("actor/"):
            assert found[f"{name}/data"] == value.tobytes(), name
        assert len(found[f"{name}/data"]) == 4 * np.prod(shape)
    for name, attributes in about.items():
        meta = px4._meta(found[f"{name}/meta"])
        assert meta.keys() == attributes.keys() - {"meta"}
        assert all(meta[k] == attributes[k] for k in meta if k != "checkpoint_name")
    names = [name for name in found if name.endswith("meta")]
    assert names[0] == "actor/meta" and len(found["actor/meta"]) < 256
    assert all(len(name) < 100 for name in found)


def test_rl_tools_example_is_what_our_layers_make_of_it(tmp_path):
    """The published example (500, 2, 22) goes in, the published actions come out: order and gates are RLtools'."""
    with h5py.File(str(files("foundation_policy")) + "/blob/checkpoint.h5") as theirs:
        seen, done = np.array(theirs["example/input"]), np.array(theirs["example/output"])
    policy, state = raptor.load()
    layers = Student(policy, state, HEADER, AgentCfg(), BUNDLED_TEACHER).layers
    content = px4.archive(layers, "x", seen)
    (tmp_path / "policy.tar").write_bytes(content)
    back, example = px4.read(tmp_path / "policy.tar")
    assert (example["input"] == seen).all()
    np.testing.assert_allclose(example["output"], done, atol=5e-5)
    assert np.abs(example["output"] - done).mean() < 1e-5, "what the module allows"
    assert all((a.weight == b.weight).all() for a, b in zip(back.dense, layers.dense, strict=True))


@pytest.mark.parametrize("frame", ["world", "start"])
@pytest.mark.parametrize("entries", [["student"], ["student[15:22]", "student[:15]"]], ids=["whole", "two parts"])
def test_order_scale_and_normalizer_become_part_of_the_first_layer(entries, frame, tmp_path):
    env = PointControl(PointControlCfg(num_envs=1, frame=frame))
    header = {**observations.describe(env, entries), "network": {}}
    student = student_of(header=header, normalize=True)
    exported = px4.export(student, tmp_path)
    recording = next(verify.draws(student.layers, verify.jax_policy(student.policy, student.state)))
    assert verify.difference(recording, exported.start) < 5e-6
    # The module's own view: its order, commands from -1 to 1.
    layers, example = px4.read(exported.file)
    act, columns = (
        verify.jax_policy(*build(layers))(),
        observations.select({"student": np.arange(22)[None]}, entries)[0],
    )
    seen = recording.observations[:, np.argsort(columns)]
    module = np.concatenate([seen[:, :3], seen[:, 6:15], seen[:, 3:6], seen[:, 15:18], 2 * seen[:, 18:] - 1], axis=1)
    for obs, action in zip(module, recording.actions, strict=True):
        np.testing.assert_allclose(act(obs[None])[0], action, atol=1e-5)
    assert example["input"].shape == (500, 2, 22) and example["output"].shape == (500, 2, 4)


def test_what_the_module_cannot_run_is_refused_in_one_line(tmp_path):
    body = {**HEADER["observation"]["groups"][0], "frame": "body"}
    short = MODULES[:1]
    for student, complaint in (
        (student_of(replace_policy(rnn_hidden_dim=8)), r"runs RAPTOR's network alone, 22 -> 16 -> 16 -> 4"),
        (student_of(replace_policy(rnn_type="lstm")), "RAPTOR's network alone"),
        (student_of(replace_policy(hidden_dims=(16,))), "RAPTOR's network alone"),
        (student_of(replace_policy(activation="elu")), "end in relu and identity, the student's in elu and identity"),
        (student_of(replace_policy(output_activation="tanh")), "the student's in relu and tanh"),
        (student_of(observation={"groups": [body], "size": 22}), "train with env.frame=start"),
        (student_of(observation={"groups": [{**body, "layout": short}], "size": 3}), r"student position_error \(3\)"),
        (student_of(observation={}), "the student numbers that nobody named"),
        (student_of(control_rate_hz=50.0), r"in \[-1, 1\], 100 times a second"),
        (student_of(action={}), "front_right"),
        (replace(student_of(), name="x" * 300), "--name: is too long for mc_raptor"),
    ):
        with pytest.raises(ExportError, match=complaint) as told:
            px4.export(student, tmp_path)
        assert str(told.value).startswith("px4: ") and "\n" not in str(told.value)
    assert not list(tmp_path.iterdir())


def replace_policy(**parts) -> Policy:
    known = {"pre_dims": (16,), "rnn_type": "gru", "activation": "relu", "learn_initial_carry": True, "hidden_dims": ()}
    return Policy(4, **(known | parts))


def test_other_archives_are_told(tmp_path):
    file = tmp_path / "policy.tar"
    file.write_bytes(b"none")
    with pytest.raises(ExportError, match="no archive of a policy for mc_raptor"):
        px4.read(file)
    with tarfile.open(file, "w"):
        pass
    with pytest.raises(ExportError, match="no archive of a policy for mc_raptor"):
        px4.read(file)
