"""Memory shared between torch and JAX: shared where that is promised, apart where that is promised."""

from __future__ import annotations

import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from bridge.dlpack import DLPackError, copy_reason, pointer, to_jax, to_torch, torch_call

slow = jax.jit(lambda x: jax.lax.fori_loop(0, 50, lambda _, y: jnp.tanh(y @ x), x))
"""Keeps the device busy for long after the call has returned."""
VIEWED = [torch.float32, torch.bool, torch.int32, torch.uint8, torch.int16, torch.float16, torch.bfloat16, torch.uint32]
NARROWED = {torch.int64: jnp.int32, torch.float64: jnp.float32}


def base() -> torch.Tensor:
    """(8, 32) distinct numbers; rows are 128 bytes, so every row is aligned."""
    return torch.arange(256, dtype=torch.float32).reshape(8, 32)


VIEWS = {
    "whole": base,
    "rows": lambda: base()[2:6],
    "one row of many": lambda: base()[1:2, :5],
    "transposed": lambda: base().T,
    "permuted": lambda: base().reshape(8, 4, 8).permute(1, 2, 0),
    "permuted with a unit axis": lambda: base().reshape(4, 8, 8)[::4].permute(2, 1, 0),
    "scalar": lambda: torch.tensor(3.0),
    "empty": lambda: torch.zeros(0, 3),
    "requires grad": lambda: base().requires_grad_(),
    "result of autograd": lambda: base().requires_grad_() * 2,
}
COPIES = {
    "columns": (lambda: base()[:, :22], "strides (32, 1)"),
    "every second row": (lambda: base()[::2], "strides (64, 1)"),
    "broadcast": (lambda: base()[:1].expand(8, 32), "strides (0, 1)"),
    "unaligned": (lambda: base().reshape(-1)[3:], "12 bytes past a multiple of 64"),
    "int64": (lambda: base().long(), "torch.int64 becomes torch.int32"),
    "float64": (lambda: base().double(), "torch.float64 becomes torch.float32"),
}


def equal(tensor: torch.Tensor, array: jax.Array) -> bool:
    """Whether they hold the same numbers, read through memory of their own."""
    return np.array_equal(tensor.detach().float().numpy(), np.array(array.astype(jnp.float32)))


class TestToJax:
    @pytest.mark.parametrize("make", VIEWS.values(), ids=VIEWS.keys())
    def test_views_share_memory(self, make):
        tensor = make()
        assert copy_reason(tensor) is None
        for array in (to_jax(tensor), to_jax(tensor, copy=False)):
            assert pointer(array) == pointer(tensor)
            assert array.shape == tuple(tensor.shape) and equal(tensor, array)
        assert equal(tensor * 2 + 1, jax.jit(lambda x: x * 2 + 1)(array)), "compiled code reads it in the right order"

    @pytest.mark.parametrize("case", COPIES.values(), ids=COPIES.keys())
    def test_what_cannot_be_viewed_is_copied_for_a_reason(self, case):
        make, reason = case
        tensor = make()
        assert reason in copy_reason(tensor)
        array = to_jax(tensor)
        assert pointer(array) != pointer(tensor) and equal(tensor, array)
        with pytest.raises(DLPackError) as error:
            to_jax(tensor, copy=False)
        assert reason in str(error.value) and "\n" not in str(error.value)

    @pytest.mark.parametrize("make", [*VIEWS.values(), *(make for make, _ in COPIES.values())])
    def test_an_asked_for_copy_is_out_of_torchs_reach(self, make):
        tensor = make()
        before = tensor.detach().clone()
        array = to_jax(tensor, copy=True)
        with torch.no_grad():
            storage = torch.empty(0, dtype=tensor.dtype).set_(tensor.detach().untyped_storage())
            storage.fill_(77)
        assert equal(before, array)

    @pytest.mark.parametrize("dtype", VIEWED, ids=str)
    def test_dtypes_stay(self, dtype):
        tensor = (base() % 2).to(dtype)
        array = to_jax(tensor, copy=False)
        assert pointer(array) == pointer(tensor)
        assert str(array.dtype) == str(dtype).removeprefix("torch.") and equal(tensor, array)
        assert to_torch(array).dtype == dtype

    @pytest.mark.parametrize("dtype", NARROWED, ids=str)
    def test_64_bits_become_32_unless_jax_is_told_to_keep_them(self, dtype):
        tensor = base().to(dtype)
        assert to_jax(tensor).dtype == NARROWED[dtype]
        with jax.enable_x64(True):
            assert copy_reason(tensor) is None
            array = to_jax(tensor, copy=False)
        assert pointer(array) == pointer(tensor) and array.dtype.itemsize == 8

    def test_integers_out_of_range_wrap_as_in_jax(self):
        assert to_jax(torch.tensor([2**32 + 5, -1])).tolist() == [5, -1]

    @pytest.mark.parametrize(
        ("make", "says"),
        [
            (lambda: base().to_sparse(), "layout"),
            (lambda: torch.zeros(3, dtype=torch.complex64), "complex64"),
            (lambda: torch.zeros(3, device="meta"), "meta"),
        ],
    )
    def test_what_jax_cannot_hold_says_so(self, make, says):
        with pytest.raises(DLPackError, match=says) as error:
            to_jax(make())
        assert "\n" not in str(error.value)

    def test_a_view_keeps_the_memory_until_jax_lets_go(self):
        tensor = torch.full((1000, 32), 3.0)
        storage = StorageWeakRef(tensor.untyped_storage())
        array = to_jax(tensor, copy=False)
        del tensor
        fresh = [torch.zeros(1000, 32) for _ in range(50)]
        assert not storage.expired()
        assert pointer(array) not in {pointer(t) for t in fresh}
        assert bool((array == 3.0).all())
        del array
        gc.collect()
        assert storage.expired()

    def test_donating_a_view_leaves_torchs_memory_alone(self):
        tensor = base()
        array = jax.jit(lambda x: x + 1, donate_argnums=0)(to_jax(tensor))
        assert equal(base() + 1, array) and torch.equal(tensor, base())


class TestToTorch:
    @pytest.mark.parametrize("dtype", [jnp.float32, bool, jnp.int32, jnp.bfloat16])
    def test_views_share_memory(self, dtype):
        array = jnp.arange(12).reshape(3, 4).astype(dtype)
        tensor = to_torch(array)
        assert pointer(tensor) == pointer(array) and equal(tensor, array)

    def test_a_round_trip_is_the_same_memory(self):
        tensor = base()
        assert pointer(to_torch(to_jax(tensor, copy=False))) == pointer(tensor)

    def test_a_copy_can_be_written_into(self):
        array = jnp.zeros(16)
        tensor = to_torch(array, copy=True)
        tensor.fill_(1.0)
        assert pointer(tensor) != pointer(array) and not array.any()

    @pytest.mark.parametrize("copy", [False, True])
    @pytest.mark.parametrize("end", ["drop", "delete", "donate"])
    def test_the_tensor_outlives_the_array(self, copy, end):
        array = jnp.full((1000, 32), 3.0)
        tensor = to_torch(array, copy)
        if end == "delete":
            array.delete()
        elif end == "donate":
            jax.jit(lambda x: x * 0, donate_argnums=0)(array).block_until_ready()
        del array
        fresh = [jnp.zeros((1000, 32)) for _ in range(50)]
        assert pointer(tensor) not in {pointer(a) for a in fresh}
        assert (tensor == 3.0).all()

    def test_it_waits_for_the_numbers(self):
        x = jnp.eye(300)
        assert torch.equal(to_torch(slow(x)), to_torch(slow(x).block_until_ready()))

    @pytest.mark.parametrize(
        ("make", "says"),
        [
            (lambda: jax.random.key(0), "key_data"),
            (lambda: jnp.zeros(3, jnp.int4), "int4"),
            (lambda: jax.jit(to_torch)(jnp.zeros(3)), "torch_call"),
            (lambda: deleted(), "deleted or donated"),
        ],
    )
    def test_what_has_no_memory_for_torch_says_so(self, make, says):
        with pytest.raises(DLPackError, match=says):
            to_torch(make())


def deleted() -> jax.Array:
    array = jnp.zeros(3)
    array.delete()
    return array


class TestAsynchrony:
    """A compiled call that stores the observation and acts on it, while torch moves on to the next step."""

    def stored(self, copy: bool, wait: bool) -> float:
        """What a call stores of an observation of 1s that torch makes -1s, before the call begins if nobody waits."""
        store = jax.jit(
            lambda rollout, obs, late: (rollout.at[0].set(obs), obs[:, :4] + 0 * late.sum()), donate_argnums=0
        )
        for _ in range(20):
            obs = torch.ones(64, 22)
            # The call has to wait for its last argument, as it would for the update before a rollout.
            late = slow(jnp.eye(200))
            rollout, action = store(jnp.zeros((1, 64, 22)), to_jax(obs, copy=copy), late)
            if wait:
                to_torch(action)
            obs.fill_(-1.0)
            if wait or not late.is_ready():
                (value,) = np.unique(rollout)
                return float(value)
        raise AssertionError("torch never overtook JAX")

    def test_waiting_for_a_result_is_safe(self):
        assert self.stored(copy=False, wait=True) == 1.0

    def test_a_copy_is_safe(self):
        assert self.stored(copy=True, wait=False) == 1.0

    def test_neither_is_a_race(self):
        assert self.stored(copy=False, wait=False) == -1.0


class Spring:
    """A linear system of B masses that torch steps in place, with everything an Isaac Lab step returns."""

    def __init__(self, num_envs: int = 16):
        self.x = torch.linspace(-1, 1, num_envs * 3).reshape(num_envs, 3)
        self.matrix = torch.tensor([[0.9, 0.1, 0.0], [-0.1, 0.9, 0.05], [0.0, -0.05, 0.95]])
        self.age = torch.zeros(num_envs, dtype=torch.int64)
        self.seen: list[tuple[int, ...]] = []

    def step(self, out: dict[str, torch.Tensor], action: torch.Tensor) -> None:
        assert not torch.is_grad_enabled() and not action.requires_grad
        self.seen.append((pointer(out["obs"]), pointer(action)))
        torch.matmul(self.x, self.matrix, out=out["obs"])
        out["obs"][:, 0] += action[:, 0]
        self.x.copy_(out["obs"])
        self.age += 1
        torch.linalg.vector_norm(self.x, dim=1, out=out["reward"])
        torch.gt(out["reward"], 0.8, out=out["done"])
        out["age"].copy_(self.age)

    @property
    def results(self) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = {"obs": ((3,), jnp.float32), "reward": ((), jnp.float32), "done": ((), bool), "age": ((), jnp.int32)}
        return {k: jax.ShapeDtypeStruct((len(self.x), *shape), dtype) for k, (shape, dtype) in shapes.items()}


def double(out: torch.Tensor, x: torch.Tensor) -> None:
    torch.mul(x, 2, out=out)


def like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


class TestTorchCall:
    def test_a_scan_steps_a_torch_env_bitwise_as_a_torch_loop_does(self):
        env, twin = Spring(), Spring()
        step = torch_call(env.step, env.results)

        @jax.jit
        def rollout(obs):
            def body(obs, _):
                out = step(-0.5 * obs[:, :2])
                return out["obs"], out

            return jax.lax.scan(body, obs, length=50)[1]

        trajectory = rollout(to_jax(env.x, copy=True))
        jax.block_until_ready(trajectory)
        obs = twin.x.clone()
        with torch.no_grad():
            for t in range(50):
                out = {k: torch.empty(s.shape, dtype=to_torch(trajectory[k]).dtype) for k, s in env.results.items()}
                twin.step(out, -0.5 * obs[:, :2])
                obs = out["obs"]
                for name, value in out.items():
                    assert torch.equal(to_torch(trajectory[name])[t], value), (name, t)
        assert torch.equal(env.x, twin.x) and trajectory["done"].any() and not trajectory["done"].all()
        assert len(env.seen) == 50 and len(set(env.seen)) <= 2, "XLA's own buffers, not fresh ones at each step"

    def test_inputs_and_outputs_are_the_programs_own_memory(self):
        seen = []

        def function(out, x, flag):
            seen.extend(map(pointer, (out["y"], x["x"], flag)))
            out["y"].copy_(x["x"])

        x, flag = jnp.arange(64.0), jnp.ones(64, bool)
        result = jax.jit(torch_call(function, {"y": like(x)}))({"x": x}, flag)
        assert seen == [pointer(result["y"]), pointer(x), pointer(flag)]

    @pytest.mark.parametrize("pending", [False, True], ids=["ready", "pending"])
    def test_modes_are_the_same_on_every_thread(self, pending):
        """Arguments that are still being computed move the call to a thread of JAX's."""
        modes = []

        def function(out, x):
            modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
            out.copy_(x)

        call = jax.jit(torch_call(function, jax.ShapeDtypeStruct((300, 300), jnp.float32)))
        x = slow(jnp.eye(300))
        with torch.inference_mode():
            result = to_torch(call(x if pending else x.block_until_ready()))
        assert torch.equal(result, to_torch(x))
        assert modes == [(False, False)]

    @pytest.mark.parametrize("pending", [False, True], ids=["ready", "pending"])
    @pytest.mark.parametrize("wait", [jax.block_until_ready, to_torch])
    def test_errors_end_the_scan_and_come_back_with_their_text(self, wait, pending):
        calls = []

        def function(out, x):
            calls.append(1)
            double(out, x)
            if len(calls) == 3:
                raise ValueError("the motor of drone 7 is on fire")

        def rollout(x):
            return jax.lax.scan(lambda x, _: (torch_call(function, like(x))(x), None), x, length=10)[0]

        x = slow(jnp.eye(300))
        with pytest.raises(jax.errors.JaxRuntimeError, match="ValueError: the motor of drone 7 is on fire"):
            wait(jax.jit(rollout)(x if pending else x.block_until_ready()))
        assert len(calls) == 3

    @pytest.mark.parametrize("derive", [lambda x: x, lambda x: x[:2], lambda x: x.reshape(2, 2).T])
    @pytest.mark.parametrize("which", [0, 1])
    def test_keeping_a_view_is_an_error_and_keeping_a_clone_is_not(self, derive, which):
        kept = []

        def keep(out, x):
            double(out, x)
            kept.append(derive((out, x)[which]))

        def keep_clone(out, x):
            double(out, x)
            kept.append(derive((out, x)[which]).clone())

        x = jnp.arange(4.0)
        with pytest.raises(jax.errors.JaxRuntimeError, match="keep a clone"):
            jax.block_until_ready(jax.jit(torch_call(keep, like(x)))(x))
        assert jnp.array_equal(jax.jit(torch_call(keep_clone, like(x)))(x), 2 * x)

    @pytest.mark.parametrize("write", [lambda x: x.add_(1), lambda x: x[1:].zero_()])
    def test_writing_into_an_argument_is_an_error(self, write):
        def function(out, x):
            double(out, x)
            write(x)

        x = jnp.arange(4.0)
        with pytest.raises(jax.errors.JaxRuntimeError, match="wrote into an argument"):
            jax.block_until_ready(jax.jit(torch_call(function, like(x)))(x))

    def test_no_call_is_dropped_or_merged(self):
        calls = []

        def function(out, x):
            calls.append(1)
            double(out, x)

        def program(x):
            call = torch_call(function, like(x))
            call(x)
            return call(x) + call(x)

        jax.block_until_ready(jax.jit(program)(jnp.ones(3)))
        assert len(calls) == 3

    def test_gradients_and_vmap_are_refused(self):
        x = jnp.ones(3)
        call = torch_call(double, like(x))
        with pytest.raises(ValueError, match="JVP"):
            jax.grad(lambda x: call(x).sum())(x)
        with pytest.raises(NotImplementedError, match="vmap"):
            jax.vmap(call)(x[None])
