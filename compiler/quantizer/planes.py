"""Layers whose input has 16 bits: a product of the high part of its codes and one of the low part.

x = h + l, where h is x on a coarse 8-bit grid and l what is left, on 8 bits that divide one step of that grid:
W x = W h + W l, two products by the same weights, summed in front of the one rounding of their result.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, TensorProto, helper
from qcompile.frontend.graph import Graph
from qcompile.quantizer.histogram import HEADROOM
from qcompile.quantizer.operators import is_bias_add

STEPS = 254  # of the low part in one of the high part, which is off by half a step at most


@dataclass
class Planes:
    """Inputs that were split. parts: {low part: high part}; inputs: the tensors themselves; sums: what is added up,
    with 16 bits where it is not added unrounded."""

    parts: dict[str, str] = field(default_factory=dict)
    inputs: set[str] = field(default_factory=set)
    sums: set[str] = field(default_factory=set)


def split_inputs(graph: Graph, layers: Collection[NodeProto], peaks: Mapping[str, float]) -> Planes:
    """Splits the inputs of `layers`, whose largest magnitudes are `peaks`, and each layer into two, in place."""
    made: dict[str, tuple[str, str]] = {}
    planes = Planes()
    for node in layers:
        data = node.input[0]
        if data not in made:
            made[data] = _parts(graph, data, peaks[data])
        high, low = made[data]
        tail = graph.only_consumer(node.output[0], "Add")
        tail = tail if tail is not None and is_bias_add(graph, tail) else node
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        node.input[0] = high
        rest = graph.add(node.op_type, [low, node.input[1]], f"{node.output[0]}_low", **attributes)
        result, tail.output[0] = tail.output[0], graph.fresh(f"{tail.output[0]}_high")
        graph.add("Add", [tail.output[0], rest], [result])
        for name in (rest, tail.output[0]):
            graph.shapes[name], graph.dtypes[name] = graph.shapes[result], TensorProto.FLOAT
        planes.sums |= {rest, tail.output[0]}
    graph.update()
    planes.parts, planes.inputs = {low: high for high, low in made.values()}, set(made)
    return planes


def _parts(graph: Graph, data: str, peak: float) -> tuple[str, str]:
    """The high and the low part of a tensor, each on its grid."""
    coarse = float(np.float32(max(peak, 1e-12) * HEADROOM / 127))

    def coded(tensor: str, scale: float, name: str) -> str:
        grid = [
            graph.constant("scale", np.array(scale, np.float32)),
            graph.constant("zero_point", np.array(0, np.int8)),
        ]
        codes = graph.add("QuantizeLinear", [tensor, *grid], f"{name}_codes")
        result = graph.add("DequantizeLinear", [codes, *grid], name)
        graph.shapes[codes], graph.dtypes[codes] = graph.shapes[data], TensorProto.INT8
        return result

    high = coded(data, coarse, f"{data}_high")
    difference = graph.add("Sub", [data, high], f"{data}_rest")
    low = coded(difference, coarse / STEPS, f"{data}_low")
    for name in (high, difference, low):
        graph.shapes[name], graph.dtypes[name] = graph.shapes[data], TensorProto.FLOAT
    return high, low
