"""The numpy meaning of each op against loops that say the same in plain words, on small shapes."""

from itertools import product

import numpy as np
import pytest
from qcompile.kernels.arithmetic import dyadic
from qcompile.kernels.dialect import OPS
from qcompile.kernels.ops.norm import deviation
from qcompile.kernels.ops.softmax import EXP2, LARGEST_EXPONENT, divide, exp2_negative, log2_fixed

LIMITS = {"zero_point": -3, "qmin": -120, "qmax": 125, "dtype": "int8"}


def rng(seed=0):
    return np.random.default_rng(seed)


def int8(*shape, seed=0):
    return rng(seed).integers(-128, 128, shape).astype(np.int8)


def run(op, *arrays, **attrs):
    return OPS[op].run(list(arrays), attrs)


def finish(value, zero_point=-3, qmin=-120, qmax=125):
    return min(max(value + zero_point, qmin), qmax)


def requantized(acc, m, p, pre=0):
    """floor((acc * 2^pre * m + 2^(S-1)) / 2^S) in unbounded integers."""
    return ((int(acc) << pre) * int(m) + (1 << (31 + p))) >> (32 + p)


@pytest.mark.parametrize("groups", [1, 2, 4], ids=["full", "grouped", "depthwise"])
@pytest.mark.parametrize("strides,dilations,pads", [([1, 1], [1, 1], [0, 0, 0, 0]), ([2, 1], [1, 2], [1, 2, 0, 3])])
def test_conv2d(groups, strides, dilations, pads):
    x, w, b = int8(2, 5, 6, 4), int8(4, 3, 2, 4 // groups, seed=1), rng(2).integers(-999, 999, 4).astype(np.int32)
    y = run("conv2d", x, w, b, strides=strides, dilations=dilations, pads=pads, groups=groups, x_zero_point=7)
    for n, oh, ow, o in product(*map(range, y.shape)):
        acc = int(b[o])
        for i, j, c in product(range(3), range(2), range(4 // groups)):
            h, v = oh * strides[0] - pads[0] + i * dilations[0], ow * strides[1] - pads[1] + j * dilations[1]
            if 0 <= h < 5 and 0 <= v < 6:
                acc += (int(x[n, h, v, o // (4 // groups) * (4 // groups) + c]) - 7) * int(w[o, i, j, c])
        assert y[n, oh, ow, o] == acc


def test_dense_and_matmul():
    x, w, b = int8(2, 3, 5), int8(4, 5, seed=1), np.arange(4, dtype=np.int32)
    wanted = [[[int(b[n]) + sum((int(x[i, m, k]) - 9) * int(w[n, k]) for k in range(5)) for n in range(4)]
               for m in range(3)] for i in range(2)]  # fmt: skip
    np.testing.assert_array_equal(run("dense", x, w, b, x_zero_point=9), wanted)
    a = np.array(wanted) - b
    for t in (False, True):
        other = w if t else np.ascontiguousarray(w.T)
        got = run(
            "matmul", x, (other + np.int16(100)).astype(np.int16), transpose_b=t, a_zero_point=9, b_zero_point=100
        )
        np.testing.assert_array_equal(got, a)


def test_requantize_prelu_and_lut():
    acc = rng().integers(-(2**20), 2**20, (3, 4)).astype(np.int32)
    m, negative = (rng(s).integers(2**20, 2**24, 4).astype(np.int32) for s in (1, 2))
    a = {"x_zero_point": 5, "shift": 3, "pre": 2, **LIMITS}
    y, z = run("requantize", acc, m, **a), run("prelu", acc, m, negative, **a)
    for i, c in product(range(3), range(4)):
        d = int(acc[i, c]) - 5
        assert y[i, c] == finish(requantized(d, m[c], 3, 2))
        assert z[i, c] == finish(requantized(d, negative[c] if d < 0 else m[c], 3, 2))
    table = rng(3).integers(-128, 128, 256).astype(np.int8)
    x = np.arange(-128, 128).astype(np.int8)
    np.testing.assert_array_equal(run("lut", x, table, first=-128), table)


def test_sums_and_products():
    x, r = int8(3, 4), int8(3, 4, seed=1)
    acc = rng(2).integers(-(2**20), 2**20, (3, 4)).astype(np.int32)
    m = np.array([2**29], np.int32)
    y = run("add", x, r, x_zero_point=2, x_multiplier=70, r_zero_point=-4, r_multiplier=-90, shift=6, **LIMITS)
    p = run("mul", x, r, m, x_zero_point=2, r_zero_point=-4, shift=2, pre=0, **LIMITS)
    s = run("add_residual", acc, r, m, r_zero_point=-4, r_multiplier=3000, shift=9, pre=1, **LIMITS)
    b = run("bias_add", acc, np.arange(4, dtype=np.int32))
    for i, c in product(range(3), range(4)):
        dx, dr = int(x[i, c]) - 2, int(r[i, c]) + 4
        assert y[i, c] == finish((dx * 70 - dr * 90 + 32) >> 6)
        assert p[i, c] == finish(requantized(dx * dr, m[0], 2))
        assert s[i, c] == finish((((int(acc[i, c]) << 1) * 2**29 >> 32) + dr * 3000 + 256) >> 9)
        assert b[i, c] == acc[i, c] + c


def test_windows():
    x = int8(2, 5, 6, 3)
    largest = run("max_pool2d", x, kernel=[3, 2], strides=[2, 1], dilations=[1, 2], pads=[1, 0, 1, 2])
    total = run("sum_pool2d", x, kernel=[3, 2], strides=[2, 1], pads=[1, 0, 1, 2], x_zero_point=5)
    for out, dilation, sums in ((largest, 2, False), (total, 1, True)):
        for n, oh, ow, c in product(*map(range, out.shape)):
            seen = [(oh * 2 - 1 + i, ow + j * dilation) for i, j in product(range(3), range(2))]
            values = [int(x[n, h, w, c]) for h, w in seen if 0 <= h < 5 and 0 <= w < 6]
            assert out[n, oh, ow, c] == (sum(v - 5 for v in values) if sums else max(values, default=-128))


def test_reductions():
    x = np.round(int8(3, 7, 4) / 32).astype(np.int8)  # few values: ties occur
    for o, i in product(range(3), range(4)):
        column = [int(v) for v in x[o, :, i]]
        assert run("reduce_sum", x, x_zero_point=3)[o, i] == sum(column) - 21
        assert run("reduce_max", x, minimum=True)[o, i] == min(column)
        assert run("argmax", x, minimum=False, last=False)[o, i] == column.index(max(column))
        assert run("argmax", x, minimum=False, last=True)[o, i] == 6 - column[::-1].index(max(column))


def test_movement():
    x = int8(2, 3, 4)
    np.testing.assert_array_equal(run("slice", x, begin=[0, 2, 1], end=[2, -4, 4], step=[1, -1, 2]), x[:, ::-1, 1::2])
    np.testing.assert_array_equal(run("concat", x, x[:1], axis=0), np.stack([*x, x[0]]))
    np.testing.assert_array_equal(run("broadcast", x[:, :1], shape=[2, 3, 4]), np.stack([x[:, 0]] * 3, 1))
    padded = run("pad", x, before=[0, 1, 0], after=[0, 0, 2], mode="constant", value=9)
    assert padded.shape == (2, 4, 6) and (padded[:, 0] == 9).all() and (padded[:, 1:, :4] == x).all()
    np.testing.assert_array_equal(run("take", x, np.array([[2, -5], [99, 0]]), axis=1), x[:, [[2, 0], [2, 0]]])
    chosen = run("where", np.array([0, 1, -1, 0], np.int8), x, np.int8([[[50]]]))
    np.testing.assert_array_equal(chosen, np.where([False, True, True, False], x, 50))
    assert run("cast", np.array([-5, 300], np.int16), offset=-3, dtype="uint8").tolist() == [0, 255]


def test_exponential_and_logarithm_are_as_good_as_stated():
    t = np.arange(LARGEST_EXPONENT + 1)
    error = exp2_negative(t[:1024]) / 2.0**15 - 2.0 ** -(t[:1024] / 1024)
    assert np.abs(error).max() < 1.5e-4 and exp2_negative(np.array(0)) == EXP2[0]
    assert (np.diff(exp2_negative(t)[::64]) <= 0).all() and exp2_negative(t[-1]) == 0
    v = np.unique(np.geomspace(1, 2**31 - 1, 5000).astype(np.int64))
    assert np.abs(log2_fixed(v) / 2.0**16 - np.log2(v)).max() < 2.0**-15


def softmax_of(x, axis=-1):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


@pytest.mark.parametrize("length", [1, 7, 300])
def test_softmax_is_within_a_step_of_float(length):
    x, scale, out = int8(20, length), 0.08, 1 / 256
    d = dyadic(scale * np.log2(np.e) * 1024, 255)
    limits = {"zero_point": -128, "qmin": -128, "qmax": 127, "dtype": "int8"}
    numerator = round(2.0**-15 / out * 2.0**38)
    y = run(
        "softmax",
        x,
        multiplier=int(d.multiplier[0]),
        shift=d.shift,
        pre=d.pre,
        numerator=numerator,
        out_shift=6,
        **limits,
    )
    want = np.clip(softmax_of(x * scale) / out - 128, -128, 127)
    assert np.abs(y - want).max() < 0.75


def test_attention_is_close_to_float_for_every_row_length():
    for length in (4, 64, 512):
        q, k, v = int8(2, 5, 16), int8(2, length, 16, seed=1), int8(2, length, 8, seed=2)
        scale = 1e-4 * 3
        exponent = scale * np.log2(np.e)
        shift, steps = 6, 255 / 16  # the table spans 16 octaves
        multiplier = round(exponent * steps * 2.0 ** (15 + shift))
        table = np.rint(255 * 2.0 ** -(np.arange(256) / steps)).astype(np.uint8)
        y = run("attention", q, k, v, table, has_mask=False, has_bias=False,
                q_zero_point=3, k_zero_point=-2, v_zero_point=1, score_shift=shift,
                score_multiplier=multiplier, numerator=2**36, shift=4, zero_point=0, qmin=-32768,
                qmax=32767, dtype="int16")  # fmt: skip
        s = np.einsum("bmd,bld->bml", q.astype(float) - 3, k.astype(float) + 2) * scale
        want = np.einsum("bml,ble->bme", softmax_of(s), v.astype(float) - 1)
        assert np.abs(y - want).max() < 2.5 and np.corrcoef(y.ravel(), want.ravel())[0, 1] > 0.99


@pytest.mark.parametrize("rms", [False, True], ids=["layer_norm", "rms_norm"])
@pytest.mark.parametrize("size", [1, 16, 768])
def test_norm_is_within_a_step_of_float(size, rms):
    x = rng(size).integers(-128, 128, (30, size)).astype(np.int8)
    x[0] = 5  # no variance at all
    scale, out, eps = 0.05, 0.03, 1e-5
    gamma, beta = rng(1).normal(1, 0.3, size), rng(2).normal(0, 0.5, size)
    g = gamma / out / deviation(size)
    shift = int(np.log2(32767 / np.abs(g).max()))
    g = np.rint(g * 2.0**shift).astype(np.int16)
    b = np.rint(beta / out * 2**shift).astype(np.int32)
    y = run("layer_norm", x, g, b, x_zero_point=2, epsilon=round(eps * size**2 / scale**2), rms=rms, per_row=False,
            shift=shift, **LIMITS)  # fmt: skip
    z = (x.astype(float) - 2) * scale
    z = z if rms else z - z.mean(1, keepdims=True)
    want = z / np.sqrt((z * z).mean(1, keepdims=True) + eps) * gamma + beta
    assert np.abs(y - np.clip(np.rint(want / out) - 3, -120, 125)).max() <= 1


@pytest.mark.parametrize("numerator", [2**46 - 1, 302676819079, 2**31 + 5, 70000])
def test_division_by_a_sum_is_exact_to_sixteen_bits(numerator):
    total = np.unique(np.concatenate([rng(0).integers(1, 2**31, 2000), 2 ** np.arange(31), np.arange(300)]))
    got, want = divide(numerator, total), np.minimum(numerator / np.maximum(total, 1), 2**31 - 1)
    assert (np.abs(got - want) <= want * 2.0**-16 + 1).all()
