"""The division of softmax and attention: a constant numerator by the sum of a row."""

from __future__ import annotations

import numpy as np
from qcompile.kernels.arithmetic import INT32_MAX
from qcompile.kernels.cpu.builder import Expr, Pointer, T
from qcompile.kernels.cpu.general.common import pin
from qcompile.kernels.lowering import Constant
from qcompile.kernels.ops.softmax import RECIPROCALS, numerator_bits

HEAD = 2  # numbers before the table


def division(numerator: int) -> Constant:
    """What `quotient` reads: the numerator's upper 32 bits, the shift of its products, and the table."""
    low = numerator_bits(numerator)
    return Constant(np.concatenate([[numerator >> low, 62 - low], RECIPROCALS]).astype(np.int64))


def quotient(numbers: Pointer, total: Expr) -> Expr:
    """`divide` of the ops' definition, int32; total int32 or int64."""

    def u64(value):
        return T.IntImm("uint64", value)

    total = pin(T.cast(T.max(T.cast(total, "int64"), T.int64(1)), "uint64"))
    shift = pin(T.cast(T.clz(total), "int64") - T.int64(32))
    u = pin(T.shift_left(total, T.cast(shift, "uint64")))
    r = pin(T.cast(numbers.load(T.cast(T.shift_right(u, u64(24)), "int32") + (HEAD - 128)), "uint64"))
    r = pin(T.shift_right(r * T.shift_right(u64(1 << 48) - u * r, u64(16)), u64(16)))
    product = T.cast(numbers.load(0), "uint64") * r
    result = T.shift_right(product, T.cast(numbers.load(1) - shift, "uint64"))
    return pin(T.cast(T.min(result, u64(INT32_MAX)), "int32"))
