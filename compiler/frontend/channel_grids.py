"""Activations quantized with one scale per channel, as NNCF does before depthwise convolutions.

x / s[c] is what is rounded, so that a factor per channel in front of an ordinary QuantizeLinear, and its inverse behind
DequantizeLinear, say the same; behind a depthwise convolution the inverse belongs to the scales of the weights.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute


def single_scales(graph: Graph) -> None:
    """Give QuantizeLinear of computed tensors with scales per channel and one zero point a single scale.

    Where zero points differ, and where the codes go elsewhere than into DequantizeLinear, the graph stays as it is.
    """
    for node in list(graph.nodes):
        if node.op_type != "QuantizeLinear" or attribute(node, "block_size", 0):
            continue
        if graph.producer(node.input[0]) is None:  # a constant, or an input, whose range would become unknown
            continue
        grid = [graph.constants[i] for i in node.input[1:] if i in graph.constants]
        rank = graph.rank(node.input[0])
        readers = graph.consumers(node.output[0])
        if len(grid) != 2 or rank is None or grid[0].size == 1:
            continue
        if (grid[1] != grid[1].flat[0]).any() or any(
            r.op_type != "DequantizeLinear" or list(r.input[1:]) != list(node.input[1:]) for r in readers
        ):
            continue
        _rewrite(graph, node, readers, rank)
        graph.update()


def _rewrite(graph: Graph, node: NodeProto, readers: list[NodeProto], rank: int) -> None:
    x, name, axis = node.input[0], node.output[0], attribute(node, "axis", 1) % rank
    scale, zero = (graph.constants[i] for i in node.input[1:])
    single = scale.max()
    shares = (scale / single).reshape([-1 if i == axis else 1 for i in range(rank)]).astype(np.float32)
    grid = [graph.constant(f"{name}_scale", single), graph.constant(f"{name}_zero_point", zero.flat[0])]
    divided = graph.add("Mul", [x, graph.constant(f"{name}_factor", 1 / shares)], f"{name}_divided")
    graph.shapes[divided], graph.dtypes[divided] = graph.shapes[x], graph.dtypes[x]
    graph.replace(node, "QuantizeLinear", [divided, *grid])
    for reader in readers:
        y = reader.output[0]
        layers = graph.consumers(y)
        whole = graph.add("DequantizeLinear", [name, *grid], f"{y}_divided")
        graph.shapes[whole], graph.dtypes[whole] = graph.shapes[x], graph.dtypes[x]
        if axis == 1 and y not in graph.output_names and all(_is_depthwise(graph, n, y) for n in layers):
            for layer in layers:
                _multiply_weights(graph, layer, shares.reshape(-1))
            graph.replace_uses(y, whole)
            graph.nodes = [n for n in graph.nodes if n is not reader]
        else:
            graph.replace(reader, "Mul", [whole, graph.constant(f"{y}_factor", shares)])


def _is_depthwise(graph: Graph, node: NodeProto, data: str) -> bool:
    """Whether a Conv takes each channel of `data` by itself, with dequantized weights of one scale a channel or one."""
    if node.op_type != "Conv" or node.input[0] != data or data in node.input[1:]:
        return False
    weight = graph.producer(node.input[1], "DequantizeLinear")
    shape = graph.shape(node.input[1])
    if weight is None or shape is None or shape[0] != attribute(node, "group", 1) or shape[1] != 1:
        return False
    scale = graph.constants.get(weight.input[1])
    zero = graph.constants.get(weight.input[2]) if len(weight.input) > 2 else np.zeros(())
    per_channel = scale is not None and zero is not None and scale.shape == (shape[0],)
    return per_channel and attribute(weight, "axis", 1) % len(shape) == 0 and not attribute(weight, "block_size", 0)


def _multiply_weights(graph: Graph, layer: NodeProto, factor: np.ndarray) -> None:
    """Multiply the scales of a layer's weights, one a channel."""
    weight, y = graph.producer(layer.input[1], "DequantizeLinear"), layer.output[0]
    assert weight is not None
    scale = graph.constant(f"{y}_weight_scale", (graph.constants[weight.input[1]] * factor).astype(np.float32))
    inputs = [weight.input[0], scale, *weight.input[2:]]
    layer.input[1] = graph.add("DequantizeLinear", inputs, f"{y}_weight", axis=0)
