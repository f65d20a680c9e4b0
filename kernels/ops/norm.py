"""Normalisation over the last axis: exact integer sums, a reciprocal root, and elements of 16 bits."""

from __future__ import annotations

import math

import numpy as np
from qcompile.kernels.arithmetic import RANGES, round_shift, saturate
from qcompile.kernels.bounds import BoundCall, Interval
from qcompile.kernels.dialect import Type, integer_op

MEAN_BITS = 47  # fraction bits of a row's mean: |sum| * 2^47 / D < 2^63
ROOTS = np.array([round(2**15 / math.sqrt((i + 0.5) / 256)) for i in range(64, 256)], np.int32)  # 1 / sqrt(i / 256)


def row_octaves(size: int) -> int:
    """L = floor(log2(sqrt(size))): no element of a row lies further than sqrt(size) deviations from its mean."""
    return (size.bit_length() - 1) // 2


def deviation(size: int) -> float:
    """What a normalised element of 1 is in the 16-bit words of a row of `size` elements."""
    return 2.0 ** (15 + row_octaves(size)) / size


def reciprocal_root(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(h, f) for int64 v in [1, 2^63): 1 / sqrt(v) ~ 2^(h - 32) * (1 + f / 2^15), f in [0, 32767].

    v * 4^h lies in [2^62, 2^64); one step of Newton's from a table of 192 roots, relative error 3e-5.
    """
    h = np.array([(64 - int(i).bit_length()) // 2 for i in v.ravel()], np.int64).reshape(v.shape)
    u = (v.astype(np.uint64) << (2 * h).astype(np.uint64)) >> np.uint64(32)
    r = ROOTS[(u >> np.uint64(24)).astype(np.int64) - 64].astype(np.uint64)
    error = (u * (r * r)) >> np.uint64(32)
    root = (r * (np.uint64(3 << 30) - error) + np.uint64(1 << 30)) >> np.uint64(31)
    return h, np.clip(root.astype(np.int64) - (1 << 15), 0, RANGES["int16"][1])


@integer_op("layer_norm", kind="norm", parameters=("gamma", "beta"), ranges={"shift": (0, 30)})
class LayerNorm:
    """LayerNorm (or, with rms=True, RMSNorm) of each row, rows along the last axis of D elements.

    V = D * sum x^2 - (sum x)^2 + epsilon (rms: D * sum z^2 + epsilon, z = x - x_zero_point), 64 bits;
    (h, f) = reciprocal_root(max(1, V)); s = clip(h - 17 + row_octaves(D), -15, 15), so that differences times 2^s fit
    int16
    m = floor(mean * 2^s) or, for s >= 0, rounded; mean = sum x * round(2^47 / D) / 2^47 (rms: x_zero_point)
    c = floor(x * 2^s) - m modulo 2^16; n = saturate16(c + round(c * f / 2^15)), that is deviation(D) times c / std
    y = clamp(zero_point + round_shift(n * gamma + beta, shift))
    x int8|uint8|int16 [..., D]; gamma int16 and beta int32 (in units of 2^-shift output steps): [D] per element, or
    with per_row=True [G] with row r using r % G (instance and group norm); epsilon = eps * D^2 / scale_x^2 as an int64
    attribute. D * 65535 < 2^31; |beta| <= 2^30 - 2^shift.
    """

    @staticmethod
    def infer(x, gamma, beta, *, x_zero_point, epsilon, rms, per_row, shift, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    @staticmethod
    def evaluate(x, gamma, beta, *, x_zero_point, epsilon, rms, per_row, shift, zero_point, qmin, qmax, dtype):
        x_rows = x.reshape(-1, x.shape[-1]).astype(np.int64)
        d = x_rows.shape[1]
        total = x_rows.sum(1, keepdims=True)
        if rms:
            v, mean = d * ((x_rows - x_zero_point) ** 2).sum(1, keepdims=True), x_zero_point << MEAN_BITS
        else:
            v, mean = d * (x_rows**2).sum(1, keepdims=True) - total**2, total * mean_factor(d)
        h, f = reciprocal_root(np.maximum(v + epsilon, 1))
        s = np.clip(h - 17 + row_octaves(d), -15, 15)
        half = np.where(s >= 0, np.int64(1) << (MEAN_BITS - 1 - np.maximum(s, 0)), 0)
        m = (mean + half) >> (MEAN_BITS - s)
        c = (((x_rows << np.maximum(s, 0)) >> np.maximum(-s, 0)) - m).astype(np.int16).astype(np.int64)
        n = np.clip(c + round_shift(c * f, 15), *RANGES["int16"])
        if per_row:
            rows = np.arange(len(n)) % len(gamma)
            gamma, beta = gamma[rows][:, None], beta[rows][:, None]
        y = round_shift(n * gamma + beta.astype(np.int64), shift)
        return saturate(y, zero_point, qmin, qmax, dtype).reshape(x.shape)

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        half = 1 << c.attrs["shift"] >> 1
        gamma, beta = (max(abs(e) for e in c.interval(n)) for n in ("gamma", "beta"))
        c.fits("the scaled element", -(gamma << 15) - beta, (gamma << 15) + beta + half)
        return c.clamped()


def mean_factor(size: int) -> int:
    """1 / size with MEAN_BITS fraction bits."""
    return ((1 << MEAN_BITS) + size // 2) // size
