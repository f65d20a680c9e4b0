"""What rounding every tensor to 8 bits does to a graph: noise that any 8-bit compiler has to expect."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fuzz.build import reads, session

FLOAT = onnx.TensorProto.FLOAT


def all_values(model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Every tensor of the graph for each sample, [samples, *shape], by ONNX Runtime."""
    whole = onnx.ModelProto.FromString(model.SerializeToString())
    known = {o.name for o in whole.graph.output}
    for node in model.graph.node:
        whole.graph.output.extend(helper.make_empty_tensor_value_info(o) for o in node.output if o and o not in known)
    run = session(whole)
    names = [o.name for o in run.get_outputs()]
    found = [run.run(names, feed) for feed in feeds]
    inputs = {n: np.stack([f[n] for f in feeds]) for n in feeds[0]}
    return {**inputs, **{n: np.stack([f[i] for f in found]) for i, n in enumerate(names)}}


def rounded_graph(model: onnx.ModelProto, feeds: list[dict[str, np.ndarray]]) -> onnx.ModelProto:
    """The graph with a Q/DQ pair of 256 steps, from the least to the greatest value seen, after each float tensor."""
    values = all_values(model, feeds)
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    nodes = list(copy.graph.node)
    del copy.graph.node[:]
    names: dict[str, str] = {}
    copy.graph.node.extend(n for i in copy.graph.input for n in _rounding(copy, i.name, values, names))
    for node in nodes:
        for k, name in enumerate(node.input):
            node.input[k] = names.get(name, name)
        copy.graph.node.append(node)
        for name in [o for o in node.output if o]:
            copy.graph.node.extend(_rounding(copy, name, values, names))
    for output in copy.graph.output:
        output.name = names.get(output.name, output.name)
    if any(name in names for node in nodes for name in reads(node)):
        raise ValueError("a body reads a tensor from outside")
    return copy


def _rounding(
    model: onnx.ModelProto, name: str, values: dict[str, np.ndarray], names: dict[str, str]
) -> list[onnx.NodeProto]:
    """A Q/DQ pair behind a float tensor; `names` gets the name of its result."""
    if values[name].dtype != np.float32:
        return []
    low, high = min(float(values[name].min()), 0.0), max(float(values[name].max()), 0.0)
    scale = np.float32(max((high - low) / 255, 1e-30))
    zero = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
    grid = [f"{name}__scale", f"{name}__zero"]
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), n) for v, n in zip((scale, zero), grid))
    names[name] = f"{name}__rounded"
    codes = f"{name}__codes"
    return [
        helper.make_node("QuantizeLinear", [name, *grid], [codes]),
        helper.make_node("DequantizeLinear", [codes, *grid], [names[name]]),
    ]
