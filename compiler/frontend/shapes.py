"""Static shapes: gives dynamic axes a size and infers the shape and type of every tensor."""

from __future__ import annotations

import math
import operator
from collections.abc import Collection, Mapping

import onnx
from onnx import helper
from qcompile.frontend.graph import Graph, label
from qcompile.frontend.local_functions import local_functions
from qcompile.frontend.pool_pads import explicit_pads
from qcompile.targets.errors import CompileError

SMALL = 4096  # constants up to this many elements take part in shape inference by value
NO_NUMBERS = {onnx.TensorProto.STRING, onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128}
LARGEST = 2**29 - 1  # elements of a tensor: as int32 it has less than 2^31 bytes, which kernels count in int32


def fix_input_shapes(graph: Graph, shapes: Mapping[str, tuple[int, ...]] | None, notes: list[str]) -> None:
    """Give every graph input a static shape.

    `shapes` maps input names to full shapes. An unknown first axis becomes 1 where it is the input's only unknown
    axis (a note says so). Raises CompileError for any other unknown axis, an unknown name, or a shape that
    contradicts the model's.
    """
    shapes = dict(shapes or {})
    names = [v.name for v in graph.inputs]
    for name in shapes:
        if name not in names:
            raise CompileError(f"--shapes {name}: the model has no such input; its inputs are {', '.join(names)}")
    fixed = []
    for value in graph.inputs:
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type"):
            raise CompileError(f"input '{value.name}' is not a tensor; export the model with tensor inputs")
        declared = [d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim]
        ranked = tensor.HasField("shape")
        shape = shapes.get(value.name)
        if shape is not None:
            try:
                shape = tuple(operator.index(s) for s in shape)
            except TypeError as e:
                raise CompileError(f"--shapes {value.name}: {shape!r} is no sequence of sizes such as (1, 3)") from e
            clash = ranked and (len(shape) != len(declared) or any(d not in (None, s) for d, s in zip(declared, shape)))
            if clash or any(s < 1 for s in shape):
                raise CompileError(
                    f"--shapes {value.name}:{'x'.join(map(str, shape))} contradicts the model, which "
                    f"declares {['?' if d is None else d for d in declared]}"
                )
        else:
            unknown = [i for i, d in enumerate(declared) if d is None]
            if not ranked or any(i != 0 for i in unknown):
                axis = next((i for i in unknown if i != 0), 0)
                example = "x".join(str(d or (1 if i == 0 else 224)) for i, d in enumerate(declared)) or "1x3x224x224"
                raise CompileError(
                    f"input '{value.name}': axis {axis} has no fixed size; give it with --shapes {value.name}:{example}"
                )
            shape = tuple(d or 1 for d in declared)
            if unknown:
                notes.append(f"input '{value.name}': the dynamic batch axis was fixed to 1")
        if tensor.elem_type in NO_NUMBERS:
            raise CompileError(f"input '{value.name}' holds no real numbers; export the model with numeric inputs")
        _check_size(f"input '{value.name}'", shape)
        fixed.append(helper.make_tensor_value_info(value.name, tensor.elem_type, shape))
    if [v.SerializeToString() for v in fixed] == [v.SerializeToString() for v in graph.inputs]:
        return
    graph.inputs = fixed
    graph.shapes.clear()
    graph.outputs = [helper.make_tensor_value_info(o.name, o.type.tensor_type.elem_type, None) for o in graph.outputs]
    graph.changed = True


def infer_shapes(graph: Graph) -> None:
    """Infer shapes and types of all tensors (ONNX shape inference with data propagation)."""
    typed = {*graph.constants, *(v.name for v in graph.inputs)}
    while True:
        # ONNX's inference reads the type of what EyeLike reads, known or not, and crashes
        waiting = {id(n) for n in graph.nodes if n.op_type == "EyeLike" and n.input[0] not in typed}
        try:
            inferred = _infer(graph, waiting)
        except Exception as e:  # the C++ inference raises several types
            raise CompileError(f"shape inference fails: {_reason(e)}") from e
        graph.shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in graph.inputs}
        found = [*inferred.graph.value_info, *inferred.graph.output]
        graph.note_types(found)
        before = len(typed)
        typed |= {v.name for v in found if v.type.tensor_type.elem_type} if waiting else set()
        if not explicit_pads(graph) and len(typed) == before:
            return


def _infer(graph: Graph, without: Collection[int] = (), strict: bool = False) -> onnx.ModelProto:
    """Shape inference over the graph; large weights take part by their type only."""
    declared = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for k, v in graph.constants.items()
        if v.size > SMALL
    ]
    small = [onnx.numpy_helper.from_array(v, k) for k, v in graph.constants.items() if v.size <= SMALL]
    inputs = [*graph.inputs, *declared]
    bare = [helper.make_tensor_value_info(o.name, o.type.tensor_type.elem_type, None) for o in graph.outputs]
    skeleton = helper.make_model(
        helper.make_graph([n for n in graph.nodes if id(n) not in without], "shapes", inputs, bare, small),
        opset_imports=[helper.make_opsetid(d, v) for d, v in graph.opsets.items()],
        ir_version=10,
        functions=local_functions(graph.nodes, graph.opsets.get("", 1)),
    )
    return onnx.shape_inference.infer_shapes(skeleton, strict_mode=strict, data_prop=True)


def _reason(error: Exception) -> str:
    """One line of a message of ONNX's shape inference, without its headings."""
    text = " ".join(str(error).split())
    return text.rpartition("[ShapeInferenceError] ")[2]


def check_static(graph: Graph) -> None:
    """Raise CompileError naming the first node whose result has no static shape, and why, or is too large."""
    for node in graph.nodes:
        for o in node.output:
            if o and (o not in graph.shapes or o not in graph.dtypes):
                try:
                    _infer(graph, strict=True)
                except Exception as e:
                    raise CompileError(f"node {label(node)}: its shapes do not fit: {_reason(e)}") from e
                raise CompileError(
                    f"node {label(node)}: the shape of its result '{o}' depends on data or is unknown; "
                    "export the model with fixed shapes, or give them with --shapes"
                )
            if o:
                _check_size(f"node {label(node)}: its result '{o}'", graph.shapes[o])
            if o and 0 in graph.shapes[o] and o in graph.output_names:
                raise CompileError(f"node {label(node)}: its result '{o}' is empty, shape {graph.shapes[o]}")


def _check_size(what: str, shape: tuple[int, ...]) -> None:
    count = element_count(shape)
    if count > LARGEST:
        raise CompileError(f"{what} has {count} elements, shape {shape}; at most {LARGEST} are supported")


def element_count(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
