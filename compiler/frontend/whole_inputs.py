"""Float inputs that the model only casts to integers (ids, lengths, labels of a Keras model) become integers.

A grid of 8 bits would round them to other ids. They are int32 here and scale 1 at the border, which takes floats still
and cuts them off toward zero, as Cast does.
"""

from __future__ import annotations

from onnx import TensorProto, ValueInfoProto
from qcompile.frontend.graph import Graph, attribute

MOVERS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Expand", "Tile", "Identity")
INTEGERS = {
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT16,
    TensorProto.UINT16,
    TensorProto.INT32,
    TensorProto.UINT32,
    TensorProto.INT64,
    TensorProto.UINT64,
}


def whole_inputs(graph: Graph) -> None:
    """Makes int32 inputs of them and adds their names to `graph.whole_inputs`."""
    for i, value in enumerate(graph.inputs):
        moved = _moved(graph, value.name) if graph.is_float(value.name) else None
        if moved is None:
            continue
        graph.inputs[i] = _int32(value)
        graph.dtypes |= dict.fromkeys(moved, TensorProto.INT32)
        graph.whole_inputs.add(value.name)
        graph.changed = True


def _moved(graph: Graph, name: str) -> list[str] | None:
    """The tensors that an input is moved to before it is cast to integers; None where something else reads it."""
    found, stack = [name], [name]
    cast = False
    while stack:
        tensor = stack.pop()
        if tensor in graph.output_names:
            return None
        for node in graph.consumers(tensor):
            if node.op_type == "Cast" and attribute(node, "to") in INTEGERS:
                cast = True
            elif node.op_type in MOVERS and tensor not in node.input[1:]:
                found += node.output
                stack += node.output
            else:
                return None
    return found if cast else None


def _int32(value: ValueInfoProto) -> ValueInfoProto:
    copy = ValueInfoProto.FromString(value.SerializeToString())
    copy.type.tensor_type.elem_type = TensorProto.INT32
    return copy
