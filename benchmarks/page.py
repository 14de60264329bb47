"""docs/performance.md, written from the JSON files beside it."""

from __future__ import annotations

import json
from typing import Any

from benchmarks.crazyflie import ROOT

DOCS = ROOT / "docs"
TEACHER_FLOPS = 2 * (26 * 64 + 64 * 64 + 64 * 64 + 64 * 4)
"""Of one action of the bundled teacher, an MLP 26-64-64-64-4."""

TEXT = """# Performance

Written by `python -m benchmarks` from the JSON files beside this page; that command measures everything anew, `python
-m benchmarks update` one part of it. {machine}. Absolute times are context: compare ratios. Peers run in the same
process as we do, in turns, and every ratio is the median of those of adjacent pairs.

## The update

`Distillation.update` of rsl_rl 5.5.1 and ours on the same rollout, weights and settings: 4 epochs, windows of 15
steps, 4 actions. Both on the same core with one thread. `gru` is Dense 16, GRU 16, Dense 16; `mlp` is 64-64-64. The
losses differ by {apart:.0e} at most, relative, after {rounds} updates. Compile time is not in it
([update.json](update.json)).

| student | inputs | envs x steps | rsl_rl (s) | jdistill (s) | ratio | of the core's peak |
|---|---|---|---|---|---|---|
{update}

The last column is what bounds it: the FLOPs of our matrix products per second, beside the {core_peak:.0f} GFLOP/s of
a large product on that core. The MLP's update is such products and little else, and rsl_rl's cost in Python counts
for less the larger its tensors are, so the advantage ends where the arithmetic itself takes the time (4096
environments).

What makes the difference: one compiled program for all windows instead of a Python loop over steps; the input
projection, the layers around the recurrent one and all weight gradients as products over a whole window; a recurrent
scan that holds nothing but the product with the hidden state and the gates, with its gradient written by hand
([recurrence.py](../jdistill/core/recurrence.py)); parameters and optimizer as one flat vector; XLA's CPU kernels
without LLVM's loop unrolling ([compilation.py](../jdistill/run/compilation.py)).

## A whole iteration

rsl_rl's `DistillationRunner` over `bridge.torch_vecenv` and ours on the same Crazyflies, teacher and initial student,
{envs} x {steps} steps an iteration, both on one core with one thread ([rsl_rl.json](rsl_rl.json)). Both step the same
simulator, so collection differs less than the update does.

| trainer | collection (s) | iteration (s) |
|---|---|---|
{iteration}
| ratio | {collection_ratio:.1f} | {iteration_ratio:.1f} |

## Collection

The same parts before and after the simulator went from arrays of (environments, 3) to one array a number, and the
policy that does not step began to act on all steps at once: `python -m benchmarks.collection` runs both trees in
turns, on one core, with the bundled teacher and the GRU student of the default run
([collection.json](collection.json)). Memory is that of a whole iteration.

| part | envs | before | now | ratio |
|---|---|---|---|---|
{collection}

What an iteration still takes is arithmetic: of the {floor_s:.3f} s of a rollout with 100 environments the teacher's
matrix products alone need {teacher_s:.3f} s at the core's peak, and the update, which is the same as before, takes
{update_share:.0%} of the iteration.

## All cores

An iteration of the default run in phase 1 on one core, on one JAX device with XLA's threads on all cores, and on a
device for each core, which is what the command does by itself from {per_core} environments a core on
([devices.json](devices.json), [scaling_out.md](scaling_out.md)). Strong scaling is against the better of the two
others, in the median and turn by turn, for the machine's cores are shared with others; weak scaling sets a device's
share on one core by itself against all of it on all cores, and 1 would be perfect. On one device the program has no
trace of the mesh.

{devices}

## The whole job

`train_jax.py --phase1 500`, 1500 iterations of 100 x 400 steps, with checkpoints and logs, all cores: {minutes:.1f}
minutes, of which {compile:.1f} s are compilation with an empty cache. With a filled one the same program is there in
{warm:.1f} s ([crazyflie.json](crazyflie.json)).

## Scaling

Rollouts of {scaling_steps} steps, all cores ([scaling.json](scaling.json)). The limit is the sum of the three parts,
each in a program of its own; an iteration also stores the rollout, draws the statistics and resets recurrent states. A
share over 100 % says that a part took longer alone than inside the whole.

{scaling}

Where the parts stand under this device's roof, {peak_flops:.0f} GFLOP/s in a large matrix product (FLOPs by XLA's
cost analysis; a share of the roof):

| envs | simulator | networks | update |
|---|---|---|---|
{roof}

The simulator is elementwise arithmetic and random numbers; the networks' products are 16 to 64 wide.

## The bridge to torch simulators

{alone:.0f} us a step on a simulator that does nothing, {around:.0f} us around a cheap one, {share:.1%} of a step of
point control on Isaac Lab with 64 environments; collecting from a cheap torch simulator with 256 environments and two
64-64-64 networks is {bridge_ratio:.2f} times as fast as rsl_rl's loop ([bridge.json](bridge.json)).
"""


def read(name: str) -> Any:
    """The results of one measurement."""
    return json.loads((DOCS / f"{name}.json").read_text())


def collection(results: dict[str, Any]) -> str:
    """Rows of parts before and now."""
    rows = []
    for num_envs, parts in results["envs"].items():
        for name, part in parts.items():
            shown, unit = (name, " s") if name != "memory_bytes" else ("memory", " MB")
            before, now = (part[side] / (1e6 if unit == " MB" else 1.0) for side in ("before", "now"))
            digits = 1 if unit == " MB" or before > 2 else 4
            cells = " | ".join(f"{x:.{digits}f}{unit}" for x in (before, now))
            rows.append(f"| {shown} | {num_envs} | {cells} | {part['ratio']:.1f} |")
    for name, part in results.get("evaluation", {}).items():
        rows.append(f"| {name} | 1000 | {part['before']:.0f} s | {part['now']:.0f} s | {part['ratio']:.1f} |")
    return "\n".join(rows)


def page() -> str:
    """The page."""
    from benchmarks import devices
    from benchmarks.scaling import table

    update, runner, job, scaling, bridge = map(read, ("update", "rsl_rl", "crazyflie", "scaling", "bridge"))
    parts = read("collection")
    hundred = parts["envs"]["100"]
    box = scaling["machine"]
    cost = job["policies"]["student, --phase1 500"]["cost"]
    return TEXT.format(
        machine=f"Measured on {box['cores']} cores of an {box['cpu']}, device {scaling['device']}",
        apart=max(row["loss_difference"] for row in update["rows"]),
        rounds=update["rounds"] + 1,
        update="\n".join(
            f"| {r['student']} | {r['inputs']} | {r['envs']} x {r['steps']} | {r['rsl_rl']:.4f} | {r['jdistill']:.4f} "
            f"| {r['ratio']:.1f} | {r['flops'] / r['jdistill'] / update['peak_flops']:.0%} |"
            for r in update["rows"]
        ),
        core_peak=update["peak_flops"] / 1e9,
        envs=runner["job"]["num_envs"],
        steps=runner["job"]["num_steps"],
        iteration="\n".join(
            f"| {name} | {runner[key]['collection_s']:.3f} | {runner[key]['iteration_s']:.3f} |"
            for name, key in (("rsl_rl 5.5.1", "rsl_rl"), ("jdistill", "jdistill"))
        ),
        collection_ratio=runner["ratio"]["collection_s"],
        iteration_ratio=runner["ratio"]["iteration_s"],
        collection=collection(parts),
        floor_s=hundred["rollout, phase 1"]["now"],
        teacher_s=TEACHER_FLOPS * runner["job"]["num_envs"] * runner["job"]["num_steps"] / update["peak_flops"],
        update_share=hundred["update"]["now"] / hundred["iteration, phase 1"]["now"],
        per_core=devices.ENVS_PER_CORE,
        devices=devices.table(read("devices")),
        minutes=cost["minutes"],
        compile=cost["compile_s"],
        warm=job["compile_again_s"],
        scaling_steps=scaling["steps"],
        scaling=table(scaling),
        peak_flops=scaling["peak"]["flops"] / 1e9,
        roof="\n".join(
            f"| {r['envs']} | "
            + " | ".join(f"{r[part]['share_of_peak']['flops']:.1%}" for part in ("simulator", "networks", "update"))
            + " |"
            for r in scaling["rows"]
        ),
        alone=bridge["bridge"]["alone_us"],
        around=bridge["bridge"]["around_us"],
        share=bridge["isaaclab"]["share"],
        bridge_ratio=bridge["collection"]["ratio"],
    )
