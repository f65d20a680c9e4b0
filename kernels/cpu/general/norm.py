"""LayerNorm and RMSNorm: a vector pass for the sums, one root a row, a vector pass for the result.

Each pass is made for a few rows before the next, so that the roots, which are long chains of steps, overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import RANGES
from qcompile.kernels.cpu.builder import (
    Expr,
    Pointer,
    T,
    bind,
    cast,
    extract,
    lanes_of,
    local,
    reinterpret,
    splat,
    store_lanes,
)
from qcompile.kernels.cpu.chain import CONSTANT_PADDING, widen
from qcompile.kernels.cpu.general.common import (
    across,
    add,
    ceil_div,
    exact_vectors,
    loop,
    operand,
    pin,
    rest,
    select,
    static,
    vectors,
)
from qcompile.kernels.cpu.isa import Isa, get_isa
from qcompile.kernels.cpu.kernel import kernel, pointers, scalars
from qcompile.kernels.lowering import Buffer, Constant, KernelCall, NodeContext
from qcompile.kernels.ops.norm import MEAN_BITS, ROOTS, mean_factor, row_octaves

LANES = 16
BLOCK = 8  # rows
PARALLEL_ELEMENTS = 1 << 15


def bit_length(value: Expr) -> Expr:
    """Bits of a positive uint64, int32."""
    return T.int32(64) - T.cast(T.clz(value), "int32")


def _sums(isa: Isa, x: Pointer, start: Expr, count: Expr) -> tuple[Expr, Expr]:
    """(sum x as int32, sum x^2 as int64) of a row."""
    if isa.multiplies_pairs:
        return _sums_of_pairs(isa, x, start, count)
    wide = x.dtype == "int16"
    total, squares = local(LANES, "int32"), local(LANES // 2, "uint64") if wide else local(LANES, "int32")
    total.store(0, splat(0, "int32", LANES))
    squares.store(0, splat(0, squares.dtype, LANES // 2 if wide else LANES))

    def visit(value: Expr) -> None:
        value = bind(value)
        total.store(0, total.load(0, LANES) + value)
        square = bind(value * value)
        if wide:  # two squares of 2^30 fit 32 bits without sign
            half = LANES // 2
            square = cast(
                cast(extract(square, 0, half), "uint32") + cast(extract(square, half, half), "uint32"), "uint64"
            )
        squares.store(0, squares.load(0, lanes_of(square)) + square)

    _visit_row(x, start, count, LANES, lambda value: visit(widen(value)))
    square_sum = across(squares.load(0, LANES // 2 if wide else LANES), add)
    return pin(across(total.load(0, LANES), add)), pin(T.cast(square_sum, "int64"))


def _sums_of_pairs(isa: Isa, x: Pointer, start: Expr, count: Expr) -> tuple[Expr, Expr]:
    """The same by the instruction that adds the products of neighbouring int16."""
    n = isa.lanes
    total, squares = local(n, "int32"), local(n // 2, "uint64")
    total.store(0, splat(0, "int32", n))
    squares.store(0, splat(0, "uint64", n // 2))

    def visit(value: Expr) -> None:
        value = bind(cast(value, "int16"))
        total.store(0, total.load(0, n) + isa.pair_products(value, splat(1, "int16", 2 * n)))
        # two squares of 2^30 fit 32 bits without sign
        square = bind(reinterpret(isa.pair_products(value, value), "uint64", n // 2))
        low = T.bitwise_and(square, splat(0xFFFFFFFF, "uint64", n // 2))
        squares.store(0, squares.load(0, n // 2) + low + T.shift_right(square, splat(32, "uint64", n // 2)))

    _visit_row(x, start, count, 2 * n, visit)
    square_sum = across(squares.load(0, n // 2), add)
    return pin(across(total.load(0, n), add)), pin(T.cast(square_sum, "int64"))


def _visit_row(x: Pointer, start: Expr, count: Expr, width: int, visit: Callable[[Expr], None]) -> None:
    """All elements of a row as vectors, zeros where the last reaches past its end."""
    with exact_vectors(count, width) as at:
        visit(x.load(start + at, width))
    at, exists = rest(count, width)
    with T.If(at < count), T.Then():
        visit(select(exists, x.load(start + at, width), splat(0, x.dtype, width)))


def _row_scale(
    total: Expr,
    squares: Expr,
    count: Expr,
    zero_point: Expr,
    numbers: Pointer,
    roots: Pointer,
    octaves: Expr,
    rms: bool,
) -> tuple[Expr, Expr, Expr]:
    """(s, m, f) of a row as in the op's definition, int32; numbers: epsilon and the factor that is 1 / count."""

    def u64(value):
        return T.IntImm("uint64", value)

    def wide(value):
        return T.cast(value, "int64")

    if rms:
        squares = squares - T.int64(2) * wide(zero_point) * wide(total) + wide(count) * wide(zero_point * zero_point)
        variance, mean = wide(count) * squares, T.shift_left(wide(zero_point), T.int64(MEAN_BITS))
    else:
        variance, mean = wide(count) * squares - wide(total) * wide(total), wide(total) * numbers.load(1)
    variance = pin(T.cast(T.max(variance + numbers.load(0), T.int64(1)), "uint64"))
    half = pin(T.shift_right(T.cast(T.clz(variance), "int32"), T.int32(1)))
    u = pin(T.shift_right(T.shift_left(variance, T.cast(half * 2, "uint64")), u64(32)))
    root = pin(T.cast(roots.load(T.cast(T.shift_right(u, u64(24)), "int32") - 64), "uint64"))
    error = T.shift_right(u * (root * root), u64(32))
    root = pin(T.shift_right(root * (u64(3 << 30) - error) + u64(1 << 30), u64(31)))
    factor = T.min(T.max(T.cast(root, "int32") - (1 << 15), T.int32(0)), T.int32(RANGES["int16"][1]))
    up = pin(T.max(T.min(half - 17 + octaves, T.int32(15)), T.int32(-15)))
    rounding = T.shift_right(T.int64(1 << (MEAN_BITS - 1)), wide(T.max(up, T.int32(0))))
    mean = T.shift_right(mean + T.Select(up >= 0, rounding, T.int64(0)), wide(MEAN_BITS - up))
    return up, T.cast(mean, "int32"), factor


def lower_layer_norm(ctx: NodeContext) -> list[KernelCall]:
    """One kernel call; gamma and beta are copied with room for whole vectors."""
    isa, a = get_isa(ctx.target), ctx.node.attrs
    name, gamma, beta = ctx.node.inputs
    type_, count = ctx.types[name], ctx.out.shape[-1]
    rows = ctx.out.size // max(count, 1)
    rounded = ctx.constants[beta].astype(np.int64) + ((1 << a["shift"]) >> 1)
    constants = [
        Constant(np.concatenate([v.reshape(-1), np.zeros(CONSTANT_PADDING, np.int64)]).astype(dtype))
        for v, dtype in ((ctx.constants[gamma], np.int16), (rounded, np.int32))
    ]
    call = _kernel(
        isa,
        type_.dtype,
        ctx.out.dtype,
        bool(a["rms"]),
        bool(a["per_row"]),
        static(count, 2 * isa.lanes if isa.lanes == 16 else LANES),
        rows > 1 and ctx.out.size >= PARALLEL_ELEMENTS,
    )
    numbers = np.array([a["epsilon"], mean_factor(count)], np.int64)
    return [
        KernelCall(
            call,
            (
                operand(ctx, name),
                Buffer(ctx.node.name),
                *constants,
                Constant(numbers),
                Constant(ROOTS),
                rows,
                count,
                ctx.types[gamma].size,
                row_octaves(count),
                *(int(a[n]) for n in ("x_zero_point", "shift", "zero_point", "qmin", "qmax")),
            ),
        )
    ]


def _kernel(isa: Isa, x_dtype: str, y_dtype: str, rms: bool, per_row: bool, fixed: int, parallel: bool) -> Any:
    def body(
        x: Pointer,
        y: Pointer,
        gamma: Pointer,
        beta: Pointer,
        numbers: Pointer,
        roots: Pointer,
        rows: Expr,
        count: Expr,
        groups: Expr,
        octaves: Expr,
        x_zero_point: Expr,
        shift: Expr,
        zero_point: Expr,
        qmin: Expr,
        qmax: Expr,
    ) -> None:
        width = 32 if isa.lanes == 16 and not 0 < fixed <= LANES else LANES

        def words(value):
            return bind(splat(value, "int16", width))

        def normalise_row(row: Expr, up: Expr, mean: Expr, factor: Expr) -> None:
            start = bind(row * count)
            left, right = words(T.max(up, T.int32(0))), words(T.max(0 - up, T.int32(0)))
            mean, factor = words(mean), words(factor)
            group = pin(T.truncmod(row, groups)) if per_row else None

            def load(p, at):
                return splat(bind(p.load(group)), "int32", width) if per_row else cast(p.load(at, width), "int32")

            def normalise(at: Expr) -> Expr:
                c = cast(x.load(start + at, width), "int16")
                c = bind(T.shift_right(T.shift_left(c, left), right) - mean)
                n = bind(isa.add_words(c, isa.mul_round(c, factor)))
                y = cast(n, "int32") * load(gamma, at) + load(beta, at)
                return isa.saturate_shifted(bind(y), shift, zero_point, qmin, qmax, y_dtype)

            if fixed:
                store_lanes(y, start, normalise(T.int32(0)), fixed)
            else:
                with vectors(count, width) as at:
                    y.store(start + at, normalise(at))

        with loop(ceil_div(rows, BLOCK), parallel) as block:
            first = bind(block * BLOCK)
            few = bind(T.min(rows - first, T.int32(BLOCK)))
            sums, squares = local(BLOCK, "int32"), local(BLOCK, "int64")
            scales = [local(BLOCK, "int32") for _ in range(3)]
            with T.serial(0, few) as i:
                for cell, value in zip((sums, squares), _sums(isa, x, bind((first + i) * count), count)):
                    cell.store(i, value)
            with T.serial(0, few) as i:
                found = _row_scale(sums.load(i), squares.load(i), count, x_zero_point, numbers, roots, octaves, rms)
                for cell, value in zip(scales, found):
                    cell.store(i, value)
            with T.serial(0, few) as i:
                normalise_row(bind(first + i), *(bind(cell.load(i)) for cell in scales))

    parameters = [
        *pointers(x=x_dtype, y=y_dtype, gamma="int16", beta="int32", numbers="int64", roots="int32"),
        *scalars("rows", "count", "groups", "octaves", "x_zero_point", "shift", "zero_point", "qmin", "qmax"),
    ]
    return kernel("layer_norm", (isa, rms, per_row, fixed, parallel), parameters, body)


LOWERINGS = {"layer_norm": lower_layer_norm}
