"""Students with images in every format, and what cannot be written."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from bridge.env import ObservationSpec
from jdistill.core import networks
from jdistill.core.cnn_cfg import cnn_cfgs
from jdistill.core.config import AgentCfg
from jdistill.core.networks import EncoderCfg, Policy
from jdistill.core.observations import Observation
from jdistill.errors import ExportError
from jdistill.export import c, formats, verify
from jdistill.export.formats import Student
from jdistill.export.policy_file import load_policy, save_policy
from tests.jdistill.export.test_rsl_rl_cnn import KINDS

IMAGES = {
    "camera": ObservationSpec((11, 9, 2), np.dtype(np.uint8)),
    "depth": ObservationSpec((1, 11, 9), channels_first=True),
}


def cnns(*kinds: str):
    settings = {group: KINDS[kind] for group, kind in zip(IMAGES, kinds, strict=False)}
    return cnn_cfgs(settings, {group: IMAGES[group] for group in settings})


STUDENTS = {
    "mlp": (Policy(2, (8,), cnns=cnns("stride, zeros, pooling", "circular, global mean, lists")), 5),
    "images alone": (Policy(2, (8,), output_activation="tanh", cnns=cnns("replicate, global max")), 0),
    "gru": (Policy(2, (8,), pre_dims=(6,), rnn_type="gru", cnns=cnns("dilation, reflect, norm", "two layers")), 5),
    "encoders": (Policy(2, (8,), encoders=(EncoderCfg(1, 2, (4, 3)), EncoderCfg(3, 2, (2,)))), 5),
    "lstm with all": (
        Policy(2, (8,), rnn_type="lstm", encoders=(EncoderCfg(0, 3, (4,)),), cnns=cnns("two layers")),
        5,
    ),
}
UNKNOWN = {"rsl_rl": ("gru", "encoders", "lstm with all")}


def student_of(kind: str, tmp_path) -> Student:
    policy, size = STUDENTS[kind]
    state = jax.jit(lambda: networks.init(policy, jax.random.key(0), size, normalize=True))()
    if state.normalizer is not None:
        state = state.replace(normalizer=state.normalizer.update(1 + jax.random.normal(jax.random.key(1), (99, size))))
    bare = Policy(2, (4,))
    save_policy(tmp_path / "teacher.safetensors", bare, networks.init(bare, jax.random.key(2), 4, True), {})
    save_policy(tmp_path / "student.safetensors", policy, state, {"iteration": 1})
    loaded, same, header = load_policy(tmp_path / "student.safetensors")
    assert loaded == policy and header["obs_size"] == size
    agent = AgentCfg(obs_groups={"student": ["student"], "teacher": ["teacher"]})
    return Student(loaded, same, header, agent, tmp_path / "teacher.safetensors")


@pytest.mark.parametrize("kind", STUDENTS)
def test_every_network_acts_alike_in_every_format(kind, tmp_path):
    student, rng = student_of(kind, tmp_path), np.random.default_rng(0)
    _, size = STUDENTS[kind]
    seen = []
    for _ in range(6):
        vector = rng.normal(size=(1, size)).astype(np.float32)
        pictures = [
            rng.integers(0, 256, (1, *cfg.shape)).astype(np.uint8)
            if IMAGES[cfg.group].dtype == np.uint8
            else rng.random((1, *cfg.shape), np.float32)
            for cfg in student.policy.cnns
        ]
        seen.append(Observation(vector, tuple(pictures)) if pictures else vector)
    original = verify.jax_policy(student.policy, student.state)
    act = original()
    expected = [act(obs) for obs in seen]
    for name in ("safetensors", "onnx", "jit", "c", "rsl_rl"):  # The others are of one task, which has no images.
        if kind in UNKNOWN.get(name, ()):
            with pytest.raises(ExportError, match=f"^{name} has no model"):
                formats.load(name)(student, tmp_path)
            continue
        start = formats.load(name)(student, tmp_path).start
        for _ in range(2):
            act = start()
            np.testing.assert_allclose([act(obs) for obs in seen], expected, atol=5e-6, err_msg=name)
    assert verify.difference(next(verify.draws(student.layers, original)), original) == 0
    for options in (["-DPOLICY_NO_LIBM", "-DPOLICY_SCRATCH=static"], ["-fsanitize=undefined", "-fno-sanitize-recover"]):
        start = c.compiled(["cc", *options], tmp_path / "policy.c", "policy", student.layers)
        act = start()
        np.testing.assert_allclose([act(obs) for obs in seen], expected, atol=5e-6, err_msg=str(options))


def test_the_files_inputs_are_named_as_rsl_rls(tmp_path):
    import onnxruntime

    student = student_of("gru", tmp_path)
    file = formats.load("onnx")(student, tmp_path).file
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    inputs = {x.name: x.shape for x in session.get_inputs()}
    assert inputs == {"obs": [1, 5], "camera": [1, 2, 11, 9], "depth": [1, 1, 11, 9], "h_in": [1, 1, 16]}
    assert [x.name for x in session.get_outputs()] == ["actions", "h_out"]
