"""The float function with Q/DQ pairs becomes a program of integer ops.

The graph is read once, in order. Each op's handler says what its result is (see `values`): a constant, integers with a
scale, a function of one quantized tensor, an accumulator, a sum, or something deferred. A QuantizeLinear gives a
deferred value its grid, and only then integer ops are emitted. What no handler knows is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qcompile.kernels.program import Program
from qcompile.passes.integerize import (  # noqa: F401  (they register their handlers)
    elementwise,
    functions,
    gather,
    linear,
    movement,
    norm,
    quantization,
    recurrent,
    reduction,
    resample,
    sampling,
    selection,
    softmax,
    whole,
)
from qcompile.passes.integerize.borders import of_declared_type
from qcompile.passes.integerize.integers import constant
from qcompile.passes.integerize.reader import Reader, is_whole, shape_of
from qcompile.passes.integerize.states import settled_state
from qcompile.passes.integerize.values import Integers, Quantized, Real, Rows, identity, symmetric_grid, value_range


def integerize(
    module: Any,
    names: dict[str, str],
    outputs: list[str],
    approx: str = "exact",
    notes: list[str] | None = None,
    states: Mapping[str, str] | None = None,
) -> Program:
    """The integer program of module["main"]; `names` maps Relax variables to tensor names for messages.

    Program.info gets "inputs" and "outputs": name -> [scale, zero_point], absent for plain integers; an
    output of several scales has [scales, zero_point, axis]. "origins", for messages: integer node -> ONNX node.
    `states` {input: output}: that output is made in the type and on the scale of that input.
    `notes` receives remarks for the user, such as weights that had to be rounded again.
    Raises CompileError naming the tensor whose op has no integer form.
    """
    reader = Reader(module["main"], names, approx)
    reader.read()
    if notes is not None:
        notes.extend(reader.notes)
    body = module["main"].body.body
    results = [reader._value(body)]
    if isinstance(results[0], list):
        results = results[0]
    program, scales = reader.builder.program, {}
    fed = {target: source for source, target in (states or {}).items()}
    for name, value in zip(outputs, results):
        reader.where = f"output {name}"
        with reader.naming():
            result = reader.type_of(body, len(program.outputs))
            declared = str(result.ty.dtype)
            if isinstance(value, Real):
                value = _constant_output(reader, value, declared)
            if not isinstance(value, Integers) and is_whole(result):
                value = reader.whole(value)
            if isinstance(value, Rows):
                scales[name] = [value.scale.tolist(), value.zero_point, value.axis]
            elif not isinstance(value, Integers):
                value = settled_state(reader, value, fed.get(name))
                value = reader.make.plain(value)
                scales[name] = [float(value.scale), value.zero_point]
            tensor = reader.make.physical(value.name, value.axes, identity(len(value.shape)))
            tensor, moved = of_declared_type(reader, tensor, declared, name in scales)
            if name in scales:
                scales[name][1] += moved
            # a constant of one element has an axis, a number has none
            if reader.builder.types[tensor].shape != (shape := shape_of(result)):
                tensor = reader.builder.emit("reshape", [tensor], shape=list(shape))
            program.outputs.append(tensor)
    program.info["outputs"] = scales
    program.info["origins"] = reader.builder.origins
    program.info["output_names"] = list(outputs)
    for param in reader.function.params:
        reader.keep_input(param)
    order = [names.get(p.name, p.name) for p in reader.function.params]
    program.inputs = {n: program.inputs[n] for n in order}
    return program


def _constant_output(r: Reader, v: Real, declared: str) -> Integers | Quantized:
    """Integers as they are, reals on a grid of 16 bits."""
    if declared.startswith("float"):
        return r.make.quantize(v, symmetric_grid(*value_range(v)))
    return constant(r, v.values, declared)


__all__ = ["integerize"]
