"""What picks and places elements by computed numbers: the largest of a row, rows written by number."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from qcompile.kernels.arithmetic import RANGES
from qcompile.kernels.bounds import BoundCall, Interval
from qcompile.kernels.dialect import RESULT, Attrs, Type, integer_op

REDUCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "none": lambda old, new: new,
    "add": np.add,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


@integer_op("top_k", kind="reduce")
class TopK:
    """Numbers of the k largest (minimum=True: smallest) elements of each row, the best first, of equal ones the lower
    number first. x [rows, n] of any integer type, k <= n -> int32 [rows, k]."""

    @staticmethod
    def infer(x, *, k, minimum):
        return Type((x.shape[0], k), "int32")

    @staticmethod
    def evaluate(x, *, k, minimum):
        order = np.argsort(x if minimum else np.flip(x, 1), axis=1, kind="stable")
        order = order if minimum else x.shape[1] - 1 - np.flip(order, 1)
        return order[:, :k].astype(np.int32)

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        return 0, c.type("x").shape[1] - 1


def plain_arguments(attrs: Attrs) -> tuple[str, ...]:
    """Numbers of rows; where elements are combined, these too, as zero points do not add up."""
    return ("numbers", "x", "updates", RESULT) if attrs["reduction"] in ("add", "mul") else ("numbers",)


@integer_op("scatter", kind="layout", plain=plain_arguments)
class Scatter:
    """y = x with y[numbers[i]] = reduction(y[numbers[i]], updates[i]) for i in order; sums and products wrap in the
    type. Rows whose number lies outside of x are left out.

    x [rows, size], numbers int32 [m], updates [m, size] of x's type; reduction none, add, mul, max or min.
    """

    @staticmethod
    def infer(x, numbers, updates, *, reduction):
        return x

    @staticmethod
    def evaluate(x, numbers, updates, *, reduction):
        y = x.copy()
        for number, update in zip(numbers.astype(np.int64), updates):
            if 0 <= number < len(y):
                y[number] = REDUCTIONS[reduction](y[number], update)
        return y

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        x, updates = c.interval("x"), c.interval("updates")
        whole = RANGES[c.type("x").dtype]
        if c.attrs["reduction"] in ("none", "max", "min"):
            return min(x[0], updates[0]), max(x[1], updates[1])
        if c.attrs["reduction"] == "mul":
            return whole  # it wraps
        count = c.type("numbers").size
        low, high = x[0] + min(updates[0], 0) * count, x[1] + max(updates[1], 0) * count
        return (low, high) if whole[0] <= low and high <= whole[1] else whole
