"""Convolutions and pools over three axes as ones over two.

A convolution's taps along the depth become channels; a pool runs over rows and columns, then over the depth.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute


def _ints(graph: Graph, base: str, values: list[int]) -> str:
    return graph.constant(base, np.array(values, np.int64))


def split_pads(node: NodeProto, i: int, size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """(before, after) along the spatial axis i, as pads or auto_pad say."""
    auto, pads = attribute(node, "auto_pad", "NOTSET"), attribute(node, "pads")
    if auto == "NOTSET":
        return (pads[i], pads[i + len(pads) // 2]) if pads else (0, 0)
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
    before, after = split_pads(node, 0, d, taps, stride, dilation)
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


def expand_conv_transpose(graph: Graph, node: NodeProto) -> None:
    """ConvTranspose of [N, C, D, H, W] by constant weights: zeros between the planes, the taps along the depth as
    channels of a transposed convolution over rows and columns."""
    shape, weights, y = graph.shape(node.input[0]), graph.constants.get(node.input[1]), node.output[0]
    out = graph.shape(y)
    if shape is None or weights is None or out is None or len(shape) != 5:
        return
    n, c, d, h, w = shape
    taps, depth = weights.shape[2], out[2]
    strides, dilations = (list(attribute(node, name, [1, 1, 1])) for name in ("strides", "dilations"))
    pads = _transposed_pads(node, shape[2:], out[2:], weights.shape[2:], strides, dilations)
    stride, dilation, x = strides[0], dilations[0], node.input[0]
    if stride > 1:
        apart = graph.add("Reshape", [x, _ints(graph, f"{y}_apart", [n, c, d, 1, h * w])], f"{y}_planes")
        zeros = _ints(graph, f"{y}_zeros", [0] * 8 + [stride - 1, 0])
        spread = graph.add("Pad", [apart, zeros], f"{y}_spread")
        x = graph.add("Reshape", [spread, _ints(graph, f"{y}_deep", [n, c, d * stride, h, w])], f"{y}_deep")
    reach = dilation * (taps - 1)
    before = reach - pads[0][0]
    after = depth + reach - before - d * stride
    x = graph.add("Pad", [x, _ints(graph, f"{y}_pads", [0, 0, before, 0, 0, 0, 0, after, 0, 0])], f"{y}_padded")
    parts = []
    for k in range(taps):
        names = [_ints(graph, f"{y}_cut", [v]) for v in (k * dilation, k * dilation + depth, 2)]
        part = graph.add("Slice", [x, *names], f"{y}_tap")
        parts.append(graph.add("Reshape", [part, _ints(graph, f"{y}_tapped", [n, c, 1, depth, h * w])], f"{y}_tap"))
    taken = graph.add("Concat", parts, f"{y}_taps", axis=2) if taps > 1 else parts[0]
    turned = graph.add("Transpose", [taken], f"{y}_turned", perm=[0, 3, 1, 2, 4])
    image = graph.add("Reshape", [turned, _ints(graph, f"{y}_image", [n * depth, c * taps, h, w])], f"{y}_images")
    flat = weights[:, :, ::-1].transpose(0, 2, 1, 3, 4).reshape(c * taps, weights.shape[1], *weights.shape[3:])
    inputs = [image, graph.constant(f"{y}_flat", flat), *node.input[2:]]
    attrs: dict[str, Any] = {"kernel_shape": list(flat.shape[2:]), "strides": strides[1:], "dilations": dilations[1:]}
    attrs |= {"group": attribute(node, "group", 1), "pads": [p[side] for side in (0, 1) for p in pads[1:]]}
    attrs["output_padding"] = [p[2] for p in pads[1:]]
    planes = graph.add("ConvTranspose", inputs, f"{y}_planes", **attrs)
    last = graph.add("Reshape", [planes, _ints(graph, f"{y}_shape", [n, depth, out[1], *out[3:]])], f"{y}_volume")
    graph.replace(node, "Transpose", [last], perm=[0, 2, 1, 3, 4])


def _transposed_pads(
    node: NodeProto,
    size: tuple[int, ...],
    out: tuple[int, ...],
    kernel: tuple[int, ...],
    strides: list[int],
    dilations: list[int],
) -> list[tuple[int, int, int]]:
    """(cut off before, cut off after, added after) along each axis of a ConvTranspose whose result has sizes `out`."""
    auto, given, n = attribute(node, "auto_pad", "NOTSET"), attribute(node, "pads"), len(size)
    fixed = attribute(node, "output_shape") is not None or auto.startswith("SAME")
    found = []
    for i in range(n):
        whole = strides[i] * (size[i] - 1) + dilations[i] * (kernel[i] - 1) + 1
        if fixed:
            extra = (attribute(node, "output_padding") or [0] * n)[i]
            total = max(whole + extra - out[i], 0)
            before = total // 2 if auto == "SAME_UPPER" else total - total // 2
        else:
            before = given[i] if given and auto == "NOTSET" else 0
        kept = whole - before
        found.append((before, max(kept - out[i], 0), max(out[i] - kept, 0)))
    return found


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
    before, after = split_pads(node, 0, d, kernel, stride, dilation)
    attrs |= {name: attribute(node, name) for name in ("ceil_mode", "count_include_pad") if attribute(node, name)}
    pooled = graph.add(node.op_type, [deep], f"{y}_pooled", **attrs, pads=[before, 0, after, 0])
    graph.replace(node, "Reshape", [pooled, _ints(graph, f"{y}_shape", list(out))])
