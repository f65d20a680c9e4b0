"""Strided copies: of runs of bytes, of blocks rearranged in registers, or element by element.

A movement is a list of loops (count, source stride, destination stride), in elements. Loops that are one in memory are
merged, and what then runs innermost chooses the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, concat, splat, store_lanes
from qcompile.kernels.cpu.general.common import Source, loop, static, vectors
from qcompile.kernels.cpu.general.registers import (
    QUARTER,
    interleave,
    interleave_blocks,
    permuted_lanes,
    separate,
)
from qcompile.kernels.cpu.isa import Isa
from qcompile.kernels.cpu.kernel import kernel, pointers, scalars
from qcompile.kernels.lowering import KernelCall

PARALLEL_BYTES = 1 << 18
FEW = 8  # rows that are interleaved in registers at a time
SHORTEST = 4  # rows for it
QUARTER_COST = 2  # of a block's fixed work, in that of 16 bytes of its rows
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
                copy_run,
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
    # the destination's elements come from several rows
    return [
        _interleave(isa, itemsize, loops, x, y, x_at, y_at)
        or _separate(isa, itemsize, loops, x, y, x_at, y_at)
        or (_transpose(isa, itemsize, loops, inner, source, x, y, x_at, y_at) if source else None)
        or _call("gather", _gather, isa, itemsize, [*outer, inner], [], 1, x, y, x_at, y_at)
    ]


def run_of_few(loops: Sequence[Loop], stride: int) -> tuple[list[Loop], int]:
    """(loops, the fastest first, that together run over neighbouring elements, and how many these are), by the stride
    at that place of a loop; no more than FEW."""
    found, run = list[Loop](), 1
    while step := next((d for d in loops if d[stride] == run and d not in found and run * d[0] <= FEW), None):
        found, run = [*found, step], run * step[0]
    return found, run


def _nest(stack: ExitStack, sizes: Sequence[Expr], x_at: Expr, y_at: Expr, parallel: bool) -> tuple[Expr, Expr]:
    """Opens the loops described by sizes = (count, source stride, destination stride, ...); the offsets inside them."""
    for k in range(0, len(sizes), 3):
        i = stack.enter_context(loop(sizes[k], parallel and k == 0))
        x_at, y_at = bind(x_at + i * sizes[k + 1]), bind(y_at + i * sizes[k + 2])
    return x_at, y_at


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
    known: tuple[int, ...] = (),
) -> KernelCall:
    """A kernel of nested loops around `emit`, which gets the offsets inside them and the numbers in `extra`; known:
    the numbers that the code of `emit` has in it."""
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
    work = kernel(kind, (isa, *known, len(outer), width, fixed, parallel), parameters, body)
    return KernelCall(work, (x, y, x_at, y_at, *sizes, *extra))


def copy_run(x: Pointer, y: Pointer, x_at: Expr, y_at: Expr, width: int, fixed: int, run: Expr) -> None:
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


def _interleave(
    isa: Isa, itemsize: int, loops: Sequence[Loop], x: Source, y: Source, x_at: int, y_at: int
) -> KernelCall | None:
    """Few rows whose elements lie by turns in the destination, without gaps."""
    few, run = run_of_few(loops, 2)
    along = next((d for d in loops if d[1] == 1 and d[2] == run and d not in few), None)

    def emit(x: Pointer, y: Pointer, x_at: Expr, y_at: Expr, at: Expr, lanes: int, steps: list[Expr]) -> None:
        parts = [bind(x.load(x_at + step + at, lanes)) for step in steps]
        for p, part in enumerate(interleave(parts)):
            y.store(y_at + at * run + p * lanes, part)

    return _few("interleave", emit, isa, itemsize, loops, few, run, along, 1, x, y, x_at, y_at)


def _separate(
    isa: Isa, itemsize: int, loops: Sequence[Loop], x: Source, y: Source, x_at: int, y_at: int
) -> KernelCall | None:
    """The reverse: elements that lie by turns in the source, without gaps, become few rows."""
    few, run = run_of_few(loops, 1)
    along = next((d for d in loops if d[2] == 1 and d[1] == run and d not in few), None)

    def emit(x: Pointer, y: Pointer, x_at: Expr, y_at: Expr, at: Expr, lanes: int, steps: list[Expr]) -> None:
        parts = [bind(x.load(x_at + at * run + p * lanes, lanes)) for p in range(run)]
        for step, part in zip(steps, separate(parts)):
            y.store(y_at + step + at, part)

    return _few("separate", emit, isa, itemsize, loops, few, run, along, 2, x, y, x_at, y_at)


def _few(
    kind: str,
    emit: Callable[..., None],
    isa: Isa,
    itemsize: int,
    loops: Sequence[Loop],
    few: Sequence[Loop],
    run: int,
    along: Loop | None,
    apart: int,
    x: Source,
    y: Source,
    x_at: int,
    y_at: int,
) -> KernelCall | None:
    """A kernel of `emit` for vectors of the loop `along`; `few` are the loops over the rows, which lie the strides at
    place `apart` from each other. None where there are no such loops."""
    if run == 1 or along is None or along[0] < SHORTEST:
        return None
    lanes = min(permuted_lanes(isa, itemsize), 1 << (along[0].bit_length() - 1))
    counts, distances = [d[0] for d in few], [d[apart] for d in few]

    def vectors_of(x: Pointer, y: Pointer, x_at: Expr, y_at: Expr, _: int, __: int, count: Expr, *steps: Expr) -> None:
        starts: list[Expr] = [T.int32(0)]
        for n, step in zip(counts, steps):
            starts = [bind(start + i * step) for i in range(n) for start in starts]
        with vectors(count, lanes) as at:
            emit(x, y, x_at, y_at, at, lanes, starts)

    outer = [d for d in loops if d not in few and d is not along]
    sizes, known = [along[0], *distances], (lanes, *counts)
    return _call(kind, vectors_of, isa, itemsize, outer, sizes, run * along[0], x, y, x_at, y_at, known)


def _transpose(
    isa: Isa,
    itemsize: int,
    loops: Sequence[Loop],
    inner: Loop,
    source: Loop,
    x: Source,
    y: Source,
    x_at: int,
    y_at: int,
) -> KernelCall:
    """Blocks transposed in registers. inner runs along the destination, source along the source.

    A block is of as many columns as fill 16 bytes, and of as many rows or, in wider registers, two or four times as
    many, whose parts of 16 bytes are transposed side by side.
    """
    lanes = QUARTER // itemsize
    few_columns, few_rows = static(source[0], lanes), static(inner[0], lanes)
    wide = [q for q in (1, 2, 4) if q * 4 <= isa.lanes and q * lanes <= inner[0]]
    quarters = min(wide, key=lambda q: (q + QUARTER_COST) * -(-inner[0] // (q * lanes)), default=1)

    def emit(x: Pointer, y: Pointer, x_at: Expr, y_at: Expr, _: int, __: int, *rest: Expr) -> None:
        rows, row_step, columns, column_step = rest

        def block(row: Expr, column: Expr) -> None:
            loads = [
                bind(concat([x.load(x_at + (row + q * lanes + i) * row_step + column, lanes) for q in range(quarters)]))
                if i < (few_rows or lanes)
                else splat(0, x.dtype, lanes)
                for i in range(lanes)
            ]
            out = interleave_blocks(loads, lanes)
            for j in range(few_columns or lanes):
                store_lanes(y, bind(y_at + (column + j) * column_step + row), out[j], few_rows or quarters * lanes)

        with ExitStack() as stack:
            row = T.int32(0) if few_rows else stack.enter_context(vectors(rows, quarters * lanes))
            column = T.int32(0) if few_columns else stack.enter_context(vectors(columns, lanes))
            block(row, column)

    outer = [d for d in loops if d is not inner and d is not source]
    sizes, known = [inner[0], inner[1], source[0], source[2]], (quarters, few_rows, few_columns)
    return _call("transpose", emit, isa, itemsize, outer, sizes, inner[0] * source[0], x, y, x_at, y_at, known)


__all__ = ["PARALLEL_BYTES", "Loop", "copy_run", "merge", "move", "strides"]
