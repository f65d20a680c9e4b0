"""Selection: rows by number, and one of two tensors by a condition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from qcompile.passes.integerize.functions import as_function
from qcompile.passes.integerize.movement import cut, reshape_value, shape_after
from qcompile.passes.integerize.reader import Reader, handles, shape_of
from qcompile.passes.integerize.softmax import keep_tensor, masked_scores
from qcompile.passes.integerize.values import (
    Function,
    Quantized,
    Real,
    Value,
    identity,
    symmetric_grid,
    value_range,
)
from qcompile.targets.errors import CompileError


@handles("relax.take")
def take(r: Reader, call: Any, args: list[Any]) -> Value:
    v, indices, shape = args[0], args[1], shape_of(call)
    axis = int(call.attrs.axis or 0) % len(v.shape)
    size = v.shape[axis]
    if isinstance(indices, Real):
        i = indices.values.astype(np.int64)
        if i.size and (i.min() < -size or i.max() >= size):
            raise CompileError(f"an index of a Gather lies outside its axis of size {size}")
        i = np.where(i < 0, i + size, i)
        if isinstance(v, Real):
            return v.map(lambda x: np.take(x, i, axis))
        v = r.settled(v, r.call_var)
        flat = i.ravel()
        if (np.diff(flat) == 1).all():  # one index, or neighbours: a slice
            begin, end = [0] * len(v.shape), list(v.shape)
            begin[axis], end[axis] = int(flat[0]), int(flat[-1]) + 1
            part = cut(r, v, begin, end, [1] * len(v.shape), shape_after(v.shape, axis, flat.size))
            return part if part.shape == shape else reshape_value(r, part, shape)
        ids = r.builder.constant(i.astype(np.int32), "indices")
    else:
        if isinstance(indices, Function | Quantized):
            raise CompileError("the indices of a Gather are computed from float values; that has no integer form")
        ids = r.make.physical(indices.name, indices.axes, identity(len(indices.shape)))
    if isinstance(v, Real):
        v = _table(r, v)
    return move_take(r, r.settled(v, r.call_var), ids, axis, shape)


def _table(r: Reader, v: Real) -> Quantized:
    """An embedding table: on the model's own grid if it has one for the whole table, else 16 bits."""
    if v.step is not None and v.step.size and v.step.min() == v.step.max():
        step = v.step.flat[0]
        codes = v.values / step.astype(v.values.dtype)
        np.rint(codes, out=codes)
        largest = max(codes.max(initial=0), -codes.min(initial=0))
        grid = symmetric_grid(-1, 1, "int8" if largest <= 127 else "int16")
        if largest <= grid.hi:
            name = r.builder.constant(codes.astype(grid.dtype))
            return Quantized(name, identity(codes.ndim), codes.shape, float(step), 0, grid.dtype, grid.lo, grid.hi)
    return r.make.quantize(v, symmetric_grid(*value_range(v)))


def move_take(r: Reader, v: Value, ids: str, axis: int, shape: tuple[int, ...]) -> Value:
    if isinstance(v, Function):
        return replace(v, source=move_take(r, v.source, ids, axis, shape))
    if isinstance(v, Quantized) and not v.per_tensor:
        v = r.make.settle(v)
    name = r.make.physical(v.name, v.axes, identity(len(v.shape)))
    return replace(v, name=r.builder.emit("take", [name, ids], axis=axis), axes=identity(len(shape)), shape=shape)


@handles("relax.where")
def where(r: Reader, call: Any, args: list[Any]) -> Value:
    condition, a, b = args
    shape = shape_of(call)
    if all(isinstance(v, Real) for v in args):
        return Real(np.where(condition.values, a.values, b.values))
    if isinstance(condition, Real) and (condition.values.all() or not condition.values.any()):
        chosen = a if condition.values.all() else b
        if chosen.shape == shape:
            return chosen
    if isinstance(a, Real) and isinstance(b, Real) and a.values.size == 1 and b.values.size == 1:
        x, y = a.values.ravel()[0], b.values.ravel()[0]
        f = as_function(r, condition)
        return Function(f.source, np.where(f.values != 0, x, y).astype(np.float64))
    masked = masked_scores(r, condition, a, b, shape)
    if masked is not None:
        return masked
    grid = r.upcoming_grid(r.call_var)
    if grid is None:
        (al, ah), (bl, bh) = value_range(a), value_range(b)
        grid = symmetric_grid(min(al, bl), max(ah, bh))
    keep = keep_tensor(r, condition)
    made = [r.make.plain(r.make.quantize(v, grid)) for v in (a, b)]
    name = r.builder.emit("where", [keep, *(q.name for q in made)])
    return replace(
        made[0],
        name=name,
        axes=identity(len(shape)),
        shape=shape,
        lo=min(q.lo for q in made),
        hi=max(q.hi for q in made),
    )
