"""What the quantizer changes in the float graph before it places pairs.

- Dequantized constant weights (dynamic-range models) become float constants, to be quantized again by our rules.
- A projection followed by Split along its output channels (fused Q, K, V) becomes one projection per part, so that each
  part has its own scale and needs no copy.
"""

from __future__ import annotations

import numpy as np
from qcompile.frontend.fold_scales import per_channel
from qcompile.frontend.graph import Graph, attribute


def prepare(graph: Graph) -> None:
    """Apply both rewrites."""
    float_weights(graph)
    split_projections(graph)


def float_weights(graph: Graph) -> None:
    """DequantizeLinear of integer constants becomes a float constant."""
    for node in graph.nodes:
        if (
            node.op_type != "DequantizeLinear"
            or node.input[0] not in graph.constants
            or attribute(node, "block_size", 0)
        ):
            continue
        codes, scale = graph.constants[node.input[0]], graph.constants.get(node.input[1])
        if scale is None:
            continue
        zero = graph.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros_like(scale)
        shape = [1] * codes.ndim
        if scale.size > 1:
            shape[attribute(node, "axis", 1)] = -1
        value = (codes.astype(np.float32) - zero.astype(np.float32).reshape(shape)) * scale.reshape(shape)
        graph.constants[node.output[0]] = value.astype(np.float32).reshape(codes.shape)
    graph.nodes = [n for n in graph.nodes if n.op_type != "DequantizeLinear" or n.output[0] not in graph.constants]
    graph.update()


def split_projections(graph: Graph) -> None:
    """Split(MatMul(x, W) + b) over the last axis becomes MatMul(x, W_i) + b_i for each part."""
    for split in list(graph.nodes):
        if split.op_type != "Split":
            continue
        name = split.input[0]
        shape = graph.shape(name)
        if attribute(split, "axis", 0) % len(shape) != len(shape) - 1 or graph.only_consumer(name) is not split:
            continue
        maker, bias = graph.producer(name, "Add", "MatMul", "Gemm"), None
        if maker is not None and maker.op_type == "Add":
            k = next((i for i in (0, 1) if maker.input[i] in graph.constants), None)
            bias = None if k is None else per_channel(graph, graph.constants[maker.input[k]], name, -1)
            layer = None if bias is None else graph.producer(maker.input[1 - k], "MatMul")
            if layer is not None and graph.only_consumer(layer.output[0]) is not maker:
                continue
        else:
            layer = maker
        if layer is None or layer.input[1] not in graph.constants or graph.constants[layer.input[1]].ndim != 2:
            continue
        weight = graph.constants[layer.input[1]]
        if layer.op_type == "Gemm":
            if attribute(layer, "alpha", 1.0) != 1.0 or attribute(layer, "beta", 1.0) != 1.0:
                continue
            if len(layer.input) > 2:
                constant = graph.constants.get(layer.input[2])
                bias = None if constant is None else per_channel(graph, constant, name, -1)
                if bias is None:
                    continue
            weight = weight.T if attribute(layer, "transB", 0) else weight
        start = 0
        for part in split.output:
            size = graph.shape(part)[-1]
            inputs = [layer.input[0], graph.constant(f"{part}_weight", weight[:, start : start + size])]
            if bias is None:
                graph.add("MatMul", inputs, [part])
            else:
                product = graph.add("MatMul", inputs, f"{part}_matmul")
                graph.shapes[product], graph.dtypes[product] = graph.shapes[part], graph.dtypes[part]
                vector = graph.constant(f"{part}_bias", bias[start : start + size].astype(np.float32))
                graph.add("Add", [product, vector], [part])
            start += size
        graph.nodes = [n for n in graph.nodes if n is not split]
        graph.update()
