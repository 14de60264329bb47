"""Exports of real runs, read back by what will read them: torch, onnxruntime, rsl_rl."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from rsl_rl.runners import DistillationRunner, OnPolicyRunner
from tensordict import TensorDict

from bridge.crazyflie import PointControlCfg
from bridge.tasks import TASKS, make_env
from bridge.torch_vecenv import TorchVecEnv
from jdistill.cli.main import run_command
from jdistill.core import networks, observations
from jdistill.core.activations import ACTIVATIONS, OUTPUT_ACTIVATIONS
from jdistill.core.config import AgentCfg, StudentCfg
from jdistill.core.networks import Policy
from jdistill.export import formats, onnx, rsl_rl_models, torchscript, verify
from jdistill.export.formats import Student
from jdistill.export.layers import describe
from jdistill.export.policy_file import load_policy, save_policy
from jdistill.export.rsl_rl import model_cfg
from jdistill.export.rsl_rl_export import model_tensors
from jdistill.export.torchscript import to_torchscript
from jdistill.run.compose import compose
from jdistill.run.inputs import make_student
from tests.conftest import BUNDLED_TEACHER, ROOT

STUDENTS = {
    "gru": Policy(4, (8,), rnn_type="gru", rnn_hidden_dim=8),
    "fork": Policy(4, (16,), pre_dims=(16,), rnn_type="gru", output_activation="tanh"),
    "lstm": Policy(4, (8,), rnn_type="lstm", rnn_hidden_dim=6, rnn_num_layers=2, learn_initial_carry=True),
    "mlp": Policy(4, (8, 8), activation="relu"),
}


RUNS = {
    "raptor": Policy(
        4, (), pre_dims=(16,), rnn_type="gru", activation="relu", output_activation="tanh", learn_initial_carry=True
    ),
    "lstm": STUDENTS["lstm"],
    "mlp": Policy(4, (8, 8), pre_dims=(12,), activation="relu", output_activation="beta"),
    "plain": STUDENTS["gru"],
}
"""Students of every kind that rsl_rl has a model for, and of every kind that it gets ours for."""


def trained(policy: Policy, normalize: bool = True):
    """Parameters of a policy that has seen something."""
    state = networks.init(policy, jax.random.key(0), 22, normalize)
    if state.normalizer:
        state = state.replace(
            normalizer=state.normalizer.update(2 + 3 * jax.random.normal(jax.random.key(1), (99, 22)))
        )
    return state.replace(params=jax.tree.map_with_path(lambda p, x: x + 0.2 * ("initial" in str(p)), state.params))


def acts_alike_in_every_format(policy: Policy, state, observations, out) -> None:
    """Two episodes along ``observations`` (T, 1, D): the second begins as the first did."""
    file, original = out / "student.safetensors", verify.jax_policy(policy, state)
    save_policy(file, policy, state, {"iteration": 1})
    student = Student(*load_policy(file), AgentCfg(), BUNDLED_TEACHER)
    expected = []
    for _ in range(2):
        act = original()
        expected += [act(obs) for obs in observations]
    for name in formats.FORMATS.keys() - {"crazyflie", "px4"}:  # They take students of one kind.
        start, actions = formats.load(name)(student, out).start, []
        for _ in range(2):
            act = start()
            actions += [act(obs) for obs in observations]
        np.testing.assert_allclose(actions, expected, atol=5e-6, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", STUDENTS)
def test_every_network_acts_alike_in_every_format(kind, tmp_path):
    policy, state = STUDENTS[kind], trained(STUDENTS[kind], normalize=kind != "mlp")
    acts_alike_in_every_format(policy, state, np.random.default_rng(0).normal(size=(15, 1, 22)).astype("f"), tmp_path)


@pytest.mark.parametrize("activation", OUTPUT_ACTIVATIONS)
def test_every_activation_acts_alike_in_every_format(activation, tmp_path):
    """In hidden layers where it can stand there, and at the end."""
    policy = Policy(
        4, (8,), activation=activation if activation in ACTIVATIONS else "elu", output_activation=activation
    )
    draws = np.random.default_rng(0).normal(scale=5, size=(5, 1, 22)).astype("f")
    acts_alike_in_every_format(policy, trained(policy), draws, tmp_path)


def test_only_what_torch_and_onnx_lack_is_composed():
    lacking = {
        named: {k for k, a in OUTPUT_ACTIVATIONS.items() if getattr(a, named) is None} for named in ("onnx", "torch")
    }
    assert torchscript.COMPOSED.keys() == lacking["torch"]
    late = {name for name, a in OUTPUT_ACTIVATIONS.items() if a.onnx in onnx.FIRST_OPSETS}
    assert onnx.COMPOSED.keys() == lacking["onnx"] | late and len(late) == len(onnx.FIRST_OPSETS)


def test_torchscript_begins_anew_on_reset():
    policy = STUDENTS["lstm"]
    module = to_torchscript(describe(policy, trained(policy)))
    obs = torch.ones(1, 22)
    first, second = module(obs).clone(), module(obs).clone()
    module.reset()
    assert (module(obs) == first).all() and (first != second).any()


@pytest.fixture(params=RUNS)
def run(tmp_path, request):
    """A run folder with a student that has seen something, and the bundled teacher."""
    policy = RUNS[request.param]
    student = {name: getattr(policy, name) for name in vars(StudentCfg()) if hasattr(policy, name)}
    cfg = compose("crazyflie", PointControlCfg, [{"agent": {"student": student}}], ["agent.student.init_noise_std=0.2"])
    cfg.save(tmp_path / "config.yaml")
    shutil.copy(BUNDLED_TEACHER, tmp_path / "teacher.safetensors")
    header = {**observations.describe(make_env(TASKS["crazyflie"](), cfg.env), ["student"]), "iteration": 7}
    save_policy(tmp_path / "student.safetensors", policy, trained(policy), header)
    return tmp_path


@pytest.mark.parametrize("run", ["raptor", "mlp"], indirect=True)
def test_all_formats_of_a_run(run, capsys):
    assert run_command("export", [str(run), "--format", "rsl_rl,jit,onnx,safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].rsplit("/", 1)[1] for line in lines] == [
        "model_7.pt",
        "policy.pt",
        "policy.onnx",
        "policy.safetensors",
    ]
    assert all("100 steps beside the original, largest difference" in line for line in lines)
    sidecar = json.loads((run / "exported" / "policy.json").read_text())
    (group,) = sidecar["observation"]["groups"]
    assert (group["name"], group["size"], group["frame"]) == ("student", 22, "body")
    assert [part["name"] for part in group["layout"]][-2:] == ["body_rates", "previous_motor_commands"]
    assert sum(part["size"] for part in group["layout"]) == sidecar["observation"]["size"] == 22
    assert sidecar["action"]["range"] == [-1, 1] and sidecar["action"]["layout"][0] == "front_right"
    assert sidecar["control_rate_hz"] == 100.0 and sidecar["action"]["rate_hz"] == 100
    assert sidecar["versions"]["jax"] == jax.__version__
    assert all(entry["largest_difference"] <= 1e-5 for entry in sidecar["files"].values())
    golden, calibration = (np.load(run / "exported" / sidecar[name]["file"]) for name in ("golden", "calibration"))
    policy, state, _ = load_policy(run / "student.safetensors")
    recording = verify.Recording(**golden, source=sidecar["golden"]["source"])
    assert recording.source == "task" and recording.begins[0] and recording.observations.shape == (100, 22)
    assert verify.difference(recording, verify.jax_policy(policy, state)) == 0.0
    assert calibration["observations"].shape == (1000, 22) and len(np.unique(calibration["observations"][:, 0])) > 900
    assert (calibration["observations"][:100] == golden["observations"]).all()
    known = InferenceSession(str(run / "exported" / "policy.onnx")).get_modelmeta().custom_metadata_map
    assert known["action_names"].startswith("front_right,") and known["control_rate_hz"] == "100"
    assert known["observation_names"] == ",".join(part["name"] for part in group["layout"])


def test_rsl_rls_own_runners_take_the_student(run, motors):
    """Distillation goes on, the inference policy acts like ours, and PPO fine-tunes the actor."""
    assert run_command("export", [str(run), "--format", "rsl_rl", "--actor_std", "0.3"]) == 0
    files = json.loads((run / "exported" / "policy.json").read_text())["files"]["rsl_rl"]
    policy, state, _ = load_policy(run / "student.safetensors")
    common = {"num_steps_per_env": 8, "save_interval": 100, "logger": "tensorboard", "run_name": ""}
    algorithm = {"class_name": "rsl_rl.algorithms:Distillation", "gradient_length": 4}
    cfg = {**common, **files["distillation"], "algorithm": algorithm}
    runner = DistillationRunner(TorchVecEnv(motors), cfg, None, "cpu")
    runner.load(str(run / "exported" / files["file"]))
    assert runner.current_learning_iteration == 7
    acts_like(runner.get_inference_policy("cpu"), policy, state)
    before = [p.clone() for p in runner.alg.student.parameters()]
    runner.learn(1)
    assert any((a != b).any() for a, b in zip(before, runner.alg.student.parameters(), strict=True))

    critic = {"class_name": "rsl_rl.models:MLPModel", "hidden_dims": [8], "activation": "elu"}
    algorithm = {"class_name": "rsl_rl.algorithms:PPO", "num_learning_epochs": 1, "num_mini_batches": 2}
    cfg = {**common, **files["ppo"], "critic": critic, "algorithm": algorithm}
    tuner = OnPolicyRunner(TorchVecEnv(motors), cfg, None, "cpu")
    tuner.load(str(run / "exported" / files["actor_file"]), load_cfg={"actor": True})
    acts_like(tuner.get_inference_policy("cpu"), policy, state)
    if policy.output_activation != "beta":
        assert torch.allclose(tuner.alg.actor.state_dict()["distribution.std_param"], torch.tensor(0.3))
    tuner.learn(1)


def acts_like(theirs, policy: Policy, state) -> None:
    """rsl_rl's model and ours do the same, ends of episodes included."""
    carry = networks.initial_carry(policy, state, 5)
    theirs.reset()
    for t in range(10):
        obs = TensorDict({"student": torch.randn(5, 22)}, batch_size=[5])
        carry, action = networks.act(policy, state, carry, jnp.array(obs["student"].numpy()))
        np.testing.assert_allclose(theirs(obs).detach().numpy(), action, atol=1e-5)
        done = np.arange(5) == t % 5
        first = networks.initial_carry(policy, state, 5)
        carry = jax.tree.map(lambda f, c, done=done: jnp.where(done[:, None], f, c), first, carry)
        theirs.reset(torch.tensor(done))
    theirs.reset()


def test_rsl_rls_own_exporters_take_our_models(tmp_path):
    policy, obs = STUDENTS["fork"], TensorDict({"student": torch.randn(1, 22)}, batch_size=[1])
    state = trained(policy)
    settings = model_cfg(policy, state, 0.1)
    assert settings.pop("class_name") == "jdistill.export.rsl_rl_models:RNNModel"
    theirs = rsl_rl_models.RNNModel(obs, {"student": ["student"]}, "student", 4, **settings)
    theirs.load_state_dict(model_tensors(policy, state, 0.1), strict=True)
    scripted, ours = torch.jit.script(theirs.eval().as_jit()), verify.jax_policy(policy, state)()
    for _ in range(5):
        np.testing.assert_allclose(scripted(obs["student"]).detach(), ours(obs["student"].numpy()), atol=1e-5)
    assert theirs.as_onnx().input_names == ["obs", "h_in"]
    settings |= {"learn_initial_state": True}
    with pytest.raises(NotImplementedError, match=r"use 'python -m jdistill.export'"):
        rsl_rl_models.RNNModel(obs, {"student": ["student"]}, "student", 4, **settings).as_jit()


WITHOUT = """
import sys
run, *formats = sys.argv[1:]
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from jdistill.cli.main import main
print([main(["export", run, "--format", f"safetensors,{name}"]) for name in formats])
"""
"""The command for one format after the other, on a machine without torch and ONNX."""


@pytest.mark.parametrize("run", ["plain"], indirect=True)
def test_missing_packages_are_told_in_one_line(run):
    needs = {"jit": "torch", "rsl_rl": "torch", "onnx": "onnx"}
    command = [sys.executable, "-c", WITHOUT, str(run), *needs]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[1, 1, 1]\n", done.stderr
    for (name, package), line in zip(needs.items(), done.stderr.splitlines(), strict=True):
        expected = f"jdistill export: error: {name}: {package} is not installed; use 'uv run --extra torch --extra onnx"
        assert line.startswith(expected)
    assert not (run / "exported").exists()


def test_complaints(tmp_path, capsys, monkeypatch):
    def complaint(*arguments: str) -> str:
        assert run_command("export", list(arguments)) == 1
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and err.startswith("jdistill export: error: ")
        return err

    assert "no run folder" in complaint(str(tmp_path))
    cfg = compose("crazyflie", PointControlCfg, [], [])
    cfg.save(tmp_path / "config.yaml")
    assert "student.safetensors: no such file" in complaint(str(tmp_path))
    policy = make_student(cfg.agent.student, 4)
    save_policy(tmp_path / "student.safetensors", policy, trained(policy), {})
    assert "--format tflite: expected some of" in complaint(str(tmp_path), "--format", "onnx, tflite")
    for actor_std in ("-1", "nan", "0", "much"):
        with pytest.raises(SystemExit) as stop:
            run_command("export", [str(tmp_path), "--actor_std", actor_std])
        err = capsys.readouterr().err
        assert stop.value.code == 2 and err.count("\n") == 1 and f"{actor_std!r} is not a positive number" in err
    assert "teacher.safetensors: no such file" in complaint(str(tmp_path), "--format", "rsl_rl")
    shutil.copy(BUNDLED_TEACHER, tmp_path / "teacher.safetensors")
    (tmp_path / "taken" / "policy.pt").mkdir(parents=True)
    assert "jit: cannot be written" in complaint(str(tmp_path), "--format", "jit", "--out", str(tmp_path / "taken"))
    file = tmp_path / "student.safetensors"
    assert "File exists" in complaint(str(tmp_path), "--out", str(file))
    monkeypatch.setattr(verify, "TOLERANCE", -1.0)
    assert "differ by" in complaint(str(tmp_path), "--format", "onnx")
    assert "differ by" in complaint(str(tmp_path), "--format", "rsl_rl")
    assert not list((tmp_path / "exported").glob("*.onnx")) and not list((tmp_path / "exported").glob("*.pt"))
    assert load_policy(tmp_path / "student.safetensors")
