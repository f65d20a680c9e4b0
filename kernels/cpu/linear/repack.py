"""Packing one panel of an activation for the dot-product tiles, at run time, with the sums of its columns.

Both write [groups][columns][group] signed bytes (unsigned ones less 128) at `packed[out]`, zeros past the end of K,
and the sum of each column's bytes at `bias[terms]`. `start` is where the matrix begins, `panel` the panel's number;
columns past N hold whatever follows.
"""

from __future__ import annotations

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
    shuffle,
    splat,
)
from qcompile.kernels.cpu.isa.base import interleave
from qcompile.kernels.cpu.isa.dot import Dot


def _signed(x: Expr) -> Expr:
    """The bytes as int8: u8 - 128 flips the top bit."""
    n = lanes_of(x)
    return reinterpret(T.bitwise_xor(x, splat(128, "uint8", n)), "int8", n) if str(x.ty).startswith("uint8") else x


def pack_columns(
    dot: Dot,
    columns: int,
    order: list[int],
    b: Pointer,
    packed: Pointer,
    bias: Pointer,
    n: Expr,
    k: Expr,
    groups: Expr,
    start: Expr,
    out: Expr,
    terms: Expr,
    panel: Expr,
) -> None:
    """b [K, N]: `group` rows at a time, zipped."""
    bias.store(terms, splat(0, "int32", columns))
    with T.serial(0, groups) as g:
        rows = []
        for e in range(dot.group):
            at = bind(g * dot.group + e)
            row = _signed(b.load(start + T.min(at, k - 1) * n + panel * columns, columns))
            # past the end of K: zeros, whatever the other operand holds there
            mask = splat(T.Select(at < k, T.int32(-1), T.int32(0)), "int8", columns)
            rows.append(bind(T.bitwise_and(row, mask)))
        wide = [cast(r, "int32") for r in rows]
        bias.store(terms, bias.load(terms, columns) + sum(wide[1:], wide[0]))
        if order != sorted(order):
            rows = [bind(shuffle([r], order)) for r in rows]
        packed.store(out + g * (dot.group * columns), interleave(rows))


def pack_rows(
    dot: Dot,
    columns: int,
    order: list[int],
    b: Pointer,
    packed: Pointer,
    bias: Pointer,
    n: Expr,
    k: Expr,
    groups: Expr,
    start: Expr,
    out: Expr,
    terms: Expr,
    panel: Expr,
) -> None:
    """b [N, K]: `group` bytes of one channel at a time."""
    block, size = dot.column_step, dot.group
    whole = bind(T.truncdiv(k, T.int32(size)))
    sums = local(size, "int32")

    def copy(source: Expr, target: Expr, valid: Expr | None) -> None:
        values = _signed(b.load(source, size))
        if valid is not None:  # reads at most size - 1 bytes past the row; they become zeros
            mask = T.Select(
                T.ramp(T.int32(0), 1, size) < splat(valid, "int32", size),
                splat(-1, "int32", size),
                splat(0, "int32", size),
            )
            values = T.bitwise_and(values, cast(mask, "int8"))
        values = bind(values)
        sums.store(0, sums.load(0, size) + cast(values, "int32"))
        packed.store(target, values)

    with T.serial(0, columns // block) as part:
        for position, channel in enumerate(order[:block]):
            column = bind(part * block + channel)
            row = bind(start + T.min(panel * columns + column, n - 1) * k)
            target = bind(out + (part * block + position) * size)
            sums.store(0, splat(0, "int32", size))
            with T.serial(0, whole) as g:
                copy(row + g * size, target + g * (size * columns), None)
            with T.If(whole < groups), T.Then():
                copy(row + whole * size, target + whole * (size * columns), k - whole * size)
            lanes = [extract(sums.load(0, size), e, 1) for e in range(size)]
            bias.store(terms + column, sum(lanes[1:], lanes[0]))
