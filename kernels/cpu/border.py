"""Copies across the border of the artifact: buffers of the caller are read and written to the byte, never beyond."""

from __future__ import annotations

from qcompile.kernels.cpu.builder import Expr, Pointer, T, store_lanes
from qcompile.kernels.cpu.kernel import kernel
from qcompile.kernels.lowering import KernelCall, Operand

WIDE = 64


def copy(source: Operand, destination: Operand, nbytes: int) -> KernelCall:
    """destination[:nbytes] = source[:nbytes]; operands that the code generator gives addresses to."""

    def body(x: Pointer, y: Pointer, size: Expr) -> None:
        with T.serial(T.truncdiv(size, T.int32(WIDE))) as i:
            y.store(i * WIDE, x.load(i * WIDE, WIDE))
        done = T.truncdiv(size, T.int32(WIDE)) * WIDE
        with T.serial(size - done) as i:
            store_lanes(y, done + i, x.load(done + i), 1)

    parameters = [("x", "uint8*"), ("y", "uint8*"), ("size", "int32")]
    work = kernel("copy_bytes", (), parameters, body)
    return KernelCall(work, (source, destination, nbytes))
