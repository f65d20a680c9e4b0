"""Data movement: on integers, or on the function's source; transposes only change how a value is read."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from qcompile.passes.integerize.integers import same_type
from qcompile.passes.integerize.reader import Reader, handles, integers, is_whole, scalar, shape_of
from qcompile.passes.integerize.shapes import plan_reshape
from qcompile.passes.integerize.values import (
    Accumulator,
    Function,
    Integers,
    Quantized,
    Real,
    Value,
    identity,
    symmetric_grid,
    value_range,
)
from qcompile.passes.integerize.whole import integers_of
from qcompile.targets.errors import CompileError

OFFSETS = {"int8": 0, "uint8": 128, "int16": 0, "uint16": 32768}  # of codes by type: they are stored as signed integers


def move(r: Reader, v: Any, op: str, out: tuple[int, ...], **attrs: Any) -> Any:
    """A movement op (on the logical layout) with result shape `out`; functions move with their source."""
    if isinstance(v, Function):
        return replace(v, source=move(r, v.source, op, out, **attrs))
    if isinstance(v, Integers):
        if v.graph_input and v.name not in r.builder.types:
            raise CompileError(f"input {v.name} is moved before it is quantized; put QuantizeLinear first")
        name = r.make.physical(v.name, v.axes, identity(len(v.shape)))
        return replace(v, name=r.builder.emit(op, [name], **attrs), axes=identity(len(out)), shape=out)
    if not v.per_tensor:
        v = r.make.settle(v)
    q = r.make.plain(v)
    return replace(q, name=r.builder.emit(op, [q.name], **attrs), axes=identity(len(out)), shape=out)


@handles("relax.reshape", "relax.squeeze", "relax.expand_dims", "relax.flatten")
def reshape(r: Reader, call: Any, args: list[Any]) -> Value:
    v, shape = args[0], shape_of(call)
    if isinstance(v, Real):
        return v.map(lambda x: x.reshape(shape))
    if v.shape == shape:
        return v
    if not isinstance(v, Quantized | Function | Accumulator):
        v = r.settled(v, r.call_var)
    same = _unit_axes(v, shape)
    if same:
        return _viewed(r, v, *same, shape)
    if isinstance(v, Accumulator) and v.shape[-1] == shape[-1] and v.axes == identity(len(v.shape)):
        return _viewed(r, v, list(shape), identity(len(shape)), shape)
    if isinstance(v, Accumulator):
        v = r.settled(v, r.call_var)
    if isinstance(v, Function):
        return replace(v, source=_reshape(r, v.source, shape))
    return _reshape(r, v, shape)


def _unit_axes(v: Any, shape: tuple[int, ...]) -> tuple[list[int], tuple[int, ...]] | None:
    """(physical shape, layout) of a value that only gains or loses axes of size 1: those go first, the others stay."""
    old, new = ([i for i, n in enumerate(s) if n != 1] for s in (v.shape, shape))
    if [v.shape[i] for i in old] != [shape[i] for i in new]:
        return None
    moved = [new[old.index(i)] for i in sorted(old, key=lambda i: v.axes[i])]
    order = [i for i, n in enumerate(shape) if n == 1] + moved
    return [shape[i] for i in order], tuple(int(i) for i in np.argsort(order))


def _viewed(r: Reader, v: Any, physical: list[int], axes: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """The same elements in the same order in memory under another shape."""
    if isinstance(v, Function):
        return replace(v, source=_viewed(r, v.source, physical, axes, shape))
    if isinstance(v, Accumulator):
        return v.through(lambda name: r.builder.emit("reshape", [name], shape=physical), axes, shape)
    return replace(v, name=r.builder.emit("reshape", [v.name], shape=physical), axes=axes, shape=shape)


def _reshape(r: Reader, q: Any, shape: tuple[int, ...]) -> Any:
    if isinstance(q, Quantized) and not q.per_tensor:
        q = r.make.settle(q)
    plan = plan_reshape(q.shape, q.axes, shape)
    if plan is None:
        name = r.make.physical(q.name, q.axes, identity(len(q.shape)))
        name, axes = r.builder.emit("reshape", [name], shape=list(shape)), identity(len(shape))
        return replace(q, name=name, axes=axes, shape=shape)
    name = q.name
    if plan.moves:
        name = r.builder.emit("reshape", [name], shape=plan.split)
        name = r.builder.emit("transpose", [name], axes=plan.order)
    return replace(q, name=r.builder.emit("reshape", [name], shape=plan.merged), axes=plan.axes, shape=shape)


@handles("relax.permute_dims")
def permute(r: Reader, call: Any, args: list[Any]) -> Value:
    v = args[0]
    order = tuple(integers(call.attrs.axes)) if call.attrs.axes is not None else tuple(reversed(range(len(v.shape))))
    order = tuple(i % len(order) for i in order)
    if isinstance(v, Real):
        return v.map(lambda x: x.transpose(order))
    if not isinstance(v, Quantized | Function | Accumulator):
        v = r.settled(v, r.call_var)
    if isinstance(v, Function):
        return replace(v, source=_permute(v.source, order))
    return _permute(v, order)


def _permute(v: Any, order: tuple[int, ...]) -> Any:
    new = replace(v, axes=tuple(v.axes[i] for i in order), shape=tuple(v.shape[i] for i in order))
    return replace(new, scores=None) if isinstance(new, Accumulator) else new


@handles("relax.broadcast_to")
def broadcast(r: Reader, call: Any, args: list[Any]) -> Value:
    v, shape = args[0], shape_of(call)
    if isinstance(v, Real):
        return v.map(lambda x: np.broadcast_to(x, shape))
    if v.shape == shape:
        return v
    v = r.settled(v, r.call_var)
    if len(v.shape) < len(shape):
        v = reshape_value(r, v, (1,) * (len(shape) - len(v.shape)) + v.shape)
    return move(r, v, "broadcast", shape, shape=list(shape))


def reshape_value(r: Reader, v: Any, shape: tuple[int, ...]) -> Any:
    return replace(v, source=_reshape(r, v.source, shape)) if isinstance(v, Function) else _reshape(r, v, shape)


@handles("relax.tile")
def tile(r: Reader, call: Any, args: list[Any]) -> Value:
    v, repeats = args[0], integers(call.attrs.repeats)
    if isinstance(v, Real):
        return v.map(lambda x: np.tile(x, repeats))
    v = r.settled(v, r.call_var)
    repeats = [1] * (len(v.shape) - len(repeats)) + repeats
    for axis, n in enumerate(repeats):
        if n > 1:
            v = concatenate(r, [v] * n, axis, shape_after(v.shape, axis, v.shape[axis] * n))
    return v


def shape_after(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


@handles("relax.strided_slice")
def strided_slice(r: Reader, call: Any, args: list[Any]) -> Value:
    def numbers(t):
        return [int(scalar(i)) for i in (t.fields if hasattr(t, "fields") else t)]

    axes, begin, end = (numbers(t) for t in call.args[1:4])
    step = numbers(call.args[4]) if len(call.args) > 4 else [1] * len(axes)
    v = args[0]
    rank = len(v.shape)
    b, e, s = [0] * rank, list(v.shape), [1] * rank
    for axis, lo, hi, st in zip(axes, begin, end, step):
        axis %= rank
        start, stop, st = slice(lo, hi, st).indices(v.shape[axis])
        b[axis], e[axis], s[axis] = start, stop if stop >= 0 else -1 - v.shape[axis], st
    if isinstance(v, Real):
        return v.map(lambda x: x[tuple(slice(*t) for t in zip(b, e, s))])
    return cut(r, r.settled(v, r.call_var), b, e, s, shape_of(call))


def cut(r: Reader, v: Any, begin: list[int], end: list[int], step: list[int], shape: tuple[int, ...]) -> Any:
    """A slice in whatever layout the value has."""
    if isinstance(v, Function):
        return replace(v, source=cut(r, v.source, begin, end, step, shape))
    if isinstance(v, Quantized) and not v.per_tensor:
        v = r.make.settle(v)
    order = [int(i) for i in np.argsort(v.axes)]
    name = r.builder.emit(
        "slice", [v.name], begin=[begin[i] for i in order], end=[end[i] for i in order], step=[step[i] for i in order]
    )
    return replace(v, name=name, shape=shape)


@handles("relax.split")
def split(r: Reader, call: Any, args: list[Any]) -> list[Value]:
    v, axis = args[0], int(call.attrs.axis) % len(args[0].shape)
    sections = call.attrs.indices_or_sections
    size = v.shape[axis]
    points = (
        integers(sections)
        if hasattr(sections, "__len__")
        else [size // int(sections) * i for i in range(1, int(sections))]
    )
    edges = [0, *points, size]
    if isinstance(v, Real):
        return [v.map(partial(np.take, indices=np.arange(a, b), axis=axis)) for a, b in itertools.pairwise(edges)]
    v = r.settled(v, r.call_var)
    parts = []
    for a, b in itertools.pairwise(edges):
        begin, end = [0] * len(v.shape), list(v.shape)
        begin[axis], end[axis] = a, b
        parts.append(cut(r, v, begin, end, [1] * len(v.shape), shape_after(v.shape, axis, b - a)))
    return parts


@handles("relax.concat")
def concat(r: Reader, call: Any, args: list[Any]) -> Value:
    parts, shape = args[0], shape_of(call)
    axis = int(call.attrs.axis or 0) % len(shape)
    if all(isinstance(p, Real) for p in parts):
        return Real(np.concatenate([p.values for p in parts], axis))
    stored = str(call.ty.dtype)
    if is_whole(call) and all(isinstance(p, Integers | Real) for p in parts):
        parts = same_type(r, *(integers_of(r, p, stored) for p in parts))
    if stored in OFFSETS and not _one_grid(parts):  # codes that mean different numbers: a DequantizeLinear says which
        parts = [_codes(r, p, OFFSETS[stored]) for p in parts]
    if all(isinstance(p, Integers) for p in parts):
        names = [r.make.physical(p.name, p.axes, identity(len(shape))) for p in parts]
        return Integers(r.builder.emit("concat", names, axis=axis), identity(len(shape)), shape)
    return concatenate(r, parts, axis, shape, r.upcoming_grid(r.call_var))


def _codes(r: Reader, p: Any, offset: int) -> Integers:
    """What a QuantizeLinear made, or codes of the model, as the integers that they are stored as."""
    if isinstance(p, Integers):
        return p
    if isinstance(p, Quantized):
        q = r.make.plain(p)
        return Integers(q.name, q.axes, q.shape)
    if not isinstance(p, Real):
        raise CompileError("codes of different grids are joined with something that is none; quantize it first")
    values = p.values.astype(np.int64) - offset
    name = r.builder.constant(values.astype("int8" if offset == 128 or p.values.dtype == np.int8 else "int16"), "codes")
    return Integers(name, identity(values.ndim), p.shape)


def _one_grid(parts: list[Any]) -> bool:
    """Whether codes mean the same numbers, so that what they make is on that grid."""
    grids = {(float(p.scale), p.zero_point, p.dtype) for p in parts if isinstance(p, Quantized) and p.per_tensor}
    return all(isinstance(p, Quantized) and p.per_tensor for p in parts) and len(grids) == 1


def concatenate(r: Reader, parts: list[Any], axis: int, shape: tuple[int, ...], grid: Any = None) -> Quantized:
    """Values joined on one grid: the one asked for, that of the first if all share it, else 16 bits over all ranges."""
    if grid is None:
        quantized = [p for p in parts if isinstance(p, Quantized) and p.per_tensor]
        same = len(quantized) == len(parts) and len({(float(p.scale), p.zero_point, p.dtype) for p in quantized}) == 1
        if not same:
            ranges = [value_range(p) for p in parts]
            grid = symmetric_grid(min(lo for lo, _ in ranges), max(hi for _, hi in ranges))
    made = [r.make.quantize(p, grid) if grid else r.make.settle(p) for p in parts]
    axes = max(made, key=lambda q: np.prod(q.shape)).axes
    made = [r.make.relayout(q, axes) for q in made]
    name = r.builder.emit("concat", [q.name for q in made], axis=axes[axis])
    return replace(made[0], name=name, axes=axes, shape=shape, lo=min(q.lo for q in made), hi=max(q.hi for q in made))


@handles("relax.nn.pad")
def pad(r: Reader, call: Any, args: list[Any]) -> Value:
    v, width, shape = args[0], integers(call.attrs.pad_width), shape_of(call)
    before, after = width[0::2], width[1::2]
    mode: Any = {"replicate": "edge"}.get(str(call.attrs.pad_mode), str(call.attrs.pad_mode))
    if isinstance(v, Real):
        more: dict[str, Any] = {"constant_values": float(call.attrs.pad_value)} if mode == "constant" else {}
        return Real(np.pad(v.values, list(zip(before, after)), mode, **more))
    q = r.settled(v, r.call_var)
    if isinstance(q, Function):
        q = r.make.settle(q)
    if not isinstance(q, Quantized):
        raise CompileError("padding of an integer tensor is not supported")
    value = (
        int(np.clip(np.rint(float(call.attrs.pad_value) / q.scale) + q.zero_point, *_dtype_range(q)))
        if mode == "constant"
        else 0
    )
    order = [int(i) for i in np.argsort(q.axes)]
    name = r.builder.emit(
        "pad", [q.name], before=[before[i] for i in order], after=[after[i] for i in order], mode=mode, value=value
    )
    return replace(q, name=name, shape=shape, lo=min(q.lo, value), hi=max(q.hi, value))


def _dtype_range(q: Quantized) -> tuple[int, int]:
    info = np.iinfo(q.dtype)
    return int(info.min), int(info.max)
