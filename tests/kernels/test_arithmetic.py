"""Dyadic arithmetic equals the formulas of its documentation, in unbounded integers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qcompile.kernels.arithmetic import (
    INT32_MAX,
    MAX_SHIFT,
    checked_int32,
    dyadic,
    integer_matmul,
    mulhi,
    rescale,
    round_shift,
    saturate,
)
from qcompile.targets.errors import CompileError

INT32 = st.integers(-INT32_MAX - 1, INT32_MAX)
settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=300)
settings.load_profile("fixed")


@given(INT32, st.integers(-INT32_MAX, INT32_MAX), st.integers(1, MAX_SHIFT))
def test_rescale_is_one_rounding_of_the_64_bit_product(a, m, p):
    """floor((a * M + 2^(S-1)) / 2^S), S = 32 + p, ties toward plus infinity."""
    s = 32 + p
    assert int(rescale(a, m, p)) == (a * m + (1 << (s - 1))) >> s


@given(st.integers(-(2**20), 2**20), st.integers(1, INT32_MAX), st.integers(1, MAX_SHIFT), st.integers(0, 10))
def test_shift_before_the_product(a, m, p, pre):
    assert int(rescale(a, m, p, pre)) == ((a << pre) * m + (1 << (31 + p))) >> (32 + p)


def test_rescale_refuses_what_does_not_fit():
    with pytest.raises(OverflowError):
        rescale(np.array([1 << 30]), 1, 1, 1)


@given(INT32, INT32)
def test_mulhi(a, m):
    assert int(mulhi(a, m)) == (a * m) >> 32


@given(INT32, st.integers(0, 31))
def test_round_shift(a, shift):
    assert int(round_shift(a, shift)) == (a if shift == 0 else (2 * a + 2**shift) // 2 ** (shift + 1))


@given(st.lists(st.floats(1e-12, 1e6), min_size=1, max_size=8), st.booleans())
def test_dyadic_is_close_to_the_factor(factors, negative):
    factors = np.array(factors) * (-1 if negative else 1)
    d = dyadic(factors)
    assert d.multiplier.dtype == np.int32 and 1 <= d.shift <= MAX_SHIFT and d.pre >= 0
    found = d.multiplier * 2.0**d.pre / 2.0 ** (32 + d.shift)
    assert np.all(np.abs(found - factors) <= 2.0 ** (d.pre - 33 - d.shift) * (1 + 1e-9)), (
        "half a unit of the multiplier"
    )
    if np.abs(factors).max() > 2.0**-16:
        assert np.abs(d.multiplier).max() >= 2**30 - 1, "the largest factor uses all 31 bits"


def test_dyadic_of_nothing_and_of_too_much():
    assert dyadic([0.0, 0.0]).multiplier.tolist() == [0, 0]
    for bad in (np.nan, np.inf):
        with pytest.raises(CompileError, match="finite"):
            dyadic([1.0, bad])
    with pytest.raises(CompileError, match="overflow"):
        dyadic(1e6, accumulator_bound=10**6)
    assert dyadic(1e6, accumulator_bound=100).pre > 0


@given(st.integers(-(2**40), 2**40), st.integers(-128, 127))
def test_saturate(a, zero_point):
    assert int(saturate(a, zero_point, -100, 90, "int8")) == min(max(a + zero_point, -100), 90)


@pytest.mark.parametrize("shapes", [((3, 5), (5, 4)), ((2, 1, 3, 5), (4, 5, 2)), ((1, 70000), (70000, 1))], ids=str)
def test_integer_matmul_is_exact(shapes):
    rng = np.random.default_rng(1)
    a, b = (rng.integers(-255, 256, s) for s in shapes)
    np.testing.assert_array_equal(integer_matmul(a, b), np.matmul(a.astype(object), b.astype(object)).astype(np.int64))


def test_checked_int32():
    assert checked_int32(np.array([INT32_MAX, -INT32_MAX - 1]), "here").dtype == np.int32
    for bad in (INT32_MAX + 1, -INT32_MAX - 2):
        with pytest.raises(OverflowError, match="here"):
            checked_int32(np.array([bad]), "here")
