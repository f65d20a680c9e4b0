"""Selection: rows by number, and one of two tensors by a condition."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from qcompile.passes.integerize.functions import as_function
from qcompile.passes.integerize.linear import own_codes
from qcompile.passes.integerize.movement import cut, reshape_value, shape_after
from qcompile.passes.integerize.multipliers import Blocks, exact_multipliers, nearest_multipliers
from qcompile.passes.integerize.reader import Reader, handles, is_whole, shape_of
from qcompile.passes.integerize.resample import taken
from qcompile.passes.integerize.softmax import keep_tensor, masked_scores
from qcompile.passes.integerize.values import (
    Function,
    Integers,
    Quantized,
    Real,
    Value,
    identity,
    symmetric_grid,
    value_range,
)
from qcompile.passes.integerize.whole import chosen_integers, dtype_of, integers_of, whole_type
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
        if i.ndim == 1:
            return taken(r, v, i, axis)
        ids = r.builder.constant(i.astype(np.int32), "indices")
    else:
        if isinstance(indices, Function | Quantized) and is_whole(call.args[1]):
            indices = integers_of(r, indices, dtype_of(call.args[1]))
        if isinstance(indices, Function | Quantized):
            raise CompileError("the indices of a Gather are computed from float values; that has no integer form")
        ids = r.make.physical(indices.name, indices.axes, identity(len(indices.shape)))
    if isinstance(v, Real) and v.step is None and v.values.dtype.kind in "iub":  # numbers of rows of another table
        whole = np.clip(v.values.astype(np.int64), *INT32).astype(np.int32)
        v = Integers(r.builder.constant(whole, "numbers"), identity(whole.ndim), whole.shape)
    if isinstance(v, Real):
        v = _table(r, v)
    return move_take(r, r.settled(v, r.call_var), ids, axis, shape)


INT32 = (-(2**31), 2**31 - 1)
TABLE_MULTIPLIER = 255  # a block of a coded table has a multiplier of 8 bits
LOST = 2.0**-5  # a common scale that loses more of the table than this is worse than 16 bits of its range


def _table(r: Reader, v: Real) -> Quantized:
    """An embedding table: on the model's own grid if it has one for the whole table, or one that its blocks' steps are
    small multiples of; else 16 bits."""
    if v.step is not None and v.step.size:
        step = np.broadcast_to(v.step, v.shape)
        bytes_ = own_codes(r, v)
        if bytes_ is not None:
            return bytes_
        found = _table_codes(r, v.values, step)
        if found is not None:
            codes, scale = found
            grid = symmetric_grid(-1, 1, "int8" if np.abs(codes).max(initial=0) <= 127 else "int16")
            name = r.builder.constant(codes.astype(grid.dtype))
            return Quantized(name, identity(codes.ndim), codes.shape, scale, 0, grid.dtype, grid.lo, grid.hi)
    return r.make.quantize(v, symmetric_grid(*value_range(v)))


def _table_codes(r: Reader, values: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, float] | None:
    """(codes of at most 16 bits, their one scale) of a table with the model's steps; None where nothing fits."""
    top = 32767
    codes = values / step.astype(values.dtype)
    np.rint(codes, out=codes)
    if step.min() == step.max():
        return (codes, float(step.flat[0])) if np.abs(codes).max(initial=0) <= top else None
    rows = codes.reshape(len(codes), -1)
    blocks = Blocks.of(rows, step.reshape(rows.shape))
    joined = blocks.joined()
    if joined.largest.max() * TABLE_MULTIPLIER > top:
        return None
    limit = int(TABLE_MULTIPLIER * max(joined.largest.max(), 1))
    scale, _, found = exact_multipliers(joined, limit)
    if not found[0]:
        scale, _, error = nearest_multipliers(joined, limit)
        if error[0] > LOST**2:
            return None
        lost = 100 * float(np.sqrt(error[0]))
        r.notes.append(f"the scales of the table are brought to integer multiples of one ({lost:.2g} % of its values)")
    multipliers = np.clip(np.rint(blocks.steps / scale[0]), 1, None)
    return (rows * blocks.along(rows.shape[1], multipliers)).reshape(codes.shape), float(scale[0])


def move_take(r: Reader, v: Any, ids: str, axis: int, shape: tuple[int, ...]) -> Any:
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
    if whole_type(call):
        return chosen_integers(r, keep_tensor(r, condition), *(integers_of(r, v, dtype_of(call)) for v in (a, b)))
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
