"""Proves that no integer of a program leaves its type: intervals from inputs to outputs, op by op.

Each rule gets the intervals of its arguments (whole tensors; per output channel for weights) and returns the result's;
accumulators and every 32-bit intermediate of the op's meaning are checked on the way. Padding counts as zero_point.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import INT32_MAX, RANGES
from qcompile.kernels.dialect import OPS, Type
from qcompile.kernels.ops.elementwise import PIECES
from qcompile.kernels.ops.whole import wrapped_interval
from qcompile.kernels.program import Node, Program
from qcompile.passes.recurrent_bounds import recurrent
from qcompile.targets.errors import CompileError

REMEDY = "split it, or bound what it reads (by Clip, or by calibration samples)"
Interval = tuple[int, int]
Rule = Callable[[Node, list[Interval], list[np.ndarray | None], list[Type]], Interval]


def _fits(node: Node, what: str, low: float, high: float) -> None:
    if low < -INT32_MAX - 1 or high > INT32_MAX:
        raise CompileError(
            f"{node.name}: {what} of {node.op} may reach [{low:.4g}, {high:.4g}], more than 32 bits hold; {REMEDY}"
        )


def _shift(x: Interval, zero_point: int) -> Interval:
    return x[0] - zero_point, x[1] - zero_point


def _product(a: Interval, b: Interval) -> Interval:
    ends = [p * q for p in a for q in b]
    return min(ends), max(ends)


def _clamped(node: Node) -> Interval:
    return int(node.attrs["qmin"]), int(node.attrs["qmax"])


def _weighted(node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]) -> Interval:
    """conv2d, dense: the exact extremes of each output channel; a tap may also see padding, which is 0."""
    weight, bias = constants[1], constants[2]
    assert weight is not None and bias is not None
    zeros = np.atleast_1d(node.attrs["x_zero_point"])
    low, high = intervals[0][0] - int(zeros.max()), intervals[0][1] - int(zeros.min())
    if any(node.attrs.get("pads", ())):
        low, high = min(low, 0), max(high, 0)
    w = weight.reshape(len(weight), -1).astype(np.int64)
    positive, negative = np.maximum(w, 0).sum(1), np.minimum(w, 0).sum(1)
    b = bias.astype(np.int64)
    lowest, highest = positive * low + negative * high + b, positive * high + negative * low + b
    _fits(node, "the accumulator", int(lowest.min()), int(highest.max()))
    return int(lowest.min()), int(highest.max())


def _matmul(node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]) -> Interval:
    a, b = (_shift(i, node.attrs[f"{n}_zero_point"]) for n, i in zip("ab", intervals))
    low, high = _product(a, b)
    k = types[0].shape[-1]
    _fits(node, "the accumulator", low * k, high * k)
    return low * k, high * k


def _rescaled(node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]) -> Interval:
    low, high = _shift(intervals[0], node.attrs["x_zero_point"])
    _fits(node, "the shifted input", low * 2 ** node.attrs["pre"], high * 2 ** node.attrs["pre"])
    return _clamped(node)


def _rescaled_word(
    node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]
) -> Interval:
    multiplier, (low, high) = constants[OPS[node.op].arguments.index("multiplier")], RANGES["int16"]
    assert multiplier is not None
    a = node.attrs
    known = [multiplier.min(initial=0), multiplier.max(initial=0), a.get("r_multiplier", 0)]
    if min(known) <= low or max(known) > high:
        raise CompileError(f"{node.name}: a multiplier of {node.op} leaves [{low + 1}, {high}]")
    if a["dtype"] == "int16" and a["zero_point"]:
        raise CompileError(f"{node.name}: the result of {node.op} has a zero point that its bias does not hold")
    if node.attrs.get("r_zero_point"):
        raise CompileError(f"{node.name}: the residual of {node.op} has a zero point that its bias does not hold")
    return _clamped(node)


def _narrowed_word(
    node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]
) -> Interval:
    multiplier, a = constants[1], node.attrs
    assert multiplier is not None
    if np.abs(multiplier).max(initial=0) > RANGES["int16"][1]:
        raise CompileError(f"{node.name}: a multiplier of {node.op} leaves 16 bits")
    if (abs(a["zero_point"]) + 1) << a["fraction"] > RANGES["int16"][1] + 1:
        raise CompileError(f"{node.name}: the zero point of {node.op} leaves 16 bits")
    return _clamped(node)


def _mul(node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]) -> Interval:
    low, high = _product(
        _shift(intervals[0], node.attrs["x_zero_point"]), _shift(intervals[1], node.attrs["r_zero_point"])
    )
    _fits(node, "the product", low * 2 ** node.attrs["pre"], high * 2 ** node.attrs["pre"])
    return _clamped(node)


def _add(node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]) -> Interval:
    a = node.attrs
    terms = [_product(_shift(i, a[f"{n}_zero_point"]), (a[f"{n}_multiplier"],) * 2) for n, i in zip("xr", intervals)]
    half = 1 << max(a["shift"] - 1, 0)
    _fits(node, "the sum", sum(t[0] for t in terms), sum(t[1] for t in terms) + half)
    return _clamped(node)


def _add_residual(
    node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]
) -> Interval:
    a, multiplier = node.attrs, constants[2]
    assert multiplier is not None
    _fits(node, "the shifted input", intervals[0][0] * 2 ** a["pre"], intervals[0][1] * 2 ** a["pre"])
    x = _product(tuple(i * 2 ** a["pre"] for i in intervals[0]), (int(multiplier.min()), int(multiplier.max())))  # type: ignore[arg-type]
    r = _product(_shift(intervals[1], a["r_zero_point"]), (a["r_multiplier"],) * 2)
    _fits(node, "the sum", (x[0] >> 32) + r[0], (x[1] >> 32) + r[1] + (1 << (a["shift"] - 1)))
    return _clamped(node)


def _add_residual_low(
    node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]
) -> Interval:
    a, multiplier = node.attrs, constants[2]
    assert multiplier is not None
    shifted = tuple(i >> a["x_shift"] for i in intervals[0])
    x = _product(shifted, (int(multiplier.min()), int(multiplier.max())))  # type: ignore[arg-type]
    r = _product(_shift(intervals[1], a["r_zero_point"]), (a["r_multiplier"],) * 2)
    for what, (low, high) in (("a product", x), ("the sum", (x[0] + r[0], x[1] + r[1]))):
        _fits(node, what, low, high)
    if abs(a["r_multiplier"]) > RANGES["int16"][1]:
        raise CompileError(f"{node.name}: the residual's multiplier of {node.op} leaves 16 bits")
    return _clamped(node)


def _bias_add(node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]) -> Interval:
    low, high = intervals[0][0] + intervals[1][0], intervals[0][1] + intervals[1][1]
    _fits(node, "the sum", low, high)
    return low, high


def _add_sums(node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]) -> Interval:
    factor = constants[2]
    assert factor is not None
    terms = _product(intervals[1], (int(factor.min(initial=0)), int(factor.max(initial=0))))
    low, high = intervals[0][0] + terms[0], intervals[0][1] + terms[1]
    _fits(node, "the sum", low, high)
    return low, high


def _lut(node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]) -> Interval:
    low, high = _shift(intervals[0], node.attrs["first"])
    if low < 0 or high >= types[1].size:
        raise CompileError(
            f"{node.name}: codes {intervals[0]} leave the table of {types[1].size} entries from {node.attrs['first']}"
        )
    return intervals[1]


def _interpolate(
    node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]
) -> Interval:
    low, high = _shift(intervals[0], node.attrs["first"])
    pieces = types[1].shape[-1]
    if types[1].shape not in [(2, n) for n in PIECES] or low < 0 or high >= pieces << node.attrs["bits"]:
        raise CompileError(
            f"{node.name}: codes {intervals[0]} leave the {pieces} pieces of {1 << node.attrs['bits']} codes from "
            f"{node.attrs['first']}"
        )
    base, slope = (row.astype(np.int64) for row in constants[1])  # type: ignore[union-attr]
    ends = base + slope
    if min(base.min(), ends.min()) < -32768 or max(base.max(), ends.max()) > 32767:
        raise CompileError(f"{node.name}: a piece of the interpolated function leaves 16 bits")
    return _clamped(node)


def _window_sum(
    node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]
) -> Interval:
    low, high = _shift(intervals[0], node.attrs["x_zero_point"])
    count = int(np.prod(node.attrs["kernel"])) if node.op == "sum_pool2d" else types[0].shape[1]
    low, high = min(low, 0) * count, max(high, 0) * count
    _fits(node, "the sum", low, high)
    return low, high


def _resized(node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]) -> Interval:
    low, high = _shift(intervals[0], node.attrs["x_zero_point"])
    reach = int(np.prod([np.abs(constants[i]).sum(0).max(initial=0) for i in (2, 4)]))  # type: ignore[arg-type]
    top = max(abs(low), abs(high)) * reach * 2 ** node.attrs["pre"]
    _fits(node, "the sum", -top, top)
    return _clamped(node)


def _attention(
    node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]
) -> Interval:
    a = node.attrs
    q, k, v = (_shift(i, a[f"{n}_zero_point"]) for n, i in zip("qkv", intervals))
    low, high = (e * types[0].shape[-1] for e in _product(q, k))
    if a["has_bias"]:
        low, high = low + intervals[-1][0], high + intervals[-1][1]
    _fits(node, "a difference of scores", low - high, high - low)
    p = _product((0, 255), v)
    _fits(node, "the weighted sum", p[0] * types[1].shape[-2], p[1] * types[1].shape[-2])
    return _clamped(node)


def _layer_norm(
    node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]
) -> Interval:
    half = 1 << node.attrs["shift"] >> 1
    gamma, beta = (max(abs(low), abs(high)) for low, high in intervals[1:])
    _fits(node, "the scaled element", -(gamma << 15) - beta, (gamma << 15) + beta + half)
    return _clamped(node)


def _hull(node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]) -> Interval:
    return min(i[0] for i in intervals), max(i[1] for i in intervals)


def _scattered(
    node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]
) -> Interval:
    if node.attrs["reduction"] in ("none", "max", "min"):
        return _hull(node, [intervals[0], intervals[2]], constants, types)
    if node.attrs["reduction"] == "mul":
        return RANGES[types[0].dtype]  # it wraps
    count, (low, high) = types[1].size, intervals[2]
    low, high = intervals[0][0] + min(low, 0) * count, intervals[0][1] + max(high, 0) * count
    least, most = RANGES[types[0].dtype]
    return (low, high) if least <= low and high <= most else (least, most)


def _first(node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]) -> Interval:
    return intervals[0]


def _pad(node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]) -> Interval:
    value = node.attrs["value"]
    return (
        (min(intervals[0][0], value), max(intervals[0][1], value)) if node.attrs["mode"] == "constant" else intervals[0]
    )


def _cast(node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]) -> Interval:
    low, high = RANGES[node.attrs["dtype"]]
    a, b = (i + node.attrs["offset"] for i in intervals[0])
    return min(max(a, low), high), min(max(b, low), high)


RULES: dict[str, Rule] = {
    "conv2d": _weighted,
    "dense": _weighted,
    "matmul": _matmul,
    "requantize": _rescaled,
    "requantize_word": _rescaled_word,
    "requantize_words": _rescaled_word,
    "narrow_word": _narrowed_word,
    "prelu": _rescaled,
    "mul": _mul,
    "add": _add,
    "add_residual": _add_residual,
    "add_residual_word": _rescaled_word,
    "add_residual_low": _add_residual_low,
    "bias_add": _bias_add,
    "add_sums": _add_sums,
    "lut": _lut,
    "interpolate": _interpolate,
    "sum_pool2d": _window_sum,
    "reduce_sum": _window_sum,
    "attention": _attention,
    **dict.fromkeys(("lstm", "gru", "rnn"), recurrent),
    "concat": _hull,
    "where": lambda n, i, c, t: _hull(n, i[1:], c, t),
    "pad": _pad,
    "cast": _cast,
    "scatter": _scattered,
    "top_k": lambda n, i, c, t: (0, t[0].shape[1] - 1),
    "argmax": lambda n, i, c, t: (0, t[0].shape[1] - 1),
    "softmax": lambda n, i, c, t: _clamped(n),
    "log_softmax": lambda n, i, c, t: _clamped(n),
    "layer_norm": _layer_norm,
    "resize_linear": _resized,
    "whole": lambda n, i, c, t: wrapped_interval(n.attrs["function"], i[0], i[1], n.attrs["dtype"]),
    **dict.fromkeys(("reshape", "transpose", "slice", "broadcast", "take", "max_pool2d", "reduce_max"), _first),
}


def prove_bounds(program: Program) -> dict[str, Interval]:
    """Interval of every tensor of an unfused program; CompileError names the node whose 32-bit numbers may overflow."""
    types = program.types()
    known: dict[str, Interval] = {n: RANGES[t.dtype] for n, t in program.inputs.items()}
    for name, array in program.constants.items():
        known[name] = (int(array.min()), int(array.max())) if array.size else (0, 0)
    for node in program.nodes:
        arguments: list[Any] = [
            [known[i] for i in node.inputs],
            [program.constants.get(i) for i in node.inputs],
            [types[i] for i in node.inputs],
        ]
        low, high = RULES[node.op](node, *arguments)
        least, most = RANGES[types[node.name].dtype]
        if low < least or high > most:
            raise CompileError(
                f"{node.name}: {node.op} may give [{low}, {high}], more than {types[node.name].dtype} holds; {REMEDY}"
            )
        known[node.name] = (low, high)
    return known


assert set(RULES) == set(OPS), f"ops without a bound rule: {set(OPS) - set(RULES)}"
