"""Policies as C for microcontrollers: a header and a source of C99 without heap, globals or dependencies but libm.

``policy.c`` holds the weights as constants and two functions::

    policy_state state;
    policy_reset(&state);                     /* at an episode's start */
    policy_step(&state, observation, action); /* every control step */

``-DPOLICY_NO_LIBM`` does without libm too, ``-DPOLICY_SCRATCH=static`` without arrays on the stack. The names begin
with what ``--name`` says. What each number of an observation and an action is, the header says as an enum, with units.
Images are further arguments, between observation and action.
"""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jdistill.errors import ExportError
from jdistill.export import c_functions, c_images, images
from jdistill.export.formats import Exported, Student
from jdistill.export.layers import WEIGHTS, DenseLayer, PolicyLayers
from jdistill.export.verify import Start, Step
from jdistill.files import replace_file

FLAGS = ("-std=c99", "-O2", "-Wall", "-Wextra", "-Werror", "-pedantic")
"""With which a policy compiles without a word."""


def export(student: Student, out: Path) -> Exported:
    """``policy.c`` and ``policy.h``, the format ``c`` of :mod:`jdistill.export.formats`.

    The machine's C compiler builds them, and what it has built is compared with the student. Where there is none the
    files are written all the same.

    Raises:
        ExportError: the name is no C identifier, or the compiler refuses the code.
    """
    name, layers = student.name, student.layers
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ExportError(f"--name {name!r}: not a C identifier (letters, digits and _, no digit first)")
    source, header = out / f"{name}.c", out / f"{name}.h"
    replace_file(header, header_text(name, layers, student.header))
    replace_file(source, source_text(name, layers))
    notes: dict[str, Any] = {"header": header.name, "functions": [f"{name}_reset", f"{name}_step"], **sizes(layers)}
    compiler = find_compiler()
    try:
        start = None if compiler is None else compiled(compiler, source, name, layers)
    except ExportError:
        source.unlink()
        header.unlink()
        raise
    return Exported(source, start, (header,), notes)


def find_compiler() -> list[str] | None:
    """The command of the machine's C compiler: ``$CC``, else ``cc``, ``gcc`` or ``clang``; None without any."""
    for command in (os.environ.get("CC") or "", "cc", "gcc", "clang"):
        words = shlex.split(command)
        if words and shutil.which(words[0]):
            return words
    return None


def compiled(compiler: Sequence[str], source: Path, name: str, layers: PolicyLayers) -> Start | None:
    """The policy in ``source`` as ``compiler`` builds it; None where that is for another machine.

    Raises:
        ExportError: it does not.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / f"{name}.so"
        command = [*compiler, *FLAGS, "-shared", "-fPIC", str(source), "-o", str(library), "-lm"]
        built = subprocess.run(command, capture_output=True, text=True)
        if built.returncode:
            said = next((line for line in built.stderr.splitlines() if "error" in line), "no error message")
            raise ExportError(f"{source.name}: {compiler[0]} does not compile it: {said}")
        try:
            loaded = ctypes.CDLL(str(library))
        except OSError:
            return None
    reset, step = loaded[f"{name}_reset"], loaded[f"{name}_step"]
    reset.restype = step.restype = None

    def start() -> Step:
        state = (ctypes.c_float * max(state_size(layers), 1))()
        reset(state)

        def act(obs: Any) -> np.ndarray:
            vector, seen = images.inputs([cnn.cfg for cnn in layers.cnns], obs)
            given = [np.ascontiguousarray(x, np.float32) for x in (vector, *seen)]
            action = np.zeros((1, layers.num_actions), np.float32)
            step(state, *(x.ctypes for x in given), action.ctypes)
            return action

        return act

    return start


# -- sizes ---------------------------------------------------------------------------------------------------------


def state_size(layers: PolicyLayers) -> int:
    """Numbers of the recurrent state."""
    return sum(layer.outputs for layer in layers.recurrent) * len(layers.state_names)


def sizes(layers: PolicyLayers) -> dict[str, int]:
    """Bytes of constants (flash), of the state, and of the arrays on the stack during a step."""
    constants = sum(array.size for _, array in _constants(layers))
    gates = 2 * max((layer.weight_ih.shape[0] for layer in layers.recurrent), default=0)
    numbers = 2 * _widest(layers) + 2 * _scratch(layers) + gates
    return {
        "constant_bytes": 4 * constants,
        "state_bytes": 4 * state_size(layers),
        "stack_bytes": 4 * numbers,
    }


def _widest(layers: PolicyLayers) -> int:
    return max(layers.obs_size, *(max(layer.inputs, layer.outputs) for layer in layers.all))


def _scratch(layers: PolicyLayers) -> int:
    """Numbers of what encoders and CNNs compute in between; 0 without any."""
    inner = [layer.outputs for encoder in layers.encoders for layer in encoder.layers[:-1]]
    return max([c_images.largest(layers.cnns), *inner])


# -- the header ----------------------------------------------------------------------------------------------------


def header_text(name: str, layers: PolicyLayers, description: Mapping[str, Any]) -> str:
    """``policy.h``; ``description`` is the header of the student's policy file."""
    upper = name.upper()
    rate = description.get("control_rate_hz")
    rate_line = f"#define {upper}_RATE_HZ {literal(rate)} /* control steps a second */\n" if rate else ""
    enums = [_enum(f"{upper}_OBS", observation_parts(description), "The observation: where each part begins.")]
    enums.append(_enum(f"{upper}_ACTION", action_parts(description), "The action."))
    if layers.recurrent:
        count, hidden = len(layers.recurrent), layers.recurrent[0].outputs
        fields = "\n".join(f"    float {s}[{count}][{hidden}];" for s in layers.state_names)
        what = "The recurrent state"
    else:
        fields, what = "    float unused;", "There is no recurrent state; callers are the same"
    sizes_of_images = c_images.macros(c_images.images(name, layers.cnns))
    return f"""/* A policy written by jdistill: {layers.obs_size} numbers in, {layers.num_actions} out. */
#ifndef {upper}_H
#define {upper}_H

#ifdef __cplusplus
extern "C" {{
#endif

#define {upper}_OBS_SIZE {layers.obs_size}
#define {upper}_NUM_ACTIONS {layers.num_actions}
{sizes_of_images}{rate_line}
{"".join(enums)}/* {what}. */
typedef struct {{
{fields}
}} {name}_state;

/* Begin an episode. */
void {name}_reset({name}_state *state);

/* One control step: the raw observation to the action. */
{_signature(name, layers)};

#ifdef __cplusplus
}}
#endif

#endif
"""


def _signature(name: str, layers: PolicyLayers) -> str:
    """Of the function of a control step."""
    upper = name.upper()
    obs = f"const float obs[{upper}_OBS_SIZE]" if layers.obs_size else "const float *obs"
    seen = [f"const float {image.name}[{image.size}]" for image in c_images.images(name, layers.cnns)]
    arguments = [f"{name}_state *state", obs, *seen, f"float action[{upper}_NUM_ACTIONS]"]
    return f"void {name}_step({', '.join(arguments)})"


def observation_parts(description: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Name, place and comment of each part of the observation; what has no layout is its group."""
    parts, place = [], 0
    groups = [group for group in description.get("observation", {}).get("groups", []) if "shape" not in group]
    for group in groups:
        frame = f", {group['frame']} frame" if group.get("frame") else ""
        whole = [{"name": group["name"], "size": group["size"], "unit": ""}]
        for part in group.get("layout") or whole:
            named = part["name"] if len(groups) == 1 else f"{group['name']}_{part['name']}"
            parts.append((named, place, f"{part['size']} numbers, {part['unit'] or 'no unit known'}{frame}"))
            place += part["size"]
    return parts


def action_parts(description: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Name, place and comment of each action that has a name."""
    action = description.get("action", {})
    limits = f"{action['range'][0]} to {action['range'][1]}" if "range" in action else ""
    return [(name, i, limits) for i, name in enumerate(action.get("layout", []))]


def _enum(prefix: str, parts: Sequence[tuple[str, int, str]], comment: str) -> str:
    if not parts:
        return ""
    lines, taken = [], set()
    for name, place, text in parts:
        word = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_").upper() or str(place)
        word = word if word not in taken else f"{word}_{place}"
        taken.add(word)
        text = text.replace("*/", "* /")
        lines.append(f"    {prefix}_{word} = {place},{f' /* {text} */' if text else ''}")
    lines[-1] = re.sub(r"(= \d+),", r"\1", lines[-1], count=1)
    return f"/* {comment} */\nenum {{\n" + "\n".join(lines) + "\n};\n\n"


# -- the source ----------------------------------------------------------------------------------------------------


def source_text(name: str, layers: PolicyLayers) -> str:
    """``policy.c``."""
    used = ["dense", *([layers.kind] if layers.kind else [])]
    inner = [layer for encoder in layers.encoders for layer in encoder.layers]
    used += [layer.activation for layer in (*layers.dense, *inner) if layer.activation != "identity"]
    used += c_images.used(layers.cnns)
    library, functions = c_functions.sources(dict.fromkeys(used), c_images.FUNCTIONS)
    constants = "\n".join(_array(key, value) for key, value in _constants(layers))
    hidden = f"#define HIDDEN {layers.recurrent[0].outputs}\n" if layers.recurrent else ""
    scratch = f"#define SCRATCH {_scratch(layers)}\n" if _scratch(layers) else ""
    steps = "\n".join(f"    {line}" for line in _steps(name, layers))
    between = [f"{array}[SCRATCH]" for array in "ab" if re.search(rf"\b{array}\b", steps)]
    arrays = ", ".join(["x[WIDEST]", "y[WIDEST]", *between])
    reset = "\n".join(f"    {line}" for line in _reset(layers))
    return f"""#include "{name}.h"

#ifndef POLICY_SCRATCH
#define POLICY_SCRATCH /* Or "static": what a step computes in then is not on the stack. */
#endif
{library}

#define WIDEST {_widest(layers)}
{scratch}{hidden}
{constants}
{functions}

void {name}_reset({name}_state *state)
{{
{reset}
}}

{_signature(name, layers)}
{{
    POLICY_SCRATCH float {arrays};
    int i;
{steps}
}}
"""


def _constants(layers: PolicyLayers) -> Iterator[tuple[str, np.ndarray]]:
    if layers.normalizer is not None:
        yield "mean", layers.normalizer.mean
        yield "scale", layers.normalizer.scale
    yield from c_images.constants(layers.cnns)
    encoders = ((f"encoder_{i}", encoder.layers) for i, encoder in enumerate(layers.encoders))
    for kind, dense in (*encoders, ("pre", layers.pre), ("mlp", layers.mlp)):
        for i, layer in enumerate(dense):
            yield f"{kind}_{i}_weight", layer.weight
            yield f"{kind}_{i}_bias", layer.bias
    for i, cell in enumerate(layers.recurrent):
        for key in WEIGHTS:
            yield f"rnn_{i}_{key}", getattr(cell, key)
        if layers.learned_initial_state:
            for letter, value in zip(layers.state_names, cell.initial_state, strict=True):
                yield f"rnn_{i}_initial_{letter}", value


def _steps(name: str, layers: PolicyLayers) -> Iterator[str]:
    """Statements from ``obs`` to ``action``: ``x`` and ``y`` take turns."""
    if not layers.recurrent:
        yield "(void)state;"
    value = "obs[i]" if layers.normalizer is None else "(obs[i] - mean[i]) / scale[i]"
    if not layers.obs_size:
        yield "(void)obs;"
    elif layers.encoders:
        yield from _loop(layers.obs_size, f"y[i] = {value};")
        yield from _encode(layers)
    else:
        yield from _loop(layers.obs_size, f"x[i] = {value};")
    features = sum(cnn.cfg.num_features for cnn in layers.cnns)
    yield from c_images.steps(c_images.images(name, layers.cnns), layers.all[0].inputs - features)
    here, there = "x", "y"
    for i, layer in enumerate(layers.pre):
        yield from _dense_call(f"pre_{i}", layer, here, there)
        here, there = there, here
    for i, cell in enumerate(layers.recurrent):
        weights = ", ".join(f"rnn_{i}_{key}" for key in WEIGHTS)
        states = ", ".join(f"state->{letter}[{i}]" for letter in layers.state_names)
        yield f"{cell.kind}({weights}, {cell.inputs}, {here}, {states});"
        yield from _loop(cell.outputs, f"{here}[i] = state->h[{i}][i];")
    for i, layer in enumerate(layers.mlp):
        yield from _dense_call(f"mlp_{i}", layer, here, there)
        here, there = there, here
    yield from _loop(layers.num_actions, f"action[i] = {here}[i];")


def _encode(layers: PolicyLayers) -> Iterator[str]:
    """Statements from the observation in ``y`` to what the layers behind the encoders take, in ``x``."""
    place = end = 0
    for i, encoder in enumerate(layers.encoders):
        yield from _loop(encoder.start - end, f"x[{place} + i] = y[{end} + i];")
        place, here = place + encoder.start - end, f"y + {encoder.start}"
        for j, layer in enumerate(encoder.layers):
            there = f"x + {place}" if layer is encoder.layers[-1] else "ab"[j % 2]
            yield from _dense_call(f"encoder_{i}_{j}", layer, here, there)
            here = there
        place, end = place + encoder.layers[-1].outputs, encoder.start + encoder.layers[0].inputs
    yield from _loop(layers.obs_size - end, f"x[{place} + i] = y[{end} + i];")


def _dense_call(name: str, layer: DenseLayer, x: str, y: str) -> Iterator[str]:
    yield f"dense({name}_weight, {name}_bias, {layer.inputs}, {layer.outputs}, {x}, {y});"
    if layer.activation != "identity":
        yield f"{c_functions.function_name(layer.activation)}({y}, {layer.outputs});"


def _reset(layers: PolicyLayers) -> Iterator[str]:
    if not layers.recurrent:
        yield "state->unused = 0.0f;"
        return
    yield "int i;"
    for i, cell in enumerate(layers.recurrent):
        for letter in layers.state_names:
            value = f"rnn_{i}_initial_{letter}[i]" if layers.learned_initial_state else "0.0f"
            yield from _loop(cell.outputs, f"state->{letter}[{i}][i] = {value};")


def _loop(size: int, statement: str) -> Iterator[str]:
    if not size:
        return
    yield f"for (i = 0; i < {size}; i++) {{"
    yield f"    {statement}"
    yield "}"


def _array(name: str, value: np.ndarray) -> str:
    numbers = [literal(x) for x in value.reshape(-1)]
    lines = [", ".join(numbers[i : i + 8]) for i in range(0, len(numbers), 8)]
    return f"static const float {name}[{value.size}] = {{\n    " + ",\n    ".join(lines) + "};"


def literal(x: Any) -> str:
    """The shortest decimal of a float32 that is read back as the same number."""
    text = str(np.float32(x))
    return f"{text}f" if any(c in text for c in ".e") else f"{text}.0f"
