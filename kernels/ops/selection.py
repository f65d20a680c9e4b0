"""What picks and places elements by computed numbers: the largest of a row, rows written by number."""

from __future__ import annotations

import numpy as np
from qcompile.kernels.dialect import Type, integer_op

REDUCTIONS = {
    "none": lambda old, new: new,
    "add": np.add,
    "mul": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


@integer_op("top_k")
class TopK:
    """Numbers of the k largest (minimum=True: smallest) elements of each row, the best first, of equal ones the lower
    number first. x [rows, n] of any integer type, k <= n -> int32 [rows, k]."""

    def infer(x, *, k, minimum):
        return Type((x.shape[0], k), "int32")

    def evaluate(x, *, k, minimum):
        order = np.argsort(x if minimum else np.flip(x, 1), axis=1, kind="stable")
        order = order if minimum else x.shape[1] - 1 - np.flip(order, 1)
        return order[:, :k].astype(np.int32)


@integer_op("scatter")
class Scatter:
    """y = x with y[numbers[i]] = reduction(y[numbers[i]], updates[i]) for i in order; sums and products wrap in the
    type. Rows whose number lies outside of x are left out.

    x [rows, size], numbers int32 [m], updates [m, size] of x's type; reduction none, add, mul, max or min.
    """

    def infer(x, numbers, updates, *, reduction):
        return x

    def evaluate(x, numbers, updates, *, reduction):
        y = x.copy()
        for number, update in zip(numbers.astype(np.int64), updates):
            if 0 <= number < len(y):
                y[number] = REDUCTIONS[reduction](y[number], update)
        return y
