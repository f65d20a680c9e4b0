"""Pooling, means, sums, maxima."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import dyadic
from qcompile.kernels.ops.linear import conv_output_size
from qcompile.passes.integerize.functions import as_function
from qcompile.passes.integerize.reader import Reader, handles, integers, shape_of
from qcompile.passes.integerize.values import (
    Accumulator,
    Deferred,
    Function,
    Grid,
    Integers,
    Quantized,
    Real,
    Value,
    unknown_range,
)
from qcompile.targets.errors import CompileError


def _pool_geometry(call: Any, x_shape: tuple[int, ...]) -> tuple[list[int], list[int], list[int], list[int]]:
    """(kernel, strides, dilations, pads) of a 2-D pool, pads grown so that ceil_mode's windows fit."""
    a = call.attrs
    kernel, strides, pads = integers(a.pool_size), integers(a.strides), integers(a.padding)
    dilations = integers(a.dilation)
    out = shape_of(call)[2:]
    for i in range(2):
        need = (out[i] - 1) * strides[i] + dilations[i] * (kernel[i] - 1) + 1 - x_shape[2 + i] - pads[i]
        pads[2 + i] = max(pads[2 + i], need)
        if conv_output_size(x_shape[2 + i], kernel[i], strides[i], dilations[i], pads[i] + pads[2 + i]) != out[i]:
            pads[2 + i] = need
    return kernel, strides, dilations, pads


@handles("relax.nn.max_pool2d")
def max_pool(r: Reader, call: Any, args: list[Any]) -> Value:
    v = r.settled(args[0], r.call_var)
    if isinstance(v, Function):
        v = r.make.settle(v)
    if not isinstance(v, Quantized):
        raise CompileError("MaxPool of an integer tensor is not supported; cast it to float first")
    x = r.make.relayout(r.make.settle(v) if not v.per_tensor else v, (0, 3, 1, 2))
    kernel, strides, dilations, pads = _pool_geometry(call, x.shape)
    name = r.builder.emit("max_pool2d", [x.name], kernel=kernel, strides=strides, dilations=dilations, pads=pads)
    return replace(x, name=name, shape=shape_of(call))


@handles("relax.nn.avg_pool2d")
def avg_pool(r: Reader, call: Any, args: list[Any]) -> Value:
    x = r.make.relayout(r.make.settle(r.settled(args[0], None)), (0, 3, 1, 2))
    kernel, strides, dilations, pads = _pool_geometry(call, x.shape)
    if dilations != [1, 1]:
        raise CompileError("a dilated AveragePool is not supported")
    out = shape_of(call)
    given = integers(call.attrs.padding)
    counted = bool(call.attrs.count_include_pad)
    counts = [
        _window_counts(x.shape[2 + i], out[2 + i], kernel[i], strides[i], given[i], given[2 + i], counted)
        for i in range(2)
    ]
    if len(np.unique(np.outer(*counts))) == 1:

        def emit(_):
            return r.builder.emit(
                "sum_pool2d", [x.name], kernel=kernel, strides=strides, pads=pads, x_zero_point=x.zero_point
            )

        n = float(counts[0][0] * counts[1][0])
        return Accumulator(emit, x.axes, out, float(x.scale) / n, float(x.magnitude) * kernel[0] * kernel[1], r.where)
    return _uneven_average(r, x, kernel, strides, pads, counts, out)


def _window_counts(size: int, out: int, kernel: int, stride: int, before: int, after: int, counted: bool) -> np.ndarray:
    """How many elements each window divides by, along one axis."""
    start = np.arange(out) * stride - before
    end = np.minimum(start + kernel, size + (after if counted else 0))
    return end - (start if counted else np.maximum(start, 0))


def _uneven_average(
    r: Reader,
    x: Quantized,
    kernel: list[int],
    strides: list[int],
    pads: list[int],
    counts: list[np.ndarray],
    out: tuple[int, ...],
) -> Deferred:
    """Windows at the border have fewer elements: each sum times its int16 reciprocal, one rounding."""
    _, _, h, w = out
    bound = x.magnitude * kernel[0] * kernel[1]
    if bound > 32767:
        raise CompileError(
            "an AveragePool with uneven windows of so many elements is not supported; use count_include_pad=1"
        )
    least = int(np.outer(*counts).min())

    def make(grid: Grid) -> str:
        acc = r.builder.emit(
            "sum_pool2d", [x.name], kernel=kernel, strides=strides, pads=pads, x_zero_point=x.zero_point
        )
        acc = r.builder.emit("cast", [acc], offset=0, dtype="int16")
        share = np.rint(32767 * least / np.outer(*counts)).astype(np.int16).reshape(1, h, w, 1)
        d = dyadic(float(x.scale) / (32767 * least) / grid.scale, bound * 32767)
        return r.builder.emit(
            "mul",
            [acc, r.builder.constant(share, "share"), r.builder.constant(d.multiplier, "multiplier")],
            x_zero_point=0,
            r_zero_point=0,
            shift=d.shift,
            pre=d.pre,
            **grid.attrs(),
        )

    return Deferred(make, x.axes, out, *x.range())


def _block(r: Reader, v: Any, axes: list[int]) -> tuple[str, tuple[int, ...]]:
    """(tensor seen as [outer, reduced, inner], the kept logical axes in their order in memory)."""
    order = [int(i) for i in np.argsort(v.axes)]  # logical axis at each physical position
    positions = sorted(v.axes[a] for a in axes)
    sizes = [v.shape[i] for i in order]
    gap = [p for p in range(positions[0], positions[-1]) if p not in positions and sizes[p] != 1]
    if gap:  # not neighbours: reduced axes moved last
        kept = [a for a in range(len(v.shape)) if a not in axes]
        wanted = tuple(int(i) for i in np.argsort([*kept, *axes]))
        name = r.make.physical(v.name, v.axes, wanted)
        order, sizes = [*kept, *axes], [v.shape[i] for i in [*kept, *axes]]
        positions = list(range(len(kept), len(order)))
    else:
        name = v.name
    first, last = positions[0], positions[-1]
    outer, inner = int(np.prod(sizes[:first])), int(np.prod(sizes[last + 1 :]))
    reduced = int(np.prod(sizes[first : last + 1]))
    name = r.builder.emit("reshape", [name], shape=[outer, reduced, inner])
    return name, tuple(a for a in order if a not in axes)


def _unblocked(
    r: Reader, name: str, kept: tuple[int, ...], v: Any, out: tuple[int, ...], keepdims: bool
) -> tuple[str, tuple[int, ...]]:
    """The reduced tensor [outer, inner] with its axes back: (name, layout) for logical shape `out`."""
    if keepdims:
        gone = [a for a in range(len(v.shape)) if a not in kept]
        order = [*kept[:-1], *gone, *kept[-1:]] if kept else gone
        shape = [v.shape[a] if a in kept else 1 for a in order]
    else:
        order = [sorted(kept).index(a) for a in kept]
        shape = [v.shape[a] for a in kept]
    axes = tuple(int(i) for i in np.argsort(order)) if order else ()
    return r.builder.emit("reshape", [name], shape=shape), axes


def _axes(call: Any, rank: int) -> list[int]:
    a = call.attrs.axis
    values = list(range(rank)) if a is None else [int(i) for i in a] if hasattr(a, "__len__") else [int(a)]
    return sorted({i % rank for i in values})


def _counts(r: Reader, v: Value) -> Quantized | None:
    """A function whose values are few whole numbers, as those: their sums are counts, which may be divided by."""
    if not isinstance(v, Function) or not np.isfinite(v.values).all() or (v.values % 1).any():
        return None
    low, high = int(v.values.min()), int(v.values.max())
    return r.make.quantize(v, Grid(1.0, 0, "int8", low, high)) if -128 <= low <= high <= 127 else None


@handles("relax.mean", "relax.sum")
def mean(r: Reader, call: Any, args: list[Any]) -> Value:
    v, out, rank = args[0], shape_of(call), len(shape_of(call.args[0]))
    axes, keep, is_mean = _axes(call, rank), bool(call.attrs.keepdims), call.op.name == "relax.mean"
    if isinstance(v, Real):
        return Real((v.values.mean if is_mean else v.values.sum)(axis=tuple(axes), keepdims=keep))
    if isinstance(v, Integers):
        v = as_function(r, v).source
    q = _counts(r, v) or r.make.settle(r.settled(v, None))
    name, kept = _block(r, q, axes)
    count = int(np.prod([q.shape[a] for a in axes]))

    def emit(_: Any) -> str:
        y = r.builder.emit("reduce_sum", [name], x_zero_point=q.zero_point)
        return _unblocked(r, y, kept, q, out, keep)[0]

    layout = _unblocked_axes(kept, rank, keep)
    return Accumulator(
        emit, layout, out, float(q.scale) / (count if is_mean else 1), float(q.magnitude) * count, r.where
    )


def _unblocked_axes(kept: tuple[int, ...], rank: int, keepdims: bool) -> tuple[int, ...]:
    if keepdims:
        gone = [a for a in range(rank) if a not in kept]
        order = [*kept[:-1], *gone, *kept[-1:]] if kept else gone
    else:
        order = [sorted(kept).index(a) for a in kept]
    return tuple(int(i) for i in np.argsort(order)) if order else ()


def _extreme(r: Reader, call: Any, args: list[Any], op: str, **attrs: Any) -> tuple[Any, str, tuple[int, ...]]:
    v = args[0]
    if isinstance(v, Integers) and v.graph_input:
        raise unknown_range(v.name)
    q = r.make.settle(r.settled(v, None)) if not isinstance(v, Integers) else v
    axes = _axes(call, len(q.shape))
    name, kept = _block(r, q, axes)
    y = r.builder.emit(op, [name], **attrs)
    name, layout = _unblocked(r, y, kept, q, shape_of(call), bool(call.attrs.keepdims))
    return q, name, layout


@handles("relax.max", "relax.min")
def maximum(r: Reader, call: Any, args: list[Any]) -> Value:
    if isinstance(args[0], Real):
        f = np.max if call.op.name == "relax.max" else np.min
        return Real(f(args[0].values, axis=tuple(_axes(call, args[0].values.ndim)), keepdims=bool(call.attrs.keepdims)))
    q, name, layout = _extreme(r, call, args, "reduce_max", minimum=call.op.name == "relax.min")
    return replace(q, name=name, axes=layout, shape=shape_of(call))


@handles("relax.argmax", "relax.argmin")
def argmax(r: Reader, call: Any, args: list[Any]) -> Value:
    _, name, layout = _extreme(r, call, args, "argmax", minimum=call.op.name == "relax.argmin", last=False)
    return Integers(name, layout, shape_of(call))
