"""Functions of one tensor: tables, and limits that become those of a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import RANGES, dyadic
from qcompile.passes.integerize.integers import in_type, within
from qcompile.passes.integerize.reader import HANDLERS, Reader, handles, scalar
from qcompile.passes.integerize.values import (
    TABLE_CODES,
    Accumulator,
    Deferred,
    Function,
    Grid,
    Integers,
    Quantized,
    Real,
    UnnormalisedSoftmax,
    Value,
    unknown_range,
)
from qcompile.targets.errors import CompileError
from scipy.special import erf


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * x))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


UNARY: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "abs": np.abs,
    "exp": np.exp,
    "erf": erf,
    "log": np.log,
    "negative": np.negative,
    "sigmoid": sigmoid,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "atan": np.arctan,
    "asin": lambda x: np.arcsin(x.clip(-1, 1)),  # the code of 1 may stand for 1.0001
    "acos": lambda x: np.arccos(x.clip(-1, 1)),
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asinh": np.arcsinh,
    "atanh": lambda x: np.arctanh(x.clip(-1, 1)),
    "acosh": lambda x: np.arccosh(x.clip(1)),
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.rint,
    "sign": np.sign,
    "square": np.square,
    "nn.gelu": gelu,
    "nn.gelu_tanh": gelu_tanh,
    "nn.silu": lambda x: x * sigmoid(x),
    "nn.softplus": softplus,
    "isinf": np.isinf,
    "logical_not": lambda x: x == 0,
}


def as_function(r: Reader, v: Value) -> Function:
    """The value as a function of one tensor of few codes."""
    if isinstance(v, Function):
        return v
    if isinstance(v, Integers):
        if v.graph_input:
            raise unknown_range(v.name)
        if r.builder.types[v.name].dtype not in ("int8", "uint8", "int32"):
            return as_function(r, as_integers(r, v))
        q = _byte_numbers(r, v)
    else:
        q = r.make.settle(v)
    if q.hi - q.lo >= TABLE_CODES:
        q = r.make.settle(q)
    return Function(q, (np.arange(q.lo, q.hi + 1) - q.zero_point) * float(q.scale))


def _byte_numbers(r: Reader, v: Integers) -> Quantized:
    """An integer tensor as numbers of scale 1 and few codes."""
    dtype = r.builder.types[v.name].dtype
    if dtype == "int32":  # masks and flags: what matters lies within 8 bits
        v = replace(v, name=r.builder.emit("cast", [v.name], offset=0, dtype="int8"))
    name, zero = r.signed(v)
    info = np.iinfo(r.builder.types[name].dtype)
    return Quantized(name, v.axes, v.shape, 1.0, zero, str(info.dtype), int(info.min), int(info.max))


def as_integers(r: Reader, v: Value) -> Value:
    """An integer tensor as numbers of scale 1, saturated to 16 bits; other values as they are."""
    if not isinstance(v, Integers) or v.graph_input:
        return v
    if r.builder.types[v.name].dtype not in ("int8", "uint8", "int16", "int32"):
        v = within(r, v, *RANGES["int16"], "int16")
    return r.make.numbers(v)


def integers_on(r: Reader, v: Integers, grid: Grid) -> Quantized:
    """An integer tensor on a grid: through 16 bits where that holds the grid's range, else as it is."""
    ends = [(code - grid.zero_point) * grid.scale for code in (grid.lo, grid.hi)]
    low, high = RANGES["int16"]
    if r.builder.types[v.name].dtype in ("uint32", "int64", "uint64"):
        v = within(r, v, *RANGES["int32"], "int32")
    if r.builder.types[v.name].dtype != "int32" or (low <= min(ends) and max(ends) <= high):
        return r.make.quantize(as_integers(r, v), grid)

    def emit(bias: np.ndarray | None) -> str:
        if bias is not None:
            raise CompileError(f"{v.name}: integers beyond 16 bits cannot be moved by a zero point")
        return v.name

    top = float(RANGES["int32"][1])
    return r.make.quantize(Accumulator(emit, v.axes, v.shape, 1.0, top, "integers"), grid)


def apply(r: Reader, f: Callable[[np.ndarray], np.ndarray], v: Value) -> Value:
    """An elementwise function of any value."""
    if isinstance(v, Real):
        return Real(np.asarray(f(v.values.astype(np.float64))))
    g = as_function(r, v)
    with np.errstate(all="ignore"):
        return Function(g.source, np.asarray(f(g.values), np.float64))


def _unary(op: str, f: Callable[[np.ndarray], np.ndarray]) -> Callable[[Reader, Any, list[Any]], Value]:
    return lambda r, call, args: apply(r, r.approximation.unary.get(op, f), args[0])


HANDLERS.update({f"relax.{name}": _unary(f"relax.{name}", f) for name, f in UNARY.items()})


@handles("relax.isnan")
def isnan(r: Reader, call: Any, args: list[Any]) -> Real:
    """Integers are never NaN."""
    return Real(np.isnan(args[0].values) if isinstance(args[0], Real) else np.zeros(args[0].shape, bool))


LIMITS = {"relax.maximum", "relax.minimum", "relax.clip", "relax.nn.relu", "relax.nn.relu6"}


def clamp(r: Reader, v: Value, low: float, high: float) -> Value:
    """v limited to [low, high]; deferred values carry the limits to their grid."""
    if isinstance(v, Integers):  # rounding and limits may change places
        grid = r.upcoming_grid(r.call_var, LIMITS)
        if grid is not None:
            v = r.quantize_input(v, grid) if v.graph_input else integers_on(r, v, grid)
    if isinstance(v, Real):
        return Real(np.clip(v.values, low, high))
    if isinstance(v, UnnormalisedSoftmax):
        v = v.normalised
    if isinstance(v, Function | Integers) or (isinstance(v, Quantized) and v.dtype == "int8"):
        return apply(r, lambda x: np.clip(x, low, high), v)
    new = max(v.clamp[0], low), min(v.clamp[1], high)
    return replace(v, clamp=(min(new), max(new)) if new[0] <= new[1] else (high, high))


@handles("relax.nn.relu")
def relu(r: Reader, call: Any, args: list[Any]) -> Value:
    return clamp(r, args[0], 0.0, np.inf)


@handles("relax.nn.relu6")
def relu6(r: Reader, call: Any, args: list[Any]) -> Value:
    return clamp(r, args[0], 0.0, 6.0)


@handles("relax.clip")
def clip(r: Reader, call: Any, args: list[Any]) -> Value:
    return clamp(r, args[0], scalar(call.args[1]), scalar(call.args[2]))


@handles("relax.nn.leakyrelu")
def leaky_relu(r: Reader, call: Any, args: list[Any]) -> Value:
    alpha = float(call.attrs.alpha)
    return apply(r, lambda x: np.where(x < 0, alpha * x, x), args[0])


@handles("relax.nn.prelu")
def prelu(r: Reader, call: Any, args: list[Any]) -> Value:
    if not isinstance(args[1], Real):
        raise CompileError("a PRelu with a computed slope has no integer form; its slope must be constant")
    v, slope = args[0], args[1].values.astype(np.float64).ravel()
    if slope.size == 1:
        return apply(r, lambda x: np.where(x < 0, slope[0] * x, x), v)
    rank = len(v.shape)
    axis = int(call.attrs.axis) % rank
    q = r.make.settle(v)
    last = tuple([*range(axis), rank - 1, *range(axis, rank - 1)])  # `axis` lies last in memory
    q = q if q.axes[axis] == rank - 1 else r.make.relayout(q, last)

    def make(grid: Grid) -> str:
        factors = np.concatenate([np.ones(len(slope)), slope]) * float(q.scale) / grid.scale
        d = dyadic(factors, q.magnitude)
        m = [r.builder.constant(part, "multiplier") for part in np.split(d.multiplier, 2)]
        return r.builder.emit(
            "prelu", [q.name, *m], x_zero_point=q.zero_point, shift=d.shift, pre=d.pre, **grid.attrs()
        )

    low, high = q.range()
    ends = [0.0, high, low * slope.min(), low * slope.max()]
    return Deferred(make, q.axes, q.shape, min(ends), max(ends))


@handles("relax.astype")
def astype(r: Reader, call: Any, args: list[Any]) -> Value:
    v, dtype = args[0], str(call.attrs.dtype)
    if isinstance(v, Real):
        return Real(v.values.astype(dtype), v.step)
    if isinstance(v, Quantized) and v.role == "codes":  # the codes as numbers
        offset = RANGES[v.dtype][0] - RANGES[str(call.args[0].ty.dtype)][0]
        return replace(v, scale=1.0, zero_point=offset, role="")
    if dtype == "bool":
        return apply(r, lambda x: (x != 0).astype(np.float64), v)
    if isinstance(v, Integers):
        return in_type(r, v, dtype) if "int" in dtype else _as_sums(r, v)
    if "int" in dtype and isinstance(v, Function | Quantized) and "float" in str(call.args[0].ty.dtype):
        return apply(r, np.trunc, v)
    return v


def _as_sums(r: Reader, v: Integers) -> Value:
    """Integers as numbers: exact sums are those of a product."""
    sums = r.sums.get(v.name)
    return v if sums is None else replace(sums, axes=v.axes, shape=v.shape, scale=1.0)
