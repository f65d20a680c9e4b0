"""Integers without a scale: constants, what is known of their ranges, and functions of two of them."""

from __future__ import annotations

import numpy as np
from qcompile.kernels.arithmetic import RANGES
from qcompile.kernels.ops.whole import COMPARISONS, Interval, computed_in, whole_interval
from qcompile.passes.integerize.reader import Reader
from qcompile.passes.integerize.values import Integers, identity
from qcompile.targets.errors import CompileError


def constant(r: Reader, values: np.ndarray, dtype: str) -> Integers:
    """A constant in the narrowest of its declared type and int32 that holds it."""
    whole = np.asarray(values).astype("int8" if dtype == "bool" else dtype)
    ends = int(whole.min(initial=0)), int(whole.max(initial=0))
    if dtype in ("int64", "uint64", "uint32") and _fits(ends, "int32"):
        whole = whole.astype(np.int32)
    return Integers(r.builder.constant(whole, "integers"), identity(whole.ndim), whole.shape)


def _fits(interval: Interval, dtype: str) -> bool:
    return RANGES[dtype][0] <= interval[0] and interval[1] <= RANGES[dtype][1]


def interval(r: Reader, name: str) -> Interval:
    """Where the integers of a tensor provably lie."""
    values = r.builder.program.constants.get(name)
    if values is not None and values.size:
        return int(values.min()), int(values.max())
    return r.builder.intervals.get(name, RANGES[r.builder.types[name].dtype])


def laid_out(r: Reader, v: Integers) -> str:
    """The tensor in logical order."""
    if v.graph_input:
        raise CompileError(f"{v.name} is float where integers are wanted")
    return r.make.physical(v.name, v.axes, identity(len(v.shape)))


def combine(r: Reader, function: str, a: Integers, b: Integers, dtype: str) -> Integers:
    """function(a, b) in the declared type `dtype`; see kernels.ops.whole."""
    names = [laid_out(r, v) for v in (a, b)]
    ranges = [interval(r, n) for n in names]
    found = whole_interval(function, *ranges)
    stored = "int8" if function in COMPARISONS or dtype == "bool" else dtype
    if found and dtype in ("int64", "uint64", "uint32") and _fits(found, "int32"):
        stored = "int32"
    inside = computed_in(*(r.builder.types[n].dtype for n in names), stored)
    if inside == "uint64" and min(i[0] for i in ranges) < 0:
        raise CompileError(f"{function} of uint64 and of numbers that may be below 0 has no integer form")
    name = r.builder.emit("whole", names, function=function, dtype=stored)
    if found and _fits(found, stored):
        r.builder.intervals[name] = found
    shape = r.builder.types[name].shape
    return Integers(name, identity(len(shape)), shape)


def within(r: Reader, v: Integers, low: int, high: int, dtype: str) -> Integers:
    """The integers in `dtype`, those outside of low to high replaced by the nearer end."""
    have = r.builder.types[v.name].dtype
    if low > RANGES[have][0]:
        v = combine(r, "maximum", v, constant(r, np.array(low), have), have)
    return combine(r, "minimum", v, constant(r, np.array(min(high, RANGES[have][1])), have), dtype)


def in_type(r: Reader, v: Integers, dtype: str) -> Integers:
    """The integers modulo 2^bits of a declared type."""
    name = laid_out(r, v)
    found = interval(r, name)
    if _fits(found, dtype):
        return v
    return combine(r, "add", v, constant(r, np.array(0), r.builder.types[v.name].dtype), dtype)


def same_type(r: Reader, *values: Integers) -> list[Integers]:
    """Integers in one type that holds all of them."""
    types = {r.builder.types[v.name].dtype for v in values}
    if len(types) == 1:
        return list(values)
    wide, zero = computed_in(*types), r.builder.constant(np.zeros((), np.int8), "integers")
    made = []
    for v in values:
        name = laid_out(r, v)
        if r.builder.types[name].dtype != wide:
            wider = r.builder.emit("whole", [name, zero], function="add", dtype=wide)
            r.builder.intervals[wider] = interval(r, name)
            name = wider
        made.append(Integers(name, identity(len(v.shape)), v.shape))
    return made
