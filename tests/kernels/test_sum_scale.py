"""Rescaling of sums through 16-bit words: as near to the real product as it promises."""

from __future__ import annotations

import numpy as np
import pytest
from qcompile.kernels.arithmetic import SUM_NOISE, SumScale, sum_scale
from qcompile.kernels.dialect import OPS

ZERO_POINT = -37


def codes(scale: SumScale, sums: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """What requantize_word and requantize_words make of sums [M, C] whose bias holds what SumScale says."""
    bias = np.rint((ZERO_POINT + scale.half) / factor + scale.before).astype(np.int64)
    attrs = {"fraction": scale.fraction, "zero_point": 0, "qmin": -128, "qmax": 127, "dtype": "int8"}
    x = (sums + bias).astype(np.int32)
    if scale.shift.size == 1:
        return OPS["requantize_word"].run([x, scale.multiplier], attrs | {"shift": int(scale.shift[0])})
    return OPS["requantize_words"].run([x, scale.multiplier, scale.shift], attrs)


@pytest.mark.parametrize("top, spread", [(2.0**-t, s) for t in (4, 7, 11) for s in (1, 6, 300)] + [(2.0**-4, 20000)])
def test_codes_are_those_of_the_real_product(top: float, spread: float):
    rng = np.random.default_rng(0)
    factor = top / np.geomspace(1, spread, 64)
    factor[::5] *= -1
    wanted = rng.uniform(-220, 220, (400, 64))  # many beyond 8 bits
    sums = np.rint(wanted / factor).astype(np.int64)
    scale = sum_scale(factor, float(np.abs(sums).max()) + 200 / np.abs(factor).min())
    assert scale is not None and (scale.shift.size == 1) == (spread < 100)
    real = np.clip(sums * factor + ZERO_POINT, -128, 127)
    off = codes(scale, sums, factor) - real
    assert np.abs(off).max() < 0.75, "more than a quarter of a step beside rounding"
    inside = (real > -127) & (real < 126)
    assert abs(off[inside].mean()) < 0.005 + top / 2, "not centred, but for ties of whole sums"
    assert off[inside].var() * 12 < 1 + 2 * SUM_NOISE, "more noise than promised"


def test_a_scale_that_is_too_coarse_is_refused():
    assert sum_scale(np.array([0.4]), 1000.0) is None  # a bias rounded to whole sums is 0.2 steps off
    assert sum_scale(np.array([0.01]), 2.0**31) is None
    assert sum_scale(np.array([np.inf]), 1000.0) is None


def test_one_shift_is_asked_for_where_others_are_added():
    factor = 2.0**-7 / np.geomspace(1, 20000, 16)
    assert sum_scale(factor, 2.0**24, one_shift=True) is None
    assert sum_scale(factor, 2.0**24).shift.size == 16
