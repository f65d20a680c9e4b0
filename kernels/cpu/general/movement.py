"""Data movement as strided copies: of runs of bytes, of blocks transposed in registers, or element by element.

A movement is a list of loops (count, source stride, destination stride), in elements. Loops that are one in memory are
merged, and what then runs innermost chooses the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, dtype_of, shuffle, splat, store_lanes
from qcompile.kernels.cpu.general.common import Source, kernel, loop, operand, pointers, scalars, static, vectors
from qcompile.kernels.cpu.isa import Isa, get_isa
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import Buffer, Constant, KernelCall, NodeContext, Workspace

PARALLEL_BYTES = 1 << 18
Loop = tuple[int, int, int]  # count, source stride, destination stride


def strides(shape: Sequence[int]) -> list[int]:
    """Row-major, in elements."""
    return [int(np.prod(shape[i + 1 :], dtype=np.int64)) for i in range(len(shape))]


def merge(loops: Sequence[Loop]) -> list[Loop]:
    """The same movement with as few loops as possible, the destination's strides falling."""
    merged: list[Loop] = []
    for n, sx, sy in loops:
        if n == 1:
            continue
        if merged and merged[-1][1] == n * sx and merged[-1][2] == n * sy:
            merged[-1] = (merged[-1][0] * n, sx, sy)
        else:
            merged.append((n, sx, sy))
    return merged


def move(
    isa: Isa, itemsize: int, loops: Sequence[Loop], x: Source, y: Source, x_at: int = 0, y_at: int = 0
) -> list[KernelCall]:
    """y[y_at + sum i*sy] = x[x_at + sum i*sx] for all i below the counts; elements of `itemsize` bytes."""
    if any(n == 0 for n, _, _ in loops):
        return []
    loops = merge(loops)
    inner = next((d for d in loops if d[2] == 1), (1, 1, 1))
    outer = [d for d in loops if d is not inner]
    source = next((d for d in outer if d[1] == 1), None)
    if inner[1] == 1:
        bytes_ = [(n, sx * itemsize, sy * itemsize) for n, sx, sy in outer]
        return [
            _call(
                "copy",
                _copy,
                isa,
                1,
                bytes_,
                [inner[0] * itemsize],
                inner[0] * itemsize,
                x,
                y,
                x_at * itemsize,
                y_at * itemsize,
            )
        ]
    if inner[1] == 0:
        return [_call("fill", _fill, isa, itemsize, outer, [inner[0]], inner[0], x, y, x_at, y_at)]
    if source:
        outer.remove(source)
        return [_transpose(isa, itemsize, outer, inner, source, x, y, x_at, y_at)]
    return [_call("gather", _gather, isa, itemsize, [*outer, inner], [], 1, x, y, x_at, y_at)]


def _nest(stack: ExitStack, sizes: Sequence[Expr], x_at: Expr, y_at: Expr, parallel: bool) -> tuple[Expr, Expr]:
    """Opens the loops described by sizes = (count, source stride, destination stride, ...); the offsets inside them."""
    for k in range(0, len(sizes), 3):
        i = stack.enter_context(loop(sizes[k], parallel and k == 0))
        x_at, y_at = bind(x_at + i * sizes[k + 1]), bind(y_at + i * sizes[k + 2])
    return x_at, y_at


def _name(kind: str, isa: Isa, itemsize: int, rank: int, parallel: bool, *fixed: int) -> str:
    return "_".join(
        [kind, isa.name, f"{8 * itemsize}", f"{rank}d", *(["p"] if parallel else []), *(str(f) for f in fixed)]
    )


def _call(
    kind: str,
    emit: Callable[..., None],
    isa: Isa,
    itemsize: int,
    outer: Sequence[Loop],
    extra: list[int],
    run: int,
    x: Source,
    y: Source,
    x_at: int,
    y_at: int,
) -> KernelCall:
    """A kernel of nested loops around `emit`, which gets the offsets inside them and the numbers in `extra`."""
    width = isa.lanes * 4 // itemsize
    parallel = bool(outer) and run * itemsize * int(np.prod([d[0] for d in outer], dtype=np.int64)) >= PARALLEL_BYTES
    fixed = static(run, width) if extra else 0
    sizes = [v for d in outer for v in d]

    def body(x: Pointer, y: Pointer, x_at: Expr, y_at: Expr, *rest: Expr) -> None:
        with ExitStack() as stack:
            at = _nest(stack, rest[: len(sizes)], x_at, y_at, parallel)
            emit(x, y, *at, width, fixed, *rest[len(sizes) :])

    dtype = f"uint{8 * itemsize}"
    parameters = [
        *pointers(x=dtype, y=dtype),
        *scalars("x_at", "y_at", *(f"s{i}" for i in range(len(sizes) + len(extra)))),
    ]
    name = _name(kind, isa, itemsize, len(outer), parallel, *([fixed] if fixed else []))
    return KernelCall(kernel(name, parameters, body), (x, y, x_at, y_at, *sizes, *extra))


def _copy(x: Pointer, y: Pointer, x_at: Expr, y_at: Expr, width: int, fixed: int, run: Expr) -> None:
    if fixed:
        store_lanes(y, y_at, x.load(x_at, 1 << (fixed - 1).bit_length()), fixed)
        return
    with vectors(run, width) as at:
        y.store(y_at + at, x.load(x_at + at, width))


def _fill(x: Pointer, y: Pointer, x_at: Expr, y_at: Expr, width: int, fixed: int, run: Expr) -> None:
    value = bind(splat(bind(x.load(x_at)), y.dtype, width))
    if fixed:
        store_lanes(y, y_at, value, fixed)
        return
    with vectors(run, width) as at:
        y.store(y_at + at, value)


def _gather(x: Pointer, y: Pointer, x_at: Expr, y_at: Expr, width: int, fixed: int) -> None:
    y.store(y_at, x.load(x_at))


def transpose_registers(rows: Sequence[Any]) -> list[Any]:
    """n vectors of n lanes, n a power of two, transposed by rounds of interleaving."""
    n = len(rows)
    low = [lane for i in range(n // 2) for lane in (i, n + i)]
    high = [lane + n // 2 for lane in low]
    rows = list(rows)
    step = n // 2
    while step:
        rows = [bind(shuffle([rows[i], rows[i + n // 2]], half)) for i in range(n // 2) for half in (low, high)]
        step //= 2
    return rows


def _transpose(
    isa: Isa,
    itemsize: int,
    outer: Sequence[Loop],
    inner: Loop,
    source: Loop,
    x: Source,
    y: Source,
    x_at: int,
    y_at: int,
) -> KernelCall:
    """Blocks of 16-byte vectors transposed in registers. inner runs along the destination, source along the source."""
    lanes = 16 // itemsize
    few_columns, few_rows = static(source[0], lanes), static(inner[0], lanes)
    outer = [*outer]
    parallel = (
        bool(outer)
        and itemsize * inner[0] * source[0] * int(np.prod([d[0] for d in outer], dtype=np.int64)) >= PARALLEL_BYTES
    )
    sizes = [v for d in outer for v in d]

    def body(x: Pointer, y: Pointer, x_at: Expr, y_at: Expr, *rest: Expr) -> None:
        rows, row_step, columns, column_step = rest[len(sizes) :]

        def block(row: Expr, column: Expr) -> None:
            loads = [
                bind(x.load(x_at + (row + i) * row_step + column, lanes))
                if i < (few_rows or lanes)
                else splat(0, x.dtype, lanes)
                for i in range(lanes)
            ]
            out = transpose_registers(loads)
            for j in range(few_columns or lanes):
                store_lanes(y, bind(y_at + (column + j) * column_step + row), out[j], few_rows or lanes)

        with ExitStack() as stack:
            x_at, y_at = _nest(stack, rest[: len(sizes)], x_at, y_at, parallel)
            row = T.int32(0) if few_rows else stack.enter_context(vectors(rows, lanes))
            column = T.int32(0) if few_columns else stack.enter_context(vectors(columns, lanes))
            block(row, column)

    dtype = f"uint{8 * itemsize}"
    parameters = [
        *pointers(x=dtype, y=dtype),
        *scalars("x_at", "y_at", *(f"s{i}" for i in range(len(sizes))), "rows", "row_step", "columns", "column_step"),
    ]
    name = _name("transpose", isa, itemsize, len(outer), parallel, few_rows, few_columns)
    return KernelCall(
        kernel(name, parameters, body), (x, y, x_at, y_at, *sizes, inner[0], inner[1], source[0], source[2])
    )


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
    """Constant: fill and copy. Edge and reflect: rows taken by number, axis after axis, as numpy does."""
    (name,), a = ctx.node.inputs, ctx.node.attrs
    isa, itemsize, shape = get_isa(ctx.target), itemsize_of(ctx), list(ctx.types[name].shape)
    sy = strides(ctx.out.shape)
    source, out = operand(ctx, name), Buffer(ctx.node.name)
    if a["mode"] == "constant":
        value = Constant(np.full(1, a["value"], ctx.out.dtype))
        return [
            *move(isa, itemsize, [(ctx.out.size, 0, 1)], value, out),
            *move(
                isa,
                itemsize,
                list(zip(shape, strides(shape), sy)),
                source,
                out,
                y_at=sum(b * s for b, s in zip(a["before"], sy)),
            ),
        ]
    padded = [k for k in range(len(shape)) if a["before"][k] or a["after"][k]]
    if not padded:
        return move(isa, itemsize, [(ctx.out.size, 1, 1)], source, out)
    calls: list[KernelCall] = []
    x: Source = source
    for k in padded:
        rows = np.pad(np.arange(shape[k]), (a["before"][k], a["after"][k]), mode=a["mode"]).astype(np.int32)
        target = (
            out
            if k == padded[-1]
            else Workspace(f"padded {k}", len(rows) * itemsize * int(np.prod(shape)) // shape[k] + 64)
        )
        calls.append(take_rows(isa, itemsize, shape, k, "int32", len(rows), x, Constant(rows), target))
        shape[k], x = len(rows), target
    return calls


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
            _copy(x, y, bind((o * rows + row) * run), bind(k * run), width, fixed, run)

    parameters = [*pointers(x="uint8", indices=index_dtype, y="uint8"), *scalars("outer", "count", "rows", "run")]
    name = _name(f"take_{index_dtype}", isa, 1, 1, parallel, *([fixed] if fixed else []))
    return KernelCall(kernel(name, parameters, body), (x, indices, y, outer, count, shape[axis], run))


LOWERINGS = {
    "transpose": lower_transpose,
    "slice": lower_slice,
    "concat": lower_concat,
    "pad": lower_pad,
    "broadcast": lower_broadcast,
}
