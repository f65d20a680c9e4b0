"""Removes nodes without effect and writes the rest in one form.

- Identity, inference Dropout, Cast to the same type, Transpose by the identity, Reshape, Expand, Slice, Pad, Concat and
  Flatten that change nothing: removed. Flatten, Squeeze and Unsqueeze stay as they are otherwise.
- Reshape with 0 or -1: written with the explicit static shape.
- Transpose of Transpose: one Transpose.
- Transpose or Reshape of a dequantized constant: applied to the constant.
- Gemm alpha, beta and transA: folded; Gemm between Reshapes that flatten and restore leading axes: MatMul and Add.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute, set_attribute

SHAPE_ONLY = {"Reshape", "Expand", "Slice", "Pad", "Concat", "Flatten", "Squeeze", "Unsqueeze", "Tile"}


def remove_no_ops(graph: Graph) -> None:
    """Bypass nodes that pass their first input through unchanged."""
    for node in list(graph.nodes):
        if graph.producer(node.output[0]) is node and _is_no_op(graph, node):
            graph.bypass(node, node.input[0])


def _is_no_op(graph: Graph, node: NodeProto) -> bool:
    x, y = node.input[0] if node.input else "", node.output[0]
    same = graph.shape(x) is not None and graph.shape(x) == graph.shape(y)
    if node.op_type == "Identity":
        return not graph.is_constant(x)
    if node.op_type == "Dropout":
        return len(node.output) == 1 or not graph.consumers(node.output[1])
    if node.op_type == "Cast":
        return graph.dtypes.get(x) is not None and graph.dtypes.get(x) == attribute(node, "to")
    if node.op_type == "Transpose":
        perm = attribute(node, "perm")
        return bool(perm) and list(perm) == sorted(perm)
    if node.op_type == "Concat":
        return len(node.input) == 1
    if node.op_type == "Slice":
        steps = graph.constants.get(node.input[4]) if len(node.input) > 4 and node.input[4] else np.array(1)
        return same and steps is not None and bool((steps == 1).all())
    if node.op_type == "Pad":
        pads = graph.constants.get(node.input[1])
        return pads is not None and not pads.any()
    return node.op_type in SHAPE_ONLY and same


def explicit_reshapes(graph: Graph) -> None:
    """Write the target of every Reshape, Flatten-free, as its static shape."""
    for node in graph.nodes:
        if node.op_type == "Reshape" and graph.shape(node.output[0]) is not None:
            want = np.array(graph.shape(node.output[0]), np.int64)
            have = graph.constants.get(node.input[1])
            if have is None or have.shape != want.shape or (have != want).any():
                node.input[1] = graph.constant(f"{node.output[0]}_shape", want)
                set_attribute(node, "allowzero", None)
                graph.changed = True
    graph.update() if graph.changed else None


def merge_transposes(graph: Graph) -> None:
    """Transpose(Transpose(x)) becomes one Transpose; Reshape(Reshape(x)) one Reshape."""
    for node in graph.nodes:
        before = graph.producer(node.input[0], node.op_type) if node.input else None
        if before is None or node.op_type not in ("Transpose", "Reshape"):
            continue
        if node.op_type == "Transpose":
            first, second = attribute(before, "perm"), attribute(node, "perm")
            if not first or not second:
                continue
            set_attribute(node, "perm", [first[p] for p in second])
        elif graph.constants.get(node.input[1]) is None or (graph.constants[node.input[1]] <= 0).any():
            continue
        node.input[0] = before.input[0]
        graph.update(node)


def move_into_weights(graph: Graph) -> None:
    """Transpose(DequantizeLinear(constant)) becomes DequantizeLinear(transposed constant) with its axis moved."""
    for node in list(graph.nodes):
        dq = graph.producer(node.input[0], "DequantizeLinear") if node.op_type == "Transpose" else None
        if dq is None or dq.input[0] not in graph.constants or attribute(dq, "block_size", 0):
            continue
        value = graph.constants[dq.input[0]]
        perm = list(attribute(node, "perm") or range(value.ndim)[::-1])
        axis = attribute(dq, "axis", 1) % max(value.ndim, 1)
        name = graph.constant(f"{dq.input[0]}_transposed", value.transpose(perm))
        graph.replace(node, "DequantizeLinear", [name, *dq.input[1:]], axis=perm.index(axis))
        graph.update(node)


def plain_gemm(graph: Graph) -> None:
    """Gemm with constant weights: alpha and beta into the constants, transA into a Transpose, a bias that differs from
    row to row (or is computed) into an Add."""
    for node in list(graph.nodes):
        if node.op_type != "Gemm":
            continue
        alpha, beta = attribute(node, "alpha", 1.0), attribute(node, "beta", 1.0)
        inputs = list(node.input)
        if inputs[1] in graph.constants and alpha != 1.0:
            inputs[1] = graph.constant(f"{inputs[1]}_scaled", graph.constants[inputs[1]] * np.float32(alpha))
            alpha = 1.0
        if len(inputs) > 2 and inputs[2] in graph.constants and beta != 1.0:
            inputs[2] = graph.constant(f"{inputs[2]}_scaled", graph.constants[inputs[2]] * np.float32(beta))
            beta = 1.0
        if len(inputs) > 2 and beta == 1.0:
            bias = graph.constants.get(inputs[2])
            if bias is None or (bias.ndim > 1 and bias.shape[0] > 1) or (bias.ndim > 1 and bias.shape[-1] == 1):
                product = graph.add(
                    "Gemm",
                    inputs[:2],
                    f"{node.output[0]}_product",
                    alpha=alpha,
                    transA=attribute(node, "transA", 0),
                    transB=attribute(node, "transB", 0),
                )
                graph.replace(node, "Add", [product, inputs[2]])
                graph.update(node)
                continue
        trans_a = attribute(node, "transA", 0)
        if trans_a:
            inputs[0] = graph.add("Transpose", [inputs[0]], f"{inputs[0]}_t", perm=[1, 0])
            trans_a = 0
        if inputs != list(node.input):
            graph.replace(node, "Gemm", inputs, transB=attribute(node, "transB", 0), alpha=alpha, beta=beta)
            graph.update(node)


def unflatten_gemm(graph: Graph) -> None:
    """Reshape to rows, Gemm by constant weights, Reshape back (leading axes kept) becomes MatMul and Add."""
    for node in list(graph.nodes):
        before = graph.producer(node.input[0], "Reshape") if node.op_type == "Gemm" else None
        after = graph.only_consumer(node.output[0], "Reshape")
        if before is None or after is None:
            continue
        if node.input[1] not in graph.constants or attribute(node, "alpha", 1.0) != 1.0:
            continue
        source, result = graph.shape(before.input[0]), graph.shape(after.output[0])
        bias = node.input[2] if len(node.input) > 2 else ""
        if source is None or result is None or source[:-1] != result[:-1] or (bias and bias not in graph.constants):
            continue
        weight = graph.constants[node.input[1]]
        if attribute(node, "transB", 0):
            weight = weight.T
        if weight.shape != (source[-1], result[-1]) or (bias and graph.constants[bias].size not in (1, result[-1])):
            continue
        inputs = [before.input[0], graph.constant(f"{node.input[1]}_kn", weight)]
        if bias:
            product = graph.add("MatMul", inputs, f"{node.output[0]}_matmul")
            flat = np.broadcast_to(graph.constants[bias].reshape(-1), (result[-1],))
            graph.replace(after, "Add", [product, graph.constant(f"{bias}_n", flat)])
        else:
            graph.replace(after, "MatMul", inputs)
        graph.update(after)
