"""Half and double precision become float32, which calibration runs in; the integers do not depend on it."""

from __future__ import annotations

import numpy as np
from onnx import AttributeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from qcompile.frontend.graph import Graph
from qcompile.frontend.narrow_types import NARROW

OTHER_FLOATS = {TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
TYPE_ATTRIBUTES = {"to", "dtype", "output_dtype"}  # of Cast, EyeLike, DequantizeLinear


def declared_types(graph: Graph) -> dict[str, str]:
    """{input or output: its element type as numpy calls it}, as the model has it before `single_precision`; integers of
    2 and 4 bits are bytes."""
    types = {v.name: v.type.tensor_type.elem_type for v in [*graph.inputs, *graph.outputs]}
    bytes_ = {narrow: wide for narrow, (wide, _, _) in NARROW.items()}
    return {name: helper.tensor_dtype_to_np_dtype(bytes_.get(t, t)).name for name, t in types.items() if t}


def single_precision(graph: Graph) -> None:
    """Turn every float16, bfloat16 and float64 constant, input, output, tensor attribute and Cast into float32."""
    types = {v.name: v.type.tensor_type.elem_type for v in [*graph.inputs, *graph.outputs]}
    if not OTHER_FLOATS & {*types.values(), *graph.dtypes.values(), *_constant_types(graph), *_cast_types(graph)}:
        return
    for name, value in graph.constants.items():
        if _is_other(value):
            graph.constants[name] = value.astype(np.float32)
    for node in graph.nodes:
        for a in node.attribute:
            if a.type == AttributeProto.TENSOR and a.t.data_type in OTHER_FLOATS:
                a.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(a.t).astype(np.float32), a.t.name))
            elif a.name in TYPE_ATTRIBUTES and a.i in OTHER_FLOATS:
                a.i = TensorProto.FLOAT
    graph.inputs = [_float32(v) for v in graph.inputs]
    graph.outputs = [_float32(v) for v in graph.outputs]
    graph.dtypes = {n: TensorProto.FLOAT if t in OTHER_FLOATS else t for n, t in graph.dtypes.items()}
    graph.changed = True


def _is_other(value: np.ndarray) -> bool:
    return value.dtype in (np.float16, np.float64) or value.dtype.name == "bfloat16"


def _constant_types(graph: Graph) -> set[int]:
    return {TensorProto.FLOAT16 for v in graph.constants.values() if _is_other(v)}


def _cast_types(graph: Graph) -> set[int]:
    return {a.i for n in graph.nodes for a in n.attribute if a.name in TYPE_ATTRIBUTES and a.type == AttributeProto.INT}


def _float32(value: ValueInfoProto) -> ValueInfoProto:
    if value.type.tensor_type.elem_type not in OTHER_FLOATS:
        return value
    copy = ValueInfoProto.FromString(value.SerializeToString())
    copy.type.tensor_type.elem_type = TensorProto.FLOAT
    return copy
