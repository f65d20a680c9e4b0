"""Kernels that pick and place elements by computed numbers."""

from __future__ import annotations

import numpy as np
from qcompile.kernels.arithmetic import RANGES
from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, local, splat
from qcompile.kernels.cpu.general.common import (
    PARALLEL_WORK,
    across,
    exact_vectors,
    lane_numbers,
    loop,
    operand,
    rest,
    select,
)
from qcompile.kernels.cpu.general.moves import move
from qcompile.kernels.cpu.isa import get_isa
from qcompile.kernels.cpu.kernel import kernel, pointers, scalars
from qcompile.kernels.lowering import SLACK_BYTES, Buffer, KernelCall, NodeContext

NONE = 2**31 - 1


def after(x: Pointer, start: Expr, count: Expr, minimum: bool, best: Pointer, number: Pointer) -> None:
    """The element that follows, in falling order and then by number, the one whose value and number are in `best` and
    `number`: both are replaced. Where none follows, the number becomes NONE."""
    dtype, better = x.dtype, T.min if minimum else T.max
    lanes = min(16, SLACK_BYTES // np.dtype(dtype).itemsize)  # a partial vector is read whole
    worst = RANGES[dtype][1 if minimum else 0]
    old_value, old_number = (bind(splat(bind(p.load(0)), p.dtype, lanes)) for p in (best, number))

    def follows(at: Expr) -> tuple[Expr, Expr, Expr]:
        value = bind(x.load(start + at, lanes))
        place = bind(lane_numbers(lanes) + splat(at, "int32", lanes))
        behind = value > old_value if minimum else value < old_value
        return value, place, T.Or(behind, T.And(value == old_value, place > old_number))

    def walk(visit) -> None:  # type: ignore[no-untyped-def]
        with exact_vectors(count, lanes) as at:
            visit(at, None)
        visit(*rest(count, lanes))

    top, first = local(lanes, dtype), local(lanes, "int32")
    top.store(0, splat(worst, dtype, lanes))
    first.store(0, splat(NONE, "int32", lanes))

    def largest(at: Expr, exists: Expr | None) -> None:
        value, _, open_ = follows(at)
        open_ = open_ if exists is None else T.And(open_, exists)
        top.store(0, better(top.load(0, lanes), select(open_, value, splat(worst, dtype, lanes))))

    walk(largest)
    found = bind(splat(across(top.load(0, lanes), better), dtype, lanes))

    def lowest(at: Expr, exists: Expr | None) -> None:
        value, place, open_ = follows(at)
        open_ = T.And(open_, value == found)
        open_ = open_ if exists is None else T.And(open_, exists)
        first.store(0, T.min(first.load(0, lanes), select(open_, place, splat(NONE, "int32", lanes))))

    walk(lowest)
    number.store(0, across(first.load(0, lanes), T.min))
    best.store(0, across(top.load(0, lanes), better))


def begin(dtype: str, minimum: bool) -> tuple[Pointer, Pointer]:
    """(value, number) before the first element of all."""
    best, number = local(1, dtype), local(1, "int32")
    best.store(0, T.IntImm(dtype, RANGES[dtype][0 if minimum else 1]))
    number.store(0, T.int32(-1))
    return best, number


def lower_top_k(ctx: NodeContext) -> list[KernelCall]:
    """One walk over the row for each of the k: rows are long, and k is small."""
    (name,), isa, minimum = ctx.node.inputs, get_isa(ctx.target), bool(ctx.node.attrs["minimum"])
    type_, k = ctx.types[name], ctx.node.attrs["k"]
    parallel = type_.shape[0] > 1 and type_.size * k >= PARALLEL_WORK

    def body(x: Pointer, y: Pointer, rows: Expr, count: Expr, k: Expr) -> None:
        with loop(rows, parallel) as row:
            best, number = begin(type_.dtype, minimum)
            start = bind(row * count)
            with T.serial(0, k) as place:
                after(x, start, count, minimum, best, number)
                y.store(bind(row * k + place), number.load(0))

    parameters = [*pointers(x=type_.dtype, y="int32"), *scalars("rows", "count", "k")]
    work = kernel("top_k", (isa, minimum, parallel), parameters, body)
    return [KernelCall(work, (operand(ctx, name), Buffer(ctx.node.name), *type_.shape, k))]


COMBINED = {
    "none": lambda old, new: new,
    "add": lambda old, new: old + new,
    "mul": lambda old, new: old * new,
    "max": T.max,
    "min": T.min,
}


def lower_scatter(ctx: NodeContext) -> list[KernelCall]:
    """A copy, then rows one after the other."""
    isa, reduction = get_isa(ctx.target), ctx.node.attrs["reduction"]
    x, numbers, updates = ctx.node.inputs
    rows, size = ctx.out.shape
    out = Buffer(ctx.node.name)
    copied = move(isa, np.dtype(ctx.out.dtype).itemsize, [(rows * size, 1, 1)], operand(ctx, x), out)

    def body(numbers: Pointer, updates: Pointer, y: Pointer, count: Expr, rows: Expr, size: Expr) -> None:
        with T.serial(0, count) as i:
            row = bind(numbers.load(i))
            inside = bind(T.Select(T.And(row >= 0, row < rows), size, T.int32(0)))
            with T.serial(0, inside) as j:
                at = bind(row * size + j)
                y.store(at, COMBINED[reduction](y.load(at), updates.load(i * size + j)))

    parameters = [*pointers(numbers="int32", updates=ctx.out.dtype, y=ctx.out.dtype), *scalars("count", "rows", "size")]
    work = kernel("scatter", (isa, reduction), parameters, body)
    count = ctx.types[numbers].size
    return [*copied, KernelCall(work, (operand(ctx, numbers), operand(ctx, updates), out, count, rows, size))]


LOWERINGS = {"top_k": lower_top_k, "scatter": lower_scatter}
