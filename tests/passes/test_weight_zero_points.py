"""Weights of 8 bits with any zero point, and down to -128, keep their codes in every kind of layer, on every target."""

import numpy as np
import onnxruntime as ort
import pytest
import qcompile
import qdq_models
from onnx import TensorProto as T
from qcompile.kernels.program import Program

RNG = np.random.default_rng(11)
KINDS = {  # codes, zero point
    "int8": ("int8", 0),
    "int8 off centre": ("int8", -60),
    "uint8": ("uint8", 128),
    "uint8 off centre": ("uint8", 17),
    "uint8 at an end": ("uint8", 255),
}


def weight(g, kind, *shape, axis=None):
    """Weights that use all codes, the lowest most; with an axis, zero points and scales along it."""
    dtype, zero = KINDS[kind]
    info = np.iinfo(dtype)
    codes = RNG.integers(info.min, info.max + 1, shape)
    codes = np.where(RNG.random(shape) < 0.3, info.min, codes).astype(dtype)
    if axis is None:
        return g.op("DequantizeLinear", g.const(codes), g.const(np.float32(0.01)), g.const(np.array(zero, dtype)))
    n = shape[axis]
    zeros = np.clip(zero + RNG.integers(-30, 31, n) * (zero != 0), info.min, info.max).astype(dtype)
    scales = (0.005 + 0.01 * RNG.random(n)).astype(np.float32)
    return g.op("DequantizeLinear", g.const(codes), g.const(scales), g.const(zeros), axis=axis)


def dense(g, w):
    x = g.data("x", 5, 40, zero_point=9)
    return g.q(g.op("MatMul", x, w(40, 24, axis=1)), 0.3)


def gemm(g, w):
    x = g.data("x", 5, 40, zero_point=-9)
    return g.q(g.op("Gemm", x, w(24, 40, axis=0), g.const(g.normal(24)), transB=1), 0.3)


def one_output(g, w):
    return g.q(g.op("MatMul", g.data("x", 5, 40), w(40, 1, axis=1)), 0.3)


def conv(g, w):
    x = g.data("x", 1, 5, 9, 9, zero_point=20)
    return g.q(g.op("Conv", x, w(16, 5, 3, 3, axis=0), g.const(g.normal(16)), pads=[1, 0, 2, 1]), 0.4)


def conv_1d(g, w):
    x = g.data("x", 2, 6, 20, zero_point=20)
    return g.q(g.op("Conv", x, w(12, 6, 3, axis=0), pads=[1, 1], strides=[2]), 0.4)


def grouped(g, w):
    x = g.data("x", 1, 12, 8, 8, zero_point=-30)
    return g.q(g.op("Conv", x, w(18, 4, 3, 3, axis=0), group=3, pads=[1] * 4), 0.4)


def depthwise(g, w):
    x = g.data("x", 1, 20, 8, 8, zero_point=-30)
    return g.q(g.op("Conv", x, w(20, 1, 3, 3, axis=0), group=20, pads=[1] * 4), 0.2)


def transposed(g, w):
    x = g.data("x", 1, 8, 5, 5, zero_point=3)
    return g.q(g.op("ConvTranspose", x, w(8, 10, 4, 4, axis=1), strides=[2, 2], pads=[1] * 4), 0.4)


def grouped_transposed(g, w):
    x = g.data("x", 1, 8, 5, 5, zero_point=3)
    return g.q(g.op("ConvTranspose", x, w(8, 4, 3, 3), strides=[2, 2], pads=[1] * 4, group=2), 0.3)


def table(g, w):
    ids = g.input("ids", 7, dtype=T.INT64)
    return g.q(g.op("Gather", w(10, 16), ids), 0.01, 0)


def constant_first(g, w):
    """A constant on the left of a product."""
    return g.q(g.op("MatMul", w(12, 20), g.data("x", 20, 6, zero_point=5)), 0.3)


LAYERS = [
    dense, gemm, one_output, conv, conv_1d, grouped, depthwise, transposed, grouped_transposed, table, constant_first,
]  # fmt: skip


def build(layer, kind, per_channel):
    g = qdq_models.Graph(4)

    def make(*shape, axis=None):
        return weight(g, kind, *shape, axis=axis if per_channel else None)

    return g.model(layer(g, make))


@pytest.mark.parametrize("layer", LAYERS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_channel", [False, True], ids=["per tensor", "per channel"])
def test_codes_are_kept(layer, kind, per_channel):
    model = build(layer, kind, per_channel)
    imported = qdq_models.import_onnx(qdq_models.normalise(model))
    notes = []
    qdq_models.integerize(imported.module, imported.names, imported.outputs, notes=notes)
    assert notes == []
    qdq_models.check(model, mean=0.05)


def together(kind):
    """Layers of all kinds in one model with as many outputs."""
    g = qdq_models.Graph(4)
    x = g.data("x", 1, 20, 9, 9, zero_point=20)
    w = lambda *shape, axis: weight(g, kind, *shape, axis=axis)  # noqa: E731
    first = g.q(g.op("Conv", x, w(20, 1, 3, 3, axis=0), group=20, pads=[1] * 4), 0.2)
    second = g.q(g.op("Conv", first, w(18, 10, 3, 3, axis=0), group=2, pads=[1, 0, 2, 1]), 0.8)
    third = g.q(g.op("ConvTranspose", second, w(18, 10, 4, 4, axis=1), strides=[2, 2]), 3.0)
    flat = g.op("Reshape", third, g.const(np.array([20, 198])))
    fourth = g.q(g.op("MatMul", flat, w(198, 24, axis=1)), 30.0)
    return g.model(first, second, third, fourth)


@pytest.mark.parametrize("target", ["host", "x86-avx2", "arm-a76", "arm-a53", "arm-a72"])
@pytest.mark.parametrize("kind", ["int8", "uint8", "uint8 off centre"])
def test_all_targets_have_the_same_bits(kind, target, tmp_path):
    model = together(kind)
    loaded = qcompile.load(qcompile.compile(model, target, output=tmp_path, name="zero").path)
    for x in (qdq_models.random_feeds(model, 1)[0]["x"], np.full((1, 20, 9, 9), -100, np.float32)):
        got, want = loaded.run_integer(loaded.quantize({"x": x})), loaded.reference_integer(loaded.quantize({"x": x}))
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    x = qdq_models.random_feeds(model, 1)[0]["x"]
    for output, want in zip(loaded.outputs, session.run(None, {"x": x})):
        off = loaded.run({"x": x})[output.name] - want
        assert 10 * np.log10((want**2).mean() / max((off**2).mean(), 1e-9)) > 40, f"{output.name} is off"


def test_the_lowest_weights_and_inputs_meet(tmp_path):
    """-128 times -128, wherever sums of 16 bits could overflow."""
    g = qdq_models.Graph(4)
    lowest = g.op("DequantizeLinear", g.const(np.full((4, 32, 1, 1), -128, np.int8)), g.const(np.float32(0.01)))
    deep = g.op("DequantizeLinear", g.const(np.full((32, 1, 3, 3), -128, np.int8)), g.const(np.float32(0.01)))
    x = g.data("x", 1, 32, 6, 6)
    model = g.model(g.q(g.op("Conv", x, lowest), 2.0), g.q(g.op("Conv", x, deep, group=32), 0.8))
    for target in ("host", "x86-avx2", "arm-a53", "arm-a76"):
        loaded = qcompile.load(qcompile.compile(model, target, output=tmp_path, name="lowest").path)
        integers = {"x": np.full((1, 32, 6, 6), -128, np.int8)}
        got, want = loaded.run_integer(integers), loaded.reference_integer(integers)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name])
            assert (want[name] > 50).all()


def test_matrices_without_offsets_make_no_sums():
    program = qdq_models.compiled(build(conv, "uint8", False))
    assert isinstance(program, Program)
    assert "add_sums" not in [n.op for n in program.nodes]
