"""Rows by number; of a constant table of 4-bit codes too: embeddings in a quarter of the bytes of 16-bit ones.

A coded row is stored as its codes, 32 neighbours in 16 bytes (the first 16 in the low halves), then the multipliers of
its groups.
"""

from __future__ import annotations

import numpy as np
from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, cast, splat
from qcompile.kernels.cpu.codes import Coded, find_table_code
from qcompile.kernels.cpu.general.common import PARALLEL_WORK, Source, loop, operand
from qcompile.kernels.cpu.general.movement import clamped, itemsize_of, take_rows
from qcompile.kernels.cpu.isa import Isa, get_isa
from qcompile.kernels.cpu.kernel import kernel, pointers, scalars
from qcompile.kernels.lowering import Buffer, Constant, KernelCall, NodeContext

CHUNK = 32  # values decoded at a time


def lower_take(ctx: NodeContext) -> list[KernelCall]:
    """take: rows of bytes copied, or decoded where the table is a constant that has a code."""
    x, indices = ctx.node.inputs
    type_, isa, out = ctx.types[indices], get_isa(ctx.target), Buffer(ctx.node.name)
    axis, table = ctx.node.attrs["axis"], ctx.constants.get(x)
    if table is not None and table.dtype in (np.int8, np.int16) and table.ndim == 2 and axis == 0:
        coded = find_table_code(table)
        if coded:
            return [_take_coded(isa, coded, str(table.dtype), operand(ctx, indices), type_.dtype, type_.size, out)]
    shape, source = ctx.types[x].shape, operand(ctx, x)
    return [take_rows(isa, itemsize_of(ctx), shape, axis, type_.dtype, type_.size, source, operand(ctx, indices), out)]


def _take_coded(
    isa: Isa, coded: Coded, dtype: str, indices: Source, index_dtype: str, count: int, out: Source
) -> KernelCall:
    """`count` rows of the table [rows, size], of int8 or int16, at `indices`, which are clamped to the table."""
    (rows, size), half = coded.values.shape, CHUNK // 2
    group = coded.code.group
    parallel = count * size >= PARALLEL_WORK and count > 1

    def body(table: Pointer, ids: Pointer, y: Pointer, n: Expr, all_rows: Expr, chunks: Expr, row_bytes: Expr) -> None:
        with loop(n, parallel) as i:
            codes, made = bind(clamped(ids.load(i), all_rows) * row_bytes), bind(i * (chunks * CHUNK))
            with T.serial(0, chunks) as c:
                stored = bind(table.load(codes + c * half, half))
                share = table.load(codes + chunks * half + T.truncdiv(c, T.int32(group // CHUNK)))
                multiplier = bind(splat(T.cast(share, "int16"), "int16", half))
                middle = splat(coded.code.middle, "int16", half)
                low = T.bitwise_and(stored, splat(15, "uint8", half))
                for h, u in enumerate((low, T.shift_right(stored, splat(4, "uint8", half)))):
                    value = (cast(u, "int16") - middle) * multiplier
                    y.store(made + c * CHUNK + h * half, value if dtype == "int16" else cast(value, dtype))

    parameters = [*pointers(table="uint8", ids=index_dtype, y=dtype), *scalars("n", "rows", "chunks", "row_bytes")]
    packed = _pack(coded)
    operands = (Constant(packed), indices, out, count, rows, size // CHUNK, packed.shape[1])
    return KernelCall(kernel("take_w4", (isa, coded.code, parallel), parameters, body), operands)


def _pack(coded: Coded) -> np.ndarray:
    """[rows, bytes of a row]."""
    chunks = coded.values.reshape(len(coded.values), -1, 2, CHUNK // 2)
    codes = (chunks[:, :, 0] | chunks[:, :, 1] << 4).reshape(len(chunks), -1)
    return np.concatenate([codes, coded.multipliers], 1)  # type: ignore[list-item]


LOWERINGS = {"take": lower_take}
