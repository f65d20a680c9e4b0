"""Softmax, attention and log-softmax on integers: exp as powers of two, one division a row.

Attention never normalises its 8-bit weights: it multiplies the numerators with the values and divides the int32 sums
by the row's sum afterwards, which keeps all of the numerators' precision for every row length.
"""

from __future__ import annotations

import numpy as np
from qcompile.kernels.arithmetic import (
    INT32_MAX,
    RANGES,
    checked_int32,
    integer_matmul,
    mulhi,
    rescale,
    round_shift,
    saturate,
)
from qcompile.kernels.bounds import BoundCall, Interval, clamped, product
from qcompile.kernels.dialect import Type, integer_op

OCTAVE_BITS = 10  # exponents are in units of 2^-10 octave
EXP2 = (
    32765,
    -22636,
    7525,
    -1270,
)  # 2^-f in Q15, f in [0, 1): cubic, relative error 1.2e-4 (searched with these floors)
LARGEST_EXPONENT = (31 << OCTAVE_BITS) - 1
INT32 = RANGES["int32"]
NUMERATOR = (0, 2**46 - 1)
EXPONENT = {"multiplier": INT32, "shift": (1, 31), "pre": (0, 31)}  # of differences, in 2^-10 octaves


def exp2_negative(t: np.ndarray) -> np.ndarray:
    """2^-(t / 2^10) in Q15, for 0 <= t <= LARGEST_EXPONENT: Horner in 32 bits with floor shifts, then a shift by t >>
    10."""
    f, c = t & ((1 << OCTAVE_BITS) - 1), EXP2
    y = c[0] + (((c[1] + (((c[2] + ((c[3] * f) >> OCTAVE_BITS)) * f) >> OCTAVE_BITS)) * f) >> OCTAVE_BITS)
    return y >> (t >> OCTAVE_BITS)


RECIPROCALS = np.array([round(2**23 / (i + 0.5)) for i in range(128, 256)], np.int64)  # 2^16 / (i / 128)


def divide(numerator: int, total: np.ndarray) -> np.ndarray:
    """numerator / max(total, 1), at most 2^31 - 1, within 2^-16 of itself: one step of Newton's from a table.

    numerator in [0, 2^46), total int64 in [0, 2^31); int64. With u = total << e in [2^31, 2^32) and r =
    RECIPROCALS[(u >> 24) - 128], r' = (r * ((2^48 - u * r) >> 16)) >> 16 is some 2^62 / u; the result is
    floor((numerator >> k) * r' / 2^(62 - e - k)), k the bits of the numerator beyond 32.
    """
    low = numerator_bits(numerator)
    e = np.array([32 - max(int(i), 1).bit_length() for i in np.ravel(total)], np.int64).reshape(np.shape(total))
    u = np.maximum(total, 1) << e
    r = RECIPROCALS[(u >> 24) - 128]
    r = (r * (((1 << 48) - u * r) >> 16)) >> 16
    product = np.uint64(numerator >> low) * r.astype(np.uint64)
    return np.minimum((product >> (62 - e - low).astype(np.uint64)).astype(np.int64), INT32_MAX)


def numerator_bits(numerator: int) -> int:
    """Bits of a numerator beyond 32."""
    return max(0, int(numerator).bit_length() - 32)


LONGEST_ROW = 1 << 20  # sums of numerators in 16 lanes fit 32 bits each


def total_shift(count: int) -> int:
    """Bits by which the sum of a row of `count` numerators is cut, so that it has 31 of them: none up to 65541."""
    return max(0, (count * EXP2[0]).bit_length() - 31)


def numerators(x, mask, multiplier: int, shift: int, pre: int) -> tuple[np.ndarray, np.ndarray]:
    """(d, e): d = row maximum - x over the unmasked, e = Q15 numerators, 0 where masked. x int64 [..., L]."""
    keep = np.ones(x.shape, bool) if mask is None else np.broadcast_to(mask != 0, x.shape)
    top = np.where(keep, x, np.iinfo(np.int64).min).max(-1, keepdims=True)
    d = np.where(keep, top - x, 0)
    t = np.minimum(rescale(d, multiplier, shift, pre), LARGEST_EXPONENT)
    return d, np.where(keep, exp2_negative(t), 0)


@integer_op(
    "softmax", kind="softmax", plain=("mask",), ranges=EXPONENT | {"numerator": NUMERATOR, "out_shift": (1, 31)}
)
class Softmax:
    """Softmax along the last axis.

    d = max - x; t = min(rescale(d, multiplier, shift, pre), 31*1024-1), units of 2^-10 octave; e = 2^-t in Q15;
    y = clamp(zero_point + rescale(e << 15, divide(numerator >> k, sum e >> k), out_shift)), k = total_shift(L).
    x int8|uint8|int16|int32 [..., L]; mask (optional) int8 broadcastable to x, 0 = weight exactly 0; a row without
    unmasked elements weighs all alike where `uniform`, as the lowest float added to all of it does, else gives
    zero_point. numerator < 2^46 is chosen so that numerator / EXP2[0] < 2^31.
    """

    @staticmethod
    def infer(x, *mask, multiplier, shift, pre, numerator, out_shift, zero_point, qmin, qmax, dtype, uniform=False):
        return Type(x.shape, dtype)

    @staticmethod
    def evaluate(x, *mask, multiplier, shift, pre, numerator, out_shift, zero_point, qmin, qmax, dtype, uniform=False):
        _, e = numerators(x.astype(np.int64), mask[0] if mask else None, multiplier, shift, pre)
        if uniform:
            e = np.where(e.any(-1, keepdims=True), e, EXP2[0])
        k = total_shift(x.shape[-1])
        r = divide(numerator >> k, e.sum(-1, keepdims=True) >> k)
        return saturate(rescale(e << 15, r, out_shift), zero_point, qmin, qmax, dtype)

    bound = staticmethod(clamped)


LOG_BITS = 16


def log2_fixed(v: np.ndarray) -> np.ndarray:
    """floor-like log2 of positive integers below 2^31 with 16 fraction bits, bit by bit: the mantissa is squared, each
    square >= 2 is a 1 bit (Knuth, TAOCP 1.2.2, exercise 25). Exact definition: 31-bit mantissas, floors."""
    v = np.asarray(v, np.int64)
    e = np.floor(np.log2(v.astype(np.float64))).astype(np.int64)  # exact for v < 2^53
    m, out = v << (30 - e), e
    for _ in range(LOG_BITS):
        m = (m * m) >> 30
        bit = m >> 31
        m, out = m >> bit, (out << 1) | bit
    return out


@integer_op(
    "log_softmax",
    kind="softmax",
    ranges=EXPONENT
    | {"x_multiplier": INT32, "x_pre": (0, 31), "log_multiplier": INT32, "log_pre": (0, 31), "out_shift": (0, 31)},
)
class LogSoftmax:
    """x - max - log(sum exp(x - max)) along the last axis, one rounding.

    d, e as in softmax; y = clamp(zero_point + round_shift(-mulhi(d << x_pre, x_multiplier) - mulhi(L << log_pre,
    log_multiplier), out_shift)),
    L = log2_fixed(sum e >> k) + (k - 15) * 2^16 (>= 0 up to rounding, units of 2^-16 octave), k = total_shift(length).
    """

    @staticmethod
    def infer(
        x,
        *,
        multiplier,
        shift,
        pre,
        x_multiplier,
        x_pre,
        log_multiplier,
        log_pre,
        out_shift,
        zero_point,
        qmin,
        qmax,
        dtype,
    ):
        return Type(x.shape, dtype)

    @staticmethod
    def evaluate(
        x,
        *,
        multiplier,
        shift,
        pre,
        x_multiplier,
        x_pre,
        log_multiplier,
        log_pre,
        out_shift,
        zero_point,
        qmin,
        qmax,
        dtype,
    ):
        d, e = numerators(x.astype(np.int64), None, multiplier, shift, pre)
        k = total_shift(x.shape[-1])
        log = log2_fixed(e.sum(-1, keepdims=True) >> k) + ((k - 15) << LOG_BITS)
        acc = -mulhi(checked_int32(d << x_pre, "log_softmax"), x_multiplier) - mulhi(
            checked_int32(log << log_pre, "log_softmax"), log_multiplier
        )
        return saturate(round_shift(acc, out_shift), zero_point, qmin, qmax, dtype)

    bound = staticmethod(clamped)


@integer_op(
    "attention",
    kind="attention",
    parameters=("table",),
    plain=("mask_bias",),
    ranges={"score_shift": (-31, 31), "score_multiplier": (0, 32767), "numerator": NUMERATOR, "shift": (1, 31)},
)
class Attention:
    """softmax(q k^T) v with 8-bit operands and deferred normalisation.

    s = (q - q_zero_point) (k - k_zero_point)^T [+ bias], int32;  d = max over unmasked of s, minus s
    u = min(d >> score_shift, 32767) (score_shift < 0: d << -score_shift);  t = min(255, (u * score_multiplier + 2^14)
    >> 15)
    p = table[t], 0 where masked;  l = sum p;  o = p (v - v_zero_point), int32
    y = clamp(zero_point + rescale(o, divide(numerator, l), shift)); in a row without unmasked elements all p are
    table[0] where `uniform`, else it gives zero_point.
    q int8|uint8 [..., M, D], k [..., L, D], v [..., L, E] (leading axes broadcast), table uint8 [256] with table[0] >
    0,
    then, as has_mask and has_bias say: mask int8 and bias int32, broadcastable to [..., M, L]. -> dtype [..., M, E].
    score_multiplier in [0, 32767]; numerator / table[0] < 2^31; d << -score_shift is compared before it can overflow.
    """

    @staticmethod
    def infer(
        q,
        k,
        v,
        table,
        *mask_bias,
        has_mask,
        has_bias,
        q_zero_point,
        k_zero_point,
        v_zero_point,
        score_shift,
        score_multiplier,
        numerator,
        shift,
        zero_point,
        qmin,
        qmax,
        dtype,
        uniform=False,
    ):
        lead = np.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        return Type((*lead, q.shape[-2], v.shape[-1]), dtype)

    @staticmethod
    def evaluate(
        q,
        k,
        v,
        table,
        *mask_bias,
        has_mask,
        has_bias,
        q_zero_point,
        k_zero_point,
        v_zero_point,
        score_shift,
        score_multiplier,
        numerator,
        shift,
        zero_point,
        qmin,
        qmax,
        dtype,
        uniform=False,
    ):
        s = integer_matmul(q.astype(np.int32) - q_zero_point, (k.astype(np.int32) - k_zero_point).swapaxes(-1, -2))
        if has_bias:
            s = s + mask_bias[-1]
        checked_int32(s, "attention scores")
        keep = np.broadcast_to(mask_bias[0] != 0, s.shape) if has_mask else np.ones(s.shape, bool)
        d = np.where(keep, np.where(keep, s, np.iinfo(np.int64).min).max(-1, keepdims=True) - s, 0)
        u = np.minimum(d >> score_shift if score_shift >= 0 else d << -score_shift, 32767)
        t = np.minimum((u * score_multiplier + (1 << 14)) >> 15, 255)
        p = np.where(keep, table[t], 0).astype(np.int64)
        if uniform:
            p = np.where(keep.any(-1, keepdims=True), p, int(table[0]))
        total = p.sum(-1, keepdims=True)
        o = checked_int32(integer_matmul(p, v.astype(np.int32) - v_zero_point), "attention")
        r = divide(numerator, total)
        return saturate(rescale(o, r, shift), zero_point, qmin, qmax, dtype)

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        scores = product(c.interval("q"), c.interval("k"))
        low, high = (e * c.type("q").shape[-1] for e in scores)
        if c.attrs["has_bias"]:
            low, high = low + c.intervals[-1][0], high + c.intervals[-1][1]
        c.fits("a difference of scores", low - high, high - low)
        weighted = product((0, 255), c.interval("v"))
        rows = c.type("k").shape[-2]
        c.fits("the weighted sum", weighted[0] * rows, weighted[1] * rows)
        return c.clamped()

    @staticmethod
    def macs(types: list[Type], out: Type) -> int:
        q, k, v = types[:3]
        return out.size // out.shape[-1] * k.shape[-2] * (q.shape[-1] + v.shape[-1])
