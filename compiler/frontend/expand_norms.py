"""GroupNormalization in parts that everything else knows: rows of one group each, normalised, then scaled per channel.

ONNX's shape inference does not see through GroupNormalization, and PyTorch writes it in this form already.
"""

from __future__ import annotations

import numpy as np
from qcompile.frontend.graph import Graph, attribute
from qcompile.frontend.shapes import infer_shapes


def expand_group_norm(graph: Graph) -> None:
    """GroupNormalization (opset 21: scale and bias per channel; opset 18: per group) of a tensor of known shape:
    Reshape to [N, groups, rest], InstanceNormalization, Reshape back, Mul, Add."""
    for node in list(graph.nodes):
        if node.op_type != "GroupNormalization":
            continue
        x, scale, bias = node.input[:3]
        if x not in graph.shapes:
            infer_shapes(graph)
        shape = graph.shapes.get(x)
        if shape is None or scale not in graph.constants or bias not in graph.constants:
            continue
        groups = int(attribute(node, "num_groups", 1))
        per_channel = (shape[1],) + (1,) * (len(shape) - 2)
        factors = []
        for name in (scale, bias):
            value = graph.constants[name]
            value = np.repeat(value, shape[1] // groups) if value.size == groups != shape[1] else value
            factors.append(graph.constant(f"{name}_channels", value.reshape(per_channel)))
        rows = graph.add("Reshape", [x, graph.constant(f"{x}_rows", np.array([shape[0], groups, -1]))], f"{x}_groups")
        unit = [graph.constant(f"{x}_{k}", np.full(groups, v, np.float32)) for k, v in (("one", 1), ("zero", 0))]
        normal = graph.add(
            "InstanceNormalization", [rows, *unit], f"{x}_normal", epsilon=attribute(node, "epsilon", 1e-5)
        )
        back = graph.add("Reshape", [normal, graph.constant(f"{x}_shape", np.array(shape))], f"{x}_back")
        graph.replace(node, "Add", [graph.add("Mul", [back, factors[0]], f"{x}_scaled"), factors[1]])
        graph.update(node)
