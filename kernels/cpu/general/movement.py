"""Data movement: each op is one or more strided copies (see moves)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, dtype_of
from qcompile.kernels.cpu.general.common import Source, loop, operand, static
from qcompile.kernels.cpu.general.moves import PARALLEL_BYTES, Loop, copy_run, merge, move, strides
from qcompile.kernels.cpu.isa import Isa, get_isa
from qcompile.kernels.cpu.kernel import kernel, pointers, scalars
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import Buffer, Constant, KernelCall, NodeContext


def broadcast_loops(shape: tuple[int, ...], out: tuple[int, ...]) -> list[Loop]:
    full = (1,) * (len(out) - len(shape)) + tuple(shape)
    return [(n, 0 if size == 1 else sx, sy) for n, size, sx, sy in zip(out, full, strides(full), strides(out))]


def broadcast_calls(isa: Isa, type_: Type, shape: tuple[int, ...], x: Source, y: Source) -> list[KernelCall]:
    """x of `type_` repeated to `shape` in y."""
    return move(isa, np.dtype(type_.dtype).itemsize, broadcast_loops(type_.shape, shape), x, y)


def itemsize_of(ctx: NodeContext) -> int:
    return np.dtype(ctx.out.dtype).itemsize


def lower_transpose(ctx: NodeContext) -> list[KernelCall]:
    (name,) = ctx.node.inputs
    sx = strides(ctx.types[name].shape)
    loops = [(n, sx[a], sy) for n, a, sy in zip(ctx.out.shape, ctx.node.attrs["axes"], strides(ctx.out.shape))]
    return move(get_isa(ctx.target), itemsize_of(ctx), loops, operand(ctx, name), Buffer(ctx.node.name))


def lower_slice(ctx: NodeContext) -> list[KernelCall]:
    (name,) = ctx.node.inputs
    shape, a = ctx.types[name].shape, ctx.node.attrs
    sx, ranges = (
        strides(shape),
        [range(*slice(b, e, s).indices(n)) for n, b, e, s in zip(shape, a["begin"], a["end"], a["step"])],
    )
    if not ctx.out.size:
        return []
    loops = [(len(r), r.step * s, sy) for r, s, sy in zip(ranges, sx, strides(ctx.out.shape))]
    return move(
        get_isa(ctx.target),
        itemsize_of(ctx),
        loops,
        operand(ctx, name),
        Buffer(ctx.node.name),
        x_at=sum(r.start * s for r, s in zip(ranges, sx)),
    )


def lower_concat(ctx: NodeContext) -> list[KernelCall]:
    axis, sy, at, calls = ctx.node.attrs["axis"], strides(ctx.out.shape), 0, []
    for name in ctx.node.inputs:
        shape = ctx.types[name].shape
        calls += move(
            get_isa(ctx.target),
            itemsize_of(ctx),
            list(zip(shape, strides(shape), sy)),
            operand(ctx, name),
            Buffer(ctx.node.name),
            y_at=at * sy[axis],
        )
        at += shape[axis]
    return calls


def lower_broadcast(ctx: NodeContext) -> list[KernelCall]:
    (name,) = ctx.node.inputs
    return broadcast_calls(
        get_isa(ctx.target), ctx.types[name], ctx.out.shape, operand(ctx, name), Buffer(ctx.node.name)
    )


def lower_pad(ctx: NodeContext) -> list[KernelCall]:
    """The interior is copied; constant margins are filled before, others are copied from it, axis after axis."""
    (name,), a = ctx.node.inputs, ctx.node.attrs
    isa, itemsize, shape = get_isa(ctx.target), itemsize_of(ctx), ctx.types[name].shape
    sy, out = strides(ctx.out.shape), Buffer(ctx.node.name)
    first = sum(b * s for b, s in zip(a["before"], sy))
    calls = move(isa, itemsize, list(zip(shape, strides(shape), sy)), operand(ctx, name), out, y_at=first)
    if a["mode"] == "constant":
        value = Constant(np.full(1, a["value"], ctx.out.dtype))
        return [*move(isa, itemsize, [(ctx.out.size, 0, 1)], value, out), *calls]
    filled = list(shape)
    for axis in reversed(range(len(shape))):
        before, after = a["before"][axis], a["after"][axis]
        rows = np.pad(np.arange(before, before + shape[axis]), (before, after), mode=a["mode"])
        others = [(n, s, s) for k, (n, s) in enumerate(zip(filled, sy)) if k != axis]
        corner = first - before * sy[axis]
        behind = before + shape[axis]
        for begin, end in (*_even_runs(rows[:before], 0), *_even_runs(rows[behind:], behind)):
            step = int(rows[begin + 1] - rows[begin]) if end - begin > 1 else 0
            loops = [*others[:axis], (end - begin, step * sy[axis], sy[axis]), *others[axis:]]
            at = corner + int(rows[begin]) * sy[axis], corner + begin * sy[axis]
            calls += move(isa, itemsize, loops, out, out, *at)
        filled[axis], first = len(rows), corner
    return calls


def _even_runs(rows: np.ndarray, at: int) -> list[tuple[int, int]]:
    """(begin, end) of the parts of `rows` that rise or fall evenly, counted from `at`."""
    cuts, begin = [0], 0
    for i in range(2, len(rows)):
        if i - begin > 1 and rows[i] - rows[i - 1] != rows[begin + 1] - rows[begin]:
            cuts.append(i)
            begin = i
    return [(a + at, b + at) for a, b in pairwise([*cuts, len(rows)])] if len(rows) else []


def clamped(index: Expr, rows: Expr) -> Expr:
    """An index of any type as a row's number, int32: below 0 it counts from the end, outside of the rows it is that of
    the nearest."""
    wide = dtype_of(index) if dtype_of(index) in ("int64", "uint64") else "int32"
    number = T.cast(index, wide)
    if not dtype_of(index).startswith("u"):
        number = bind(T.Select(number < T.IntImm(wide, 0), number + T.cast(rows, wide), number))
    number = T.min(number, T.cast(rows - 1, wide))
    return bind(T.cast(number if wide == "uint64" else T.max(number, T.IntImm(wide, 0)), "int32"))


def take_rows(
    isa: Isa,
    itemsize: int,
    shape: Sequence[int],
    axis: int,
    index_dtype: str,
    count: int,
    x: Source,
    indices: Source,
    y: Source,
) -> KernelCall:
    """Runs of bytes by number; numbers outside the axis are clamped to it."""
    outer, inner = (int(np.prod(part, dtype=np.int64)) for part in (shape[:axis], shape[axis + 1 :]))
    run, width = inner * itemsize, isa.lanes * 4
    fixed, parallel = static(run, width), outer * count * run >= PARALLEL_BYTES

    def body(x: Pointer, indices: Pointer, y: Pointer, outer: Expr, count: Expr, rows: Expr, run: Expr) -> None:
        with loop(outer * count, parallel) as k:
            o, i = bind(T.truncdiv(k, count)), bind(T.truncmod(k, count))
            row = clamped(indices.load(i), rows)
            copy_run(x, y, bind((o * rows + row) * run), bind(k * run), width, fixed, run)

    parameters = [*pointers(x="uint8", indices=index_dtype, y="uint8"), *scalars("outer", "count", "rows", "run")]
    work = kernel("take", (isa, width, fixed, parallel), parameters, body)
    return KernelCall(work, (x, indices, y, outer, count, shape[axis], run))


LOWERINGS = {
    "transpose": lower_transpose,
    "slice": lower_slice,
    "concat": lower_concat,
    "pad": lower_pad,
    "broadcast": lower_broadcast,
}

__all__ = ["LOWERINGS", "broadcast_calls", "clamped", "itemsize_of", "merge", "move", "strides", "take_rows"]
