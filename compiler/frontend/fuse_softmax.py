"""Recognises softmax and log-softmax that are written as exponentials, as JAX and TensorFlow export them.

exp(u) / sum(exp(u)), also times the Reciprocal, is Softmax(u); u - log(sum(exp(u))) is LogSoftmax(u). Where u is x - m
and m is one number along the axis (the maximum, guarded or not), it cancels: both are those of x.
"""

from __future__ import annotations

from onnx import NodeProto
from qcompile.frontend.graph import Graph
from qcompile.frontend.moments import plain, reduced, reduction


def fuse_softmax(graph: Graph) -> None:
    """Replace spelled softmaxes along one axis by the ONNX operator."""
    for node in list(graph.nodes):
        if graph.producer(node.output[0]) is not node:
            continue
        if node.op_type in ("Div", "Mul"):
            _softmax(graph, node)
        elif node.op_type == "Sub":
            _log_softmax(graph, node)


def _softmax(graph: Graph, node: NodeProto) -> None:
    for e, total in [tuple(node.input)] if node.op_type == "Div" else [tuple(node.input), tuple(reversed(node.input))]:
        divisor = total
        if node.op_type == "Mul":
            inverse = graph.producer(reduced(graph, total), "Reciprocal")
            if inverse is None:
                continue
            divisor = inverse.input[0]
        exponential = graph.producer(plain(graph, e), "Exp")
        axis = None if exponential is None else _axis_of_sum(graph, divisor, total, exponential.output[0])
        if exponential is not None and axis is not None:
            source = _without_offset(graph, exponential.input[0], axis)
            graph.replace(node, "Softmax", [source], axis=axis)
            graph.update(node)
            return


def _log_softmax(graph: Graph, node: NodeProto) -> None:
    log = graph.producer(reduced(graph, node.input[1]), "Log")
    found = None if log is None else reduction(graph, reduced(graph, log.input[0]), "ReduceSum")
    exponential = None if found is None else graph.producer(plain(graph, found[0].input[0]), "Exp")
    if log is None or exponential is None or plain(graph, exponential.input[0]) != plain(graph, node.input[0]):
        return
    axis = _axis_of_sum(graph, log.input[0], node.input[1], exponential.output[0])
    if axis is not None:
        graph.replace(node, "LogSoftmax", [_without_offset(graph, exponential.input[0], axis)], axis=axis)
        graph.update(node)


def _axis_of_sum(graph: Graph, total: str, read: str, summand: str) -> int | None:
    """The axis along which `total` is the sum of `summand`, read with its axis of size 1 in place."""
    found = reduction(graph, reduced(graph, total), "ReduceSum")
    shape = graph.shape(summand)
    if found is None or shape is None or len(found[1]) != 1 or plain(graph, found[0].input[0]) != summand:
        return None
    (axis,) = found[1]
    kept = tuple(1 if i == axis else n for i, n in enumerate(shape))
    return axis if graph.shape(read) == kept else None


def _without_offset(graph: Graph, name: str, axis: int) -> str:
    """x where `name` is x minus what is constant along the axis."""
    sub = graph.producer(plain(graph, name), "Sub")
    if sub is None:
        return name
    shape, offset = graph.shape(sub.input[0]), graph.shape(sub.input[1])
    if shape is None or offset is None or shape != graph.shape(name) or graph.is_constant(sub.input[0]):
        return name
    offset = (1,) * (len(shape) - len(offset)) + offset
    return sub.input[0] if offset[axis] == 1 else name
