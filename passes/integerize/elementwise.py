"""Sums, products, comparisons: combined in real numbers, rounded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import INT32_MAX, TooFine, dyadic
from qcompile.passes.integerize.channels import scaled_channels
from qcompile.passes.integerize.functions import apply, as_function, as_integers, clamp
from qcompile.passes.integerize.reader import HANDLERS, Reader, handles
from qcompile.passes.integerize.values import (
    NO_CLAMP,
    Accumulator,
    Deferred,
    Function,
    Grid,
    Integers,
    Quantized,
    Real,
    Sum,
    UnnormalisedSoftmax,
    Value,
    identity,
    symmetric_grid,
    value_range,
)
from qcompile.passes.integerize.whole import computed, whole_type
from qcompile.targets.errors import CompileError


def scaled(r: Reader, v: Value, factor: float) -> Value:
    """v times a number, without computing anything."""
    if isinstance(v, Real):
        return Real(v.values * factor, None if v.step is None else np.abs(v.step * factor))
    if isinstance(v, UnnormalisedSoftmax):
        return scaled(r, v.normalised, factor)
    if isinstance(v, Integers | Function):
        return apply(r, lambda x: x * factor, v)
    if factor == 0:
        return Real(np.zeros(v.shape))
    low, high = sorted(c * factor for c in v.clamp)
    limits = (low, high)
    if isinstance(v, Accumulator):
        return replace(v, scale=v.scale * factor, bias=np.asarray(v.bias) * factor, clamp=limits)
    if isinstance(v, Quantized):
        return replace(v, scale=v.scale * factor, clamp=limits)
    if isinstance(v, Sum):
        return replace(v, a=scaled(r, v.a, factor), b=scaled(r, v.b, factor), clamp=limits)
    return replace(v, factor=v.factor * factor, clamp=limits)


def channel_vector(c: np.ndarray, v: Any) -> np.ndarray | None:
    """A constant as a vector along the value's last physical axis; None if it varies along another axis."""
    if c.size == 1:
        return c.reshape(1)
    rank = len(v.shape)
    if c.ndim > rank:
        return None
    c = c.reshape((1,) * (rank - c.ndim) + c.shape)
    channel = int(np.argsort(v.axes)[-1])
    if all(n == 1 for i, n in enumerate(c.shape) if i != channel) and c.shape[channel] == v.shape[channel]:
        return c.ravel()
    return None


@handles("relax.add")
def add(r: Reader, call: Any, args: list[Any]) -> Value:
    return computed(r, "add", call, args) if whole_type(call) else plus(r, *args)


@handles("relax.subtract")
def subtract(r: Reader, call: Any, args: list[Any]) -> Value:
    if whole_type(call):
        return computed(r, "subtract", call, args)
    a, b = args
    return plus(r, a, scaled(r, b, -1.0))


def plus(r: Reader, a: Value, b: Value) -> Value:
    if isinstance(a, Real) and isinstance(b, Real):
        return Real(a.values + b.values)
    if isinstance(a, Real):
        a, b = b, a
    shape = np.broadcast_shapes(a.shape, b.shape)
    if isinstance(a, UnnormalisedSoftmax):
        a = r.make.settle(a)
    if isinstance(b, UnnormalisedSoftmax):
        b = r.make.settle(b)
    if isinstance(b, Real):
        if not np.any(b.values) and shape == a.shape:
            return a
        a = (shape == a.shape and scaled_channels(r, a, b.values)) or a
        if isinstance(a, Accumulator) and a.clamp == NO_CLAMP:
            vector = channel_vector(b.values, a)
            if vector is not None and np.isfinite(vector).all() and shape == a.shape:
                return replace(a, bias=np.asarray(a.bias) + (vector if vector.size > 1 else float(vector[0])))
        if (
            b.values.size == 1
            and shape == a.shape
            and (
                isinstance(a, Function | Integers)
                or (isinstance(a, Quantized) and a.per_tensor and a.clamp == NO_CLAMP and a.hi - a.lo < 4096)
            )
        ):
            c = float(b.values.ravel()[0])
            return apply(r, lambda x: x + c, a)
    same = _same_source(r, a, b, shape)
    if same:
        f, g = same
        return Function(f.source, f.values + g.values)
    a, b = (as_function(r, t) if isinstance(t, Integers) else t for t in (a, b))
    a, b = (r.make.settle(t) if isinstance(t, Sum) and not t.masked else t for t in (a, b))
    return Sum(a, b, shape)


def _same_source(r: Reader, a: Value, b: Value, shape: tuple[int, ...]) -> tuple[Function, Function] | None:
    """a and b as functions of one and the same tensor, if they are."""
    if isinstance(a, Function) or isinstance(b, Function):
        x, y = (t.source if isinstance(t, Function) else t for t in (a, b))
        if not isinstance(x, Quantized) or not isinstance(y, Quantized):
            return None
        plain = all(t.per_tensor and t.clamp == NO_CLAMP for t in (x, y))
        if plain and (x.name, x.axes, x.shape, x.lo) == (y.name, y.axes, y.shape, y.lo) and x.shape == shape:
            return as_function(r, a), as_function(r, b)
    return None


@handles("relax.multiply")
def multiply(r: Reader, call: Any, args: list[Any]) -> Value:
    if whole_type(call):
        return computed(r, "multiply", call, args)
    a, b = args
    if isinstance(a, Real) and isinstance(b, Real):
        return Real(a.values * b.values)
    if isinstance(a, Real):
        a, b = b, a
    shape = np.broadcast_shapes(a.shape, b.shape)
    if isinstance(a, Integers) and isinstance(b, Real) and b.values.size > 1 and np.isin(b.values, (0, 1)).all():
        return _kept(r, a, b, shape)
    if isinstance(b, Real) and shape == a.shape:
        if b.values.size == 1:
            return scaled(r, a, float(b.values.ravel()[0]))
        a = scaled_channels(r, a, b.values) or a
        v = a if isinstance(a, Accumulator | Quantized) else r.make.settle(a)
        vector = channel_vector(b.values, v)
        if vector is not None and vector.size > 1 and np.all(vector != 0):
            if v.clamp != NO_CLAMP:
                v = r.make.settle(v)
            if isinstance(v, Accumulator):
                return replace(v, scale=v.scale * vector, bias=np.asarray(v.bias) * vector)
            return replace(v, scale=v.scale * vector)
        a = v
    same = _same_source(r, a, b, shape)
    if same:
        return Function(same[0].source, same[0].values * same[1].values)
    return elementwise_product(r, a, b, shape)


def _kept(r: Reader, v: Integers, flags: Real, shape: tuple[int, ...]) -> Integers:
    """The integers where the constant flags are 1, 0 elsewhere: a mask times a causal one."""
    name = r.make.physical(v.name, v.axes, identity(len(v.shape)))
    keep = r.builder.constant(flags.values.astype(np.int8), "mask")
    zero = r.builder.constant(np.zeros((), r.builder.types[name].dtype), "zero")
    return Integers(r.builder.emit("where", [keep, name, zero]), identity(len(shape)), shape)


def elementwise_product(r: Reader, a: Value, b: Value, shape: tuple[int, ...]) -> Deferred:
    flags = [isinstance(t, Integers) for t in (a, b)]
    a, b = (as_function(r, t).source if isinstance(t, Integers) else t for t in (a, b))
    x, y = (
        r.make.settle(t) if not isinstance(t, Real) else r.make.quantize(t, symmetric_grid(*value_range(t)))
        for t in (a, b)
    )
    x, y = r.make.with_rank(x, len(shape)), r.make.with_rank(y, len(shape))
    axes = max((x, y), key=lambda t: np.prod(t.shape)).axes
    x, y = r.make.relayout(x, axes), r.make.relayout(y, axes)
    if x.magnitude * y.magnitude > INT32_MAX:  # off-centre 16-bit codes
        x, y = (r.make.quantize(t, symmetric_grid(*t.range())) for t in (x, y))
    bound = x.magnitude * y.magnitude

    def make(grid: Grid) -> str:
        scale = float(x.scale) * float(y.scale)
        try:
            d = dyadic(scale / grid.scale, bound)
        except TooFine:
            return r.make.rescale(_exact_product(r, x, y), 0, scale, bound, grid)
        return r.builder.emit(
            "mul",
            [x.name, y.name, r.builder.constant(d.multiplier, "multiplier")],
            x_zero_point=x.zero_point,
            r_zero_point=y.zero_point,
            shift=d.shift,
            pre=d.pre,
            **grid.attrs(),
        )

    # an integer input without calibration counts as a mask of 0 and 1 for the grid (larger products saturate)
    ranges = [(0.0, 1.0) if flag else t.range() for flag, t in zip(flags, (x, y))]
    ends = [p * q for p in ranges[0] for q in ranges[1]]
    return Deferred(make, axes, shape, min(ends), max(ends))


def _exact_product(r: Reader, x: Quantized, y: Quantized) -> str:
    """The int32 tensor of products of codes, each less its zero point."""
    names = [r.builder.emit("cast", [q.name], offset=-q.zero_point, dtype="int32") for q in (x, y)]
    return r.builder.emit("whole", names, function="multiply", dtype="int32")


@handles("relax.divide")
def divide(r: Reader, call: Any, args: list[Any]) -> Value:
    if whole_type(call):
        return computed(r, "divide", call, args)
    a, b = args
    if isinstance(b, Real):
        return multiply(r, call, [a, Real(1.0 / b.values.astype(np.float64))])
    shape = np.broadcast_shapes(a.shape, b.shape)
    same = _same_source(r, a, b, shape) if not isinstance(a, Real) else None
    if same:
        with np.errstate(all="ignore"):
            return Function(same[0].source, same[0].values / same[1].values)
    f = as_function(r, b)
    steps = np.abs(np.diff(f.values))
    steps = steps[np.isfinite(steps) & (steps > 0)]
    if not steps.size:
        raise CompileError("a division by a tensor that takes one value only; divide by a constant")
    smallest = np.median(steps)  # a divisor below its own resolution counts as that
    safe = np.where(np.abs(f.values) < smallest, np.where(f.values < 0, -smallest, smallest), f.values)
    inverse = 1.0 / safe
    if np.abs(inverse).max() < WIDEST_INVERSE * np.abs(inverse).min() or (isinstance(a, Real) and a.values.size == 1):
        return multiply(r, call, [a, Function(f.source, inverse)])
    octave = np.floor(np.log2(np.abs(inverse)))
    power = 2.0 ** np.maximum(octave, octave.max() - 14)
    mantissa = elementwise_product(r, a, Function(f.source, inverse / power), shape)
    return elementwise_product(r, r.make.settle(mantissa), Function(f.source, power), shape)


@handles("relax.power")
def power(r: Reader, call: Any, args: list[Any]) -> Value:
    if whole_type(call):
        return computed(r, "power", call, args)
    if not isinstance(args[1], Real) or args[1].values.size != 1:
        raise CompileError("a power with a computed or non-scalar exponent has no integer form")
    return apply(r, lambda x: x ** float(args[1].values.ravel()[0]), args[0])


def _limit(low: bool) -> Callable[[Reader, Any, list[Any]], Value]:
    def handler(r: Reader, call: Any, args: list[Any]) -> Value:
        if whole_type(call):
            return computed(r, "maximum" if low else "minimum", call, args)
        a, b = args if not isinstance(args[0], Real) else (args[1], args[0])
        if isinstance(b, Real) and b.values.size == 1:
            c = float(b.values.ravel()[0])
            return clamp(r, a, c, np.inf) if low else clamp(r, a, -np.inf, c)
        if isinstance(b, Real) and isinstance(a, Real):
            return Real((np.maximum if low else np.minimum)(a.values, b.values))
        a = r.make.settle(a)  # max(a, b) = a + relu(b - a), min(a, b) = a - relu(a - b)
        sign = 1.0 if low else -1.0
        excess = clamp(r, plus(r, scaled(r, b, sign), scaled(r, a, -sign)), 0.0, np.inf)
        return plus(r, a, scaled(r, r.make.settle(excess), sign))

    return handler


HANDLERS["relax.maximum"], HANDLERS["relax.minimum"] = _limit(True), _limit(False)

SHARPNESS = 8
WIDEST_INVERSE = 64  # of its least: mantissas of reciprocals that vary more are kept apart from their powers of two
LOGICAL = (np.logical_and, np.logical_or, np.logical_xor)
COMPARE = {
    "equal": np.equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
}


def _relative(r: Reader, v: Value, constant: Real) -> tuple[Value, float]:
    """An integer tensor minus the integer it is compared with, so that 8 bits hold what matters; what is left of it."""
    c = float(constant.values.ravel()[0])
    if not isinstance(v, Integers) or v.graph_input or r.builder.types[v.name].dtype not in ("int16", "int32") or c % 1:
        return v, c
    return replace(v, name=r.builder.emit("cast", [v.name], offset=int(-c), dtype="int8")), 0.0


def _compare(f: Callable[..., np.ndarray]) -> Callable[[Reader, Any, list[Any]], Value]:
    def handler(r: Reader, call: Any, args: list[Any]) -> Value:
        a, b = args
        if isinstance(a, Real) and isinstance(b, Real):
            return Real(f(a.values, b.values))
        if isinstance(b, Real) and b.values.size == 1:
            a, c = _relative(r, a, b)
            return apply(r, lambda x: f(x, c).astype(np.float64), a)
        if isinstance(a, Real) and a.values.size == 1:
            b, c = _relative(r, b, a)
            return apply(r, lambda x: f(c, x).astype(np.float64), b)
        if whole_type(call.args[0]) and whole_type(call.args[1]):
            return computed(r, f.__name__, call, args)
        return _logical(r, f, a, b) if f in LOGICAL else _ordered(r, f, a, b)

    return handler


def _logical(r: Reader, f: Callable[..., np.ndarray], a: Value, b: Value) -> Function:
    """A function of how many of two truth values hold."""
    flags = [
        Real((v.values != 0).astype(np.float64)) if isinstance(v, Real) else apply(r, lambda x: x != 0, v)
        for v in (a, b)
    ]
    count = r.make.quantize(plus(r, *flags), Grid(1.0, 0, "int8", 0, 2))
    return Function(count, np.array([f(False, False), f(True, False), f(True, True)], np.float64))


def _ordered(r: Reader, f: Callable[..., np.ndarray], a: Value, b: Value) -> Function:
    """A function of the sign of a difference. Integers and operands on one grid are compared exactly, others to a
    SHARPNESS-th of the finer step."""
    a, b = (v if isinstance(v, Real) else r.make.settle(as_integers(r, v)) for v in (a, b))
    steps = [float(v.scale) for v in (a, b) if isinstance(v, Quantized)]
    whole = all(isinstance(v, Quantized) or not (v.values % 1).any() for v in (a, b)) and set(steps) == {1.0}
    same = len(steps) == 2 and np.isclose(steps[0], steps[1], rtol=1e-6, atol=0)
    step = 1.0 if whole else min(steps) / (1 if same else SHARPNESS)
    difference = plus(r, a, scaled(r, b, -1.0))
    sign = r.make.quantize(difference, Grid(step, 0, "int8", -127, 127))
    at = np.arange(-127, 128)
    return Function(replace(sign, lo=-127, hi=127), f(at, 0).astype(np.float64))


HANDLERS.update({f"relax.{name}": _compare(f) for name, f in COMPARE.items()})
