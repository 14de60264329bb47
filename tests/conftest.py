"""Shared pieces: small real environments and policies."""

import ast
import functools
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Some containers forbid Python to keep what it compiled; hundreds of processes would then compile torch, JAX, ... anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# All but the tests of the GPU run on the CPU, wherever they run. (The workers have their environment from here.)
os.environ.setdefault("JAX_PLATFORMS", "" if any("tests/gpu" in argument for argument in sys.argv) else "cpu")
# Isaac Lab's kernels take a minute to compile; kept for the next run, and named before anything imports Warp.
os.environ.setdefault("WARP_CACHE_PATH", str(ROOT / ".pytest_cache" / "warp"))
# Most of the suite's time is compilation, much of it of the same programs, in subprocesses too. JAX reads this once.
CACHE = ROOT / ".pytest_cache" / "jax"
os.environ |= {"JAX_COMPILATION_CACHE_DIR": str(CACHE), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}

import jax
import pytest

from bridge.crazyflie import PointControl, PointControlCfg
from bridge.env import AutoReset
from jdistill.core import networks
from jdistill.core.actor import PolicyActor
from jdistill.core.config import AgentCfg, AlgorithmCfg, StudentCfg
from jdistill.core.distillation import Distillation
from jdistill.core.networks import Policy
from jdistill.run import compilation
from jdistill.run.compose import RunCfg, compose, load_file
from jdistill.run.folders import new_run, note_start, planned_folder
from jdistill.run.inputs import load_teacher
from jdistill.run.runner import DistillationRunner
from tests.masses import Motors

OPTIONAL = {
    *("av", "foundation_policy", "isaaclab", "mjlab", "nbclient", "nbformat", "newton", "onnx", "onnxruntime", "PIL"),
    *(
        "brax",
        "gymnax",
        "mujoco_menagerie",
        "mujoco_playground",
        "playwright",
        "plotly",
        "pyarrow",
        "rsl_rl",
        "tensorboard",
        "tensordict",
        "torch",
        "wandb",
    ),
}
"""Packages that the quick tests (``-m unit``) do without."""
LONGEST = [
    *("bridge/test_isaaclab_point_control.py", "test_train_isaaclab.py", "jdistill/run/test_mesh.py"),
    *("test_train_jax.py", "test_processes_isaaclab.py", "jdistill/export/test_exporters.py", "test_mjlab.py"),
    *("test_docs.py", "test_isaaclab_cameras.py", "jdistill/core/test_distillation.py", "test_train_library.py"),
    "test_old_runs.py",
    *("test_notebook.py", "bridge/test_scenarios.py", "jdistill/run/test_teaching.py", "bridge/test_forest.py"),
    *("test_wheel.py", "jdistill/evaluation/test_evaluate.py", "jdistill/run/test_faults.py", "test_kills.py"),
    *("bridge/test_library.py", "jdistill/core/test_samplers.py", "jdistill/evaluation/test_play.py"),
    *("jdistill/evaluation/test_report.py", "jdistill/core/test_networks.py", "jdistill/data/test_dataset.py"),
    *("test_processes.py", "jdistill/run/test_runner.py", "bridge/test_quadrotors.py", "bridge/test_crazyflie.py"),
    *("jdistill/export/test_crazyflie.py", "jdistill/core/test_nonfinite.py", "test_images.py"),
]
"""Files that take most of a minute or more, the longest first."""
# Tests of the mesh take several devices; all others the first one.
jax.config.update("jax_num_cpu_devices", 4)
BUNDLED_TEACHER = ROOT / "jdistill" / "teachers" / "crazyflie.safetensors"
compilation.prepare()


@functools.cache
def needs_extras(path: Path) -> bool:
    """Whether a test file, or another that it takes something from, imports an optional package at its top."""
    lines = ast.parse(path.read_text()).body
    names = [alias.name for line in lines if isinstance(line, ast.Import) for alias in line.names]
    names += [line.module or "" for line in lines if isinstance(line, ast.ImportFrom)]
    others = [
        ROOT.joinpath(*name.split(".")).with_suffix(".py")
        for name in names
        if name.startswith("tests.") and ".test_" in name
    ]
    return any(name.split(".")[0] in OPTIONAL for name in names) or any(map(needs_extras, others))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """``-m unit`` does not even import the files that need extras."""
    unit = config.option.markexpr == "unit" and collection_path.suffix == ".py"
    return True if unit and needs_extras(collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as ``unit`` what is in no file that needs extras, takes no whole run, and is not marked ``full``.

    And put the longest files first: they go to the workers in this order, and none should be left alone at the end.
    """
    place = {str(ROOT / "tests" / name): i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(str(item.path), len(LONGEST)))
    for item in items:
        whole = "small_run" in getattr(item, "fixturenames", ()) or item.get_closest_marker("full")
        if not whole and not needs_extras(item.path):
            item.add_marker(pytest.mark.unit)


@pytest.fixture(scope="session")
def crazyflie() -> PointControl:
    """Eight Crazyflies, compiled once for all tests."""
    return jitted(PointControl(PointControlCfg(num_envs=8)))


@pytest.fixture(scope="session")
def flock(crazyflie) -> AutoReset:
    """The eight Crazyflies with auto-reset."""
    return jitted(AutoReset(crazyflie))


def jitted(env):
    """``env`` with compiled methods, so that calls outside of jit are fast too."""
    env.reset, env.step = jax.jit(env.reset), jax.jit(env.step)
    return env


@pytest.fixture(scope="session")
def teacher() -> Policy:
    """A teacher's network."""
    return Policy(num_actions=4, hidden_dims=(32, 32), output_activation="tanh")


@pytest.fixture(scope="session")
def teacher_actor(teacher) -> PolicyActor:
    """A teacher of random parameters."""
    return PolicyActor(teacher, networks.init(teacher, jax.random.key(7), 26, normalize=True), ("teacher",))


@pytest.fixture(scope="session")
def motors() -> AutoReset:
    """Eight environments of the Crazyflie's sizes that are compiled in no time."""
    return jitted(AutoReset(Motors(8)))


@pytest.fixture
def make_distillation(motors):
    """Builds the algorithm on the eight environments; keyword arguments change the algorithm's settings."""

    def make(student: Policy | None = None, num_steps: int = 30, student_cfg: StudentCfg | None = None, **algorithm):
        cfg = AgentCfg(
            num_steps_per_env=num_steps,
            algorithm=AlgorithmCfg(**algorithm),
            student=student_cfg or StudentCfg(),
        )
        student = student or Policy(4, (16,), pre_dims=(16,), rnn_type="gru", output_activation="tanh")
        return Distillation(motors, student, cfg)

    return make


def small_cfg(max_iterations: int) -> RunCfg:
    """Of a short run through both phases, whose program is that of a test of the command: it is compiled once."""
    settings = ["env.num_envs=4", "env.episode_length_s=0.03", "agent.num_steps_per_env=16", "agent.save_interval=1"]
    phases = ["agent.algorithm.use_two_stage_training=true", "agent.algorithm.phase1_iterations=4"]
    preset = load_file(ROOT / "configs" / "crazyflie.yaml")
    limit = f"agent.max_iterations={max_iterations}"
    return compose("crazyflie", PointControlCfg, [preset], [*settings, *phases, limit])


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Path:
    """The folder of a short run through both phases, which nobody may change."""
    cfg = small_cfg(6)
    run = new_run(planned_folder(str(tmp_path_factory.mktemp("logs")), "exp", "small"))
    env = AutoReset(PointControl(cfg.env))
    runner = DistillationRunner(env, cfg, load_teacher(BUNDLED_TEACHER, env, cfg), run)
    runner.start()
    cfg.save(run / "config.yaml")
    note_start(run, "python train_jax.py --phase1 4", 0, {"platform": "cpu", "kind": "cpu", "count": 1})
    runner.learn()
    return run


@pytest.fixture(scope="session")
def make_isaaclab_env():
    """Builds real Isaac Lab environments on the CPU: ``make(task, *overrides)``, an unwrapped environment.

    A process holds one simulation at a time, so each new environment closes the one before, as ``make.close()`` does;
    asking for the same one twice in a row gives it back.
    """
    import gymnasium as gym
    import isaaclab_tasks  # noqa: F401
    from isaaclab.app import launch_simulation
    from isaaclab_tasks.utils import resolve_task_config

    import bridge.isaaclab_tasks  # noqa: F401

    current: list = [None, None]

    def make(task: str, *overrides: str):
        if current[0] != (task, overrides):
            close()
            cfg, _ = resolve_task_config(task, None, overrides=["env.seed=1", "env.sim.device=cpu", *overrides])
            # On Newton nothing is started that would have to stay open.
            with launch_simulation(cfg, {"device": "cpu"}):
                current[:] = (task, overrides), gym.make(task, cfg=cfg).unwrapped
        return current[1]

    def close():
        if current[1] is not None:
            current[1].close()
        current[:] = None, None

    make.close = close
    yield make
    close()
