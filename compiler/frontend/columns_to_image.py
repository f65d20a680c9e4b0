"""Operators that are convolutions with weights of zeros and ones: Col2Im, dilated averages."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute
from qcompile.frontend.volumes import split_pads


def expand_col2im(graph: Graph, node: NodeProto) -> None:
    """The columns as channels of a transposed convolution whose weights put each into its place of the block."""
    image, block = (graph.constants.get(i) for i in node.input[1:3])
    shape, y = graph.shape(node.input[0]), node.output[0]
    if image is None or block is None or shape is None:
        return
    size, kernel = [int(i) for i in image], [int(i) for i in block]
    n, taps = len(size), int(np.prod(kernel))
    channels = shape[1] // taps
    pads = attribute(node, "pads", [0] * 2 * n)
    strides, dilations = (list(attribute(node, name, [1] * n)) for name in ("strides", "dilations"))
    grid = [
        (s + pads[i] + pads[i + n] - d * (k - 1) - 1) // st + 1
        for i, (s, k, st, d) in enumerate(zip(size, kernel, strides, dilations))
    ]
    extra = [
        s - ((g - 1) * st + d * (k - 1) + 1 - pads[i] - pads[i + n])
        for i, (s, g, k, st, d) in enumerate(zip(size, grid, kernel, strides, dilations))
    ]
    columns = graph.add(
        "Reshape",
        [node.input[0], graph.constant(f"{y}_grid", np.array([shape[0], shape[1], *grid]))],
        f"{y}_columns",
    )
    ones = np.tile(np.eye(taps, dtype=np.float32).reshape(taps, 1, *kernel), (channels, 1, *[1] * n))
    attrs: dict[str, Any] = {"strides": strides, "dilations": dilations, "pads": list(pads), "output_padding": extra}
    graph.replace(
        node,
        "ConvTranspose",
        [columns, graph.constant(f"{y}_places", ones)],
        group=channels,
        kernel_shape=kernel,
        **attrs,
    )


def expand_dilated_average(graph: Graph, node: NodeProto) -> None:
    """A dilated AveragePool: a depthwise convolution, times what makes up for the elements that a window lacks."""
    shape, out, y = graph.shape(node.input[0]), graph.shape(node.output[0]), node.output[0]
    dilations = attribute(node, "dilations")
    if shape is None or out is None or not dilations or set(dilations) == {1}:
        return
    kernel, n = list(attribute(node, "kernel_shape")), len(shape) - 2
    strides = list(attribute(node, "strides", [1] * n))
    begin, end = [], []
    counts = np.ones(())
    for i in range(n):
        before, after = split_pads(node, i, shape[2 + i], kernel[i], strides[i], dilations[i])
        reach = (out[2 + i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1
        begin.append(before)
        end.append(max(reach - shape[2 + i] - before, 0))
        places = np.arange(out[2 + i])[:, None] * strides[i] + np.arange(kernel[i]) * dilations[i] - before
        top = shape[2 + i] + (after if attribute(node, "count_include_pad", 0) else 0)
        low = -before if attribute(node, "count_include_pad", 0) else 0
        counts = np.multiply.outer(counts, ((places >= low) & (places < top)).sum(1))
    taps = int(np.prod(kernel))
    weights = np.full((shape[1], 1, *kernel), 1 / taps, np.float32)
    inputs = [node.input[0], graph.constant(f"{y}_weights", weights)]
    attrs: dict[str, Any] = {"group": shape[1], "kernel_shape": kernel, "strides": strides}
    attrs |= {"dilations": list(dilations), "pads": [*begin, *end]}
    if (counts == taps).all():
        graph.replace(node, "Conv", inputs, **attrs)
        return
    average = graph.add("Conv", inputs, f"{y}_average", **attrs)
    share = graph.constant(f"{y}_share", (taps / counts).astype(np.float32)[None, None])
    graph.replace(node, "Mul", [average, share])
