"""Integers that the graph declares: arithmetic in their own types, exact.

int64 is kept in 32 bits where its numbers provably fit, and in 64 elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import RANGES
from qcompile.kernels.ops.whole import FUNCTIONS
from qcompile.passes.integerize.functions import apply
from qcompile.passes.integerize.integers import combine, constant, interval, laid_out, same_type, within
from qcompile.passes.integerize.reader import HANDLERS, Reader, handles, is_whole
from qcompile.passes.integerize.values import Accumulator, Function, Integers, Quantized, Real, Value, identity
from qcompile.targets.errors import CompileError


def dtype_of(expr: Any) -> str:
    """The declared type of a tensor."""
    return str(expr.ty.dtype)


def whole_type(expr: Any) -> bool:
    """Whether a tensor is of a type of integers, truth values not among them."""
    return is_whole(expr) and dtype_of(expr) != "bool"


def integers_of(r: Reader, v: Value, dtype: str) -> Integers:
    """A value of a declared integer type as its integers."""
    if isinstance(v, Real):
        return constant(r, v.values, dtype)
    if isinstance(v, Integers):
        return v
    if isinstance(v, Accumulator) and v.whole:
        return Integers(v.emit(None), v.axes, v.shape)
    if not (isinstance(v, Quantized) and v.per_tensor and v.scale == 1 and v.zero_point == 0):
        q = r.whole_numbers(v if isinstance(v, Function) else apply(r, np.trunc, v))
        return Integers(q.name, q.axes, q.shape)
    return Integers(v.name, v.axes, v.shape)


def computed(r: Reader, function: str, call: Any, args: list[Any]) -> Value:
    """The result of an operator of two operands of a declared integer type."""
    dtype, operands = dtype_of(call.args[0]), call.args
    if all(isinstance(v, Real) for v in args):
        with np.errstate(over="ignore"):
            x, y = (v.values.astype(dtype) for v in args)
            return Real(np.asarray(FUNCTIONS[function](x, y.astype(dtype))))
    a, b = (integers_of(r, v, dtype_of(e)) for v, e in zip(args, operands))
    return combine(r, function, a, b, dtype)


def chosen_integers(r: Reader, condition: str, a: Integers, b: Integers) -> Integers:
    """condition ? a : b, in the wider of their types."""
    names = [laid_out(r, v) for v in same_type(r, a, b)]
    name = r.builder.emit("where", [condition, *names])
    ranges = [interval(r, n) for n in names]
    r.builder.intervals[name] = min(i[0] for i in ranges), max(i[1] for i in ranges)
    shape = r.builder.types[name].shape
    return Integers(name, identity(len(shape)), shape)


def _binary(function: str) -> Callable[[Reader, Any, list[Any]], Value]:
    return lambda r, call, args: computed(r, function, call, args)


HANDLERS.update(
    {
        f"relax.{name}": _binary(name)
        for name in ("bitwise_and", "bitwise_or", "bitwise_xor", "left_shift", "right_shift")
    }
)


@handles("relax.floor_mod", "relax.mod")
def modulo(r: Reader, call: Any, args: list[Any]) -> Value:
    function = call.op.name.removeprefix("relax.")
    if whole_type(call):
        return computed(r, function, call, args)
    a, b = args
    if not isinstance(b, Real) or b.values.size != 1:
        raise CompileError("Mod of floats by a computed tensor has no integer form; divide by a constant")
    divisor = float(b.values.ravel()[0])
    return apply(r, lambda x: (np.fmod if function == "mod" else np.mod)(x, divisor), a)


@handles("relax.bitwise_not")
def bitwise_not(r: Reader, call: Any, args: list[Any]) -> Value:
    dtype = dtype_of(call)
    ones = Real(np.asarray(RANGES[dtype][1] if dtype.startswith("u") else -1, dtype))
    if isinstance(args[0], Real):
        return Real(np.bitwise_not(args[0].values.astype(dtype)))
    return combine(r, "bitwise_xor", integers_of(r, args[0], dtype), integers_of(r, ones, dtype), dtype)


def _zero(r: Reader, dtype: str) -> Integers:
    return constant(r, np.array(0), dtype)


def negative(r: Reader, v: Integers, dtype: str) -> Integers:
    return combine(r, "subtract", _zero(r, dtype), v, dtype)


def absolute(r: Reader, v: Integers, dtype: str) -> Integers:
    return v if dtype.startswith("u") else combine(r, "maximum", v, negative(r, v, dtype), dtype)


def sign(r: Reader, v: Integers, dtype: str) -> Integers:
    return within(r, v, -1, 1, dtype)


UNARY = {"negative": negative, "abs": absolute, "sign": sign}


def of_integers(name: str, otherwise: Callable[[Reader, Any, list[Any]], Value]) -> Callable[..., Value]:
    """The handler of a unary operator: exact on integers, `otherwise` on floats."""

    def handler(r: Reader, call: Any, args: list[Any]) -> Value:
        if isinstance(args[0], Real) or not whole_type(call):
            return otherwise(r, call, args)
        return UNARY[name](r, integers_of(r, args[0], dtype_of(call)), dtype_of(call))

    return handler


for _name in UNARY:
    HANDLERS[f"relax.{_name}"] = of_integers(_name, HANDLERS[f"relax.{_name}"])
