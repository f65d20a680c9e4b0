"""Arithmetic with constants behind a Concat goes before it, part by part.

Concat(boxes, scores) * strides has one range; boxes * strides and scores * strides have their own. Where the parts'
ranges differ much, that is what decides whether anything is left of the small ones.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute

ARITHMETIC = {"Mul", "Add", "Sub", "Div"}
FUNCTIONS = {
    "Sigmoid",
    "Tanh",
    "Exp",
    "Relu",
    "Sqrt",
    "Neg",
    "Abs",
    "Softplus",
    "LeakyRelu",
    "HardSigmoid",
    "Pow",
    "Clip",
}
MOST_ELEMENTS = 1 << 24  # of a constant that is spread over a tensor to be moved with it


def is_pointwise(graph: Graph, node: NodeProto) -> bool:
    """Whether a node computes each element from one element of one tensor and constants, in the tensor's shape."""
    if node.op_type not in ARITHMETIC | FUNCTIONS:
        return False
    data = data_index(graph, node)
    return data is not None and graph.shape(node.input[data]) == graph.shape(node.output[0]) is not None


def data_index(graph: Graph, node: NodeProto) -> int | None:
    """The index of the only input that is computed."""
    found = [k for k, i in enumerate(node.input) if i and i not in graph.constants]
    return found[0] if len(found) == 1 else None


def hoist(graph: Graph, node: NodeProto) -> list[NodeProto] | None:
    """Lets a pointwise node change places with the Concat, Transpose or Reshape before it, which it alone reads; the
    pointwise nodes that result, or None where they stay."""
    k = data_index(graph, node)
    mover = None if k is None else graph.producer(node.input[k], "Concat", "Transpose", "Reshape")
    if mover is None or graph.only_consumer(mover.output[0]) is not node:
        return None
    constants = {i: graph.constants[n] for i, n in enumerate(node.input) if n in graph.constants and i != k}
    split = _before(graph, mover, constants)
    if split is None:
        return None
    made, sources = [], list(mover.input) if mover.op_type == "Concat" else [mover.input[0]]
    for part, own in zip(sources, split):
        inputs = list(node.input)
        inputs[k] = part
        for i, value in own.items():
            same = value.size > 1 and (value == value.flat[0]).all()
            inputs[i] = graph.constant(node.input[i], value.flat[0] if same else value)
        name = graph.fresh(f"{node.output[0]}_part")
        new = NodeProto.FromString(node.SerializeToString())
        new.name, new.input[:], new.output[:] = name, inputs, [name]
        graph.shapes[name], graph.dtypes[name] = graph.shape(part), graph.dtypes[node.output[0]]
        graph.nodes.append(new)
        made.append(new)
    moved = [m.output[0] for m in made]
    mover.input[:] = moved if mover.op_type == "Concat" else [moved[0], *mover.input[1:]]
    mover.output[0], node.output[0] = node.output[0], graph.fresh("unused")
    graph.update()
    return made


def _before(graph: Graph, mover: NodeProto, constants: dict[int, np.ndarray]) -> list[dict[int, np.ndarray]] | None:
    """The constants as each input of `mover` meets them."""
    shape = graph.shape(mover.output[0])
    if any(i in graph.constants for i in (mover.input if mover.op_type == "Concat" else mover.input[:1])):
        return None
    spread = {i: c for i, c in constants.items() if c.size > 1}
    whole = {i: c for i, c in constants.items() if c.size == 1}
    full = {i: c.reshape((1,) * (len(shape) - c.ndim) + c.shape) for i, c in spread.items()}
    if mover.op_type == "Transpose":
        perm = attribute(mover, "perm", list(range(len(shape)))[::-1])
        return [whole | {i: c.transpose(np.argsort(perm)) for i, c in full.items()}]
    if mover.op_type == "Reshape":
        before = graph.shape(mover.input[0])
        if int(np.prod(shape)) > MOST_ELEMENTS and full:
            return None
        return [whole | {i: np.broadcast_to(c, shape).reshape(before) for i, c in full.items()}]
    axis = attribute(mover, "axis", 0) % len(shape)
    sizes = [graph.shape(i)[axis] for i in mover.input]
    edges = np.cumsum(sizes)[:-1]
    parts = {i: np.split(c, edges, axis) if c.shape[axis] > 1 else [c] * len(sizes) for i, c in full.items()}
    return [whole | {i: p[k] for i, p in parts.items()} for k in range(len(sizes))]
