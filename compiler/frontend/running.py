"""CumSum and CumProd of tensors of any type by doubling: each step combines what lies twice as far back.

Hillis and Steele, "Data parallel algorithms", 1986: n elements take log2(n) steps.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper
from qcompile.frontend.graph import Graph, attribute

COMBINED = {"CumSum": ("Add", 0), "CumProd": ("Mul", 1)}  # operator, and what changes nothing


def expand_running(graph: Graph, node: NodeProto) -> None:
    """The running sum or product along a constant axis: Slice, Concat and Add or Mul, log2(n) times."""
    axis, shape = graph.scalar(node.input[1]), graph.shape(node.input[0])
    if axis is None or not shape or node.input[0] not in graph.dtypes:
        return
    at, y = int(axis) % len(shape), node.output[0]
    operator, neutral = COMBINED[node.op_type]
    dtype = helper.tensor_dtype_to_np_dtype(graph.dtypes[node.input[0]])
    result, step = node.input[0], 1
    if attribute(node, "exclusive", 0):
        result = _moved(graph, result, shape, at, 1, np.array(neutral, dtype), node)
    while step < shape[at]:
        moved = _moved(graph, result, shape, at, step, np.array(neutral, dtype), node)
        result = graph.add(operator, [result, moved], f"{y}_running")
        step *= 2
    graph.replace(node, "Identity", [result])


def _moved(
    graph: Graph, x: str, shape: tuple[int, ...], axis: int, by: int, neutral: np.ndarray, node: NodeProto
) -> str:
    """x moved `by` places along the axis (back where the node runs in reverse), filled with `neutral`."""
    y, back = node.output[0], bool(attribute(node, "reverse", 0))
    ends = (by, shape[axis]) if back else (0, shape[axis] - by)
    fill = graph.constant(f"{y}_fill", np.full((*shape[:axis], by, *shape[axis + 1 :]), neutral))
    if by == shape[axis]:
        return fill
    bounds = [graph.constant(f"{y}_cut", np.array([v])) for v in (*ends, axis)]
    kept = graph.add("Slice", [x, *bounds], f"{y}_kept")
    return graph.add("Concat", [kept, fill] if back else [fill, kept], f"{y}_moved", axis=axis)
