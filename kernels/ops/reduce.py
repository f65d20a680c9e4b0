"""Reductions along one block of axes: tensors are seen as [outer, reduced, inner]."""

from __future__ import annotations

import numpy as np
from qcompile.kernels.arithmetic import checked_int32
from qcompile.kernels.bounds import BoundCall, Interval, unchanged
from qcompile.kernels.dialect import Type, integer_op


def sum_of(c: BoundCall, count: int) -> Interval:
    """Of up to so many elements of x."""
    low, high = c.interval("x")
    low, high = min(low, 0) * count, max(high, 0) * count
    c.fits("the sum", low, high)
    return low, high


@integer_op("reduce_sum", kind="reduce", heads_fusion=True)
class ReduceSum:
    """acc[o, i] = sum_r (x[o, r, i] - x_zero_point), int32. x int8|uint8|int16 [outer, reduced, inner]."""

    @staticmethod
    def infer(x, *, x_zero_point):
        return Type((x.shape[0], x.shape[2]), "int32")

    @staticmethod
    def evaluate(x, *, x_zero_point):
        return checked_int32((x.astype(np.int64) - x_zero_point).sum(1), "reduce_sum")

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        return sum_of(c, c.type("x").shape[1])


@integer_op("reduce_max", kind="reduce")
class ReduceMax:
    """y[o, i] = max_r x[o, r, i]; with minimum=True the minimum."""

    @staticmethod
    def infer(x, *, minimum):
        return Type((x.shape[0], x.shape[2]), x.dtype)

    @staticmethod
    def evaluate(x, *, minimum):
        return x.min(1) if minimum else x.max(1)

    bound = staticmethod(unchanged)


@integer_op("argmax", kind="reduce")
class ArgMax:
    """Index of the largest (minimum=True: smallest) element along r, the first of equals (last=True: the last);
    int32."""

    @staticmethod
    def infer(x, *, minimum, last):
        return Type((x.shape[0], x.shape[2]), "int32")

    @staticmethod
    def evaluate(x, *, minimum, last):
        pick = np.argmin if minimum else np.argmax
        return (x.shape[1] - 1 - pick(x[:, ::-1], 1) if last else pick(x, 1)).astype(np.int32)

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        return 0, c.type("x").shape[1] - 1
