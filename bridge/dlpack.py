"""Memory shared between torch and JAX, with every trap of it handled here and nowhere else.

:func:`to_jax` and :func:`to_torch` convert on the host. :func:`torch_call` lets a compiled JAX program call torch: the
function sees XLA's own buffers as tensors. All three share memory where they can, so three rules stay with the caller:

- JAX dispatches asynchronously. A compiled call that got a view of a tensor may read it after the call has returned, so
  wait for a result of the call (``to_torch`` waits) before torch writes into that tensor again, or convert with
  ``copy=True``. ``array[:]`` and ``jax.device_put(array)`` are views still; whatever ``jax.jit`` returns is not.
- Torch has no read-only tensors. What it writes into a view of an array changes an array that JAX takes for constant.
- On CUDA a view keeps memory alive but orders nothing at its end: it must outlive the queued kernels that use it.

This module needs torch, an extra of this package; import it where torch is known to be wanted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import jax
import numpy as np
import torch
from jax.experimental.buffer_callback import ExecutionContext, buffer_callback
from torch.utils.weak import TensorWeakRef

ALIGNMENT = 64
"""Bytes. Compiled CPU programs count on arrays that begin at multiples of it. Torch's own allocations do."""

_NARROWED = {torch.int64: torch.int32, torch.uint64: torch.uint32, torch.float64: torch.float32}
"""What JAX makes of the types it knows only when ``jax_enable_x64`` is set."""

_DTYPES = {*_NARROWED, torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32} | {
    torch.float16,
    torch.bfloat16,
    torch.float32,
}


class DLPackError(ValueError):
    """Memory cannot be shared, or was not used, as asked; one line says why."""


def to_jax(tensor: torch.Tensor, copy: bool | None = None) -> jax.Array:
    """``tensor`` as a JAX array of the same shape on the same device, detached from torch's autograd.

    ``copy`` follows the array API. None: a view where one is possible, else a copy; :func:`copy_reason` tells which.
    False: a view, or :class:`DLPackError`. True: a copy that nothing in torch can reach, safe to keep while torch goes
    on writing into ``tensor``. A view keeps the tensor's memory alive for as long as the array lives.

    The array has the tensor's dtype, but 64-bit numbers become 32-bit ones unless ``jax_enable_x64`` is set; integers
    out of range wrap, as everywhere in JAX. Raises :class:`DLPackError` for tensors that JAX can't hold at all: sparse
    ones, complex and quantised numbers, devices that JAX does not see.
    """
    reason = copy_reason(tensor)
    if copy is False and reason:
        raise DLPackError(f"JAX cannot view this tensor: {reason}")
    tensor = tensor.detach()
    if copy or reason:
        # Torch makes the copy: it is done, or queued on torch's stream, before a later write of torch's. A copy by JAX
        # might read the tensor only after that write.
        tensor = tensor.to(_held_as(tensor.dtype), copy=True, memory_format=torch.contiguous_format)
    try:
        with _current_device(tensor.device):
            return jax.dlpack.from_dlpack(tensor, copy=False)
    except (BufferError, RuntimeError, ValueError) as error:
        raise DLPackError(f"JAX cannot reach a tensor on {tensor.device}: {_first_line(error)}") from error


def copy_reason(tensor: torch.Tensor) -> str | None:
    """Why ``to_jax(tensor)`` has to copy, or None where it is a view. Raises :class:`DLPackError` as it does."""
    if tensor.layout != torch.strided:
        raise DLPackError(f"JAX cannot hold a tensor of layout {tensor.layout}")
    if tensor.dtype not in _DTYPES:
        raise DLPackError(f"JAX cannot hold a tensor of {tensor.dtype}")
    if (held := _held_as(tensor.dtype)) != tensor.dtype:
        return f"{tensor.dtype} becomes {held} (jax_enable_x64 is off)"
    if not _is_compact(tensor):
        return f"shape {tuple(tensor.shape)} with strides {tensor.stride()} has gaps or overlaps"
    if offset := tensor.data_ptr() % ALIGNMENT:
        return f"its memory begins {offset} bytes past a multiple of {ALIGNMENT}"
    return None


def to_torch(array: jax.Array, copy: bool = False) -> torch.Tensor:
    """``array`` as a tensor of the same shape, dtype and device.

    Waits until it is computed; on CUDA, torch's current stream waits.

    By default a view, for torch to read: see the rules above. It keeps the memory alive even if the array is deleted or
    donated (JAX then copies instead of reusing the memory, so drop views of what is to be donated). Torch may write
    into it if JAX does not read ``array`` again. With ``copy``, contiguous memory of torch's own.

    Raises :class:`DLPackError` for traced, deleted and sharded arrays, random keys, and dtypes that torch lacks.
    An error in the computation of ``array`` comes out as JAX's own.
    """
    if isinstance(array, jax.core.Tracer):
        raise DLPackError("a traced array has no memory yet; use torch_call inside of jit")
    if array.is_deleted():
        raise DLPackError("the array was deleted or donated")
    if len(array.devices()) > 1:
        raise DLPackError(f"the array is spread over {len(array.devices())} devices")
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended):
        raise DLPackError(f"torch has no {array.dtype}; convert jax.random.key_data(key)")
    try:
        view = torch.from_dlpack(array)
    except (BufferError, RuntimeError) as error:
        array.block_until_ready()  # raises if it is the computation that failed
        raise DLPackError(f"torch cannot view {array.dtype} on {array.device}: {_first_line(error)}") from error
    if not copy:
        return view
    own = view.clone(memory_format=torch.contiguous_format)
    if own.is_cuda:
        # XLA may reuse the array's memory as soon as the view is gone, and it does not know of torch's stream.
        torch.cuda.current_stream(own.device).synchronize()
    return own


def pointer(memory: torch.Tensor | jax.Array) -> int:
    """The address at which the elements begin; waits for an array that is being computed."""
    return memory.data_ptr() if isinstance(memory, torch.Tensor) else memory.unsafe_buffer_pointer()


def torch_call(
    function: Callable[..., None],
    result_shape_dtypes: Any,
    execute: Callable[[Callable[[], None]], None] | None = None,
    guard: bool = True,
) -> Callable[..., Any]:
    """A JAX function that runs torch code in the middle of a compiled program, without copies.

    ``function(out, *args)`` gets tensors: ``args`` like the arguments of the call, to be read, and ``out`` like
    ``result_shape_dtypes`` (a pytree with ``shape`` and ``dtype``), full of garbage, to be filled in place. There must
    be one array among them at least. On CUDA the work falls in line with the surrounding program's, on the device.

    All of these tensors end with the call: their memory is XLA's and soon something else, so whatever ``function``
    wants to keep it must clone. Keeping one all the same, or writing into an argument, raises :class:`DLPackError`;
    ``guard=False`` saves the ten microseconds that this takes, for functions that hand their tensors to nobody.
    That, and any error of ``function``'s (``KeyboardInterrupt`` too), comes out of JAX as a
    ``jax.errors.JaxRuntimeError`` with the traceback in its text, at the latest where the program's results are waited
    for.

    ``execute`` gets the work of each call as a function without arguments and returns once it has run, here or on
    another thread (see :class:`bridge.main_thread.MainThread`); None runs it where JAX calls back.

    JAX orders calls by the data that flow through them and by nothing else: of two calls that must not swap, the second
    takes something from the first. Some run on the caller's thread and some on JAX's own, so ``function`` cannot count
    on torch's thread-local modes, autocast and default device for two; gradients and inference mode are always off. A
    thread is given torch's number of threads at its first call, that which ``torch.set_num_threads`` was told last, on
    whatever thread; what is set later reaches only threads that come later. ``function`` must not call JAX. Gradients
    do not pass through, and ``jax.vmap`` is refused.
    """
    threads: set[int] = set()
    shapes, out_tree = jax.tree.flatten(result_shape_dtypes)

    def wrapped(*args: Any) -> Any:
        flat, in_tree = jax.tree.flatten(args)

        def call(ctx: ExecutionContext, buffers: list[Any]) -> None:
            _limit_threads(threads)
            with _no_grad():
                tensors = [torch.from_dlpack(buffer) for buffer in buffers]
                inputs = jax.tree.unflatten(in_tree, tensors[: len(flat)])
                outputs = jax.tree.unflatten(out_tree, tensors[len(flat) :])
                with xla_order(ctx, tensors[0].device) if tensors[0].is_cuda else nullcontext():
                    function(outputs, *inputs)
            if guard:
                _check_writes(tensors, buffers)
                alive = [TensorWeakRef(tensor) for tensor in tensors]
                del inputs, outputs, tensors
                if any(ref() is not None for ref in alive):
                    raise DLPackError("torch kept a tensor whose memory ends with the call; keep a clone of it")

        def callback(ctx: ExecutionContext, out: list[Any], *arguments: Any) -> None:
            if execute is None:
                call(ctx, [*arguments, *out])
            else:
                execute(lambda: call(ctx, [*arguments, *out]))

        # Without the side effect JAX would drop calls whose results nobody reads and merge equal ones.
        return jax.tree.unflatten(out_tree, buffer_callback(callback, shapes, has_side_effect=True)(*flat))

    return wrapped


def _check_writes(tensors: list[torch.Tensor], buffers: list[Any]) -> None:
    if any(t._version for t, buffer in zip(tensors, buffers, strict=True) if not buffer.writeable):
        raise DLPackError("torch wrote into an argument, which is JAX's; clone it first")


class _no_grad:
    """No gradients; nor inference mode, which would leave an environment with tensors of a special kind.

    ``torch.no_grad`` with fewer layers: this is entered at every step.
    """

    def __enter__(self) -> None:
        self.inference = torch.inference_mode(False) if torch.is_inference_mode_enabled() else None
        if self.inference is not None:
            self.inference.__enter__()
        self.before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)

    def __exit__(self, *error: object) -> None:
        torch.set_grad_enabled(self.before)
        if self.inference is not None:
            self.inference.__exit__(*error)


def _limit_threads(seen: set[int]) -> None:
    """On a thread that is new to us, bring the libraries under torch to torch's number of threads.

    OpenMP and MKL keep that number per thread, and torch passes its own on only where it splits work itself: on XLA's
    threads a small matrix product would wake up every core. Python's own thread-local storage is no help, since a
    thread of XLA's is a new one to Python at every call.
    """
    if (thread := threading.get_native_id()) not in seen:
        seen.add(thread)
        torch.set_num_threads(torch.get_num_threads())


@contextmanager
def xla_order(ctx: ExecutionContext, device: torch.device) -> Iterator[None]:
    """Inside a ``buffer_callback`` on CUDA: torch's work falls between XLA's before and after the callback.

    Torch's current stream waits for XLA's at the door and XLA's for torch's at the end, on the device alone. Torch
    stays on a stream of its own because the caching allocator and other libraries on the default stream (Warp) know
    that one and not XLA's.
    """
    with torch.cuda.device(device):
        ours, theirs = torch.cuda.current_stream(), torch.cuda.ExternalStream(ctx.stream, device)
        ours.wait_stream(theirs)
        try:
            yield
        finally:
            theirs.wait_stream(ours)


def _held_as(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which JAX holds numbers of ``dtype``."""
    if dtype not in _NARROWED or jax.dtypes.canonicalize_dtype(np.int64) == np.int64:
        return dtype
    return _NARROWED[dtype]


def _is_compact(tensor: torch.Tensor) -> bool:
    """Whether the elements fill a block of memory, in any order of the axes."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _current_device(device: torch.device) -> AbstractContextManager:
    """Torch exports memory of the current CUDA device only."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
