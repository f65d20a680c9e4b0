"""Explicit pads for pools: without auto_pad, and without a window of ceil_mode that begins behind the image.

ONNX Runtime and torch leave such a window out, ONNX's shape inference below opset 22 counts it, so that the shapes of
all that follows would be wrong. With auto_pad ONNX Runtime forgets that a window is dilated.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute, set_attribute
from qcompile.frontend.volumes import split_pads

POOLS = ("MaxPool", "AveragePool", "LpPool")


def explicit_pads(graph: Graph) -> bool:
    """Rewrite pools whose input shape is known. Returns whether shapes have to be inferred again: the shape of what
    follows a pool that counted a window too many is unknown till then, so at most one of a chain is changed."""
    for node in list(graph.nodes):
        shape = graph.shapes.get(node.input[0]) if node.op_type in POOLS and node.domain in ("", "ai.onnx") else None
        kernel = attribute(node, "kernel_shape")
        if shape is None or kernel is None or len(shape) != len(kernel) + 2:
            continue
        pads = pool_pads(node, shape[2:])
        if attribute(node, "auto_pad", "NOTSET") != "NOTSET":
            if attribute(node, "auto_pad").startswith("SAME"):  # sizes follow from the strides alone
                set_attribute(node, "ceil_mode", None)
            _set_pads(node, pads)
        if attribute(node, "ceil_mode", 0) and _drop_last_windows(graph, node, pads, shape[2:]):
            return True
    return False


def pool_pads(node: NodeProto, size: tuple[int, ...]) -> list[tuple[int, int]]:
    """(before, after) along each axis."""
    kernel, strides, dilations = _windows(node)
    return [split_pads(node, i, size[i], kernel[i], strides[i], dilations[i]) for i in range(len(size))]


def covering_pads(graph: Graph, node: NodeProto) -> list[int]:
    """The pads of a pool, so large behind the image that its last window ends with them."""
    size, out = (graph.shapes[name][2:] for name in (node.input[0], node.output[0]))
    kernel, strides, dilations = _windows(node)
    pads = pool_pads(node, size)
    ends = [
        max(after, (out[i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - size[i] - before)
        for i, (before, after) in enumerate(pads)
    ]
    return [*(before for before, _ in pads), *ends]


def _windows(node: NodeProto) -> tuple[list[int], list[int], list[int]]:
    kernel = list(attribute(node, "kernel_shape"))
    strides, dilations = (list(attribute(node, name) or [1] * len(kernel)) for name in ("strides", "dilations"))
    return kernel, strides, dilations


def _set_pads(node: NodeProto, pads: list[tuple[int, int]]) -> None:
    set_attribute(node, "auto_pad", None)
    set_attribute(node, "pads", [*(before for before, _ in pads), *(after for _, after in pads)])


def _drop_last_windows(graph: Graph, node: NodeProto, pads: list[tuple[int, int]], size: tuple[int, ...]) -> bool:
    """Take ceil_mode away where it adds no window; where it adds one along one axis and counts one too many along
    another, shorten this axis. Returns whether a window was counted too many."""
    over, adds = [0] * len(size), False
    for i, (kernel, stride, dilation) in enumerate(zip(*_windows(node))):
        steps, rest = divmod(size[i] + sum(pads[i]) - dilation * (kernel - 1) - 1, stride)
        if rest and (steps + 1) * stride >= size[i] + pads[i][0]:
            over[i] = rest
        elif rest:
            adds = True
    if not adds:
        set_attribute(node, "ceil_mode", None)
    elif any(over):
        _shorten(graph, node, pads, over, size)
    return any(over)


def _shorten(
    graph: Graph, node: NodeProto, pads: list[tuple[int, int]], over: list[int], size: tuple[int, ...]
) -> None:
    """Take `over` pixels, which no window reads, off the end of each axis: of the padding first."""
    kept = [s - max(o - after, 0) for s, o, (_, after) in zip(size, over, pads)]
    if kept != list(size):
        cuts = [[0] * len(size), kept, [i + 2 for i in range(len(size))]]
        names = [graph.constant(f"{node.output[0]}_cut", np.array(c, np.int64)) for c in cuts]
        node.input[0] = graph.add("Slice", [node.input[0], *names], f"{node.output[0]}_read")
    _set_pads(node, [(before, max(after - o, 0)) for (before, after), o in zip(pads, over)])
    graph.update(node)
