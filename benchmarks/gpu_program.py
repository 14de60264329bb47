"""What a GPU would be given to do: the training program compiled for an H100, on a machine that needs none.

    uv run --extra cuda python -m benchmarks.gpu_program [--num_envs 100] [--num_steps 400] [agent.key=value ...]

Compiles the iteration of the built-in task with JAX's CUDA packages and counts what it launches: kernels and copies of
a step of the rollout and of a gradient step, CUDA graphs, branches and loops that the host decides (each of which waits
for the device), and products that are rounded to TF32. How long all of that takes, only a GPU can tell.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

DEVICE = Path(__file__).with_name("h100.txtpb")
"""What XLA wants to know of the device."""
_THUNK = re.compile(r"^( *)(\d+): k(\w+)\b")
_KERNELS = ("Kernel", "CustomKernel", "Gemm", "CublasLtMatmul", "CustomCall", "Cudnn", "Cub")
_COPIES = ("Copy", "HostToDeviceCopy", "DeviceToHostCopy", "DeviceToDeviceCopy", "Memset32BitValue", "MemzeroThunk")


@dataclass
class Thunk:
    """One entry of what XLA runs on a GPU, with all that is inside of it."""

    number: int
    kind: str
    inside: list[Thunk] = field(default_factory=list)
    """A loop's body, a branch's branches, a graph's content; the condition of a loop aside."""

    def count(self, kinds: tuple[str, ...]) -> int:
        """Thunks of these kinds in it, inner loops taken once."""
        return sum((thunk.kind in kinds) + thunk.count(kinds) for thunk in self.inside)

    def by_host(self, kind: str) -> int:
        """Thunks of this kind that are outside of CUDA graphs, so that the host drives them."""
        others = [thunk for thunk in self.inside if thunk.kind != "CommandBuffer"]
        return sum((thunk.kind == kind) + thunk.by_host(kind) for thunk in others)

    def walk(self) -> list[Thunk]:
        """All that is inside."""
        return [x for thunk in self.inside for x in (thunk, *thunk.walk())]


def read_thunks(text: str) -> Thunk:
    """The tree of XLA's dump ``thunk_sequence``, in which what belongs to a thunk is indented further."""
    root = Thunk(-1, "Program")
    above: list[tuple[int, Thunk]] = [(-1, root)]
    conditions: set[int] = set()
    """Indentations of loops in whose condition the line is."""
    for line in text.splitlines():
        if line.strip() == "condition:":
            conditions.add(above[-1][0])
        elif line.strip() == "body:":
            conditions.discard(above[-1][0] if above[-1][1].kind == "While" else above[-2][0])
        if not (found := _THUNK.match(line)):
            continue
        indent = len(found[1])
        while above[-1][0] >= indent:
            conditions.discard(above.pop()[0])
        thunk = Thunk(int(found[2]), found[3])
        if above[-1][0] not in conditions:
            above[-1][1].inside.append(thunk)
            above.append((indent, thunk))
    return root


def loops(dump: Path, program: str) -> tuple[Thunk, dict[str, Thunk]]:
    """The program that was dumped, and its loops by the scopes in which they are written."""
    root = read_thunks(next(dump.glob("*thunk_sequence_after_thunk_passes.txt")).read_text())
    metadata = next(dump.glob("*thunk_metadata.txt")).read_text()
    names = {
        int(number): name for name, number in re.findall(r'profile_annotation: "([^"]+)"\s+thunk_id: (\d+)', metadata)
    }
    written = dict(re.findall(r'%([\w.\-]+) = .* while\(.*op_name="([^"]+)"', program))
    found = {}
    for thunk in root.walk():
        if thunk.kind == "While":
            found[written.get(names.get(thunk.number, ""), f"loop {thunk.number}")] = thunk
    return root, found


def figures(dump: Path, program: str) -> dict[str, Any]:
    """What is to be known of the program that was dumped and whose HLO text is ``program``."""
    root, written = loops(dump, program)

    def one(scope: str) -> Thunk:
        # The outermost loop of a scope has the shortest name.
        name = min((name for name in written if f"/{scope}/" in name), key=len)
        return written[name]

    products = re.findall(r"^.* dot\(.*$", program, re.MULTILINE)
    parts = {}
    for what, scope in (("rollout step", "rollout"), ("gradient step", "update")):
        step = one(scope)
        parts[what] = {
            "kernels": step.count(_KERNELS),
            "copies": step.count(_COPIES),
            "launched by the host": sum(thunk.kind != "While" for thunk in step.inside) if step.inside else 0,
        }
        in_graph = any(step in graph.walk() for graph in root.walk() if graph.kind == "CommandBuffer")
        parts[what]["launched by the host"] *= not in_graph
    return {
        **parts,
        "branches by the host": root.by_host("Conditional"),
        "loops by the host": root.by_host("While"),
        "products": len(products),
        "products in TF32": sum("operand_precision={highest,highest}" not in line for line in products),
    }


def compile_iteration(num_envs: int, num_steps: int, overrides: list[str]) -> tuple[str, float]:
    """The optimized HLO text of the iteration for the device, and the seconds that compiling it took."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import SingleDeviceSharding

    from jdistill.run.inputs import make_algorithm, resolve_obs_groups
    from jdistill.run.policy_paths import teacher_path
    from jdistill.run.session import open_env, start
    from jdistill.run.teachers import load_named
    from jdistill.run.training import Job, begin, configure

    settings = (f"agent.num_steps_per_env={num_steps}", *overrides)
    job = Job(device="cpu", devices="1", num_envs=num_envs, overrides=settings)
    beginning = begin(job)
    started = start(beginning.request, placement=job.placement)
    jax.config.update("jax_enable_compilation_cache", False)
    cfg = configure(job, beginning, started)
    with open_env(cfg, started.task) as env:
        resolve_obs_groups(cfg.agent, env)
        teacher = load_named(teacher_path(cfg, started.task, job, beginning), env, cfg).actor(cfg.agent)
        algorithm = make_algorithm(env, cfg.agent)
    device = topologies.get_topology_desc(platform="cuda", target_config=DEVICE.read_text(), topology="1x1x1").devices[
        0
    ]

    def placed(tree: Any) -> Any:
        shapes = jax.eval_shape(lambda: tree) if not callable(tree) else jax.eval_shape(tree)
        there = SingleDeviceSharding(device)
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there), shapes)

    state = placed(lambda: algorithm.init(jax.random.key(0), teacher))
    began = time.perf_counter()
    # The program asks JAX which device it is for.
    with mock.patch.object(jax, "default_backend", return_value="gpu"):
        program = jax.jit(lambda *args: algorithm.iteration(*args)[:2], donate_argnums=0)
        compiled = program.lower(state, placed(teacher)).compile()
    return compiled.as_text() or "", time.perf_counter() - began


def main() -> int:
    """Compile, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--num_envs", type=int, default=100)
    parser.add_argument("--num_steps", type=int, default=400)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the figures as JSON too")
    parser.add_argument("overrides", nargs="*", help="settings, dotted")
    args = parser.parse_args()
    if importlib.util.find_spec("jax_cuda13_plugin") is None:
        print("JAX's CUDA packages are not installed: uv run --extra cuda python -m benchmarks.gpu_program")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"}
        dump = f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=.*lambda.*"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {dump}".strip()
        program, seconds = compile_iteration(args.num_envs, args.num_steps, args.overrides)
        found = {"device": "NVIDIA H100 80GB HBM3 (compiled for, not run on)", "num_envs": args.num_envs}
        found |= {"num_steps": args.num_steps, "compile_s": round(seconds, 1), **figures(Path(folder), program)}
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
