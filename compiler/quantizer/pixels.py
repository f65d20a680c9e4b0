"""Images as they come from a camera: what is computed from 8-bit pixels before the first layer becomes part of it.

Cast, /255, -mean, /std, in any order and form, is an affine map a[c] * u + b[c] of the pixel u. The layer that reads it
gets the pixels themselves, as a DequantizeLinear of scale s and zero points p[c] = round(-b[c] / a[c]), the weights
w * a[c] / s, and the sum of w * (a[c] * p[c] + b[c]) more in its bias. So no pixel is rounded, and padding, which is 0
behind the map, is p[c]: off by at most half a step of a pixel. Data movement on the way (layouts, swapped channels,
crops, nearest neighbours) is done to the pixels. What does not fit stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from onnx import NodeProto, TensorProto
from onnx.reference import ReferenceEvaluator
from qcompile.frontend.fold_scales import fold_into_linear
from qcompile.frontend.graph import Graph, attribute
from qcompile.quantizer.calibration import Feed
from qcompile.quantizer.histogram import Quantization
from qcompile.quantizer.operators import MOVERS, mover_inputs

PIXELS: dict[int, tuple[int, int]] = {TensorProto.UINT8: (0, 255), TensorProto.INT8: (-128, 127)}
TYPES: dict[int, type] = {TensorProto.UINT8: np.uint8, TensorProto.INT8: np.int8}
MOVED = set(MOVERS) - {"MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "Where", "Pad", "Trilu", "ReverseSequence"}
DARK, BRIGHT = 64, 128  # the range of floats that are pixels, but no whole numbers, begins below and reaches here


@dataclass
class Affine:
    """A float tensor as factor * codes + shift, both broadcast to its shape; codes: an 8-bit tensor of that shape."""

    codes: str
    dtype: int
    factor: np.ndarray
    shift: np.ndarray


def fold_pixels(graph: Graph, samples: list[Feed]) -> None:
    """Let convolutions and products with constant weights read 8-bit inputs of the float `graph` as they are.

    Float inputs count as pixels where all `samples` are whole numbers from 0 to 255, or bright ones within.
    """
    reader = _Reader(graph, {v.name for v in graph.inputs if _are_pixels(graph, v.name, samples)})
    for node in list(graph.nodes):
        fold = FOLDS.get(node.op_type)
        if fold is None or node.input[1] not in graph.constants or node.input[0] in graph.constants:
            continue
        if len(node.input) > 2 and node.input[2] and node.input[2] not in graph.constants:
            continue
        folded = graph.producer(node.input[0], "DequantizeLinear") is not None
        source = None if folded else reader.affine(node.input[0])
        if source is not None:
            fold(graph, node, source)
    graph.update()
    fold_into_linear(graph)


def _are_pixels(graph: Graph, name: str, samples: list[Feed]) -> bool:
    if not graph.is_float(name) or not samples:
        return False
    low, high = min(float(s[name].min()) for s in samples), max(float(s[name].max()) for s in samples)
    if low < 0 or not 1 < high <= PIXELS[TensorProto.UINT8][1]:
        return False
    return (low <= DARK and high >= BRIGHT) or all((s[name] % 1 == 0).all() for s in samples)


class _Reader:
    """Follows float tensors back to pixels, and moves pixels as the floats were moved."""

    def __init__(self, graph: Graph, pixels: set[str]) -> None:
        self.graph, self.pixels = graph, pixels
        self.known: dict[str, Affine | None] = {}

    def affine(self, name: str) -> Affine | None:
        if name not in self.known:
            self.known[name] = None
            self.known[name] = self._affine(name)
        return self.known[name]

    def _affine(self, name: str) -> Affine | None:
        graph, node = self.graph, self.graph.producer(name)
        if node is None:
            return self._quantized_input(name) if name in self.pixels else None
        if node.op_type == "Cast" and graph.is_float(name) and graph.dtypes.get(node.input[0]) in PIXELS:
            return Affine(node.input[0], graph.dtypes[node.input[0]], np.ones(()), np.zeros(()))
        if node.op_type == "DequantizeLinear":
            return self._dequantized(node)
        if node.op_type in ("Add", "Sub", "Mul", "Div"):
            return self._arithmetic(node)
        if node.op_type == "Neg":
            x = self.affine(node.input[0])
            return x and Affine(x.codes, x.dtype, -x.factor, -x.shift)
        if node.op_type in MOVED or (node.op_type == "Resize" and mover_inputs(node)):
            return self._moved(node, name)
        return None

    def _quantized_input(self, name: str) -> Affine:
        graph = self.graph
        grid = [graph.constant(f"{name}_scale", np.float32(1)), graph.constant(f"{name}_zero_point", np.uint8(0))]
        codes = graph.add("QuantizeLinear", [name, *grid], f"{name}_pixels")
        graph.shapes[codes], graph.dtypes[codes] = graph.shapes[name], TensorProto.UINT8
        return Affine(codes, TensorProto.UINT8, np.ones(()), np.zeros(()))

    def _dequantized(self, node: NodeProto) -> Affine | None:
        graph, codes = self.graph, node.input[0]
        scale = graph.scalar(node.input[1])
        zero = graph.scalar(node.input[2]) if len(node.input) > 2 and node.input[2] else 0.0
        if graph.dtypes.get(codes) not in PIXELS or codes in graph.constants or scale is None or zero is None:
            return None
        return Affine(codes, graph.dtypes[codes], np.array(scale), np.array(-scale * zero))

    def _arithmetic(self, node: NodeProto) -> Affine | None:
        graph = self.graph
        k = next((i for i in (0, 1) if node.input[i] in graph.constants), None)
        if k is None or (k == 0 and node.op_type == "Div"):
            return None
        c = graph.constants[node.input[k]].astype(np.float64)
        x = self.affine(node.input[1 - k])
        if x is None or graph.shape(node.input[1 - k]) != graph.shape(node.output[0]):
            return None
        if node.op_type in ("Mul", "Div"):
            c = 1 / c if node.op_type == "Div" and (c != 0).all() else c
            done = None if node.op_type == "Div" and (c == 0).any() else (x.factor * c, x.shift * c)
        elif node.op_type == "Add":
            done = x.factor, x.shift + c
        else:
            done = (x.factor, x.shift - c) if k == 1 else (-x.factor, c - x.shift)
        return done and Affine(x.codes, x.dtype, *done)

    def _moved(self, node: NodeProto, name: str) -> Affine | None:
        """The movement done to the pixels, and to the maps where they are not the same everywhere."""
        graph, data = self.graph, mover_inputs(node)
        others = [i for k, i in enumerate(node.input) if i and k not in data]
        parts = [self.affine(node.input[i]) for i in data]
        if not parts or any(i not in graph.constants for i in others) or any(p is None for p in parts):
            return None
        found = [p for p in parts if p is not None]
        if len({p.dtype for p in found}) > 1 or any(graph.shape(o) is None for o in node.output):
            return None
        maps = [self._map(node, name, [getattr(p, m) for p in found]) for m in ("factor", "shift")]
        moved = NodeProto.FromString(node.SerializeToString())
        for i, part in zip(data, found):
            moved.input[i] = part.codes
        moved.output[:] = [graph.fresh(f"{o}_pixels") for o in node.output]
        moved.name = moved.output[0]
        graph.nodes.append(moved)
        for before, after in zip(node.output, moved.output):
            graph.shapes[after], graph.dtypes[after] = graph.shapes[before], found[0].dtype
        return Affine(moved.output[list(node.output).index(name)], found[0].dtype, *maps)

    def _map(self, node: NodeProto, name: str, values: list[np.ndarray]) -> np.ndarray:
        if len({float(v.flat[0]) for v in values}) == 1 and all((v == v.flat[0]).all() for v in values):
            return np.array(values[0].flat[0])
        data = mover_inputs(node)
        feed: dict[str, np.ndarray] = {}
        for i, n in enumerate(node.input):
            if i in data:
                feed[n] = np.broadcast_to(values[data.index(i)], self.graph.shape(n) or ()).astype(np.float64)
            elif n:
                feed[n] = self.graph.constants[n]
        results = list(ReferenceEvaluator(node, opsets=self.graph.opsets).run(None, feed))
        return np.asarray(results[list(node.output).index(name)], np.float64)


def given_quantization(graph: Graph, tensor: str) -> Quantization | None:
    """The grid of a tensor that is made of 8-bit codes; with zero points per channel, one in their middle."""
    node = graph.producer(tensor, "DequantizeLinear")
    kind = None if node is None else graph.dtypes.get(node.input[0])
    if node is None or kind not in PIXELS or node.input[0] in graph.constants:
        return None
    scale, zero = (graph.constants.get(i) for i in (*node.input[1:3], "")[:2])
    if scale is None or (scale != scale.flat[0]).any():
        return None
    offset = PIXELS[kind][0] - PIXELS[TensorProto.INT8][0]
    return Quantization(float(scale.flat[0]), 0 if zero is None else round(float(zero.mean())) - offset)


def _along(value: np.ndarray, shape: tuple[int, ...], axis: int) -> np.ndarray | None:
    """A map of a tensor of `shape` as a vector along `axis`; None where it varies along another."""
    full = np.broadcast_to(value, shape)
    first = full[tuple(slice(None) if i == axis % len(shape) else slice(0, 1) for i in range(len(shape)))]
    return first.reshape(-1) if (full == first).all() else None


Grid = tuple[float, np.ndarray, np.ndarray, np.ndarray]


def _grid(source: Affine, shape: tuple[int, ...], axis: int, padded: bool) -> Grid | None:
    """(scale, factor [C], zero points [C], shift [C] that they leave) along `axis`."""
    factor, shift = (_along(m, shape, axis) for m in (source.factor, source.shift))
    if factor is None or shift is None or not (np.isfinite(factor) & (factor != 0) & np.isfinite(shift)).all():
        return None
    low, high = PIXELS[source.dtype]
    zero = -shift / factor
    point = np.clip(np.rint(zero), low, high)
    if padded and np.abs(zero - point).max() > 0.5:  # no pixel looks like the padding
        return None
    if not padded:
        point = np.full_like(point, np.rint(point.mean()))
    return float(np.abs(factor).max()), factor, point, factor * point + shift


def _real(graph: Graph, source: Affine, scale: float, point: np.ndarray, axis: int) -> str:
    """The pixels as floats scale * (u - point[c])."""
    one = (point == point[0]).all()
    zero = (point[0] if one else point).astype(TYPES[source.dtype])
    inputs = [
        source.codes,
        graph.constant(f"{source.codes}_scale", np.float32(scale) if one else np.full(len(point), scale, np.float32)),
        graph.constant(f"{source.codes}_zero_point", np.asarray(zero)),
    ]
    real = graph.add("DequantizeLinear", inputs, f"{source.codes}_real", axis=None if one else axis)
    graph.shapes[real], graph.dtypes[real] = graph.shapes[source.codes], TensorProto.FLOAT
    return real


def _conv(graph: Graph, node: NodeProto, source: Affine) -> None:
    weight, shape = graph.constants[node.input[1]], graph.shape(node.input[0])
    padded = any(attribute(node, "pads") or []) or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    found = None if shape is None else _grid(source, shape, 1, padded)
    if found is None:
        return
    scale, factor, point, left = found
    groups = attribute(node, "group", 1)

    def of_weights(v: np.ndarray) -> np.ndarray:
        each = v.reshape(groups, 1, weight.shape[1]).repeat(weight.shape[0] // groups, 1)
        return each.reshape(*weight.shape[:2], *(1,) * (weight.ndim - 2))

    bias = graph.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros(len(weight))
    bias = bias + (weight.astype(np.float64) * of_weights(left)).reshape(len(weight), -1).sum(1)
    real = _real(graph, source, scale, point, 1)
    y = node.output[0]
    del node.input[:]
    node.input.extend(
        [
            real,
            graph.constant(f"{y}_weight", (weight * of_weights(factor / scale)).astype(np.float32)),
            graph.constant(f"{y}_bias", bias.astype(np.float32)),
        ]
    )


def _gemm(graph: Graph, node: NodeProto, source: Affine) -> None:
    if attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1.0 or attribute(node, "beta", 1.0) != 1.0:
        return
    _product(graph, node, source, across=1 if attribute(node, "transB", 0) else 0)


def _product(graph: Graph, node: NodeProto, source: Affine, across: int) -> None:
    """MatMul or Gemm; `across`: the axis of the weights that is summed over."""
    weight, shape, y = graph.constants[node.input[1]], graph.shape(node.input[0]), node.output[0]
    found = None if shape is None or weight.ndim != 2 else _grid(source, shape, -1, padded=False)
    if found is None or shape is None:
        return
    scale, factor, point, left = found
    column = [-1, 1] if across == 0 else [1, -1]
    bias = (weight.astype(np.float64) * left.reshape(column)).sum(across)
    if len(node.input) > 2 and node.input[2]:
        bias = bias + graph.constants[node.input[2]]
    made = graph.constant(f"{y}_weight", (weight * (factor / scale).reshape(column)).astype(np.float32))
    inputs, shift = [_real(graph, source, scale, point, len(shape) - 1), made], bias.astype(np.float32)
    if node.op_type == "Gemm":
        graph.replace(node, "Gemm", [*inputs, graph.constant(f"{y}_bias", shift)], transB=across)
        return
    product = graph.add("MatMul", inputs, f"{y}_product")
    graph.shapes[product], graph.dtypes[product] = graph.shapes[y], TensorProto.FLOAT
    graph.nodes[-1].name, node.name = node.name, f"{y}_shifted"  # the layer keeps its name
    graph.replace(node, "Add", [product, graph.constant(f"{y}_bias", shift)])


FOLDS: dict[str, Callable[[Graph, NodeProto, Affine], None]] = {
    "Conv": _conv,
    "MatMul": partial(_product, across=0),
    "Gemm": _gemm,
}
