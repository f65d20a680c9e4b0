"""Element by element: sums, products, tables. Most fuse into the ops that feed them.

Wherever a per-channel constant appears it lies along the last axis (channels last), or has one element.
"""

from __future__ import annotations

import numpy as np
from qcompile.kernels.arithmetic import RANGES, checked_int32, rescale, round_shift, saturate
from qcompile.kernels.bounds import BoundCall, Interval, ends, product
from qcompile.kernels.dialect import Type, integer_op
from qcompile.kernels.ops.requantize import DYADIC, INT32, rescaled

PIECES = (64, 128)  # that an interpolated function may have
FRACTION = {"int8": 6, "uint8": 6, "int16": 0}  # bits that its knots keep beyond its codes


@integer_op(
    "add", kind="elementwise", elementwise=True, ranges={"x_multiplier": INT32, "r_multiplier": INT32, "shift": (0, 31)}
)
class Add:
    """Sum of two differently scaled tensors, one rounding:

    y = clamp(zero_point + floor(((x - x_zero_point) * x_multiplier + (r - r_zero_point) * r_multiplier + 2^(shift-1))
    / 2^shift))

    x, r int8|uint8|int16, broadcast as in numpy; multipliers int32 (negative: subtraction); all sums fit int32.
    """

    @staticmethod
    def infer(x, r, *, x_zero_point, x_multiplier, r_zero_point, r_multiplier, shift, zero_point, qmin, qmax, dtype):
        return Type(np.broadcast_shapes(x.shape, r.shape), dtype)

    @staticmethod
    def evaluate(x, r, *, x_zero_point, x_multiplier, r_zero_point, r_multiplier, shift, zero_point, qmin, qmax, dtype):
        acc = (x.astype(np.int64) - x_zero_point) * x_multiplier + (r.astype(np.int64) - r_zero_point) * r_multiplier
        checked_int32(acc + (1 << max(shift - 1, 0)), "add")
        return saturate(round_shift(acc, shift), zero_point, qmin, qmax, dtype)

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        terms = [product(c.interval(n), (c.attrs[f"{n}_multiplier"],) * 2) for n in ("x", "r")]
        half = 1 << max(c.attrs["shift"] - 1, 0)
        c.fits("the sum", sum(t[0] for t in terms), sum(t[1] for t in terms) + half)
        return c.clamped()


@integer_op("mul", kind="elementwise", parameters=("multiplier",), elementwise=True, ranges=DYADIC)
class Mul:
    """y = clamp(zero_point + rescale((x - x_zero_point) * (r - r_zero_point))); x, r broadcast as in numpy.

    multiplier int32 [C] or [1]. The product << pre fits int32.
    """

    @staticmethod
    def infer(x, r, multiplier, *, x_zero_point, r_zero_point, shift, pre, zero_point, qmin, qmax, dtype):
        return Type(np.broadcast_shapes(x.shape, r.shape), dtype)

    @staticmethod
    def evaluate(x, r, multiplier, *, x_zero_point, r_zero_point, shift, pre, zero_point, qmin, qmax, dtype):
        product = (x.astype(np.int64) - x_zero_point) * (r.astype(np.int64) - r_zero_point)
        return saturate(rescale(product, multiplier, shift, pre), zero_point, qmin, qmax, dtype)

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        low, high = product(c.interval("x"), c.interval("r"))
        c.fits("the product", low * 2 ** c.attrs["pre"], high * 2 ** c.attrs["pre"])
        return c.clamped()


@integer_op("lut", kind="elementwise", parameters=("table",), elementwise=True)
class Lut:
    """y = table[x - first]: any function of a tensor with few codes, correctly rounded. first <= x < first +
    len(table).

    x int8|uint8 (table of 256, first = the dtype's minimum) or int16 (any number of codes), table int8|uint8|int16
    [codes].
    """

    @staticmethod
    def infer(x, table, *, first):
        return Type(x.shape, table.dtype)

    @staticmethod
    def evaluate(x, table, *, first):
        return table[x.astype(np.int64) - first]

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        size, first = c.type("table").size, c.attrs["first"]
        codes = c.interval("x")
        if codes[0] < first or codes[1] >= first + size:
            raise c.refusal(f"codes {codes} leave the table of {size} entries from {first}")
        return c.interval("table")


@integer_op("interpolate", kind="elementwise", parameters=("table",), elementwise=True, ranges={"bits": (1, 10)})
class Interpolate:
    """A function of many codes as P = 64 or 128 straight pieces of 2^bits codes each. With c = x - first,
    i = c >> bits and f = (c mod 2^bits) * 2^(15-bits), all in 16 bits:

    y = clamp(zero_point + ((base[i] + floor((slope[i] * f + 2^14) / 2^15)) >> FRACTION[dtype]))

    x int16 with 0 <= c < P * 2^bits, bits in [1, 10]; table int16 [2, P]: base (rounding constant included) and
    slope, the difference between a piece's ends; -> `dtype`.
    """

    @staticmethod
    def infer(x, table, *, first, bits, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    @staticmethod
    def evaluate(x, table, *, first, bits, zero_point, qmin, qmax, dtype):
        c = x.astype(np.int64) - first
        if c.size and (c.min() < 0 or c.max() >= table.shape[1] << bits):
            raise OverflowError("interpolate: a code lies outside the pieces")
        base, slope = table.astype(np.int64)
        i, f = c >> bits, (c & ((1 << bits) - 1)) << (15 - bits)
        y = base[i] + round_shift(slope[i] * f, 15)
        return saturate(y >> FRACTION[dtype], zero_point, qmin, qmax, dtype)

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        codes, first, width = c.interval("x"), c.attrs["first"], 1 << c.attrs["bits"]
        pieces = c.type("table").shape[-1]
        known = c.type("table").shape in [(2, n) for n in PIECES]
        if not known or codes[0] < first or codes[1] >= first + pieces * width:
            raise c.refusal(f"codes {codes} leave the {pieces} pieces of {width} codes from {first}")
        base, slope = c.constant("table")
        low, high = ends(np.stack([base, base + slope]))
        if low < RANGES["int16"][0] or high > RANGES["int16"][1]:
            raise c.refusal("a piece of the interpolated function leaves 16 bits")
        return c.clamped()


@integer_op(
    "prelu", kind="elementwise", parameters=("multiplier", "negative_multiplier"), elementwise=True, ranges=DYADIC
)
class Prelu:
    """A rescaling with one factor per sign: d = x - x_zero_point; y = clamp(zero_point + rescale(d, d < 0 ? negative
    : positive)).

    multiplier, negative_multiplier int32 [C] or [1] (of equal length).
    """

    @staticmethod
    def infer(x, multiplier, negative_multiplier, *, x_zero_point, shift, pre, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    @staticmethod
    def evaluate(x, multiplier, negative_multiplier, *, x_zero_point, shift, pre, zero_point, qmin, qmax, dtype):
        d = x.astype(np.int64) - x_zero_point
        m = np.where(d < 0, negative_multiplier.astype(np.int64), multiplier.astype(np.int64))
        return saturate(rescale(d, m, shift, pre), zero_point, qmin, qmax, dtype)

    bound = staticmethod(rescaled)


@integer_op("bias_add", kind="elementwise", elementwise=True)
class BiasAdd:
    """y = x + bias, int32; bias int32 broadcastable to x. Fits int32 (proved)."""

    @staticmethod
    def infer(x, bias):
        return Type(x.shape, "int32")

    @staticmethod
    def evaluate(x, bias):
        return checked_int32(x.astype(np.int64) + bias, "bias_add")

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        x, bias = c.intervals
        c.fits("the sum", x[0] + bias[0], x[1] + bias[1])
        return x[0] + bias[0], x[1] + bias[1]


@integer_op("add_sums", kind="elementwise", parameters=("factor",), elementwise=True)
class AddSums:
    """y = x + sums * factor, int32: what a zero point of weights adds to a layer's sums x, from sums of its inputs.

    x int32 [..., C], sums int32 broadcastable to x ([..., 1], or one for each of x), factor int32 [C] or [1]. Fits
    int32 (proved).
    """

    @staticmethod
    def infer(x, sums, factor):
        return Type(x.shape, "int32")

    @staticmethod
    def evaluate(x, sums, factor):
        return checked_int32(x.astype(np.int64) + sums.astype(np.int64) * factor, "add_sums")

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        x, terms = c.interval("x"), product(c.interval("sums"), ends(c.constant("factor")))
        c.fits("the sum", x[0] + terms[0], x[1] + terms[1])
        return x[0] + terms[0], x[1] + terms[1]


@integer_op("where", kind="elementwise", plain=("condition",))
class Where:
    """y = condition ? x : r, all broadcast as in numpy; condition int8 (non-zero is true), x and r of the same dtype
    and scale."""

    @staticmethod
    def infer(condition, x, r):
        return Type(np.broadcast_shapes(condition.shape, x.shape, r.shape), x.dtype)

    @staticmethod
    def evaluate(condition, x, r):
        return np.where(condition != 0, x, r)

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        x, r = c.interval("x"), c.interval("r")
        return min(x[0], r[0]), max(x[1], r[1])


@integer_op("cast", kind="elementwise", elementwise=True)
class Cast:
    """The same number in another integer dtype, plus `offset`; values outside the dtype saturate."""

    @staticmethod
    def infer(x, *, offset, dtype):
        return Type(x.shape, dtype)

    @staticmethod
    def evaluate(x, *, offset, dtype):
        info = np.iinfo(dtype)
        return np.clip(x.astype(np.int64) + offset, info.min, info.max).astype(dtype)

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        low, high = RANGES[c.attrs["dtype"]]
        a, b = (i + c.attrs["offset"] for i in c.interval("x"))
        return min(max(a, low), high), min(max(b, low), high)
