"""Arithmetic on integers that a graph declares: exact, in the declared type, which wraps as it does in C.

A type is no scale: int64 stays int64, and results are those of unbounded integers modulo 2^bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from qcompile.kernels.arithmetic import RANGES
from qcompile.kernels.bounds import BoundCall, Interval
from qcompile.kernels.dialect import RESULT, Type, integer_op

COMPARISONS = ("equal", "less", "less_equal", "greater", "greater_equal")


def computed_in(*dtypes: str) -> str:
    """The type in which values of `dtypes` are combined: int32, int64, or uint64 where that occurs."""
    if "uint64" in dtypes:
        return "uint64"
    return "int64" if {"int64", "uint32"} & set(dtypes) else "int32"


def _divide(x: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Toward zero; by zero gives zero."""
    with np.errstate(all="ignore"):
        quotient = np.floor_divide(x, r)
        inexact = quotient * r != x
    toward_zero = quotient + (inexact & ((x < 0) != (r < 0)))
    return np.where(r == 0, 0, toward_zero)


def _remainder(x: np.ndarray, r: np.ndarray) -> np.ndarray:
    return x - _divide(x, r) * r


def _modulo(x: np.ndarray, r: np.ndarray) -> np.ndarray:
    """With the divisor's sign."""
    rest = _remainder(x, r)
    return np.where((rest != 0) & ((rest < 0) != (r < 0)) & (r != 0), rest + r, rest)


def _power(x: np.ndarray, r: np.ndarray) -> np.ndarray:
    """r < 0: that of 1 / x, toward zero."""
    result, base, left = np.ones_like(x + r), x + np.zeros_like(r), np.where(r > 0, r, 0).astype(np.uint64)
    while left.any():
        result = np.where(left & np.uint64(1), result * base, result)
        base, left = base * base, left >> np.uint64(1)
    if x.dtype.kind == "u":
        return result
    odd = (r & 1) != 0
    reciprocal = np.where(x == 1, 1, np.where(x == -1, np.where(odd, -1, 1), 0))
    return np.where(r < 0, reciprocal, result)


def _left(x: np.ndarray, r: np.ndarray) -> np.ndarray:
    bits = 8 * x.dtype.itemsize
    return np.where((r >= 0) & (r < bits), x << np.clip(r, 0, bits - 1), 0)


def _right(x: np.ndarray, r: np.ndarray) -> np.ndarray:
    """Rounds down; a count below 0 is one of all bits."""
    bits = 8 * x.dtype.itemsize
    beyond = np.where(x < 0, -1, 0) if x.dtype.kind == "i" else np.zeros_like(x)
    return np.where((r >= 0) & (r < bits), x >> np.clip(r, 0, bits - 1), beyond)


FUNCTIONS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": _divide,
    "mod": _remainder,
    "floor_mod": _modulo,
    "power": _power,
    "minimum": np.minimum,
    "maximum": np.maximum,
    "bitwise_and": np.bitwise_and,
    "bitwise_or": np.bitwise_or,
    "bitwise_xor": np.bitwise_xor,
    "left_shift": _left,
    "right_shift": _right,
    **{name: getattr(np, name) for name in COMPARISONS},
}


@integer_op("whole", kind="elementwise", plain=("x", "r", RESULT))
class Whole:
    """y = function(x, r) modulo 2^bits of `dtype`, both broadcast as in numpy.

    x, r of any integer types, computed in `computed_in` of the three types. divide and mod round toward zero,
    floor_mod down; x / 0 = 0 and x mod 0 = x. Shifts by all bits or more leave 0, or the sign.
    """

    @staticmethod
    def infer(x, r, *, function, dtype):
        return Type(np.broadcast_shapes(x.shape, r.shape), dtype)

    @staticmethod
    def evaluate(x, r, *, function, dtype):
        inside = computed_in(str(x.dtype), str(r.dtype), dtype)
        with np.errstate(over="ignore"):
            return FUNCTIONS[function](x.astype(inside), r.astype(inside)).astype(dtype)

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        return wrapped_interval(c.attrs["function"], c.interval("x"), c.interval("r"), c.attrs["dtype"])


def _ends(function: Callable[[int, int], int], a: Interval, b: Interval) -> Interval:
    values = [function(p, q) for p in a for q in b]
    return min(values), max(values)


def whole_interval(function: str, a: Interval, b: Interval) -> Interval | None:
    """Where function(x, r) lies for x in a and r in b, in unbounded integers; None where nothing is known."""
    if function in COMPARISONS:
        return 0, 1
    if function == "add":
        return a[0] + b[0], a[1] + b[1]
    if function == "subtract":
        return a[0] - b[1], a[1] - b[0]
    if function == "multiply":
        return _ends(lambda p, q: p * q, a, b)
    if function == "minimum":
        return min(a[0], b[0]), min(a[1], b[1])
    if function == "maximum":
        return max(a[0], b[0]), max(a[1], b[1])
    if function == "divide":
        top = max(abs(a[0]), abs(a[1]))
        return (-top if a[0] < 0 or b[0] < 0 else 0), top
    if function in ("mod", "floor_mod") and b[0] > 0:
        least = 0 if a[0] >= 0 or function == "floor_mod" else 1 - b[1]
        return least, b[1] - 1
    if function == "right_shift" and b[0] >= 0:
        return min(a[0], 0), max(a[1], 0)
    if function == "bitwise_and" and (a[0] >= 0 or b[0] >= 0):
        return 0, min(i[1] for i in (a, b) if i[0] >= 0)
    if function.startswith("bitwise"):  # within the bits of the wider
        top = (1 << max(i.bit_length() for i in (*a, *b))) - 1
        return (-top - 1 if min(a[0], b[0]) < 0 else 0), top
    if function == "left_shift" and b[0] >= 0 and b[1] < 64:
        return min(a[0], a[0] << b[1]), max(a[1], a[1] << b[1])
    return None


def wrapped_interval(function: str, a: Interval, b: Interval, dtype: str) -> Interval:
    """The same in `dtype`: its whole range where the result may wrap."""
    found, (low, high) = whole_interval(function, a, b), RANGES[dtype]
    return found if found and low <= found[0] and found[1] <= high else (low, high)
