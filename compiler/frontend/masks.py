"""Sums of masks and other biases that are added to attention scores: one after the other instead.

The sum of a bias near 1 and a mask's lowest number has no grid on which both are left: scores + (bias + mask) becomes
(scores + bias) + mask. What else is read of such a sum, which rows are masked whole, is asked of its terms.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto
from qcompile.frontend.graph import Graph, attribute

LOW = -1e4  # masks go as low as this or lower
LOWEST = -1e29  # and what stands for -inf, lower than this
ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Tanh", "Clip")  # between a product and its softmax
MOVES = ("Unsqueeze", "Squeeze", "Reshape", "Expand", "Transpose", "Identity", "Tile")


def masks_apart(graph: Graph) -> None:
    """Rewrites sums that end in a Softmax, or in a guard of its rows."""
    for node in [n for n in graph.nodes if n.op_type == "Pad"]:
        _pad_apart(graph, node)
    for node in [n for n in graph.nodes if n.op_type == "Equal"]:
        _guard_apart(graph, node)
    for softmax in [n for n in graph.nodes if n.op_type == "Softmax"]:
        _scores_apart(graph, softmax.input[0])


def _scores_apart(graph: Graph, name: str) -> None:
    while (node := graph.producer(name, "Add")) is not None:
        products = [_of_product(graph, i) for i in node.input]
        if products[0] == products[1]:
            return
        at = products.index(True)
        scores, terms = node.input[at], _mask_sum(graph, node.input[1 - at]) or _split(graph, node.input[1 - at])
        if terms is not None and graph.shape(name) is not None:
            inner = graph.add("Add", [scores, terms[0]], f"{node.output[0]}_biased")
            graph.replace(node, "Add", [inner, terms[1]])
            graph.update(node)
            continue
        name = scores


def _of_product(graph: Graph, name: str) -> bool:
    """Whether a tensor is made by arithmetic from a MatMul."""
    node = graph.producer(name)
    while node is not None and node.op_type in ARITHMETIC:
        found = [m for i in node.input if (m := graph.producer(i)) is not None]
        if len(found) > 1:
            return any(_of_product(graph, m.output[0]) for m in found)
        node = found[0] if found else None
    return node is not None and node.op_type == "MatMul"


def _mask_sum(graph: Graph, name: str) -> tuple[str, str] | None:
    """(other term, mask) of an Add of which one term is a mask."""
    node = graph.producer(name, "Add")
    if node is None:
        return None
    for i in (1, 0):
        if _is_mask(graph, node.input[i]):
            return node.input[1 - i], node.input[i]
    return None


def _split(graph: Graph, name: str) -> tuple[str, str] | None:
    """(the rest, mask) of a constant that has a mask's numbers and others."""
    value = graph.constants.get(name)
    if value is None or value.dtype.kind != "f" or not np.isfinite(value).all():
        return None
    masked = value <= LOW
    if not masked.any() or not value[~masked].any():
        return None
    parts = np.where(masked, 0, value), np.where(masked, value, 0)
    return graph.constant(f"{name}_bias", parts[0]), graph.constant(f"{name}_mask", parts[1])


def _is_mask(graph: Graph, name: str) -> bool:
    """Whether a tensor has 0 and numbers far below, by a constant or a choice of constants."""
    while (maker := graph.producer(name, *MOVES)) is not None:
        name = maker.input[0]
    value = graph.constants.get(name)
    if value is not None:
        return value.dtype.kind == "f" and value.size > 0 and bool(value.min() <= LOW) and bool(value.max() <= 0)
    node = graph.producer(name, "Where")
    return node is not None and any(_low(graph, i) for i in node.input[1:])


def _low(graph: Graph, name: str) -> bool:
    value = graph.scalar(name)
    return value is not None and value <= LOW and graph.is_float(name)


def _pad_apart(graph: Graph, node: NodeProto) -> None:
    """Pad by a mask's number: by 0, and a mask over what was added."""
    shape, y = graph.shape(node.output[0]), node.output[0]
    if shape is None or len(node.input) < 3 or not _low(graph, node.input[2]) or not _ends_in_scores(graph, y):
        return
    pads = graph.constants.get(node.input[1])
    axes = graph.constants.get(node.input[3]) if len(node.input) > 3 and node.input[3] else np.arange(len(shape))
    if pads is None or axes is None or attribute(node, "mode", "constant") != "constant" or (pads < 0).any():
        return
    low = graph.scalar(node.input[2])
    inner = [slice(None)] * len(shape)
    for k, axis in enumerate(axes.reshape(-1)):
        before, after = (int(pads.reshape(-1)[i]) for i in (k, k + axes.size))
        inner[int(axis)] = slice(before, shape[int(axis)] - after)
    mask = np.full(shape, low, np.float32)
    mask[tuple(inner)] = 0
    zero = graph.constant(f"{y}_zero", np.float32(0))
    padded = graph.add("Pad", [*node.input[:2], zero, *node.input[3:]], f"{y}_padded")
    graph.replace(node, "Add", [padded, graph.constant(f"{y}_mask", mask)])
    graph.update(node)


def _ends_in_scores(graph: Graph, name: str, depth: int = 6) -> bool:
    """Whether a tensor is added, and what comes of it goes through a Softmax."""
    for node in graph.consumers(name) if depth else ():
        if node.op_type == "Softmax" or (node.op_type == "Add" and _ends_in_scores(graph, node.output[0], depth - 1)):
            return True
    return False


def _guard_apart(graph: Graph, node: NodeProto) -> None:
    """Equal(ReduceMax(a + b), -inf), rows that are masked whole: those in which a or b is that low everywhere."""
    lowest = [i for i in (0, 1) if (value := graph.scalar(node.input[i])) is not None and value <= LOWEST]
    top = graph.producer(node.input[1 - lowest[0]], "ReduceMax") if lowest else None
    terms = _terms(graph, top.input[0]) if top is not None else []
    if top is None or len(terms) < 2 or graph.shape(top.input[0]) is None:
        return
    y, low = node.output[0], graph.constant(f"{node.output[0]}_low", np.float32(LOWEST))
    masked = [graph.add("LessOrEqual", [t, low], f"{y}_masked") for t in terms]
    either = masked[0]
    for other in masked[1:]:
        either = graph.add("Or", [either, other], f"{y}_either")
    number = graph.add("Cast", [either], f"{y}_number", to=TensorProto.INT32)
    keep = attribute(top, "keepdims", 1)
    all_ = graph.add("ReduceMin", [number, *top.input[1:]], f"{y}_all", keepdims=keep)
    graph.replace(node, "Cast", [all_], to=TensorProto.BOOL)
    graph.update(node)


def _terms(graph: Graph, name: str) -> list[str]:
    """The terms of a sum in which a mask occurs."""
    found = _mask_sum(graph, name)
    return [name] if found is None else [*_terms(graph, found[0]), found[1]]
