"""Recognises fake quantization that exporters write as arithmetic: Div, Round, Add, Clip, Sub, Mul.

Accepts (clip(round(x / s) + z, low, high) - z) * s for constant numbers s, z, low and high, with x * (1 / s) or x / s,
z inside or outside of Round, Clip, or Max and Min, Casts anywhere, and without the Add and Sub where z is 0.
Leaves Clip (where the range is narrower than the type's), QuantizeLinear, DequantizeLinear.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph

TYPES = ((-128, 127, np.int8), (0, 255, np.uint8), (-32768, 32767, np.int16), (0, 65535, np.uint16))
SAME_SCALE = 1e-5


@dataclass
class _Affine:
    """A tensor as source * factor + offset."""

    source: str
    factor: float = 1.0
    offset: float = 0.0


def fuse_fake_quantize(graph: Graph) -> None:
    """Replace decomposed fake quantization of computed tensors by Q/DQ pairs."""
    for node in reversed(list(graph.nodes)):
        if node.op_type not in ("Mul", "Div") or graph.producer(node.output[0]) is not node:
            continue
        found = _match(graph, node)
        if found is None:
            continue
        x, scale, zero, low, high = found
        dtype = next((t for least, most, t in TYPES if least <= low and high <= most and least <= zero <= most), None)
        if dtype is None:
            continue
        y, info = node.output[0], np.iinfo(dtype)
        grid = [
            graph.constant(f"{y}_scale", np.float32(scale)),
            graph.constant(f"{y}_zero_point", np.array(zero, dtype)),
        ]
        if low > info.min or high < info.max:
            ends = [
                graph.constant(f"{y}_{n}", np.array((c - zero) * np.float32(scale), np.float32))
                for n, c in (("low", low), ("high", high))
            ]
            x = graph.add("Clip", [x, *ends], f"{y}_clipped")
        codes = graph.add("QuantizeLinear", [x, *grid], f"{y}_codes")
        graph.replace(node, "DequantizeLinear", [codes, *grid])
        graph.update(node)


def _match(graph: Graph, node: NodeProto) -> tuple[str, float, int, int, int] | None:
    """(x, scale, zero point, smallest code, largest code)."""
    outer = _affine(graph, node.output[0], "Clip", "Min", "Max")
    limits = _limits(graph, outer.source)
    if limits is None or outer.factor <= 0:
        return None
    inner_name, low, high = limits
    between = _affine(graph, inner_name, "Round")
    rounded = graph.producer(between.source, "Round")
    if rounded is None or between.factor != 1.0:
        return None
    inner = _affine(graph, rounded.input[0])
    if inner.source in graph.constants or not graph.is_float(inner.source):
        return None
    scale, zero = outer.factor, -outer.offset / outer.factor
    whole = abs(zero - round(zero)) < 1e-3 and all(abs(v - round(v)) < 1e-4 for v in (low, high, between.offset))
    matches = abs(inner.factor * scale - 1) < SAME_SCALE and abs(inner.offset + between.offset - zero) < 1e-3
    if not whole or not matches or low >= high:
        return None
    return inner.source, scale, round(zero), round(low), round(high)


def _affine(graph: Graph, name: str, *ends: str) -> _Affine:
    """`name` as an affine map of the first tensor that is not made by a Cast, Mul, Div, Add or Sub with a number."""
    result = _Affine(name)
    while True:
        node = graph.producer(result.source, "Cast", "Mul", "Div", "Add", "Sub")
        if node is None:
            return result
        if node.op_type == "Cast":
            result.source = node.input[0]
            continue
        k = next((i for i in (1, 0) if graph.scalar(node.input[i]) is not None), None)
        if k is None or (k == 0 and node.op_type in ("Div", "Sub")) or graph.is_constant(node.input[1 - k]):
            return result
        value = graph.scalar(node.input[k])
        assert value is not None
        if node.op_type in ("Mul", "Div"):
            if value == 0:
                return result
            result.factor *= value if node.op_type == "Mul" else 1.0 / value
        else:
            result.offset += result.factor * (value if node.op_type == "Add" else -value)
        result.source = node.input[1 - k]


def _limits(graph: Graph, name: str) -> tuple[str, float, float] | None:
    """(x, low, high) where `name` is x between two numbers: a Clip, or a Min and a Max in any order."""
    low, high = -np.inf, np.inf
    for _ in range(2):
        node = graph.producer(name, "Clip", "Min", "Max")
        if node is None:
            break
        if node.op_type == "Clip":
            least, most = (graph.scalar(i) if i else None for i in [*node.input[1:], "", ""][:2])
            if least is None or most is None:
                return None
            return node.input[0], max(low, least), min(high, most)
        if len(node.input) != 2:
            return None
        k = next((i for i in (1, 0) if graph.scalar(node.input[i]) is not None), None)
        if k is None:
            return None
        value = float(graph.scalar(node.input[k]) or 0.0)
        low, high = (max(low, value), high) if node.op_type == "Max" else (low, min(high, value))
        name = node.input[1 - k]
    return (name, low, high) if np.isfinite([low, high]).all() else None
