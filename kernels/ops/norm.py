"""Normalisation over the last axis with exact integer sums and an exact integer square root."""

from __future__ import annotations

import math

import numpy as np
from qcompile.kernels.arithmetic import INT32_MAX, mulhi, round_shift, saturate
from qcompile.kernels.dialect import Type, integer_op

NORM_BITS = 20  # normalised values carry 20 fraction bits


@integer_op("layer_norm", parameters=("gamma", "beta"))
class LayerNorm:
    """LayerNorm (or, with rms=True, RMSNorm) of each row, rows along the last axis of D elements.

    z = x - x_zero_point; c = D*z - sum z (rms: D*z); V = D * sum z^2 - (sum z)^2 + epsilon (rms: D * sum z^2 +
    epsilon), 64 bits
    std = max(1, isqrt(V)); b = bit length of std; R = min(floor(2^(30+b) / std), 2^31 - 1)
    n = mulhi(c << max(0, 22-b), R) >> max(0, b-22), that is c / std with 20 fraction bits
    y = clamp(zero_point + round_shift(mulhi(n, gamma) + beta, shift))
    x int8|uint8|int16 [..., D]; gamma int32 (a signed dyadic multiplier of gamma / (2^20 * output scale)) and beta
    int32 (in
    units of 2^-shift output steps): [D] per element, or with per_row=True [G] with row r using r % G (instance and
    group
    norm); epsilon = eps * D^2 / scale_x^2 as an int64 attribute. D * 65535 < 2^31.
    """

    def infer(x, gamma, beta, *, x_zero_point, epsilon, rms, per_row, shift, zero_point, qmin, qmax, dtype):
        return Type(x.shape, dtype)

    def evaluate(x, gamma, beta, *, x_zero_point, epsilon, rms, per_row, shift, zero_point, qmin, qmax, dtype):
        z = x.reshape(-1, x.shape[-1]).astype(np.int64) - x_zero_point
        d = z.shape[1]
        total = np.zeros((len(z), 1), np.int64) if rms else z.sum(1, keepdims=True)
        v = d * (z * z).sum(1, keepdims=True) - total * total + epsilon
        std = np.array([max(1, math.isqrt(int(i))) for i in v.ravel()], np.int64).reshape(v.shape)
        b = np.array([int(i).bit_length() for i in std.ravel()], np.int64).reshape(v.shape)
        r = np.array(
            [min((1 << (30 + int(i))) // int(s), INT32_MAX) for i, s in zip(b.ravel(), std.ravel())], np.int64
        ).reshape(v.shape)
        c = (d * z - total) << np.maximum(0, NORM_BITS + 2 - b)
        n = mulhi(c, r) >> np.maximum(0, b - NORM_BITS - 2)
        if per_row:
            rows = np.arange(len(z)) % len(gamma)
            gamma, beta = gamma[rows][:, None], beta[rows][:, None]
        y = round_shift(mulhi(n, gamma) + beta.astype(np.int64), shift)
        return saturate(y, zero_point, qmin, qmax, dtype).reshape(x.shape)
