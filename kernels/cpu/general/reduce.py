"""Reductions of [outer, reduced, inner]: along rows (inner = 1) across the lanes, else as windows of one column."""

from __future__ import annotations

from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import RANGES
from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, local, splat, store_lanes
from qcompile.kernels.cpu.chain import head_and_chain, widen
from qcompile.kernels.cpu.general.common import (
    PARALLEL_WORK,
    across,
    add,
    exact_vectors,
    lane_numbers,
    loop,
    operand,
    rest,
    select,
    static,
    vectors,
)
from qcompile.kernels.cpu.general.pool import WINDOW, max_call, sum_call
from qcompile.kernels.cpu.isa import Isa, get_isa
from qcompile.kernels.cpu.kernel import kernel, pointers, scalars
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import Buffer, KernelCall, NodeContext

LANES = 16


def _column_window(shape: tuple[int, ...]) -> dict[str, int]:
    """[outer, reduced, inner] as images of one column whose window is the whole image."""
    outer, reduced, inner = shape
    return dict(zip(WINDOW, (outer, reduced, 1, inner, 1, 1, reduced, 1, 1, 1, 1, 1, 0, 0)))


def _parallel(type_: Type) -> bool:
    return type_.shape[0] > 1 and type_.size >= PARALLEL_WORK


def lower_reduce_sum(ctx: NodeContext) -> list[KernelCall]:
    isa = get_isa(ctx.target)
    head, chain = head_and_chain(ctx, isa)
    (name,) = head.inputs
    type_, zero_point = ctx.types[name], head.attrs["x_zero_point"]
    if type_.shape[2] > 1:
        return [
            sum_call(
                isa,
                chain,
                type_.dtype,
                zero_point,
                _column_window(type_.shape),
                operand(ctx, name),
                Buffer(ctx.node.name),
            )
        ]
    parallel = _parallel(type_)

    def body(x: Pointer, y: Pointer, zero_point: Expr, rows: Expr, count: Expr, *arguments: Any) -> None:
        emitter = chain.code.start(arguments)
        with loop(rows, parallel) as row:
            acc = local(LANES, "int32")
            acc.store(0, splat(0, "int32", LANES))
            start = bind(row * count)
            with exact_vectors(count, LANES) as at:
                acc.store(0, acc.load(0, LANES) + widen(x.load(start + at, LANES)))
            at, exists = rest(count, LANES)
            last = select(exists, widen(x.load(start + at, LANES)), splat(0, "int32", LANES))
            total = bind(across(acc.load(0, LANES) + last, add) - zero_point * count)
            y.store(row, emitter.emit(total, row, T.int32(0), row))

    code = chain.code
    parameters = [*pointers(x=type_.dtype, y=code.dtype), *scalars("zero_point", "rows", "count"), *code.parameters]
    return [
        KernelCall(
            kernel("row_sum", (code, parallel), parameters, body),
            (operand(ctx, name), Buffer(ctx.node.name), zero_point, *type_.shape[:2], *chain.operands),
        )
    ]


def lower_reduce_max(ctx: NodeContext) -> list[KernelCall]:
    (name,), minimum = ctx.node.inputs, bool(ctx.node.attrs["minimum"])
    isa, type_ = get_isa(ctx.target), ctx.types[name]
    if type_.shape[2] > 1:
        return [
            max_call(isa, type_.dtype, _column_window(type_.shape), operand(ctx, name), Buffer(ctx.node.name), minimum)
        ]
    lanes, better = isa.lanes * 4 // np.dtype(type_.dtype).itemsize, T.min if minimum else T.max
    parallel = _parallel(type_)

    def body(x: Pointer, y: Pointer, rows: Expr, count: Expr) -> None:
        with loop(rows, parallel) as row:
            y.store(row, row_best(x, bind(row * count), count, lanes, better, RANGES[type_.dtype][1 if minimum else 0]))

    parameters = [*pointers(x=type_.dtype, y=type_.dtype), *scalars("rows", "count")]
    work = kernel("row_min" if minimum else "row_max", (isa, parallel), parameters, body)
    return [KernelCall(work, (operand(ctx, name), Buffer(ctx.node.name), *type_.shape[:2]))]


def row_best(x: Pointer, start: Expr, count: Expr, lanes: int, better: Any, worst: int) -> Expr:
    """The largest (smallest) of `count` elements, as a scalar."""
    best = local(lanes, x.dtype)
    best.store(0, splat(worst, x.dtype, lanes))
    with exact_vectors(count, lanes) as at:
        best.store(0, better(best.load(0, lanes), x.load(start + at, lanes)))
    at, exists = rest(count, lanes)
    last = select(exists, x.load(start + at, lanes), splat(worst, x.dtype, lanes))
    return across(better(best.load(0, lanes), last), better)


def lower_argmax(ctx: NodeContext) -> list[KernelCall]:
    (name,) = ctx.node.inputs
    isa, type_, a = get_isa(ctx.target), ctx.types[name], ctx.node.attrs
    build = _row_argmax if type_.shape[2] == 1 else _column_argmax
    return [build(isa, type_, bool(a["minimum"]), bool(a["last"]), operand(ctx, name), Buffer(ctx.node.name))]


def _row_argmax(isa: Isa, type_: Type, minimum: bool, last: bool, x: Any, y: Any) -> KernelCall:
    """The best value of a row, then the smallest (largest) number of a lane that holds it."""
    dtype, better, parallel = type_.dtype, T.min if minimum else T.max, _parallel(type_)
    first, none = (T.max, -1) if last else (T.min, 2**31 - 1)

    def body(x: Pointer, y: Pointer, rows: Expr, count: Expr) -> None:
        with loop(rows, parallel) as row:
            start = bind(row * count)
            best = bind(
                splat(row_best(x, start, count, LANES, better, RANGES[dtype][1 if minimum else 0]), dtype, LANES)
            )
            found = local(LANES, "int32")
            found.store(0, splat(none, "int32", LANES))

            def visit(at: Expr, exists: Expr | None) -> None:
                equal = x.load(start + at, LANES) == best
                number = select(equal, lane_numbers(LANES) + splat(at, "int32", LANES), splat(none, "int32", LANES))
                if exists is not None:
                    number = select(exists, number, splat(none, "int32", LANES))
                found.store(0, first(found.load(0, LANES), number))

            with exact_vectors(count, LANES) as at:
                visit(at, None)
            visit(*rest(count, LANES))
            y.store(row, across(found.load(0, LANES), first))

    parameters = [*pointers(x=dtype, y="int32"), *scalars("rows", "count")]
    work = kernel("row_argmin" if minimum else "row_argmax", (isa, last, parallel), parameters, body)
    return KernelCall(work, (x, y, *type_.shape[:2]))


def _column_argmax(isa: Isa, type_: Type, minimum: bool, last: bool, x: Any, y: Any) -> KernelCall:
    """Vectors of neighbouring columns walk down the rows."""
    dtype, parallel, fixed = type_.dtype, _parallel(type_), static(type_.shape[2], LANES)

    def body(x: Pointer, y: Pointer, outer: Expr, reduced: Expr, inner: Expr) -> None:
        def column(o: Expr, c: Expr) -> None:
            best, found = local(LANES, "int32"), local(LANES, "int32")
            start = bind(o * reduced * inner + c)
            best.store(0, widen(x.load(start, LANES)))
            found.store(0, splat(0, "int32", LANES))
            with T.serial(0, reduced) as r:
                value, old = bind(widen(x.load(start + r * inner, LANES))), bind(best.load(0, LANES))
                if last:
                    wins = value <= old if minimum else value >= old
                else:
                    wins = value < old if minimum else value > old
                best.store(0, select(wins, value, old))
                found.store(0, select(wins, splat(r, "int32", LANES), found.load(0, LANES)))
            if fixed:
                store_lanes(y, bind(o * inner + c), found.load(0, LANES), fixed)
            else:
                y.store(bind(o * inner + c), found.load(0, LANES))

        with loop(outer, parallel) as o:
            if fixed:
                column(o, T.int32(0))
            else:
                with vectors(inner, LANES) as c:
                    column(o, c)

    parameters = [*pointers(x=dtype, y="int32"), *scalars("outer", "reduced", "inner")]
    work = kernel("column_argmin" if minimum else "column_argmax", (isa, last, parallel, fixed), parameters, body)
    return KernelCall(work, (x, y, *type_.shape))


LOWERINGS = {"reduce_sum": lower_reduce_sum, "reduce_max": lower_reduce_max, "argmax": lower_argmax}
