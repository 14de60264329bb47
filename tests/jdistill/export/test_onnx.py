"""ONNX graphs in every shape, run by onnxruntime beside the original."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

from jdistill.cli.main import run_command
from jdistill.core import networks
from jdistill.core.activations import ACTIVATIONS, OUTPUT_ACTIVATIONS
from jdistill.core.config import AgentCfg
from jdistill.core.networks import Policy
from jdistill.errors import ExportError
from jdistill.export import exporters, verify
from jdistill.export.formats import OnnxCfg, Student
from jdistill.export.onnx import FLOAT16_TOLERANCE, MIN_OPSET, export, to_onnx
from tests.conftest import BUNDLED_TEACHER

POLICIES = {
    "gru": Policy(4, (16,), pre_dims=(16,), rnn_type="gru", output_activation="tanh", learn_initial_carry=True),
    "lstm": Policy(3, (8,), rnn_type="lstm", rnn_hidden_dim=6, rnn_num_layers=2, learn_initial_carry=True),
    "mlp": Policy(4, (8, 8), activation="mish", output_activation="beta"),
}
CFGS = {
    "any number of environments": OnnxCfg(batch=None),
    "five": OnnxCfg(batch=5),
    "the oldest operators": OnnxCfg(opset=MIN_OPSET),
    "unrolled": OnnxCfg(rnn="unrolled"),
    "the state inside": OnnxCfg(batch=2, state="inside"),
    "one unrolled step for any number": OnnxCfg(batch=None, opset=18, rnn="unrolled", state="inside"),
    "float16": OnnxCfg(dtype="float16"),
    "float16 and all else": OnnxCfg(batch=None, opset=MIN_OPSET, rnn="unrolled", state="inside", dtype="float16"),
}


def student_of(policy: Policy, cfg: OnnxCfg) -> Student:
    state = networks.init(policy, jax.random.key(0), 22, normalize=True)
    seen = 2 + 3 * np.random.default_rng(1).normal(size=(99, 22)).astype("f")
    params = jax.tree.map_with_path(lambda p, x: x + 0.2 * ("initial" in str(p)), state.params)
    state = state.replace(params=params, normalizer=state.normalizer.update(jax.numpy.asarray(seen)))
    return Student(policy, state, {"network": {}}, AgentCfg(), BUNDLED_TEACHER, onnx=cfg)


@pytest.fixture(params=POLICIES, scope="module")
def recorded(request):
    """A policy, and what it does in three episodes."""
    student = student_of(POLICIES[request.param], OnnxCfg())
    original = verify.jax_policy(student.policy, student.state)
    flights = list(itertools.islice(verify.draws(student.layers, original), 3))
    joined = (np.concatenate([getattr(f, name) for f in flights]) for name in ("observations", "actions", "begins"))
    three = verify.Recording(*joined, "drawn")
    return student.policy, three


@pytest.mark.parametrize("kind", CFGS)
def test_every_shape_acts_like_the_original(recorded, kind, tmp_path):
    (policy, recording), cfg = recorded, CFGS[kind]
    exported = export(student_of(policy, cfg), tmp_path)
    model = onnx.load(exported.file)
    (opset,) = model.opset_import
    assert opset.version == cfg.opset
    shapes = {
        value.name: tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.output)
    }
    assert {shape[0] for name, shape in shapes.items() if name in ("obs", "actions")} == {cfg.batch or "batch"}
    states = {"gru": 16, "lstm": 24}.get(policy.rnn_type or "", 0)
    if cfg.state == "inside":
        assert set(shapes) == {"obs", "actions"} and shapes["obs"][1] == 22 + states
    used = {node.op_type for node in model.graph.node}
    assert bool(used & {"GRU", "LSTM"}) == (cfg.rnn == "operator" and states > 0)
    weights = {x.data_type for x in model.graph.initializer if x.dims and len(x.dims) > 1}
    assert weights == {onnx.TensorProto.FLOAT16 if cfg.dtype == "float16" else onnx.TensorProto.FLOAT}
    difference = verify.difference(recording, exported.start)
    assert difference < (FLOAT16_TOLERANCE if cfg.dtype == "float16" else 5e-6)
    assert exported.tolerance == (FLOAT16_TOLERANCE if cfg.dtype == "float16" else None)
    assert (difference > 1e-5) == (cfg.dtype == "float16"), "it is float16 indeed"


def test_rows_of_a_batch_do_not_meet(recorded):
    """Each environment has a state of its own."""
    policy, recording = recorded
    layers = student_of(policy, OnnxCfg()).layers
    session = onnxruntime.InferenceSession(to_onnx(layers, OnnxCfg(batch=None)).SerializeToString())
    carry = {f"{k}_in": np.repeat(v, 3, axis=1) for k, v in layers.initial_states.items()}
    for t in range(20):  # The three recorded episodes side by side.
        action, *states = session.run(None, {"obs": recording.observations[t :: verify.STEPS], **carry})
        carry = dict(zip(carry, states, strict=True))
        np.testing.assert_allclose(action, recording.actions[t :: verify.STEPS], atol=5e-6)


@pytest.mark.parametrize("activation", OUTPUT_ACTIVATIONS)
def test_every_activation_of_the_oldest_opset(activation, tmp_path):
    policy = Policy(
        4, (8,), activation=activation if activation in ACTIVATIONS else "elu", output_activation=activation
    )
    student = student_of(policy, OnnxCfg(opset=MIN_OPSET))
    recording = next(verify.draws(student.layers, verify.jax_policy(student.policy, student.state)))
    assert verify.difference(recording, export(student, tmp_path).start) < 1e-5


def test_what_onnx_cannot_hold_is_refused(tmp_path):
    for opset in (16, 999):
        with pytest.raises(ExportError, match=rf"--opset {opset}: expected 17 to \d+$"):
            exporters.export(student_of(POLICIES["mlp"], OnnxCfg(opset=opset)), ["onnx"], tmp_path / "out")
    student = student_of(POLICIES["mlp"], OnnxCfg(dtype="float16"))
    student = replace(
        student, state=student.state.replace(params=jax.tree.map(lambda x: 1e6 * x, student.state.params))
    )
    with pytest.raises(ExportError, match=r"--dtype float16: cannot hold a weight of .*e\+0.; use float32"):
        exporters.export(student, ["onnx"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_line_and_the_notes_tell_what_was_chosen(tmp_path, capsys):
    cfg = OnnxCfg(batch=None, dtype="float16")
    exporters.export(student_of(POLICIES["gru"], cfg), ["onnx"], tmp_path)
    assert "(0.01 is allowed)" in capsys.readouterr().out
    content = json.loads((tmp_path / "policy.json").read_text())
    assert content["files"]["onnx"] | {"batch": None, "dtype": "float16", "opset": 20} == content["files"]["onnx"]


def test_bad_flags_are_told_in_one_line(capsys):
    for flags in (["--batch", "0"], ["--batch", "many"], ["--opset", "x"], ["--dtype", "int8"], ["--state", "out"]):
        with pytest.raises(SystemExit) as stop:
            run_command("export", ["run", *flags])
        err = capsys.readouterr().err
        assert stop.value.code == 2 and err.count("\n") == 1 and flags[0] in err
