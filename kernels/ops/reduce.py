"""Reductions along one block of axes: tensors are seen as [outer, reduced, inner]."""

from __future__ import annotations

import numpy as np
from qcompile.kernels.arithmetic import checked_int32
from qcompile.kernels.dialect import Type, integer_op


@integer_op("reduce_sum")
class ReduceSum:
    """acc[o, i] = sum_r (x[o, r, i] - x_zero_point), int32. x int8|uint8|int16 [outer, reduced, inner]."""

    def infer(x, *, x_zero_point):
        return Type((x.shape[0], x.shape[2]), "int32")

    def evaluate(x, *, x_zero_point):
        return checked_int32((x.astype(np.int64) - x_zero_point).sum(1), "reduce_sum")


@integer_op("reduce_max")
class ReduceMax:
    """y[o, i] = max_r x[o, r, i]; with minimum=True the minimum."""

    def infer(x, *, minimum):
        return Type((x.shape[0], x.shape[2]), x.dtype)

    def evaluate(x, *, minimum):
        return x.min(1) if minimum else x.max(1)


@integer_op("argmax")
class ArgMax:
    """Index of the largest (minimum=True: smallest) element along r, the first of equals (last=True: the last);
    int32."""

    def infer(x, *, minimum, last):
        return Type((x.shape[0], x.shape[2]), "int32")

    def evaluate(x, *, minimum, last):
        pick = np.argmin if minimum else np.argmax
        return (x.shape[1] - 1 - pick(x[:, ::-1], 1) if last else pick(x, 1)).astype(np.int32)
