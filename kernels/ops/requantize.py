"""Rescaling of sums and codes, with what is added before the one rounding. These ops fuse into the ops that feed them.

Wherever a per-channel constant appears it lies along the last axis (channels last), or has one element.
"""

from __future__ import annotations

import numpy as np
from qcompile.kernels.arithmetic import (
    MOST_SHIFT,
    RANGES,
    checked_int32,
    mulhi,
    rescale,
    round_shift,
    saturate,
)
from qcompile.kernels.bounds import BoundCall, Interval, ends, product
from qcompile.kernels.dialect import Type, integer_op

INT32 = RANGES["int32"]
WORD = (-32767, 32767)  # of multipliers of 16 bits
DYADIC = {"shift": (1, 31), "pre": (0, 31)}  # of arithmetic.Dyadic
WORDS = {"multiplier": WORD, "shift": (0, MOST_SHIFT), "fraction": (0, 8)}  # of arithmetic.SumScale


def rescaled(c: BoundCall) -> Interval:
    low, high = c.interval("x")
    c.fits("the shifted input", low * 2 ** c.attrs["pre"], high * 2 ** c.attrs["pre"])
    return c.clamped()


def word_result(c: BoundCall) -> Interval:
    """Words saturate, so nothing overflows; the bias of the sums holds the zero points that kernels do not add."""
    if c.attrs["dtype"] == "int16" and c.attrs["zero_point"]:
        raise c.refusal(f"the result of {c.op} has a zero point that its bias does not hold")
    if c.attrs.get("r_zero_point"):
        raise c.refusal(f"the residual of {c.op} has a zero point that its bias does not hold")
    return c.clamped()


@integer_op("requantize", kind="elementwise", parameters=("multiplier",), elementwise=True, ranges=DYADIC)
class Requantize:
    """y = clamp(zero_point + rescale(x - x_zero_point)) (see arithmetic.rescale).

    x int8|uint8|int16|int32, multiplier int32 [C] or [1] -> `dtype`.
    """

    @staticmethod
    def infer(x, multiplier, *, x_zero_point, shift, pre, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    @staticmethod
    def evaluate(x, multiplier, *, x_zero_point, shift, pre, zero_point, qmin, qmax, dtype):
        return saturate(
            rescale(x.astype(np.int64) - x_zero_point, multiplier, shift, pre), zero_point, qmin, qmax, dtype
        )

    bound = staticmethod(rescaled)


@integer_op("requantize_word", kind="elementwise", parameters=("multiplier",), elementwise=True, ranges=WORDS)
class RequantizeWord:
    """Sums whose bias rounds and adds the zero point (see arithmetic.SumScale), through 16 bits:

    y = clamp(zero_point + floor(round(word * multiplier / 2^15) / 2^fraction)), word = floor(x / 2^shift) saturated to
    int16, round(v) = floor(v + 1/2)

    x int32, multiplier int32 [C] or [1] in [-32767, 32767], shift in [0, 16], fraction in [0, 8] -> `dtype`, int8,
    uint8 or int16; zero_point moves int8 codes to uint8.
    """

    @staticmethod
    def infer(x, multiplier, *, shift, fraction, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    @staticmethod
    def evaluate(x, multiplier, *, shift, fraction, zero_point, qmin, qmax, dtype):
        word = np.clip(x.astype(np.int64) >> shift, *RANGES["int16"])
        return saturate(round_shift(word * multiplier, 15) >> fraction, zero_point, qmin, qmax, dtype)

    bound = staticmethod(word_result)


@integer_op("requantize_words", kind="elementwise", parameters=("multiplier", "shift"), elementwise=True, ranges=WORDS)
class RequantizeWords:
    """The same where channels differ too much for one shift: shift int32 [C] or [1]."""

    @staticmethod
    def infer(x, multiplier, shift, *, fraction, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    @staticmethod
    def evaluate(x, multiplier, shift, *, fraction, zero_point, qmin, qmax, dtype):
        word = np.clip(x.astype(np.int64) >> shift, *RANGES["int16"])
        return saturate(round_shift(word * multiplier, 15) >> fraction, zero_point, qmin, qmax, dtype)

    bound = staticmethod(word_result)


@integer_op(
    "add_residual",
    kind="elementwise",
    parameters=("multiplier",),
    elementwise=True,
    ranges=DYADIC | {"r_multiplier": INT32},
)
class AddResidual:
    """An accumulator plus a quantized tensor with one rounding at the end (HAWQ-V3, section 3.2, one rounding less):

    y = clamp(zero_point + floor((mulhi(x << pre, multiplier) + (r - r_zero_point) * r_multiplier + 2^(shift-1)) /
    2^shift))

    x int32 (accumulator), r int8|uint8|int16 of the same shape, multiplier int32 [C] or [1], r_multiplier int32 > 0.
    All sums fit int32 (proved by whoever chooses the constants).
    """

    @staticmethod
    def infer(x, r, multiplier, *, r_zero_point, r_multiplier, shift, pre, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    @staticmethod
    def evaluate(x, r, multiplier, *, r_zero_point, r_multiplier, shift, pre, zero_point, qmin, qmax, dtype):
        acc = mulhi(checked_int32(x.astype(np.int64) << pre, "add_residual"), multiplier)
        acc = acc + (r.astype(np.int64) - r_zero_point) * r_multiplier
        checked_int32(acc + (1 << (shift - 1)), "add_residual")
        return saturate(round_shift(acc, shift), zero_point, qmin, qmax, dtype)

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        pre = 2 ** c.attrs["pre"]
        low, high = c.interval("x")
        c.fits("the shifted input", low * pre, high * pre)
        x = product((low * pre, high * pre), ends(c.constant("multiplier")))
        r = product(c.interval("r"), (c.attrs["r_multiplier"],) * 2)
        c.fits("the sum", (x[0] >> 32) + r[0], (x[1] >> 32) + r[1] + (1 << (c.attrs["shift"] - 1)))
        return c.clamped()


@integer_op(
    "add_residual_word",
    kind="elementwise",
    parameters=("multiplier",),
    elementwise=True,
    ranges=WORDS | {"r_multiplier": WORD},
)
class AddResidualWord:
    """The same through 16 bits, as requantize_word: with words = floor(x / 2^shift) and r - r_zero_point, times 2^8
    where r has 8 bits,

    y = clamp(zero_point + floor((round(word * multiplier / 2^15) + round(r_word * r_multiplier / 2^15)) / 2^fraction))

    x int32, r int8|int16 with r_zero_point 0 or uint8 with 128, multiplier int32 [C] or [1], all multipliers in
    [-32767, 32767]; words and their sum are saturated to int16 -> int8 or uint8.
    """

    @staticmethod
    def infer(x, r, multiplier, *, r_zero_point, r_multiplier, shift, fraction, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    @staticmethod
    def evaluate(x, r, multiplier, *, r_zero_point, r_multiplier, shift, fraction, zero_point, qmin, qmax, dtype):
        word = np.clip(x.astype(np.int64) >> shift, *RANGES["int16"])
        r_word = (r.astype(np.int64) - r_zero_point) << (8 if r.dtype.itemsize == 1 else 0)
        total = round_shift(word * multiplier, 15) + round_shift(r_word * r_multiplier, 15)
        return saturate(np.clip(total, *RANGES["int16"]) >> fraction, zero_point, qmin, qmax, dtype)

    bound = staticmethod(word_result)


@integer_op(
    "add_residual_low",
    kind="elementwise",
    parameters=("multiplier",),
    elementwise=True,
    ranges={"x_shift": (0, MOST_SHIFT), "r_multiplier": WORD, "shift": (1, 31)},
)
class AddResidualLow:
    """A sum whose bias rounds, plus a quantized tensor, by the lower halves of products, which is all that they have:

    y = clamp(zero_point + floor((floor(x / 2^x_shift) * multiplier + (r - r_zero_point) * r_multiplier) / 2^shift))

    x int32, r int8|uint8|int16, multiplier int32 [C] or [1], r_multiplier in [-32767, 32767], x_shift in [0, 16]; all
    products and their sum fit int32 (proved).
    """

    @staticmethod
    def infer(x, r, multiplier, *, x_shift, r_zero_point, r_multiplier, shift, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    @staticmethod
    def evaluate(x, r, multiplier, *, x_shift, r_zero_point, r_multiplier, shift, zero_point, qmin, qmax, dtype):
        acc = (x.astype(np.int64) >> x_shift) * multiplier + (r.astype(np.int64) - r_zero_point) * r_multiplier
        return saturate(checked_int32(acc, "add_residual_low") >> shift, zero_point, qmin, qmax, dtype)

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        low, high = c.interval("x")
        x = product((low >> c.attrs["x_shift"], high >> c.attrs["x_shift"]), ends(c.constant("multiplier")))
        r = product(c.interval("r"), (c.attrs["r_multiplier"],) * 2)
        c.fits("a product", *x)
        c.fits("the sum", x[0] + r[0], x[1] + r[1])
        return c.clamped()


@integer_op(
    "narrow_word",
    kind="elementwise",
    parameters=("multiplier",),
    elementwise=True,
    ranges={"multiplier": WORD, "fraction": (0, 8)},
)
class NarrowWord:
    """16-bit codes on a grid of 8 bits: y = clamp(saturate16(round(x * multiplier / 2^15) + offset) >> fraction).

    x int16, multiplier int32 [C] or [1] in [-32767, 32767], fraction in [0, 7]; offset = (zero_point << fraction) +
    (1 << fraction >> 1) -> `dtype`, int8 or uint8.
    """

    @staticmethod
    def infer(x, multiplier, *, fraction, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    @staticmethod
    def evaluate(x, multiplier, *, fraction, zero_point, qmin, qmax, dtype):
        word = round_shift(x.astype(np.int64) * multiplier, 15) + (zero_point << fraction) + (1 << fraction >> 1)
        return saturate(np.clip(word, *RANGES["int16"]) >> fraction, 0, qmin, qmax, dtype)

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        if (abs(c.attrs["zero_point"]) + 1) << c.attrs["fraction"] > WORD[1] + 1:
            raise c.refusal(f"the zero point of {c.op} leaves 16 bits")
        return c.clamped()
