"""Dyadic arithmetic: the one rounding rule of the compiler, in numpy, and the choice of its constants.

A real factor f becomes an int32 multiplier M and a shift S = 32 + p (HAWQ-V3, section 3.1: dyadic rescaling), and

    requantize(a) = floor((a * 2^pre * M + 2^(S-1)) / 2^S)

which equals ((a << pre) * M >> 32) + 2^(p-1) >> p, since floors of nested divisions compose. Ties go toward +infinity.

A layer's sums that go to 8 bits are cheaper: `SumScale`, words of 16 bits, with all that is added in the layer's bias.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from qcompile.targets.errors import CompileError

MAX_SHIFT = 15  # p: the largest rounding shift that ARM's sqrshrn (p + 1 <= 16) takes
INT32_MAX = 2**31 - 1
CODES = 132  # that an 8-bit result reaches from zero, with a margin
MOST_SHIFT = 16  # that sqshrn takes
SUM_NOISE = 1 / 32  # that the cheaper rescaling of sums may add, of the noise that rounding to a step is
RANGES = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
    "int32": (-(2**31), 2**31 - 1),
    "uint32": (0, 2**32 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint64": (0, 2**64 - 1),
    "bool": (0, 1),
}


class TooFine(CompileError):
    """A grid so fine, beside what is computed for it, that 32 bits cannot hold both; a coarser one can."""


@dataclass(frozen=True)
class Dyadic:
    """Real factors as integers: factor[c] ~ multiplier[c] * 2^pre / 2^(32 + shift); multiplier int32, shift in [1,
    15]."""

    multiplier: np.ndarray
    shift: int
    pre: int = 0


def dyadic(factor, accumulator_bound: int = 0) -> Dyadic:
    """Multiplier per element of `factor` (real, any sign), with one shift for all of them.

    accumulator_bound: the proved bound of |a|; a << pre must fit int32.
    Raises CompileError where the factor is not finite, TooFine where it is too large for the accumulator's range.
    """
    factor = np.atleast_1d(np.asarray(factor, np.float64))
    if not np.isfinite(factor).all():
        raise CompileError("a rescaling factor is not finite: check the scales of the quantized model")
    top = float(np.abs(factor).max())
    if top == 0:
        return Dyadic(np.zeros(factor.shape, np.int32), 1)
    # the largest p with every |M| <= 2^31 - 1
    p = int(np.floor(31 - np.log2(top))) - 32 + 1
    while np.abs(np.rint(factor * 2.0 ** (32 + p))).max() > INT32_MAX:
        p -= 1
    shift = min(p, MAX_SHIFT)
    pre = max(0, 1 - shift)
    shift = max(shift, 1)
    if pre and accumulator_bound * 2.0**pre > INT32_MAX:
        raise TooFine(
            f"a rescaling factor of {top:.3g} overflows 32 bits for accumulators up to {accumulator_bound}; "
            "the output's scale is far too small for its range"
        )
    return Dyadic(np.rint(factor * 2.0 ** (32 + shift - pre)).astype(np.int32), shift, pre)


@dataclass(frozen=True)
class SumScale:
    """Real factors of sums that go to 8 bits through words of 16: floor(round(word * multiplier / 2^15) / 2^fraction),
    word = floor(a / 2^shift) saturated; one shift, or one for each factor.

    The sums' bias must hold what else there is to add: the result's zero point and `half` of its steps, and `before` of
    the sum's own, so that every floor on the way rounds.
    """

    multiplier: np.ndarray
    shift: np.ndarray
    fraction: int

    @property
    def half(self) -> float:
        """Of a step of the result: a half, less the half of a last bit that the product's own rounding adds."""
        return 0.5 - 0.5**self.fraction / 2

    @property
    def before(self) -> np.ndarray:
        return 1 << self.shift >> 1


def sum_scale(
    factor,
    bound: float,
    codes: float = CODES,
    finest: int = 8,
    one_shift: bool = False,
    most_noise: float = SUM_NOISE,
) -> SumScale | None:
    """The scale for sums |a| <= bound, with one shift where that adds little noise; None where all add too much.

    codes: how far from zero a result may lie that still matters; finest: the largest fraction; most_noise: that it may
    add, of the noise that rounding to a step is.
    """
    factor = np.atleast_1d(np.asarray(factor, np.float64))
    if not np.isfinite(factor).all() or bound > INT32_MAX // 2:
        return None
    size = np.abs(factor)
    reach = np.minimum(bound, codes / np.maximum(size, 1e-300))
    limit = RANGES["int16"][1]
    shifts = np.maximum(0, np.ceil(np.log2(np.maximum(reach, 1) / limit))).astype(np.int64)
    # words shifted further need larger multipliers, which are finer
    largest = float((size * 2.0**shifts).max())
    further = np.floor(np.log2(largest / np.maximum(size, 1e-300))).clip(0, MOST_SHIFT).astype(np.int64)
    for shift in (shifts.max(keepdims=True), *([] if one_shift else [np.maximum(shifts, further)])):
        most = limit / float((np.maximum(size, 1e-30) * 2.0 ** (shift + 15)).max())
        if shift.max() > MOST_SHIFT or most < 1:
            continue
        fraction = min(finest, int(np.log2(most)))
        unit = 2.0 ** (shift + 15 + fraction)
        scale = SumScale(np.rint(factor * unit).astype(np.int32), shift.astype(np.int32), fraction)
        missed = np.abs(scale.multiplier / unit - factor) * reach
        # steps of the bias, the word and the product, each rounded once: their squares are in proportion to noise
        noise = size**2 + (2 * scale.before * size) ** 2 + 0.25**fraction + 12 * missed**2
        if noise.mean() <= most_noise and noise.max() <= 4 * most_noise:
            return scale
    return None


def mulhi(a, m) -> np.ndarray:
    """floor(a * m / 2^32), exact for int32 operands; int64 result."""
    return (np.asarray(a, np.int64) * np.asarray(m, np.int64)) >> 32


def round_shift(a, shift: int) -> np.ndarray:
    """floor((a + 2^(shift-1)) / 2^shift); shift 0 returns a. int64."""
    a = np.asarray(a, np.int64)
    return a if shift == 0 else (a + (1 << (shift - 1))) >> shift


def rescale(a, multiplier, shift: int, pre: int = 0) -> np.ndarray:
    """The requantize formula without zero point and clamp; int64. |a| << pre must fit int32 (asserted)."""
    a = np.asarray(a, np.int64) << pre
    if a.size and (a.max() > INT32_MAX or a.min() < -INT32_MAX - 1):
        raise OverflowError("accumulator << pre does not fit int32")
    return round_shift(mulhi(a, multiplier), shift)


def saturate(a, zero_point: int, qmin: int, qmax: int, dtype: str) -> np.ndarray:
    """clamp(a + zero_point, qmin, qmax) as dtype."""
    return np.clip(np.asarray(a, np.int64) + zero_point, qmin, qmax).astype(dtype)


def integer_matmul(a, b) -> np.ndarray:
    """Exact a @ b of integers (batched as numpy does) through float64 BLAS; |sum| must stay under 2^53. int64."""
    return np.rint(np.matmul(np.asarray(a, np.float64), np.asarray(b, np.float64))).astype(np.int64)


def checked_int32(a, where: str) -> np.ndarray:
    """`a` as int32; raises OverflowError naming `where` if it does not fit (the compiler proves that it does)."""
    a = np.asarray(a)
    if a.size and (a.max() > INT32_MAX or a.min() < -INT32_MAX - 1):
        raise OverflowError(f"{where}: accumulator does not fit int32")
    return a.astype(np.int32)
