"""LayerNorm and RMSNorm: a vector pass for the sums, one root and one division a row, a vector pass for the result.

Each pass is made for a few rows before the next, so that the roots, which are long chains of divisions, overlap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import INT32_MAX
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
    kernel,
    loop,
    operand,
    pin,
    pointers,
    rest,
    scalars,
    select,
    static,
    vectors,
)
from qcompile.kernels.cpu.isa import Isa, get_isa
from qcompile.kernels.lowering import Buffer, Constant, KernelCall, NodeContext
from qcompile.kernels.ops.norm import NORM_BITS

LANES = 16
BLOCK = 8  # rows
PARALLEL_ELEMENTS = 1 << 15
LARGEST_TERM = 1 << 28  # bound of mulhi(n, gamma) and of the rounding, so that beta's clamp below changes no result


def bit_length(value: Expr) -> Expr:
    """Bits of a positive uint64, int32."""
    return T.int32(64) - T.cast(T.clz(value), "int32")


def integer_sqrt(value: Expr) -> Expr:
    """floor(sqrt(value)) of a uint64 in [1, 2^63): the precision doubles with each of four divisions, from two bits on.

    The scheme of CPython's math.isqrt (M. Dickinson); the estimate is exact or one too large.
    """

    def u64(v):
        return T.IntImm("uint64", v)

    shift = pin(T.bitwise_and(T.cast(T.clz(value), "uint64"), u64(62)))
    n = pin(T.shift_left(value, shift))
    root = pin(u64(1) + T.shift_right(n, u64(62)))
    for grow, drop in ((1, 59), (3, 53), (7, 41), (15, 17)):
        root = pin(T.shift_left(root, u64(grow)) + T.truncdiv(T.shift_right(n, u64(drop)), root))
    root = pin(T.shift_right(root, T.shift_right(shift, u64(1))))
    return pin(root - select(root * root > value, u64(1), u64(0)))


def _sums(isa: Isa, x: Pointer, start: Expr, count: Expr) -> tuple[Expr, Expr]:
    """(sum x as int32, sum x^2 as int64) of a row."""
    if x.dtype == "int16" and isa.multiplies_pairs:
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
        value = bind(value)
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
    total: Expr, squares: Expr, count: Expr, zero_point: Expr, epsilon: Expr, rms: bool
) -> tuple[Expr, Expr, Expr]:
    """(offset, R, bits): c = count * x - offset; R and the bit length of std as in the op's definition."""

    def wide(v):
        return T.cast(v, "int64")

    squares = squares - T.int64(2) * wide(zero_point) * wide(total) + wide(count) * wide(zero_point) * wide(zero_point)
    centred = pin(T.int32(0) if rms else total - count * zero_point)
    variance = wide(count) * squares - wide(centred) * wide(centred) + epsilon
    std = integer_sqrt(pin(T.cast(T.max(variance, T.int64(1)), "uint64")))
    bits = pin(bit_length(std))
    reciprocal = T.truncdiv(T.shift_left(T.IntImm("uint64", 1), T.cast(bits + 30, "uint64")), std)
    limit = T.IntImm("uint64", INT32_MAX)
    return count * zero_point + centred, T.cast(T.min(reciprocal, limit), "int32"), bits


def lower_layer_norm(ctx: NodeContext) -> list[KernelCall]:
    """One kernel call; gamma and beta are copied with room for whole vectors."""
    isa, a = get_isa(ctx.target), ctx.node.attrs
    name, gamma, beta = ctx.node.inputs
    type_, count = ctx.types[name], ctx.out.shape[-1]
    rows = ctx.out.size // max(count, 1)
    limit = INT32_MAX - LARGEST_TERM
    rounded = ctx.constants[beta].astype(np.int64) + ((1 << a["shift"]) >> 1)
    constants = [
        Constant(np.concatenate([v, np.zeros(CONSTANT_PADDING, np.int64)]).astype(np.int32))
        for v in (ctx.constants[gamma].astype(np.int64).reshape(-1), np.clip(rounded, -limit, limit).reshape(-1))
    ]
    call = _kernel(
        isa,
        type_.dtype,
        ctx.out.dtype,
        bool(a["rms"]),
        bool(a["per_row"]),
        static(count, 32 if isa.lanes == 16 else LANES),
        rows > 1 and ctx.out.size >= PARALLEL_ELEMENTS,
    )
    return [
        KernelCall(
            call,
            (
                operand(ctx, name),
                Buffer(ctx.node.name),
                *constants,
                Constant(np.array([a["epsilon"]], np.int64)),
                rows,
                count,
                ctx.types[gamma].size,
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
        epsilon: Pointer,
        rows: Expr,
        count: Expr,
        groups: Expr,
        x_zero_point: Expr,
        shift: Expr,
        zero_point: Expr,
        qmin: Expr,
        qmax: Expr,
    ) -> None:
        width = 32 if isa.lanes == 16 and not 0 < fixed <= LANES else LANES

        def vector(value):
            return splat(value, "int32", width)

        def normalise_row(row: Expr, offset: Expr, reciprocal: Expr, bits: Expr) -> None:
            start = bind(row * count)
            up = pin(T.max(T.int32(NORM_BITS + 2) - bits, T.int32(0)))
            down = pin(T.max(bits - (NORM_BITS + 2), T.int32(0)))
            group = pin(T.truncmod(row, groups)) if per_row else None

            def load(p, at):
                return vector(bind(p.load(group))) if per_row else p.load(at, width)

            def normalise(at: Expr) -> Expr:
                c = widen(x.load(start + at, width)) * vector(count) - vector(offset)
                n = T.shift_right(isa.mulhi(T.shift_left(c, vector(up)), vector(reciprocal)), vector(down))
                scaled = isa.mulhi(bind(n), load(gamma, at)) + load(beta, at)
                return isa.saturate(T.shift_right(scaled, vector(shift)), zero_point, qmin, qmax, y_dtype)

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
                found = _row_scale(sums.load(i), squares.load(i), count, x_zero_point, epsilon.load(0), rms)
                for cell, value in zip(scales, found):
                    cell.store(i, value)
            with T.serial(0, few) as i:
                normalise_row(bind(first + i), *(bind(cell.load(i)) for cell in scales))

    flags = [f for f, on in (("rms", rms), ("rows", per_row), ("p", parallel), (str(fixed), fixed)) if on]
    parameters = [
        *pointers(x=x_dtype, y=y_dtype, gamma="int32", beta="int32", epsilon="int64"),
        *scalars("rows", "count", "groups", "x_zero_point", "shift", "zero_point", "qmin", "qmax"),
    ]
    return kernel("_".join(["layer_norm", isa.name, x_dtype, y_dtype, *flags]), parameters, body)


LOWERINGS = {"layer_norm": lower_layer_norm}
