"""Shared pieces: small real environments and policies."""

from pathlib import Path

import jax
import pytest

from bridge.crazyflie import PointControl, PointControlCfg
from bridge.env import AutoReset
from jdistill import networks
from jdistill.config import AgentCfg, AlgorithmCfg, StudentCfg
from jdistill.distillation import Distillation
from jdistill.networks import Policy

ROOT = Path(__file__).parents[1]
BUNDLED_TEACHER = ROOT / "jdistill" / "teachers" / "crazyflie.safetensors"


@pytest.fixture(scope="session")
def crazyflie() -> PointControl:
    """Eight Crazyflies."""
    return PointControl(PointControlCfg(num_envs=8))


@pytest.fixture(scope="session")
def teacher() -> Policy:
    """A teacher's network."""
    return Policy(num_actions=4, hidden_dims=(32, 32), output_activation="tanh")


@pytest.fixture(scope="session")
def teacher_state(teacher):
    """A teacher that has learnt nothing in particular."""
    return networks.init(teacher, jax.random.key(7), 26, normalize=True)


@pytest.fixture
def make_distillation(crazyflie, teacher):
    """Builds the algorithm on the eight Crazyflies; keyword arguments change the algorithm's settings."""

    def make(student: Policy | None = None, num_steps: int = 30, student_cfg: StudentCfg | None = None, **algorithm):
        cfg = AgentCfg(
            num_steps_per_env=num_steps,
            algorithm=AlgorithmCfg(**algorithm),
            student=student_cfg or StudentCfg(),
        )
        student = student or Policy(4, (16,), pre_dims=(16,), rnn_type="gru", output_activation="tanh")
        return Distillation(AutoReset(crazyflie), student, teacher, cfg)

    return make
