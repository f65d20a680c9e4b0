"""Element by element: rescaling, sums, products, tables. These ops fuse into the ops that feed them.

Wherever a per-channel constant appears it lies along the last axis (channels last), or has one element.
"""

from __future__ import annotations

import numpy as np
from qcompile.kernels.arithmetic import RANGES, checked_int32, mulhi, rescale, round_shift, saturate
from qcompile.kernels.dialect import Type, integer_op

PIECES = (64, 128)  # that an interpolated function may have
FRACTION = {"int8": 6, "uint8": 6, "int16": 0}  # bits that its knots keep beyond its codes


@integer_op("requantize", parameters=("multiplier",), elementwise=True)
class Requantize:
    """y = clamp(zero_point + rescale(x - x_zero_point)) (see arithmetic.rescale).

    x int8|uint8|int16|int32, multiplier int32 [C] or [1] -> `dtype`.
    """

    def infer(x, multiplier, *, x_zero_point, shift, pre, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    def evaluate(x, multiplier, *, x_zero_point, shift, pre, zero_point, qmin, qmax, dtype):
        return saturate(
            rescale(x.astype(np.int64) - x_zero_point, multiplier, shift, pre), zero_point, qmin, qmax, dtype
        )


@integer_op("requantize_word", parameters=("multiplier",), elementwise=True)
class RequantizeWord:
    """Sums whose bias rounds and adds the zero point (see arithmetic.SumScale), through 16 bits:

    y = clamp(zero_point + floor(round(word * multiplier / 2^15) / 2^fraction)), word = floor(x / 2^shift) saturated to
    int16, round(v) = floor(v + 1/2)

    x int32, multiplier int32 [C] or [1] in [-32767, 32767], shift in [0, 16], fraction in [0, 8] -> `dtype`, int8,
    uint8 or int16; zero_point moves int8 codes to uint8.
    """

    def infer(x, multiplier, *, shift, fraction, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    def evaluate(x, multiplier, *, shift, fraction, zero_point, qmin, qmax, dtype):
        word = np.clip(x.astype(np.int64) >> shift, *RANGES["int16"])
        return saturate(round_shift(word * multiplier, 15) >> fraction, zero_point, qmin, qmax, dtype)


@integer_op("requantize_words", parameters=("multiplier", "shift"), elementwise=True)
class RequantizeWords:
    """The same where channels differ too much for one shift: shift int32 [C] or [1]."""

    def infer(x, multiplier, shift, *, fraction, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    def evaluate(x, multiplier, shift, *, fraction, zero_point, qmin, qmax, dtype):
        word = np.clip(x.astype(np.int64) >> shift, *RANGES["int16"])
        return saturate(round_shift(word * multiplier, 15) >> fraction, zero_point, qmin, qmax, dtype)


@integer_op("add_residual", parameters=("multiplier",), elementwise=True)
class AddResidual:
    """An accumulator plus a quantized tensor with one rounding at the end (HAWQ-V3, section 3.2, one rounding less):

    y = clamp(zero_point + floor((mulhi(x << pre, multiplier) + (r - r_zero_point) * r_multiplier + 2^(shift-1)) /
    2^shift))

    x int32 (accumulator), r int8|uint8|int16 of the same shape, multiplier int32 [C] or [1], r_multiplier int32 > 0.
    All sums fit int32 (proved by whoever chooses the constants).
    """

    def infer(x, r, multiplier, *, r_zero_point, r_multiplier, shift, pre, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    def evaluate(x, r, multiplier, *, r_zero_point, r_multiplier, shift, pre, zero_point, qmin, qmax, dtype):
        acc = mulhi(checked_int32(x.astype(np.int64) << pre, "add_residual"), multiplier)
        acc = acc + (r.astype(np.int64) - r_zero_point) * r_multiplier
        checked_int32(acc + (1 << (shift - 1)), "add_residual")
        return saturate(round_shift(acc, shift), zero_point, qmin, qmax, dtype)


@integer_op("add_residual_word", parameters=("multiplier",), elementwise=True)
class AddResidualWord:
    """The same through 16 bits, as requantize_word: with words = floor(x / 2^shift) and r - r_zero_point, times 2^8
    where r has 8 bits,

    y = clamp(zero_point + floor((round(word * multiplier / 2^15) + round(r_word * r_multiplier / 2^15)) / 2^fraction))

    x int32, r int8|int16 with r_zero_point 0 or uint8 with 128, multiplier int32 [C] or [1], all multipliers in
    [-32767, 32767]; words and their sum are saturated to int16 -> int8 or uint8.
    """

    def infer(x, r, multiplier, *, r_zero_point, r_multiplier, shift, fraction, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    def evaluate(x, r, multiplier, *, r_zero_point, r_multiplier, shift, fraction, zero_point, qmin, qmax, dtype):
        word = np.clip(x.astype(np.int64) >> shift, *RANGES["int16"])
        r_word = (r.astype(np.int64) - r_zero_point) << (8 if r.dtype.itemsize == 1 else 0)
        total = round_shift(word * multiplier, 15) + round_shift(r_word * r_multiplier, 15)
        return saturate(np.clip(total, *RANGES["int16"]) >> fraction, zero_point, qmin, qmax, dtype)


@integer_op("add_residual_low", parameters=("multiplier",), elementwise=True)
class AddResidualLow:
    """A sum whose bias rounds, plus a quantized tensor, by the lower halves of products, which is all that they have:

    y = clamp(zero_point + floor((floor(x / 2^x_shift) * multiplier + (r - r_zero_point) * r_multiplier) / 2^shift))

    x int32, r int8|uint8|int16, multiplier int32 [C] or [1], r_multiplier in [-32767, 32767], x_shift in [0, 16]; all
    products and their sum fit int32 (proved).
    """

    def infer(x, r, multiplier, *, x_shift, r_zero_point, r_multiplier, shift, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    def evaluate(x, r, multiplier, *, x_shift, r_zero_point, r_multiplier, shift, zero_point, qmin, qmax, dtype):
        acc = (x.astype(np.int64) >> x_shift) * multiplier + (r.astype(np.int64) - r_zero_point) * r_multiplier
        return saturate(checked_int32(acc, "add_residual_low") >> shift, zero_point, qmin, qmax, dtype)


@integer_op("narrow_word", parameters=("multiplier",), elementwise=True)
class NarrowWord:
    """16-bit codes on a grid of 8 bits: y = clamp(saturate16(round(x * multiplier / 2^15) + offset) >> fraction).

    x int16, multiplier int32 [C] or [1] in [-32767, 32767], fraction in [0, 7]; offset = (zero_point << fraction) +
    (1 << fraction >> 1) -> `dtype`, int8 or uint8.
    """

    def infer(x, multiplier, *, fraction, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    def evaluate(x, multiplier, *, fraction, zero_point, qmin, qmax, dtype):
        word = round_shift(x.astype(np.int64) * multiplier, 15) + (zero_point << fraction) + (1 << fraction >> 1)
        return saturate(np.clip(word, *RANGES["int16"]) >> fraction, 0, qmin, qmax, dtype)


@integer_op("add", elementwise=True)
class Add:
    """Sum of two differently scaled tensors, one rounding:

    y = clamp(zero_point + floor(((x - x_zero_point) * x_multiplier + (r - r_zero_point) * r_multiplier + 2^(shift-1))
    / 2^shift))

    x, r int8|uint8|int16, broadcast as in numpy; multipliers int32 (negative: subtraction); all sums fit int32.
    """

    def infer(x, r, *, x_zero_point, x_multiplier, r_zero_point, r_multiplier, shift, zero_point, qmin, qmax, dtype):
        return Type(np.broadcast_shapes(x.shape, r.shape), dtype)

    def evaluate(x, r, *, x_zero_point, x_multiplier, r_zero_point, r_multiplier, shift, zero_point, qmin, qmax, dtype):
        acc = (x.astype(np.int64) - x_zero_point) * x_multiplier + (r.astype(np.int64) - r_zero_point) * r_multiplier
        checked_int32(acc + (1 << max(shift - 1, 0)), "add")
        return saturate(round_shift(acc, shift), zero_point, qmin, qmax, dtype)


@integer_op("mul", parameters=("multiplier",), elementwise=True)
class Mul:
    """y = clamp(zero_point + rescale((x - x_zero_point) * (r - r_zero_point))); x, r broadcast as in numpy.

    multiplier int32 [C] or [1]. The product << pre fits int32.
    """

    def infer(x, r, multiplier, *, x_zero_point, r_zero_point, shift, pre, zero_point, qmin, qmax, dtype):
        return Type(np.broadcast_shapes(x.shape, r.shape), dtype)

    def evaluate(x, r, multiplier, *, x_zero_point, r_zero_point, shift, pre, zero_point, qmin, qmax, dtype):
        product = (x.astype(np.int64) - x_zero_point) * (r.astype(np.int64) - r_zero_point)
        return saturate(rescale(product, multiplier, shift, pre), zero_point, qmin, qmax, dtype)


@integer_op("lut", parameters=("table",), elementwise=True)
class Lut:
    """y = table[x - first]: any function of a tensor with few codes, correctly rounded. first <= x < first +
    len(table).

    x int8|uint8 (table of 256, first = the dtype's minimum) or int16 (any number of codes), table int8|uint8|int16
    [codes].
    """

    def infer(x, table, *, first):
        return Type(x.shape, table.dtype)

    def evaluate(x, table, *, first):
        return table[x.astype(np.int64) - first]


@integer_op("interpolate", parameters=("table",), elementwise=True)
class Interpolate:
    """A function of many codes as P = 64 or 128 straight pieces of 2^bits codes each. With c = x - first,
    i = c >> bits and f = (c mod 2^bits) * 2^(15-bits), all in 16 bits:

    y = clamp(zero_point + ((base[i] + floor((slope[i] * f + 2^14) / 2^15)) >> FRACTION[dtype]))

    x int16 with 0 <= c < P * 2^bits, bits in [1, 10]; table int16 [2, P]: base (rounding constant included) and
    slope, the difference between a piece's ends; -> `dtype`.
    """

    def infer(x, table, *, first, bits, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    def evaluate(x, table, *, first, bits, zero_point, qmin, qmax, dtype):
        c = x.astype(np.int64) - first
        if c.size and (c.min() < 0 or c.max() >= table.shape[1] << bits):
            raise OverflowError("interpolate: a code lies outside the pieces")
        base, slope = table.astype(np.int64)
        i, f = c >> bits, (c & ((1 << bits) - 1)) << (15 - bits)
        y = base[i] + round_shift(slope[i] * f, 15)
        return saturate(y >> FRACTION[dtype], zero_point, qmin, qmax, dtype)


@integer_op("prelu", parameters=("multiplier", "negative_multiplier"), elementwise=True)
class Prelu:
    """A rescaling with one factor per sign: d = x - x_zero_point; y = clamp(zero_point + rescale(d, d < 0 ? negative
    : positive)).

    multiplier, negative_multiplier int32 [C] or [1] (of equal length).
    """

    def infer(x, multiplier, negative_multiplier, *, x_zero_point, shift, pre, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    def evaluate(x, multiplier, negative_multiplier, *, x_zero_point, shift, pre, zero_point, qmin, qmax, dtype):
        d = x.astype(np.int64) - x_zero_point
        m = np.where(d < 0, negative_multiplier.astype(np.int64), multiplier.astype(np.int64))
        return saturate(rescale(d, m, shift, pre), zero_point, qmin, qmax, dtype)


@integer_op("bias_add", elementwise=True)
class BiasAdd:
    """y = x + bias, int32; bias int32 broadcastable to x. Fits int32 (proved)."""

    def infer(x, bias):
        return Type(x.shape, "int32")

    def evaluate(x, bias):
        return checked_int32(x.astype(np.int64) + bias, "bias_add")


@integer_op("add_sums", parameters=("factor",), elementwise=True)
class AddSums:
    """y = x + sums * factor, int32: what a zero point of weights adds to a layer's sums x, from sums of its inputs.

    x int32 [..., C], sums int32 broadcastable to x ([..., 1], or one for each of x), factor int32 [C] or [1]. Fits
    int32 (proved).
    """

    def infer(x, sums, factor):
        return Type(x.shape, "int32")

    def evaluate(x, sums, factor):
        return checked_int32(x.astype(np.int64) + sums.astype(np.int64) * factor, "add_sums")


@integer_op("where")
class Where:
    """y = condition ? x : r, all broadcast as in numpy; condition int8 (non-zero is true), x and r of the same dtype
    and scale."""

    def infer(condition, x, r):
        return Type(np.broadcast_shapes(condition.shape, x.shape, r.shape), x.dtype)

    def evaluate(condition, x, r):
        return np.where(condition != 0, x, r)


@integer_op("cast", elementwise=True)
class Cast:
    """The same number in another integer dtype, plus `offset`; values outside the dtype saturate."""

    def infer(x, *, offset, dtype):
        return Type(x.shape, dtype)

    def evaluate(x, *, offset, dtype):
        info = np.iinfo(dtype)
        return np.clip(x.astype(np.int64) + offset, info.min, info.max).astype(dtype)
