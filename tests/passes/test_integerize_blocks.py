"""Weights of few bits, in blocks, and activations of few bits: the same codes as ONNX Runtime, on one integer grid."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from qcompile.frontend import normalise
from qcompile.importer import import_onnx
from qcompile.passes.integerize import integerize
from qcompile.passes.integerize.linear import weight_codes
from qdq_models import INT64, Graph, check, ops, run_program

RNG = np.random.default_rng(3)
TYPES = {
    "int4": (ml_dtypes.int4, -8, 8, 0),
    "uint4": (ml_dtypes.uint4, 0, 16, 8),
    "int2": (ml_dtypes.int2, -2, 2, 0),
    "int8": (np.int8, -7, 8, 0),
}


@pytest.fixture(autouse=True)
def same_numbers():
    """Each test draws the same numbers, whichever ran before it."""
    RNG.bit_generator.state = np.random.default_rng(3).bit_generator.state


def blocked(g, shape, axis, block, kind="int4", multiples=True, dtype=np.float32, integer_scale=False):
    """A constant of `shape` in blocks along `axis`: scales are multiples of one per row of the first other axis."""
    narrow, low, high, zero = TYPES[kind]
    counts = [-(-n // block) if i == axis else n for i, n in enumerate(shape)]
    codes = RNG.integers(low, high, shape).astype(narrow)
    base = np.full(counts, 0.003) if integer_scale else 0.002 + 0.003 * RNG.random(counts[:1] + [1] * (len(shape) - 1))
    if axis == 0 and not integer_scale:
        base = 0.002 + 0.003 * RNG.random([1, *counts[1:]])
    m = RNG.integers(3, 9, counts) if multiples else RNG.random(counts) * 5 + 3
    inputs = [g.const(codes), g.const((np.float32(base) * m).astype(dtype))]
    if zero:
        inputs.append(g.const(RNG.integers(zero - 1, zero + 2, counts).astype(narrow)))
    return g.op("DequantizeLinear", *inputs, axis=axis, block_size=block)


def notes_of(model):
    imported, notes = import_onnx(normalise(model)), []
    integerize(imported.module, imported.names, imported.outputs, notes=notes)
    return notes


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("axis, block", [(0, 32), (0, 24), (1, 16)])
def test_blocked_weights_of_a_product(kind, axis, block):
    """Blocks along K have multiples of one scale a channel; blocks along N share the scales of their columns."""
    g = Graph()
    product = g.op("MatMul", g.data("x", 4, 80), blocked(g, (80, 48), axis, block, kind, integer_scale=axis == 1))
    model = g.model(g.q(product, scale=0.05))
    # ONNX Runtime has no 2-bit types
    check(normalise(model) if kind == "int2" else model, mean=0.02)
    assert notes_of(model) == []


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_scales(dtype):
    g = Graph()
    weight = g.op("Cast", blocked(g, (64, 32), 0, 32, dtype=dtype, multiples=False), to=1)
    model = g.model(g.q(g.op("MatMul", g.data("x", 4, 64), weight), scale=0.05))
    normal = normalise(model)
    assert [n.op_type for n in normal.graph.node][:2] != [] and all(
        t.data_type in (1, 3, 7) for t in normal.graph.initializer
    )


def test_blocks_of_a_convolution_lie_along_its_input_channels():
    g = Graph()
    weight = blocked(g, (8, 64, 3, 3), 1, 32, integer_scale=True)
    model = g.model(g.q(g.op("Conv", g.data("x", 1, 64, 6, 6), weight, pads=[1, 1, 1, 1]), scale=0.2))
    check(model)
    assert notes_of(model) == []


def test_foreign_block_scales_come_to_the_nearest_multiples_with_a_note():
    g = Graph()
    weight = blocked(g, (96, 40), 0, 32, multiples=False)
    model = g.model(g.q(g.op("MatMul", g.data("x", 4, 96), weight), scale=0.1))
    check(model, steps=2.0, mean=0.5)
    (note,) = notes_of(model)
    assert "block scales are brought to integer multiples" in note and "MatMul" in note


def test_wide_codes_in_blocks_become_eight_bits_a_channel_with_a_note():
    codes = RNG.integers(-100, 101, (4, 64))
    steps = np.repeat(0.01 + 0.01 * RNG.random((4, 2)), 32, axis=1)
    notes = []
    got, scale = weight_codes((codes * steps).astype(np.float32), steps, notes)
    assert np.abs(got).max() == 127 and "rounded to 8 bits" in notes[0]
    np.testing.assert_allclose(got * scale[:, None], codes * steps, atol=scale.max() / 2 + 1e-6)


@pytest.mark.parametrize("least", [1, 2, 3, 5])
def test_multiples_of_a_channel_scale_are_found_exactly(least):
    m = RNG.integers(least, 16, (16, 8))
    m[:, 0] = least
    q = RNG.integers(-7, 8, (16, 8, 32))
    s = np.float32(0.001 + 0.001 * RNG.random((16, 1)))
    steps = np.repeat((s * m.astype(np.float32)).astype(np.float32), 32, axis=1)
    values = (q.reshape(16, -1) * steps).astype(np.float32)
    codes, scale = weight_codes(values, steps)
    np.testing.assert_allclose(codes * scale[:, None], values, rtol=1e-6)
    groups = codes.reshape(16, 8, 32).astype(int)
    divisors = np.maximum(np.gcd.reduce(groups, axis=2, keepdims=True), 1)
    assert np.abs(groups // divisors).max() <= 7


def table(scales):
    g = Graph()
    codes = RNG.integers(-8, 8, (40, 64)).astype(ml_dtypes.int4)
    rows = g.op("DequantizeLinear", g.const(codes), g.const(scales.astype(np.float32)), axis=1, block_size=32)
    return g, g.op("Gather", rows, g.input("ids", 1, 6, dtype=INT64)), codes


def test_a_table_in_blocks_lies_on_one_grid():
    m = RNG.integers(1, 256, (40, 2))
    g, rows, codes = table(np.float32(0.0007) * m)
    model = g.model(g.q(rows, scale=0.03, dtype="int16"))
    program = check(model, mean=0.02)
    stored = next(c for c in program.constants.values() if c.shape == (40, 64))
    assert stored.dtype == np.int16
    assert (stored == codes.astype(int) * np.repeat(m, 32, axis=1)).all()


def test_foreign_scales_of_a_table():
    g, rows, _ = table(0.01 + 0.02 * RNG.random((40, 2)))
    model = g.model(g.q(rows, scale=0.01, dtype="int16"))
    check(model, steps=1.0, mean=0.2)
    assert "scales of the table" in notes_of(model)[0]


@pytest.mark.parametrize("kind, zero, bits", [("int4", 0, 4), ("uint4", 0, 4), ("uint4", 9, 4), ("int2", 0, 2)])
def test_activations_of_few_bits(kind, zero, bits):
    g = Graph()
    narrow = TYPES.get(kind, (ml_dtypes.uint4,))[0]
    grid = g.const(np.float32(0.3)), g.const(np.array(zero, narrow))
    x = g.op("DequantizeLinear", g.op("QuantizeLinear", g.data("x", 1, 8, 6, 6), *grid), *grid)
    y = g.op("Relu", g.op("Conv", x, g.weight(16, 8, 3, 3)))
    y = g.op("DequantizeLinear", g.op("QuantizeLinear", y, *grid), *grid)
    model = g.model(y)
    program = check(normalise(model) if kind == "int2" else model, mean=0.01)
    feed = {"x": 3 * g.normal(1, 8, 6, 6)}
    assert 1 < len(np.unique(run_program(program, feed)[0])) <= 1 << bits


def test_four_bits_at_the_input():
    g = Graph()
    grid = g.const(np.float32(0.3)), g.const(np.array(0, ml_dtypes.int4))
    x = g.op("DequantizeLinear", g.op("QuantizeLinear", g.input("x", 4, 64), *grid), *grid)
    check(g.model(g.q(g.op("MatMul", x, g.weight(64, 16, axis=1)))), mean=0.04)


@pytest.mark.parametrize("bits, signed, narrow", [(2, 1, 1), (3, 1, 0), (4, 1, 1), (4, 0, 0), (6, 1, 0), (8, 1, 1)])
def test_clipped_codes_of_brevitas(bits, signed, narrow):
    low, high = (-(1 << bits - 1) + narrow, (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    dtype = "int8" if signed else "uint8"
    g = Graph()

    def pair(x, scale, **attrs):
        count = np.size(scale)
        zero = g.const(np.zeros(count, dtype) if count > 1 else np.array(0, dtype))
        grid = g.const(np.float32(scale)), zero
        codes = g.op("QuantizeLinear", x, *grid, **attrs)
        clipped = g.op("Clip", codes, g.const(np.array(low, dtype)), g.const(np.array(high, dtype)))
        return g.op("DequantizeLinear", clipped, *grid, **attrs)

    scale = 6.1 / (high - low)
    x = pair(g.data("x", 1, 8, 5, 5), scale)
    if signed:
        weight = pair(g.const(g.normal(6, 8, 3, 3) * 0.2), 1.2 / (high - low) * (1 + np.arange(6) / 6), axis=0)
    else:
        weight = g.weight(6, 8, 3, 3)
    y = pair(g.op("Relu", g.op("Conv", x, weight)), scale)
    program = check(g.model(y), mean=0.02)
    assert ops(program)["conv2d"] == 1


@pytest.mark.parametrize("group", [0, 32, 64])
def test_float_weights_on_a_grid_keep_it(group):
    """Exporters fold fake-quantized weights into floats."""
    q = RNG.integers(-8, 8, (12, 192))
    q[3] = 0
    steps = np.float32(0.01 + 0.02 * RNG.random((12, 1)))
    if group:
        steps = steps * np.repeat(RNG.integers(3, 9, (12, 192 // group)), group, axis=1).astype(np.float32)
    values = (q * steps).astype(np.float32)
    codes, scale = weight_codes(values, None)
    np.testing.assert_allclose(codes * scale[:, None], values, rtol=1e-5)


def test_float_weights_on_no_grid_are_rounded_a_channel():
    values = RNG.standard_normal((4, 96)).astype(np.float32)
    _, scale = weight_codes(values, None)
    np.testing.assert_allclose(scale, np.abs(values).max(1) / 127)


def test_codes_of_few_bits_may_lie_on_a_finer_grid():
    step = np.full((3, 1), 0.25)
    values = np.array([[7, -3, 1], [0, 2, -7], [5, 5, -4]]) * 0.25
    plain, fine = (weight_codes(values, step, fine=f) for f in (False, True))
    np.testing.assert_array_equal(fine[0], plain[0] * 18)
    np.testing.assert_allclose(fine[1] * 18, plain[1])
