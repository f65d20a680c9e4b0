"""Recognises activation functions that exporters write as several nodes.

Accepts, in any operand order:
- GELU, erf form: x * 0.5 * (1 + Erf(x / sqrt 2)), with Div or Mul by the constant, 0.5 anywhere -> Gelu.
- GELU, tanh form: 0.5 * x * (1 + Tanh(sqrt(2/pi) * (x + 0.044715 x^3))) -> Gelu(approximate="tanh").
- HardSwish: x * HardSigmoid(x; 1/6, 1/2), x * Clip(x + 3, 0, 6) / 6 -> HardSwish.
- HardSigmoid: Clip(x + 3, 0, 6) / 6 -> HardSigmoid.
- Mish: x * Tanh(Softplus(x)) -> Mish. SiLU stays x * Sigmoid(x), operands in this order.

A product is compared by its numeric value on sample points, so that any arrangement of the same factors matches.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute

_erf = np.vectorize(math.erf)
UNARY = {
    "Erf": lambda n, x: _erf(x),
    "Tanh": lambda n, x: np.tanh(x),
    "Sigmoid": lambda n, x: 1 / (1 + np.exp(-x)),
    "Softplus": lambda n, x: np.log1p(np.exp(x)),
    "Relu": lambda n, x: np.maximum(x, 0),
    "Neg": lambda n, x: -x,
    "HardSigmoid": lambda n, x: np.clip(attribute(n, "alpha", 0.2) * x + attribute(n, "beta", 0.5), 0, 1),
}
BINARY = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Pow": np.power}
POINTS = np.linspace(-6.0, 6.0, 121) + 0.0137
# op type, attributes, meaning on POINTS, how closely exporters' constants agree with it
NAMED: dict[str, tuple[str, dict[str, Any], np.ndarray, float]] = {
    "gelu": ("Gelu", {"approximate": "none"}, POINTS * 0.5 * (1 + _erf(POINTS / math.sqrt(2))), 2e-6),
    "gelu_tanh": (
        "Gelu",
        {"approximate": "tanh"},
        0.5 * POINTS * (1 + np.tanh(math.sqrt(2 / math.pi) * (POINTS + 0.044715 * POINTS**3))),
        2e-5,
    ),
    "hard_swish": ("HardSwish", {}, POINTS * np.clip(POINTS / 6 + 0.5, 0, 1), 2e-6),
    "hard_sigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, np.clip(POINTS / 6 + 0.5, 0, 1), 2e-6),
    "mish": ("Mish", {}, POINTS * np.tanh(np.log1p(np.exp(POINTS))), 2e-6),
}
DEPTH = 12


def fuse_activations(graph: Graph) -> None:
    """Replace regions that compute a named activation of one tensor by that activation."""
    for node in reversed(list(graph.nodes)):
        if node.op_type not in ("Mul", "Div", "Add") or graph.producer(node.output[0]) is not node:
            continue
        if not graph.is_float(node.output[0]):
            continue
        for source in _candidates(graph, node):
            value = _value(graph, node.output[0], DEPTH, {source: POINTS})
            name = next(
                (k for k, (_, _, want, tol) in NAMED.items() if value is not None and np.abs(value - want).max() < tol),
                None,
            )
            if name and graph.shape(source) == graph.shape(node.output[0]):
                op_type, attrs, _, _ = NAMED[name]
                graph.replace(node, op_type, [source], **attrs)
                graph.update(node)
                break
    _order_silu(graph)


def _candidates(graph: Graph, node: NodeProto) -> list[str]:
    """Tensors within reach of `node` that its result could be a function of: those read by two nodes, or its end."""
    found: dict[str, int] = {}
    frontier = [(node.output[0], 0)]
    while frontier:
        name, depth = frontier.pop()
        maker = graph.producer(name, *UNARY, *BINARY, "Clip", "Min", "Max")
        if depth:
            found[name] = depth
        if maker is not None and depth < DEPTH and len(found) < 24:
            frontier.extend((i, depth + 1) for i in maker.input if i and i not in graph.constants and i not in found)
    return sorted(found, key=lambda name: found[name])


def _value(graph: Graph, name: str, depth: int, known: dict[str, np.ndarray | None]) -> np.ndarray | None:
    """The tensor `name` as a function of the source on POINTS, or None where it depends on anything else. `known`: the
    values so far; it begins with the source's."""
    if name not in known:
        known[name] = None
        known[name] = _computed(graph, name, depth, known)
    return known[name]


def _computed(graph: Graph, name: str, depth: int, known: dict[str, np.ndarray | None]) -> np.ndarray | None:
    if name in graph.constants:
        scalar = graph.scalar(name)
        return None if scalar is None else np.full_like(POINTS, scalar)
    node = graph.producer(name, *UNARY, *BINARY, "Clip")
    if node is None or depth == 0 or any(i in graph.constants and graph.scalar(i) is None for i in node.input):
        return None
    args = [_value(graph, i, depth - 1, known) if i else None for i in node.input]
    given = [a for a in args if a is not None]
    if args[0] is None or (node.op_type in BINARY and len(given) < len(args)):
        return None
    with np.errstate(all="ignore"):
        if node.op_type == "Clip":
            low, high = ([*args[1:], None, None])[:2]
            return np.clip(args[0], -np.inf if low is None else low, np.inf if high is None else high)
        result = UNARY[node.op_type](node, args[0]) if node.op_type in UNARY else BINARY[node.op_type](*given)
    return result if np.isfinite(result).all() else None


def _order_silu(graph: Graph) -> None:
    """Write SiLU as Mul(x, Sigmoid(x)), in this order."""
    for node in graph.nodes:
        if node.op_type == "Mul":
            gate = graph.producer(node.input[0], "Sigmoid")
            if gate is not None and gate.input[0] == node.input[1]:
                node.input[0], node.input[1] = node.input[1], node.input[0]
                graph.changed = True
