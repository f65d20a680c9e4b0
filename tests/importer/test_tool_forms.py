"""Graphs of the forms that NNCF, PT2E, ModelOpt and neural-compressor write, without these tools."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import qcompile
from onnx import TensorProto, helper, numpy_helper
from qcompile.passes.integerize.linear import weight_codes
from qcompile.targets.errors import CompileError

sys.path.insert(0, str(Path(__file__).parents[1] / "passes"))
import qdq_models

RNG = np.random.default_rng(8)
TYPES = {"int8": (-128, 127), "uint8": (0, 255)}


def compare(model, tmp_path, feeds, calibration, rel):
    """The compiled model, after comparing its outputs with ONNX Runtime's: at most `rel` of their energy off."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    built = qcompile.compile(model, output=tmp_path, calibration=calibration, name="form")
    loaded, name = qcompile.load(built.path), model.graph.output[0].name
    ours = np.stack([loaded.run(f)[name] for f in feeds])
    want = np.stack([session.run(None, f)[0] for f in feeds])
    off = float(np.sqrt(np.mean((ours - want) ** 2) / np.mean(want**2)))
    assert off <= rel, f"{off:.4f} of the outputs' size off"
    return built


def float_stream():
    """LayerNormalization, quantized MatMul, residual Add: only the operands of the MatMul are quantized."""
    g = qdq_models.Graph(3)
    x = g.input("x", 1, 6, 32)
    y = g.op("LayerNormalization", x, g.const(np.ones(32, np.float32)), g.const(np.zeros(32, np.float32)))
    y = g.op("MatMul", g.q(y, 0.03), g.weight(32, 32, axis=1))
    return g.model(g.op("Add", x, y))


def test_a_float_input_gets_its_range_from_samples(tmp_path):
    model = float_stream()
    feeds = [{"x": RNG.standard_normal((1, 6, 32)).astype(np.float32)} for _ in range(12)]
    with pytest.raises(CompileError, match=r"x is used as a float tensor.*--calib"):
        qcompile.compile(model, output=tmp_path)
    built = compare(model, tmp_path, feeds, feeds, 0.01)
    assert any("input 'x' has no QuantizeLinear" in n for n in built.notes)
    assert not any("not used" in n for n in built.notes)
    assert built.manifest["inputs"][0]["dtype"] == "int16"


def test_samples_for_quantized_inputs_say_how_near_the_program_is(tmp_path):
    g = qdq_models.Graph()
    x = g.op("Transpose", g.input("x", 1, 8, 4), perm=[0, 2, 1])
    model = g.model(g.q(g.op("MatMul", g.q(x), g.weight(8, 8, axis=1)), 0.05))
    feeds = [{"x": RNG.standard_normal((1, 8, 4)).astype(np.float32)} for _ in range(4)]
    built = compare(model, tmp_path, feeds, feeds, 0.05)
    (near,) = built.manifest["agreement_db"].values()
    assert near > 30 and not [n for n in built.notes if "noisy" in n]
    assert built.manifest["inputs"][0]["dtype"] == "int8"


def weights_only(scale, dtype):
    """x times weights that are dequantized with `scale` per output channel: NNCF's compress_weights."""
    codes = RNG.integers(*TYPES[dtype], (32, 16), endpoint=True).astype(dtype)
    zero = np.full(16, 128 if dtype == "uint8" else 0, dtype)
    g = qdq_models.Graph()
    weight = g.op("DequantizeLinear", g.const(codes), g.const(scale), g.const(zero), axis=1)
    return g.model(g.op("MatMul", g.input("x", 4, 32), weight))


@pytest.mark.parametrize("dtype", TYPES)
def test_scales_of_weights_may_be_negative(tmp_path, dtype):
    scale = (0.01 * RNG.choice([-1, 1], 16)).astype(np.float32)
    feeds = [{"x": RNG.standard_normal((4, 32)).astype(np.float32)} for _ in range(12)]
    compare(weights_only(scale, dtype), tmp_path, feeds, feeds, 0.03)


def test_scales_of_activations_may_not_be_negative(tmp_path):
    g = qdq_models.Graph()
    model = g.model(g.op("Relu", g.q(g.input("x", 4, 4), -0.1)))
    with pytest.raises(CompileError, match="must be positive"):
        qcompile.compile(model, output=tmp_path)


N, K, BLOCK = 16, 64, 16


def packed_linear(scales, zeros=None):
    """MatMulNBits of 4 bits without an opset of its domain, as NNCF writes it."""
    codes = np.random.default_rng(1).integers(0, 256, (N, K // BLOCK, BLOCK // 2)).astype(np.uint8)
    tensors = {"b": codes, "s": scales.astype(np.float32)} | ({} if zeros is None else {"z": zeros})
    node = helper.make_node(
        "MatMulNBits", ["x", *tensors], ["y"], name="n", domain="com.microsoft", bits=4, block_size=BLOCK, K=K, N=N
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, K])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, N])],
        [numpy_helper.from_array(v, name) for name, v in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("sign", [1, -1])
def test_packed_weights_without_opset_of_their_domain(tmp_path, sign):
    model = packed_linear(sign * (0.01 + 0.02 * RNG.random(N * K // BLOCK)))
    feeds = [{"x": RNG.standard_normal((4, K)).astype(np.float32)} for _ in range(12)]
    compare(model, tmp_path, feeds, feeds, 0.05)
    assert len(model.opset_import) == 1


def test_zero_points_one_a_byte(tmp_path):
    """NNCF 3.4 does not pack zero points; ONNX Runtime wants two in a byte."""
    scales, zeros = 0.01 + 0.02 * RNG.random(N * K // BLOCK), RNG.integers(4, 11, (N, K // BLOCK)).astype(np.uint8)
    packed = packed_linear(scales, zeros[:, ::2] | zeros[:, 1::2] << 4)
    feeds = [{"x": RNG.standard_normal((4, K)).astype(np.float32)} for _ in range(12)]
    compare(packed, tmp_path / "packed", feeds, feeds, 0.05)
    loaded = [
        qcompile.load(qcompile.compile(m, output=tmp_path / str(k), calibration=feeds).path)
        for k, m in enumerate((packed, packed_linear(scales, zeros)))
    ]
    for feed in feeds:
        np.testing.assert_array_equal(*(m.run(feed)["y"] for m in loaded))


def test_zero_points_of_another_count_are_refused(tmp_path):
    model = packed_linear(np.ones(N * K // BLOCK), np.zeros((N, 3), np.uint8))
    with pytest.raises(CompileError, match=r"node MatMulNBits 'n': its zero points have shape \[16, 3\]"):
        qcompile.compile(model, output=tmp_path)


@pytest.mark.parametrize("transposed", [False, True])
def test_channels_of_more_than_8_bits_are_rounded(transposed):
    codes = RNG.integers(-127, 128, (4, 24))
    codes[1, 3], codes[2] = -128, np.arange(24) * 12
    step = np.array([[0.1], [0.2], [0.1], [0.4]])
    notes = []
    found, scale = weight_codes(codes * step, np.broadcast_to(step, codes.shape) if transposed else step, notes)
    for row in (0, 1, 3):
        np.testing.assert_array_equal(found[row], codes[row])
        assert scale[row] == step[row, 0]
    assert np.abs(found[2] * scale[2] - codes[2] * 0.1).max() <= scale[2] / 2 + 1e-9
    assert len(notes) == 1 and "up to 276" in notes[0]
