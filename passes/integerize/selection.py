"""Elements picked and placed by computed numbers: GatherElements, GatherND, ScatterElements, ScatterND, TopK."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import INT32_MAX
from qcompile.kernels.ops.suppression import FRACTION
from qcompile.passes.integerize.gather import move_take
from qcompile.passes.integerize.integers import combine, constant, interval, laid_out, same_type, within
from qcompile.passes.integerize.movement import reshape_value
from qcompile.passes.integerize.reader import Reader, handles, shape_of
from qcompile.passes.integerize.values import (
    Accumulator,
    Grid,
    Integers,
    Quantized,
    Real,
    Value,
    identity,
    symmetric_grid,
    value_range,
)
from qcompile.passes.integerize.whole import dtype_of, integers_of, whole_type
from qcompile.targets.errors import CompileError


def from_zero(r: Reader, v: Integers, size: int) -> Integers:
    """Indices of an axis as int32 from 0 on: below 0 they count from the end, others are clamped."""
    v = within(r, v, -size, size - 1, "int32")
    if interval(r, laid_out(r, v))[0] < 0:
        below = combine(r, "less", v, constant(r, np.array(0), "int32"), "int32")
        v = combine(r, "add", v, combine(r, "multiply", below, constant(r, np.array(size), "int32"), "int32"), "int32")
    return v


def _placed(r: Reader, v: Integers, stride: int, offset: np.ndarray) -> Integers:
    """v * stride + offset."""
    if stride != 1:
        v = combine(r, "multiply", v, constant(r, np.array(stride), "int32"), "int32")
    return combine(r, "add", v, constant(r, offset, "int32"), "int32") if offset.any() else v


def element_places(r: Reader, indices: Integers, shape: tuple[int, ...], axis: int) -> Integers:
    """For GatherElements and ScatterElements: each index as a place in the flattened tensor of `shape`."""
    grid = np.indices(indices.shape)
    grid[axis] = 0
    others = np.asarray(np.ravel_multi_index(list(grid), shape))
    return _placed(r, from_zero(r, indices, shape[axis]), int(np.prod(shape[axis + 1 :], dtype=np.int64)), others)


def row_numbers(r: Reader, indices: Integers, shape: tuple[int, ...], batch: int = 0) -> tuple[Integers, int]:
    """For GatherND and ScatterND: (row numbers, elements of a row) in a tensor of `shape` seen as rows."""
    name, lead, parts = laid_out(r, indices), indices.shape[:-1], indices.shape[-1]
    depth = batch + parts
    strides = [int(np.prod(shape[i + 1 : depth], dtype=np.int64)) for i in range(depth)]
    offset = np.zeros(lead, np.int64)
    for i in range(batch):
        offset += np.arange(shape[i]).reshape([-1 if k == i else 1 for k in range(len(lead))]) * strides[i]
    total: Integers | None = None
    for i in range(parts):
        begin, end = [0] * (len(lead) + 1), list(indices.shape)
        begin[-1], end[-1] = i, i + 1
        part = r.builder.emit("slice", [name], begin=begin, end=end, step=[1] * len(end))
        part = r.builder.emit("reshape", [part], shape=list(lead))
        number = from_zero(r, Integers(part, identity(len(lead)), lead), shape[batch + i])
        number = _placed(r, number, strides[batch + i], np.zeros(1))
        total = number if total is None else combine(r, "add", total, number, "int32")
    if total is None:
        raise CompileError("an index without numbers has no integer form")
    return _placed(r, total, 1, offset), int(np.prod(shape[depth:], dtype=np.int64))


def _flat(r: Reader, v: Any, rows: int, size: int) -> Any:
    return v if v.shape == (rows, size) else reshape_value(r, v, (rows, size))


def _rows_taken(r: Reader, v: Value, numbers: Integers, size: int, out: tuple[int, ...]) -> Value:
    """Rows of `size` elements by number."""
    if isinstance(v, Real):
        v = _constant_data(r, v)
    v = r.settled(v, r.call_var)
    count = int(np.prod(v.shape, dtype=np.int64)) // size
    flat = reshape_value(r, numbers, (int(np.prod(numbers.shape, dtype=np.int64)),))
    rows = move_take(r, _flat(r, v, count, size), laid_out(r, flat), 0, (flat.shape[0], size))
    return reshape_value(r, rows, out) if rows.shape != out else rows


def _constant_data(r: Reader, v: Real) -> Value:
    if v.values.dtype.kind in "iub":
        return constant(r, v.values, str(v.values.dtype))
    return r.make.quantize(v, symmetric_grid(*value_range(v)))


@handles("source.gather_elements")
def gather_elements(r: Reader, call: Any, args: list[Any]) -> Value:
    data, axis = args[0], int(call.attrs["axis"])
    indices = integers_of(r, args[1], dtype_of(call.args[1]))
    return _rows_taken(r, data, element_places(r, indices, data.shape, axis), 1, shape_of(call))


@handles("source.gather_nd")
def gather_nd(r: Reader, call: Any, args: list[Any]) -> Value:
    data, indices = args[0], integers_of(r, args[1], dtype_of(call.args[1]))
    numbers, size = row_numbers(r, indices, data.shape, int(call.attrs["batch"]))
    return _rows_taken(r, data, numbers, size, shape_of(call))


# ---- scattering ------------------------------------------------------------------------------------------------------
@handles("source.scatter_elements", "source.scatter_nd")
def scatter(r: Reader, call: Any, args: list[Any]) -> Value:
    data, updates, reduction, shape = args[0], args[2], str(call.attrs["reduction"]), shape_of(call)
    indices = integers_of(r, args[1], dtype_of(call.args[1]))
    if call.op.name == "source.scatter_nd":
        numbers, size = row_numbers(r, indices, shape)
    else:
        numbers, size = element_places(r, indices, shape, int(call.attrs["axis"])), 1
    if whole_type(call):
        old, new = same_type(r, *(integers_of(r, v, dtype_of(call)) for v in (data, updates)))
        return _scattered(r, old, new, numbers, size, reduction)
    if reduction == "mul":
        raise CompileError(f"{call.op.name.removeprefix('source.')} with reduction mul has no integer form for floats")
    if isinstance(data, Integers) or isinstance(updates, Integers):  # truth values
        old, new = (integers_of(r, v, "bool") for v in (data, updates))
        return _scattered(r, old, new, numbers, size, reduction)
    grid = r.upcoming_grid(r.call_var) if reduction != "add" else None
    if grid is None:
        ranges = [value_range(v) for v in (data, updates)]
        grid = symmetric_grid(min(lo for lo, _ in ranges), max(hi for _, hi in ranges))
    a, b = (r.make.plain(r.make.quantize(v, grid)) for v in (data, updates))
    if reduction == "add":
        return _summed(r, a, b, numbers, size, grid)
    y = _scattered(r, a, b, numbers, size, reduction)
    return replace(a, name=y.name, shape=shape, lo=min(a.lo, b.lo), hi=max(a.hi, b.hi))


def _scattered(r: Reader, a: Any, b: Any, numbers: Integers, size: int, reduction: str) -> Integers:
    shape, count = a.shape, int(np.prod(numbers.shape, dtype=np.int64))
    rows = int(np.prod(shape, dtype=np.int64)) // size
    names = [
        r.builder.emit("reshape", [r.make.physical(v.name, v.axes, identity(len(v.shape)))], shape=s)
        for v, s in ((a, [rows, size]), (numbers, [count]), (b, [count, size]))
    ]
    name = r.builder.emit("scatter", names, reduction=reduction)
    return Integers(r.builder.emit("reshape", [name], shape=list(shape)), identity(len(shape)), shape)


def _summed(r: Reader, a: Quantized, b: Quantized, numbers: Integers, size: int, grid: Grid) -> Accumulator:
    """Sums of codes in 32 bits."""
    count = int(np.prod(numbers.shape, dtype=np.int64))
    bound = float(a.magnitude) * (count + 1)
    if bound > INT32_MAX:
        raise CompileError(f"{count} sums into one element may leave 32 bits; scatter fewer rows at a time")
    wide = [replace(v, name=r.builder.emit("cast", [v.name], offset=-v.zero_point, dtype="int32")) for v in (a, b)]
    y = _scattered(r, wide[0], wide[1], numbers, size, "add")
    return Accumulator(lambda _: y.name, y.axes, y.shape, grid.scale, bound, r.where)


# ---- the largest -----------------------------------------------------------------------------------------------------
@handles("source.top_k")
def top_k(r: Reader, call: Any, args: list[Any]) -> Value:
    """The numbers of the k best along an axis."""
    v, axis, k = args[0], int(call.attrs["axis"]), int(call.attrs["k"])
    if isinstance(v, Real):
        v = _constant_data(r, v)
    q = v if isinstance(v, Integers) else r.make.settle(r.settled(v, None))
    rank = len(q.shape)
    rest = [i for i in range(rank) if i != axis]
    wanted = tuple(int(i) for i in np.argsort([*rest, axis]))
    lead = [q.shape[i] for i in rest]
    name = r.make.physical(q.name, q.axes, wanted)
    name = r.builder.emit("reshape", [name], shape=[int(np.prod(lead, dtype=np.int64)), q.shape[axis]])
    name = r.builder.emit("top_k", [name], k=k, minimum=not int(call.attrs["largest"]))
    r.builder.intervals[name] = (0, q.shape[axis] - 1)
    name = r.builder.emit("reshape", [name], shape=[*lead, k])
    r.builder.intervals[name] = (0, q.shape[axis] - 1)
    return Integers(name, wanted, shape_of(call))


@handles("source.non_max_suppression")
def non_max_suppression(r: Reader, call: Any, args: list[Any]) -> Value:
    """Rows (image, class, box) of what is selected; thresholds on the grids of boxes and scores."""
    made = []
    for v in args:
        q = r.make.plain(r.make.settle(r.settled(_constant_data(r, v) if isinstance(v, Real) else v, None)))
        made.append(replace(q, name=r.make.physical(q.name, q.axes, identity(len(q.shape)))))
    boxes, scores = made
    shape = shape_of(call)
    limit = np.clip(np.floor(float(call.attrs["least"]) / float(scores.scale)), -INT32_MAX, INT32_MAX)
    name = r.builder.emit(
        "non_max_suppression",
        [boxes.name, scores.name],
        most=shape[0] // (scores.shape[0] * scores.shape[1]),
        overlap_multiplier=round(float(call.attrs["overlap"]) * (1 << FRACTION)),
        limit=int(limit),
        centers=bool(int(call.attrs["centers"])),
        boxes_zero_point=boxes.zero_point,
        scores_zero_point=scores.zero_point,
    )
    r.builder.intervals[name] = (-1, max(scores.shape) - 1)
    return Integers(name, identity(len(shape)), shape)
