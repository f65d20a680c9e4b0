"""Moments of a tensor in the algebra of exporters: means, mean squares, variances, and reciprocals of their roots.

A mean is ReduceMean, or ReduceSum times or over a number. A variance is the mean of (x - mean(x))^2, as Pow, Mul or
ReduceSumSquare, or mean(x^2) - mean(x)^2; it may be guarded against rounding below 0 (Max, Relu, Clip), be divided by
n - 1, have epsilon added before or (if tiny) after the root. Casts between floats, and Reshapes of what is reduced,
change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute

MOST_STEPS = 8  # of scaling, adding and guarding on the way from a moment to its root
TINY = 1e-4  # an epsilon added to a root is its square under it; more would be another function


@dataclass(frozen=True)
class Mean:
    """factor * mean(source) over `axes`."""

    source: str
    axes: list[int]
    factor: float = 1.0


@dataclass(frozen=True)
class Moment:
    """factor * moment + offset: the variance of `source` over `axes` where `centred`, else its mean square."""

    source: str
    axes: list[int]
    centred: bool
    factor: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Root:
    """gain / sqrt(moment + epsilon)."""

    source: str
    axes: list[int]
    centred: bool
    gain: float
    epsilon: float


def plain(graph: Graph, name: str) -> str:
    """What a tensor is in front of Casts between floats."""
    while (cast := graph.producer(name, "Cast")) is not None and graph.is_float(cast.input[0]) and graph.is_float(name):
        name = cast.input[0]
    return name


def reduced(graph: Graph, name: str) -> str:
    """The same for what is left of a reduction, whose axes of size 1 may come and go."""
    while (node := graph.producer(name, "Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity")) is not None:
        if node.op_type == "Cast" and not (graph.is_float(node.input[0]) and graph.is_float(name)):
            break
        shapes = graph.shape(node.input[0]), graph.shape(name)
        if None in shapes or [n for n in shapes[0] or () if n != 1] != [n for n in shapes[1] or () if n != 1]:
            break
        name = node.input[0]
    return name


def same_tensor(graph: Graph, a: str, b: str) -> bool:
    """Whether two names are one tensor but for Casts, or differences of the same tensors."""
    a, b = plain(graph, a), plain(graph, b)
    if a == b:
        return True
    first, second = graph.producer(a, "Sub"), graph.producer(b, "Sub")
    if first is None or second is None:
        return False
    return [plain(graph, i) for i in first.input] == [plain(graph, i) for i in second.input]


def _scaled(graph: Graph, name: str) -> tuple[str, float]:
    """(tensor, factor) of a product with, or a quotient by, a number."""
    node = graph.producer(name, "Mul", "Div")
    if node is None:
        return name, 1.0
    for k in (0, 1) if node.op_type == "Mul" else (1,):
        c = graph.scalar(node.input[k])
        if c:
            return node.input[1 - k], c if node.op_type == "Mul" else 1.0 / c
    return name, 1.0


def reduction(graph: Graph, name: str, *kinds: str) -> tuple[NodeProto, list[int], int] | None:
    """(node, axes, elements) of a reduction."""
    node = graph.producer(name, *kinds)
    shape = None if node is None else graph.shape(node.input[0])
    if node is None or shape is None:
        return None
    given = graph.constants.get(node.input[1]) if len(node.input) > 1 and node.input[1] else None
    if given is None and (len(node.input) > 1 and node.input[1]):
        return None
    old = attribute(node, "axes")
    values = list(given.ravel()) if given is not None else old if old is not None else list(range(len(shape)))
    axes = sorted({int(a) % len(shape) for a in values})
    return node, axes, int(np.prod([shape[a] for a in axes]))


def mean_of(graph: Graph, name: str) -> Mean | None:
    """The mean that `name` is, if it is one."""
    name = reduced(graph, name)
    found = reduction(graph, name, "ReduceMean", "ReduceSum")
    if found is None:
        inner, factor = _scaled(graph, name)
        mean = mean_of(graph, inner) if inner != name else None
        return None if mean is None else replace(mean, factor=mean.factor * factor)
    node, axes, count = found
    return Mean(plain(graph, node.input[0]), axes, 1.0 if node.op_type == "ReduceMean" else float(count))


def deviation_of(graph: Graph, name: str) -> tuple[str, list[int]] | None:
    """(x, axes) where `name` is x - mean(x)."""
    sub = graph.producer(plain(graph, name), "Sub")
    mean = None if sub is None else mean_of(graph, sub.input[1])
    if sub is None or mean is None or not np.isclose(mean.factor, 1.0, rtol=1e-5):
        return None
    x, shape = plain(graph, sub.input[0]), graph.shape(sub.input[0])
    kept = tuple(1 if i in mean.axes else n for i, n in enumerate(shape or ()))
    return (
        (mean.source, mean.axes) if same_tensor(graph, mean.source, x) and graph.shape(sub.input[1]) == kept else None
    )


def _square_of(graph: Graph, name: str) -> str | None:
    """d where `name` is d^2."""
    node = graph.producer(plain(graph, name), "Mul", "Pow")
    if node is None:
        return None
    if node.op_type == "Mul" and same_tensor(graph, node.input[0], node.input[1]):
        return plain(graph, node.input[0])
    if node.op_type == "Pow" and graph.scalar(node.input[1]) == 2.0:
        return plain(graph, node.input[0])
    return None


def moment_of(graph: Graph, name: str, depth: int = 0) -> Moment | None:
    """The second moment that `name` is, times a factor and with an offset, if it is one."""
    name = reduced(graph, name)
    node = graph.producer(name)
    if node is None or depth > MOST_STEPS:
        return None
    if node.op_type in ("ReduceMean", "ReduceSum", "ReduceSumSquare"):
        return _mean_square(graph, name)
    if node.op_type == "Sub":
        return _difference(graph, node.input[0], node.input[1])
    inner, factor = _scaled(graph, name)
    if inner != name:
        found = moment_of(graph, inner, depth + 1)
        return None if found is None else replace(found, factor=found.factor * factor, offset=found.offset * factor)
    if node.op_type == "Add":
        for k in (0, 1):
            c = graph.scalar(node.input[k])
            found = None if c is None else moment_of(graph, node.input[1 - k], depth + 1)
            if found is not None and c is not None and c >= 0:
                return replace(found, offset=found.offset + c)
    if node.op_type in ("Max", "Relu", "Clip", "Abs"):
        return _guarded(graph, node, depth)
    return None


def _guarded(graph: Graph, node: NodeProto, depth: int) -> Moment | None:
    """A moment kept from falling below 0, or below next to nothing."""
    data = [i for i in node.input if i and i not in graph.constants]
    low = [graph.scalar(i) for i in node.input if i in graph.constants]
    if node.op_type == "Clip":
        low = low[:1] if len(node.input) > 1 and node.input[1] in graph.constants else [None]
        high = graph.scalar(node.input[2]) if len(node.input) > 2 and node.input[2] else np.inf
        if high is None or high < 1e6:
            return None
    found = moment_of(graph, data[0], depth + 1) if len(data) == 1 else None
    if found is None or any(c is None or not c <= TINY for c in low):
        return None
    return replace(found, offset=max([found.offset, *(c for c in low if c is not None)]))


def _mean_square(graph: Graph, name: str) -> Moment | None:
    found = reduction(graph, name, "ReduceMean", "ReduceSum", "ReduceSumSquare")
    if found is None:
        return None
    node, axes, count = found
    source = plain(graph, node.input[0]) if node.op_type == "ReduceSumSquare" else _square_of(graph, node.input[0])
    if source is None:
        return None
    factor = 1.0 if node.op_type == "ReduceMean" else float(count)
    centred = deviation_of(graph, source)
    if centred is not None and centred[1] == axes:
        return Moment(centred[0], axes, True, factor)
    return Moment(source, axes, False, factor)


def _difference(graph: Graph, first: str, second: str) -> Moment | None:
    """mean(x^2) - mean(x)^2."""
    square, mean = moment_of(graph, first, 1), _square_of(graph, reduced(graph, second))
    found = None if mean is None else mean_of(graph, mean)
    if square is None or found is None or square.centred or square.offset or square.axes != found.axes:
        return None
    if not same_tensor(graph, square.source, found.source):
        return None
    if not np.allclose([square.factor, found.factor], 1.0, rtol=1e-5):
        return None
    return Moment(square.source, square.axes, True)


def _root_of(graph: Graph, name: str) -> tuple[Moment, float] | None:
    """(moment, factor) where `name` is factor * sqrt(moment)."""
    name = reduced(graph, name)
    inner, factor = _scaled(graph, name)
    if inner != name:
        found = _root_of(graph, inner)
        return None if found is None else (found[0], found[1] * factor)
    node = graph.producer(name, "Sqrt", "Pow", "Add")
    if node is None:
        return None
    if node.op_type == "Sqrt" or (node.op_type == "Pow" and graph.scalar(node.input[1]) == 0.5):
        moment = moment_of(graph, node.input[0])
        return None if moment is None else (moment, 1.0)
    if node.op_type == "Add":
        for k in (0, 1):
            c = graph.scalar(node.input[k])
            found = None if c is None or not 0 <= c <= TINY else _root_of(graph, node.input[1 - k])
            if found is not None and c is not None:
                return replace(found[0], offset=found[0].offset + (c / found[1]) ** 2), found[1]
    return None


def reciprocal_root(graph: Graph, name: str, inverted: bool = False) -> Root | None:
    """The reciprocal root that `name` is; `inverted`: that its reciprocal is."""
    if inverted:
        found = _root_of(graph, name)
        return None if found is None else _root(found[0], 1.0 / found[1])
    name = reduced(graph, name)
    node = graph.producer(name, "Reciprocal", "Div", "Pow")
    if node is None:
        return None
    if node.op_type == "Pow":
        power = graph.scalar(node.input[1])
        if power == -0.5:
            moment = moment_of(graph, node.input[0])
            return None if moment is None else _root(moment, 1.0)
        return reciprocal_root(graph, node.input[0], inverted=True) if power == -1.0 else None
    gain = 1.0 if node.op_type == "Reciprocal" else graph.scalar(node.input[0])
    inner = reciprocal_root(graph, node.input[-1], inverted=True) if gain else None
    return None if inner is None or gain is None else replace(inner, gain=inner.gain * gain)


def _root(moment: Moment, gain: float) -> Root | None:
    """1 / sqrt(k * m + e) = k^-0.5 / sqrt(m + e / k)."""
    if moment.factor <= 0:
        return None
    epsilon = moment.offset / moment.factor
    return Root(moment.source, moment.axes, moment.centred, gain / np.sqrt(moment.factor), float(epsilon))
