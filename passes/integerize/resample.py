"""Resizing: sums along axes with constant weights, or elements by number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import INT32_MAX, dyadic
from qcompile.passes.integerize.reader import Reader, handles, integers
from qcompile.passes.integerize.values import Deferred, Function, Grid, Integers, Quantized, Real, Value
from qcompile.targets.errors import CompileError

MOST_BITS = 10  # of a weight's fraction
MOST_TAPS = 16  # pixels that one pass adds up; more are added along one axis after the other

Table = tuple[np.ndarray, np.ndarray]  # numbers and weights [taps, out]


def _linear_map(x: np.ndarray, axis: int, table: Table) -> np.ndarray:
    numbers, weights = table
    along = [-1 if i == axis else 1 for i in range(x.ndim)]
    return sum(np.take(x, n, axis) * w.reshape(along) for n, w in zip(numbers, weights))  # type: ignore[return-value]


@handles("source.resample")
def resample(r: Reader, call: Any, args: list[Any]) -> Value:
    axes, nearest, v = integers(call.attrs["axes"]), int(call.attrs["nearest"]), args[0]
    tables: dict[int, Table] = {
        a: (np.asarray(args[1 + 2 * k].values), np.asarray(args[2 + 2 * k].values, np.float64))
        for k, a in enumerate(axes)
    }
    if isinstance(v, Real):
        values = v.values
        for a, table in tables.items():
            values = _linear_map(values, a, table)
        return Real(values)
    v = r.settled(v, r.call_var)
    if nearest and all((weights == 1).all() for _, weights in tables.values()):
        for a, (numbers, _) in tables.items():
            v = taken(r, v, numbers[0], a)
        return v
    if isinstance(v, Integers):
        raise CompileError("Resize of integers by weights is not supported; use mode nearest, or cast them first")
    return _weighted(r, r.make.settle(v), tables)


def taken(r: Reader, v: Any, numbers: np.ndarray, axis: int) -> Any:
    """Elements by constant number along an axis, in whatever layout the value has."""
    if isinstance(v, Function):
        return replace(v, source=taken(r, v.source, numbers, axis))
    if isinstance(v, Quantized) and not v.per_tensor:
        v = r.make.settle(v)
    if np.array_equal(numbers, np.arange(v.shape[axis])):
        return v
    ids = r.builder.constant(numbers.astype(np.int32), "indices")
    shape = (*v.shape[:axis], len(numbers), *v.shape[axis + 1 :])
    return replace(v, name=r.builder.emit("take", [v.name, ids], axis=v.axes[axis]), shape=shape)


def _weighted(r: Reader, x: Quantized, tables: dict[int, Table]) -> Value:
    """Channels last; the two innermost spatial axes in one pass, others in passes of their own, through 16 bits."""
    rank = len(x.shape)
    if rank > 2 and 1 not in tables:
        x = r.make.relayout(x, (0, rank - 1, *range(1, rank - 1)))
    else:
        x = r.make.plain(x)
    passes: list[tuple[int, ...]] = [(a,) for a in tables]
    last = (rank - 2, rank - 1)
    joint = rank > 3 and 1 not in tables and set(last) <= set(tables)
    if joint and len(tables[last[0]][0]) * len(tables[last[1]][0]) <= MOST_TAPS:
        passes = [*(p for p in passes if p[0] not in last), last]
    result: Value = x
    for axes in passes:
        result = _pass(r, r.make.settle(result), [(a, tables[a]) for a in axes])
    return result


def _pass(r: Reader, x: Quantized, steps: list[tuple[int, Table]]) -> Deferred:
    """One sum over the taps of one axis, or of two neighbouring ones."""
    first = x.axes[steps[0][0]]
    order = [int(i) for i in np.argsort(x.axes)]
    sizes = [x.shape[i] for i in order]
    out = list(x.shape)
    for a, (numbers, _) in steps:
        out[a] = numbers.shape[1]
    width = sizes[first + 1] if len(steps) == 2 else 1
    behind = first + len(steps)
    view = [int(np.prod(sizes[:first])), sizes[first], width, int(np.prod(sizes[behind:]))]
    tables = [table for _, table in steps]
    if len(steps) == 1:
        tables.append((np.zeros((1, 1), np.int32), np.ones((1, 1))))
    reach = float(np.prod([np.abs(w).sum(0).max() for _, w in tables]))
    bits = int(np.floor(np.log2(INT32_MAX / (1.02 * max(reach, 1.0) * x.magnitude))))
    each = [min(MOST_BITS, bits // len(steps))] * len(steps) + [0] * (2 - len(steps))
    constants = []
    for (numbers, weights), b in zip(tables, each):
        constants += [numbers.astype(np.int32), fixed_point(weights, b)]
    names = [r.builder.constant(c, "taps") for c in constants]
    name = r.builder.emit("reshape", [x.name], shape=view) if view != list(r.builder.types[x.name].shape) else x.name
    bound = x.magnitude * int(np.prod([np.abs(c).sum(0).max() for c in constants[1::2]]))
    physical = [out[i] for i in order]

    def make(grid: Grid) -> str:
        d = dyadic(float(x.scale) / (1 << sum(each)) / grid.scale, bound)
        y = r.builder.emit(
            "resize_linear",
            [name, *names],
            x_zero_point=x.zero_point,
            multiplier=int(d.multiplier[0]),
            shift=d.shift,
            pre=d.pre,
            **grid.attrs(),
        )
        return y if list(r.builder.types[y].shape) == physical else r.builder.emit("reshape", [y], shape=physical)

    low, high = x.range()
    if min(float(w.min()) for _, w in tables) < 0:
        low, high = min(low, -high, reach * low, -reach * high), max(high, -low, reach * high, -reach * low)
    return Deferred(make, x.axes, tuple(out), min(low, 0.0), max(high, 0.0))


def fixed_point(weights: np.ndarray, bits: int) -> np.ndarray:
    """Weights times 2^bits, rounded so that those of an element still add up to what they did."""
    codes = np.rint(weights * (1 << bits)).astype(np.int64)
    missing = np.rint(weights.sum(0) * (1 << bits)).astype(np.int64) - codes.sum(0)
    codes[np.abs(weights).argmax(0), np.arange(codes.shape[1])] += missing
    return codes.astype(np.int32)
