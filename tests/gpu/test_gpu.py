"""What only a GPU can show: ``uv run --group test --extra cuda pytest tests/gpu``. Without one all is skipped."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from benchmarks.trivial import TrivialEnv
from bridge.dlpack import pointer, to_jax, to_torch, torch_call
from bridge.isaaclab.env import IsaacLabEnv
from jdistill.cli.main import run_command
from jdistill.run.folders import run_folders, starts

pytestmark = pytest.mark.skipif(
    not (torch.cuda.is_available() and jax.default_backend() == "gpu"), reason="needs a GPU that torch and JAX see"
)
ENVS, STEPS = 2000, 200


class TestMemory:
    def test_views_share_memory(self):
        tensor = torch.arange(256.0, device="cuda")
        array = to_jax(tensor, copy=False)
        assert pointer(array) == pointer(tensor) and pointer(to_torch(array)) == pointer(tensor)
        assert to_torch(array, copy=True).sum() == tensor.sum()

    def test_torchs_kernels_fall_between_xlas(self):
        """Each side works for long before it writes what the other reads; without order, old numbers would be read."""
        weight = torch.eye(2000, device="cuda")

        def slow_double(out, x):
            product = x.clone()
            for _ in range(20):
                product = product @ weight
            torch.mul(product, 2, out=out)

        @jax.jit
        def program(x):
            def body(x, _):
                x = jax.lax.fori_loop(0, 20, lambda _, y: y @ jnp.eye(2000), x)
                return torch_call(slow_double, jax.ShapeDtypeStruct(x.shape, x.dtype))(x) + 1, None

            return jax.lax.scan(body, x, length=10)[0]

        assert bool((program(jnp.ones((2000, 2000))) == 2**11 - 1).all())


class TestSimulator:
    """A torch simulator whose tensors are on the GPU, inside the compiled program."""

    @staticmethod
    def fly(mode: str) -> list[np.ndarray]:
        env = IsaacLabEnv(TrivialEnv(ENVS, device="cuda"), mode=mode)

        @jax.jit
        def rollout(rng):
            def step(state, _):
                after = env.step(state, jnp.tanh(3.0 * state.obs["policy"][:, :4]))
                return after, (state.obs["critic"], after.reward, after.done)

            return jax.lax.scan(step, env.reset(rng), None, length=STEPS)[1]

        return [np.asarray(x) for x in env.drive(rollout, jax.random.key(0))]

    @staticmethod
    def by_torch() -> list[np.ndarray]:
        env = TrivialEnv(ENVS, device="cuda")
        env.reset()
        obs, _ = env.reset(seed=int(jax.random.bits(jax.random.key(0), (), jnp.uint32) >> 1))
        steps = []
        for _ in range(STEPS):
            seen = obs["critic"].clone()
            obs, reward, terminated, truncated, _ = env.step(torch.tanh(3.0 * obs["policy"][:, :4]))
            steps.append((seen, reward.clone(), terminated | truncated))
        return [torch.stack(x).cpu().numpy() for x in zip(*steps, strict=True)]

    @pytest.mark.parametrize("mode", ["callback", "host"])
    def test_runs_are_bitwise_equal_and_those_of_a_torch_loop(self, mode):
        first, *others = (self.fly(mode) for _ in range(5))
        for other in others:
            for a, b in zip(first, other, strict=True):
                np.testing.assert_array_equal(a, b)
        for a, b in zip(first[:2], self.by_torch()[:2], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)

    def test_both_drivers_are_bitwise_equal(self):
        for a, b in zip(self.fly("callback"), self.fly("host"), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_run_trains_on_the_gpu_and_says_so(tmp_path, capsys):
    argv = ["--phase1", "2", "--max_iterations", "4", "--num_envs", "64", "--logger", "none"]
    argv += ["--device", "cuda", "--logdir", str(tmp_path), "agent.num_steps_per_env=64"]
    assert run_command("train", argv) == 0
    (run,) = run_folders(str(tmp_path))
    assert starts(run)[0]["device"]["platform"] == "gpu" and starts(run)[0]["device"]["driver"]
    assert "Device" in capsys.readouterr().out
