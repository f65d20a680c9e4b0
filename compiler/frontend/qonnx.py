"""The quantizers of QONNX, as Brevitas and FINN write them: Quant and BipolarQuant become Q/DQ pairs and integers.

Definitions: github.com/fastmachinelearning/qonnx, docs/qonnx-custom-ops: q = clip(round(x / scale + zeropt)), and the
result is (q - zeropt) * scale.
"""

from __future__ import annotations

from typing import NoReturn

import numpy as np
from onnx import NodeProto
from qcompile.frontend.fold_constants import fold_constant_nodes
from qcompile.frontend.graph import Graph, attribute, label
from qcompile.targets.errors import CompileError

DOMAINS = {"qonnx.custom_op.general", "onnx.brevitas", "finn.custom_op.general"}
ROUNDINGS = {
    "ROUND": np.rint,
    "HALF_EVEN": np.rint,
    "FLOOR": np.floor,
    "CEIL": np.ceil,
    "ROUND_TO_ZERO": np.trunc,
    "DOWN": np.trunc,
}
EVEN = ("ROUND", "HALF_EVEN")
WIDEST = 16  # bits of an activation


def expand_quant(graph: Graph) -> None:
    """Rewrite every node of DOMAINS. Raises CompileError for one that has no integer form, by name."""
    found = [n for n in graph.nodes if n.domain in DOMAINS]
    if not found:
        return
    fold_constant_nodes(graph)
    for node in found:
        parameters = [graph.constants[i] for i in node.input[1:] if i in graph.constants]
        if node.op_type not in ("Quant", "BipolarQuant"):
            _refuse(node, f"operator {node.domain}.{node.op_type} is not supported; use Quant")
        if len(parameters) < len(node.input) - 1:
            _refuse(node, "its scale, zero point or bit width is computed; export them as constants")
        if node.op_type == "Quant":
            _quant(graph, node, *parameters)
        else:
            _bipolar(graph, node, parameters[0])
    graph.update()


def _refuse(node: NodeProto, why: str) -> NoReturn:
    raise CompileError(f"node {label(node)}: {why}")


def _quant(graph: Graph, node: NodeProto, scale: np.ndarray, zero: np.ndarray, width: np.ndarray) -> None:
    bits, signed, narrow = width.reshape(-1)[0], attribute(node, "signed", 1), attribute(node, "narrow", 0)
    if (width != bits).any() or bits != int(bits) or bits < 1 or (zero != np.rint(zero)).any():
        _refuse(node, "its bit width and zero points must be whole numbers, one width for all")
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        _refuse(node, f"scale '{node.input[1]}' must be positive and finite")
    half = 2 ** (int(bits) - 1)
    low, high = (narrow - half, half - 1) if signed else (0, 2 * half - 1 - narrow)
    mode = attribute(node, "rounding_mode", "ROUND").upper()
    if node.input[0] in graph.constants:
        if mode not in ROUNDINGS:
            _refuse(node, f"its rounding mode {mode} is not supported; known are {', '.join(ROUNDINGS)}")
        value = graph.constants[node.input[0]].astype(np.float64)
        codes = np.clip(ROUNDINGS[mode](value / scale.astype(np.float32) + zero), low, high)
        _weights(graph, node, codes, scale, zero, low, high)
        return
    if mode not in EVEN:
        _refuse(node, f"its rounding mode {mode} has no integer form for activations; use ROUND")
    if bits > WIDEST:
        _refuse(node, f"{int(bits)} bits for an activation are not supported; at most {WIDEST} are")
    dtype = _dtype(low, high, zero)
    if dtype is None:
        _refuse(node, "its zero point lies outside of its codes")
    _pair(graph, node, scale, zero, dtype, low, high)


def _dtype(low: int, high: int, zero: np.ndarray) -> np.dtype | None:
    """The smallest integer type that holds the codes and the zero points."""
    least, most = min(low, int(zero.min())), max(high, int(zero.max()))
    fits = (t for t in (np.int8, np.uint8, np.int16, np.uint16) if np.iinfo(t).min <= least and most <= np.iinfo(t).max)
    return next((np.dtype(t) for t in fits), None)


def _axis(graph: Graph, node: NodeProto, parameter: np.ndarray) -> int | None:
    """The one axis of the data that a parameter varies along; None where there are more."""
    rank = graph.rank(node.input[0]) or parameter.ndim
    along = [rank - parameter.ndim + i for i, n in enumerate(parameter.shape) if n > 1]
    return along[0] if len(along) == 1 else None


def _grid(
    graph: Graph, node: NodeProto, scale: np.ndarray, zero: np.ndarray, dtype: np.dtype
) -> tuple[list[str], dict]:
    """Names of scale and zero point as QuantizeLinear takes them, and its attributes."""
    y = node.output[0]
    axis = _axis(graph, node, scale if scale.size > 1 else zero)
    count = max(scale.size, zero.size)
    form = () if count == 1 else (count,)
    flat = [np.broadcast_to(p.reshape(-1), (count,)).reshape(form) for p in (scale, zero)]
    names = [graph.constant(f"{y}_scale", flat[0].astype(np.float32))]
    names.append(graph.constant(f"{y}_zero_point", flat[1].astype(dtype)))
    return names, {} if count == 1 else {"axis": axis}


def _weights(
    graph: Graph, node: NodeProto, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, low: int, high: int
) -> None:
    """Codes of 8 bits and their DequantizeLinear; real numbers where they are wider (biases) or lie in blocks."""
    dtype, y = _dtype(low, high, zero), node.output[0]
    single = max(scale.size, zero.size) == 1 or _axis(graph, node, scale if scale.size > 1 else zero) is not None
    if dtype is None or dtype.itemsize > 1 or not single:
        graph.constants[y] = ((codes - zero) * scale).astype(np.float32)
        graph.nodes = [n for n in graph.nodes if n is not node]
        return
    grid, attributes = _grid(graph, node, scale, zero, dtype)
    graph.replace(node, "DequantizeLinear", [graph.constant(f"{y}_codes", codes.astype(dtype)), *grid], **attributes)


def _pair(
    graph: Graph, node: NodeProto, scale: np.ndarray, zero: np.ndarray, dtype: np.dtype, low: int, high: int
) -> None:
    x, y = node.input[0], node.output[0]
    if max(scale.size, zero.size) > 1 and _axis(graph, node, scale if scale.size > 1 else zero) is None:
        _refuse(node, f"its scales have shape {list(scale.shape)}; activations take one, or one for each channel")
    if low > np.iinfo(dtype).min or high < np.iinfo(dtype).max:
        ends = [((c - zero) * scale).astype(np.float32) for c in (low, high)]
        names = [graph.constant(f"{y}_{n}", e if e.size > 1 else e.reshape(())) for n, e in zip(("low", "high"), ends)]
        if ends[0].size == 1:
            x = graph.add("Clip", [x, *names], f"{y}_clipped")
        else:
            x = graph.add("Min", [graph.add("Max", [x, names[0]], f"{y}_above"), names[1]], f"{y}_within")
    grid, attributes = _grid(graph, node, scale, zero, dtype)
    codes = graph.add("QuantizeLinear", [x, *grid], f"{y}_codes", **attributes)
    graph.replace(node, "DequantizeLinear", [codes, *grid], **attributes)


def _bipolar(graph: Graph, node: NodeProto, scale: np.ndarray) -> None:
    """+scale from 0 up, -scale below."""
    y = node.output[0]
    if node.input[0] in graph.constants:
        codes = np.where(graph.constants[node.input[0]] >= 0, 1.0, -1.0)
        _weights(graph, node, codes, scale, np.zeros((), np.float32), -1, 1)
        return
    zero = graph.constant(f"{y}_zero", np.float32(0))
    names = [graph.constant(f"{y}_{n}", (s * scale).astype(np.float32)) for n, s in (("up", 1), ("down", -1))]
    graph.replace(node, "Where", [graph.add("GreaterOrEqual", [node.input[0], zero], f"{y}_sign"), *names])
