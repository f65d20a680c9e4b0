"""Types of fewer than 8 bits, and codes that are clipped to fewer: written with 8-bit types and the same values.

- INT4, UINT4, INT2 and UINT2 constants become INT8 and UINT8.
- QuantizeLinear to such a type becomes Clip to its range and QuantizeLinear to 8 bits.
- An input of such a type holds its numbers in bytes; Cast to one keeps their lowest bits.
- QuantizeLinear, Clip of the codes (Brevitas' form of any width up to 8) becomes Clip of the reals, QuantizeLinear.
- A QuantizeLinear always says its type by a zero point.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper
from qcompile.frontend.graph import Graph, attribute, label, set_attribute
from qcompile.targets.errors import CompileError

# narrow type: (the 8-bit type that holds it, smallest code, largest code)
NARROW: dict[int, tuple[int, int, int]] = {
    getattr(TensorProto, name): (getattr(TensorProto, wide), low, high)
    for name, wide, low, high in (
        ("INT4", "INT8", -8, 7),
        ("UINT4", "UINT8", 0, 15),
        ("INT2", "INT8", -2, 1),
        ("UINT2", "UINT8", 0, 3),
    )
    if hasattr(TensorProto, name)
}
CODES = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16}
PAIR = ("QuantizeLinear", "DequantizeLinear")
ADDED = ("precision", "saturate")  # attributes of later versions that concern float types only


def _numpy(type_: int) -> np.dtype:
    return onnx.helper.tensor_dtype_to_np_dtype(type_)


NARROW_NAMES = {_numpy(t).name: t for t in NARROW}


def widen_types(graph: Graph) -> None:
    """Inputs, constants, casts and quantizations of 2 and 4 bits as ones of 8. Raises CompileError for 8-bit and 4-bit
    floats."""
    types = {n: NARROW_NAMES[v.dtype.name] for n, v in graph.constants.items() if v.dtype.name in NARROW_NAMES}
    for node in graph.nodes:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].t.data_type in NARROW:
            tensor = node.attribute[0].t
            types[node.output[0]] = tensor.data_type
            wide = numpy_helper.to_array(tensor).astype(_numpy(NARROW[tensor.data_type][0]))
            tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))
    for value in graph.inputs:
        if value.type.tensor_type.elem_type in NARROW:
            types[value.name] = value.type.tensor_type.elem_type
            value.type.tensor_type.elem_type = NARROW[types[value.name]][0]
    for name in types.keys() & graph.constants.keys():
        graph.constants[name] = graph.constants[name].astype(_numpy(NARROW[types[name]][0]))
    for node in list(graph.nodes):
        if node.op_type in PAIR and node.domain in ("", "ai.onnx", "com.microsoft"):
            _refuse_floats(graph, node)
            for name in ADDED:
                set_attribute(node, name, None)
        if node.op_type == "DequantizeLinear":
            set_attribute(node, "output_dtype", None)  # every float is float32
        if node.op_type == "QuantizeLinear":
            _widen_quantize(graph, node, types)
        elif node.op_type == "Cast" and attribute(node, "to") in NARROW:
            _cut(graph, node)
    graph.dtypes = {n: NARROW[t][0] if t in NARROW else t for n, t in graph.dtypes.items()}
    for output in graph.outputs:
        tensor = output.type.tensor_type
        tensor.elem_type = NARROW[tensor.elem_type][0] if tensor.elem_type in NARROW else tensor.elem_type
    graph.update()


def _cut(graph: Graph, node: NodeProto) -> None:
    """Cast to fewer bits: the lowest ones of what Cast to int32 gives, in 8."""
    wide, low, high = NARROW[attribute(node, "to")]
    y = node.output[0]
    sign, mask = (graph.constant(f"{y}_bits", np.array(v, np.int32)) for v in (-low, high - low))
    whole = graph.add("Cast", [node.input[0]], f"{y}_whole", to=TensorProto.INT32)
    kept = graph.add("BitwiseAnd", [whole, mask], f"{y}_kept")
    if low:  # the highest bit is the sign
        turned = graph.add("BitwiseXor", [kept, sign], f"{y}_turned")
        kept = graph.add("Sub", [turned, sign], f"{y}_signed")
    graph.replace(node, "Cast", [kept], to=wide)


def _refuse_floats(graph: Graph, node: NodeProto) -> None:
    """Codes that are floats of 8 or 4 bits."""
    names = [i for i in (node.input[0], *node.input[2:]) if i]
    kinds = {graph.constants[i].dtype.name for i in names if i in graph.constants}
    declared = [graph.dtypes.get(i, 0) for i in names if i not in graph.constants]
    kinds |= {TensorProto.DataType.Name(t).lower() for t in (*declared, attribute(node, "output_dtype", 0)) if t}
    found = [k for k in kinds if k.startswith(("float8", "float4"))]
    if found and not (node.op_type == "DequantizeLinear" and "output" in found[0]):
        raise CompileError(
            f"node {label(node)}: quantization to {found[0]} is not supported; use 4, 8 or 16 bit integers"
        )


def _widen_quantize(graph: Graph, node: NodeProto, types: dict[str, int]) -> None:
    zero = node.input[2] if len(node.input) > 2 else ""
    given = types.get(zero) or attribute(node, "output_dtype", 0)
    if not zero and given in (0, TensorProto.UINT8) and attribute(node, "block_size", 0) == 0:
        given = TensorProto.UINT8
    if not zero:
        shape = graph.shape(node.input[1]) or ()
        value = np.zeros(shape, _numpy(NARROW[given][0] if given in NARROW else given))
        del node.input[2:]
        node.input.append(graph.constant(f"{node.output[0]}_zero_point", value))
    set_attribute(node, "output_dtype", None)
    if given in NARROW:
        _, low, high = NARROW[given]
        node.input[0] = _clipped(graph, node, low, high)


def _clipped(graph: Graph, node: NodeProto, low: int, high: int) -> str:
    """The input of a QuantizeLinear limited to the reals of the codes low to high."""
    scale, zero = (graph.constants.get(i) for i in node.input[1:3])
    if scale is None or zero is None:
        raise CompileError(
            f"node {label(node)}: its scale is computed (dynamic quantization); quantize the model statically"
        )
    x, y = node.input[0], node.output[0]
    if x in graph.constants or scale.size > 1:  # weights: the limits lie along an axis, or in blocks
        ends = [_spread(graph, node, (c - zero.astype(np.float32)) * scale.astype(np.float32)) for c in (low, high)]
        x = graph.add("Max", [x, graph.constant(f"{y}_low", ends[0])], f"{y}_above")
        return graph.add("Min", [x, graph.constant(f"{y}_high", ends[1])], f"{y}_within")
    ends = [
        np.array((c - float(zero.reshape(-1)[0])) * np.float32(scale.reshape(-1)[0]), np.float32) for c in (low, high)
    ]
    names = [graph.constant(f"{y}_{n}", v) for n, v in zip(("low", "high"), ends)]
    clipped = graph.add("Clip", [x, *names], f"{y}_clipped")
    tables: tuple[dict, ...] = (graph.shapes, graph.dtypes)
    for known in tables:
        if x in known:
            known[clipped] = known[x]
    return clipped


def _spread(graph: Graph, node: NodeProto, value: np.ndarray) -> np.ndarray:
    """A parameter of a QuantizeLinear in a shape that broadcasts over its input."""
    shape, axis, block = graph.shape(node.input[0]), attribute(node, "axis", 1), attribute(node, "block_size", 0)
    if shape is None or value.size == 1:
        return value.reshape(())
    axis %= len(shape)
    if block:
        return np.repeat(value, block, axis)[tuple(slice(n) for n in shape)]
    return value.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def clip_before_quantize(graph: Graph) -> None:
    """Clip of the codes of a per-tensor QuantizeLinear becomes a Clip of what it quantizes."""
    for node in list(graph.nodes):
        maker = graph.producer(node.input[0], "QuantizeLinear") if node.op_type == "Clip" else None
        if maker is None or graph.constants.get(maker.input[1], np.zeros(2)).size != 1:
            continue
        zero = graph.constants.get(maker.input[2]) if len(maker.input) > 2 else np.uint8(0)
        if zero is None or not np.issubdtype(zero.dtype, np.integer):
            continue
        info = np.iinfo(zero.dtype)
        low, high = (
            graph.scalar(node.input[i]) if len(node.input) > i and node.input[i] else default
            for i, default in ((1, info.min), (2, info.max))
        )
        if low is None or high is None:
            raise CompileError(f"node {label(node)}: the limits of a Clip of codes must be constant")
        real = graph.add("QuantizeLinear", list(maker.input), f"{node.output[0]}_unclipped")
        made = graph.nodes[-1]
        made.input[0] = _clipped(graph, made, int(low), int(high))
        graph.nodes = [n for n in graph.nodes if n is not made]
        graph.replace(node, "QuantizeLinear", list(made.input))
        graph._names.discard(real)
        graph.update()
