"""The division of softmax and attention: a constant numerator by the sum of a row."""

from __future__ import annotations

from qcompile.kernels.arithmetic import INT32_MAX
from qcompile.kernels.cpu.builder import Expr, Pointer, T
from qcompile.kernels.cpu.general.common import pin


def quotient(numerator: Pointer, divisor: Expr) -> Expr:
    """min(floor(numerator / max(divisor, 1)), 2^31 - 1), int32."""
    ratio = T.truncdiv(numerator.load(0), T.cast(T.max(divisor, T.int32(1)), "int64"))
    return pin(T.cast(T.min(ratio, T.int64(INT32_MAX)), "int32"))
