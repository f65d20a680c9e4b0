"""Convolutions and pools over three axes as ones over two.

A convolution's taps along the depth become channels; a pool runs over rows and columns, then over the depth.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute


def _ints(graph: Graph, base: str, values: list[int]) -> str:
    return graph.constant(base, np.array(values, np.int64))


def _depth_pads(node: NodeProto, size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """(before, after) along the depth, as pads or auto_pad say."""
    auto, pads = attribute(node, "auto_pad", "NOTSET"), attribute(node, "pads", [0] * 6)
    if auto == "NOTSET":
        return pads[0], pads[3]
    if auto == "VALID":
        return 0, 0
    total = max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if auto == "SAME_UPPER" else (large, small)


def _without_depth(node: NodeProto) -> dict:
    """The node's windows along rows and columns."""
    attrs = {
        name: list(value)[1:] for name in ("kernel_shape", "strides", "dilations") if (value := attribute(node, name))
    }
    pads = attribute(node, "pads")
    if pads:
        attrs["pads"] = [*pads[1:3], *pads[4:6]]
    others = ("auto_pad", "ceil_mode", "count_include_pad", "group")
    return attrs | {name: attribute(node, name) for name in others if attribute(node, name) is not None}


def expand_conv(graph: Graph, node: NodeProto) -> None:
    """Conv of [N, C, D, H, W] by constant weights: one over [N * OD, C * KD, H, W]."""
    shape, weights, y = graph.shape(node.input[0]), graph.constants.get(node.input[1]), node.output[0]
    if shape is None or weights is None or len(shape) != 5:
        return
    n, c, d, h, w = shape
    taps = weights.shape[2]
    stride, dilation = (attribute(node, name, [1, 1, 1])[0] for name in ("strides", "dilations"))
    before, after = _depth_pads(node, d, taps, stride, dilation)
    x = node.input[0]
    if before or after:
        pads = _ints(graph, f"{y}_pads", [0, 0, before, 0, 0, 0, 0, after, 0, 0])
        x = graph.add("Pad", [x, pads], f"{y}_padded")
    depth = (d + before + after - dilation * (taps - 1) - 1) // stride + 1
    parts = []
    for k in range(taps):
        ends = [k * dilation, k * dilation + (depth - 1) * stride + 1, 2, stride]
        names = [_ints(graph, f"{y}_cut{i}", [e]) for i, e in enumerate(ends)]
        part = graph.add("Slice", [x, *names], f"{y}_tap")
        parts.append(graph.add("Reshape", [part, _ints(graph, f"{y}_tapped", [n, c, 1, depth, h * w])], f"{y}_tap"))
    taken = graph.add("Concat", parts, f"{y}_taps", axis=2) if taps > 1 else parts[0]
    turned = graph.add("Transpose", [taken], f"{y}_turned", perm=[0, 3, 1, 2, 4])
    image = graph.add("Reshape", [turned, _ints(graph, f"{y}_image", [n * depth, c * taps, h, w])], f"{y}_images")
    flat = weights.reshape(weights.shape[0], weights.shape[1] * taps, *weights.shape[3:])
    attrs = _without_depth(node) | {"kernel_shape": list(flat.shape[2:])}
    inputs = [image, graph.constant(f"{node.input[1]}_flat", flat), *node.input[2:]]
    out = graph.shape(y)
    if out is None:
        return
    planes = graph.add("Conv", inputs, f"{y}_planes", **attrs)
    last = graph.add("Reshape", [planes, _ints(graph, f"{y}_shape", [n, depth, *out[1:2], *out[3:]])], f"{y}_volume")
    graph.replace(node, "Transpose", [last], perm=[0, 2, 1, 3, 4])


def expand_pool(graph: Graph, node: NodeProto) -> None:
    """MaxPool or AveragePool of [N, C, D, H, W]: over [N, C * D, H, W], then over [N, C, D, OH * OW]."""
    shape, out, y = graph.shape(node.input[0]), graph.shape(node.output[0]), node.output[0]
    if shape is None or out is None or len(shape) != 5 or len(node.output) > 1:
        return
    n, c, d, h, w = shape
    first = graph.add("Reshape", [node.input[0], _ints(graph, f"{y}_image", [n, c * d, h, w])], f"{y}_images")
    planes = graph.add(node.op_type, [first], f"{y}_planes", **_without_depth(node))
    rows, columns = out[3:]
    deep = graph.add("Reshape", [planes, _ints(graph, f"{y}_deep", [n, c, d, rows * columns])], f"{y}_columns")
    attrs: dict = {
        name: [value[0], 1] for name in ("kernel_shape", "strides", "dilations") if (value := attribute(node, name))
    }
    kernel, stride, dilation = (attribute(node, name, [1])[0] for name in ("kernel_shape", "strides", "dilations"))
    before, after = _depth_pads(node, d, kernel, stride, dilation)
    attrs |= {name: attribute(node, name) for name in ("ceil_mode", "count_include_pad") if attribute(node, name)}
    pooled = graph.add(node.op_type, [deep], f"{y}_pooled", **attrs, pads=[before, 0, after, 0])
    graph.replace(node, "Reshape", [pooled, _ints(graph, f"{y}_shape", list(out))])
