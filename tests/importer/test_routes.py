"""Models as the tools that people use write them: they compile and match ONNX Runtime."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import qcompile
from onnx import TensorProto, helper, numpy_helper
from qcompile.frontend import Graph, is_quantized, normalise_graph
from qcompile.targets.errors import CompileError

sys.path.insert(0, str(Path(__file__).parents[1] / "passes"))
import qdq_models

quantization = pytest.importorskip("onnxruntime.quantization")
RNG = np.random.default_rng(4)
SHAPE = (1, 3, 12, 12)


def f32(*shape, by=0.2):
    return (RNG.standard_normal(shape) * by).astype(np.float32)


def network():
    """Every operator that ONNX Runtime has a QLinear form of."""
    constants = {"w1": f32(8, 3, 3, 3), "b1": f32(8), "w2": f32(8, 1, 3, 3), "w3": f32(16, 8, 1, 1), "b3": f32(16)}
    constants |= {"w4": f32(16, 10), "b4": f32(10), "w5": f32(10, 10, by=0.6)}
    nodes = [
        ("Conv", ["x", "w1", "b1"], "c1", {"pads": [1] * 4}),
        ("Relu", ["c1"], "r1", {}),
        ("Conv", ["r1", "w2"], "c2", {"pads": [1] * 4, "group": 8}),
        ("LeakyRelu", ["c2"], "l2", {"alpha": 0.1}),
        ("Add", ["r1", "l2"], "a", {}),
        ("AveragePool", ["a"], "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("AveragePool", ["l2"], "p2", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        ("Concat", ["p", "p2"], "cat", {"axis": 2}),
        ("Conv", ["cat", "w3", "b3"], "c3", {}),
        ("Sigmoid", ["c3"], "s3", {}),
        ("Mul", ["c3", "s3"], "m3", {}),
        ("GlobalAveragePool", ["m3"], "g", {}),
        ("Flatten", ["g"], "f", {}),
        ("Gemm", ["f", "w4", "b4"], "d", {}),
        ("MatMul", ["d", "w5"], "e", {}),
        ("Softmax", ["e"], "y", {"axis": -1}),
    ]
    graph = helper.make_graph(
        [helper.make_node(op, reads, [makes], name=f"the_{makes}", **attrs) for op, reads, makes, attrs in nodes],
        "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, SHAPE)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def samples(count, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal(SHAPE).astype(np.float32)} for _ in range(count)]


class Reader(quantization.CalibrationDataReader):
    def __init__(self):
        self.feeds = iter(samples(16))

    def get_next(self):
        return next(self.feeds, None)


@pytest.fixture(scope="module")
def float_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("routes") / "float.onnx"
    onnx.save(network(), path)
    return path


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["QOperator", "QDQ"])
@pytest.mark.parametrize(
    "data, weights", [("QUInt8", "QInt8"), ("QInt8", "QInt8"), ("QUInt8", "QUInt8"), ("QInt8", "QInt4")]
)
@pytest.mark.parametrize("per_channel", [False, True])
def test_quantize_static(float_model, tmp_path, form, data, weights, per_channel):
    if (form, weights) == ("QOperator", "QInt4"):
        pytest.skip("ONNX Runtime has 4-bit weights in QDQ only")
    types, path = quantization.QuantType, tmp_path / "quantized.onnx"
    quantization.quantize_static(
        float_model,
        path,
        Reader(),
        quant_format=quantization.QuantFormat[form],
        activation_type=types[data],
        weight_type=types[weights],
        per_channel=per_channel,
    )
    model = onnx.load(path)
    kinds = {n.op_type for n in model.graph.node}
    assert ("QLinearConv" in kinds) == (form == "QOperator")
    # 8-bit sums of ONNX Runtime round once more than ours
    qdq_models.check(model, steps=3, feeds=samples(4, seed=9), mean=0.7)


@pytest.mark.filterwarnings("ignore")
def test_quantize_static_of_16_bit_activations(float_model, tmp_path):
    path = tmp_path / "quantized.onnx"
    types = quantization.QuantType
    quantization.quantize_static(float_model, path, Reader(), activation_type=types.QInt16, weight_type=types.QInt8)
    model = onnx.load(path)
    feeds = samples(4, seed=9)
    program = qdq_models.compiled(model)
    for feed in feeds:
        want = ort.InferenceSession(model.SerializeToString()).run(None, feed)[0]
        np.testing.assert_allclose(qdq_models.run_program(program, feed)[0], want, atol=0.01)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("weights", ["QInt8", "QUInt8"])
def test_quantize_dynamic_gets_static_scales(float_model, tmp_path, weights):
    path = tmp_path / "dynamic.onnx"
    quantization.quantize_dynamic(float_model, path, weight_type=quantization.QuantType[weights])
    graph, notes = Graph(onnx.load(path)), []
    assert {"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear"} & {n.op_type for n in graph.nodes}
    normalise_graph(graph, notes=notes)
    assert not is_quantized(graph) and any("quantized dynamically" in n for n in notes)
    with pytest.raises(CompileError, match="--calib"):
        qcompile.compile(path, output=tmp_path)
    model = qcompile.load(qcompile.compile(path, calibration=samples(16), output=tmp_path).path)
    session = ort.InferenceSession(str(float_model))
    for feed in samples(4, seed=9):
        np.testing.assert_allclose(model.run(feed)["y"], session.run(None, feed)[0], atol=0.02)


def packed_linear(bits, zeros, gamma=None):
    """y = MatMulNBits(x) of [4, 256] by [256, 96]; with gamma, of LayerNormalization(x)."""
    n, k, block = 96, 256, 32
    tensors = {
        "b": RNG.integers(0, 256, (n, k // block, block * bits // 8)).astype(np.uint8),
        "s": (0.01 + 0.02 * RNG.random(n * k // block)).astype(np.float32),
        "z": RNG.integers(0, 256, n * (k // block) * bits // 8).astype(np.uint8),
    }
    nodes, source = [], "x"
    if gamma is not None:
        tensors["gamma"], source = gamma.astype(np.float32), "n"
        nodes.append(helper.make_node("LayerNormalization", ["x", "gamma"], ["n"]))
    reads = [source, "b", "s", *(["z"] if zeros else [])]
    node = helper.make_node(
        "MatMulNBits", reads, ["y"], name="packed", domain="com.microsoft", bits=bits, block_size=block, K=k, N=n
    )
    graph = helper.make_graph(
        [*nodes, node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, n])],
        [numpy_helper.from_array(v, name) for name, v in tensors.items() if name != "z" or zeros],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


@pytest.mark.parametrize("bits, zeros", [(4, False), (4, True), (8, False)])
def test_packed_weights_compile(tmp_path, bits, zeros):
    model = packed_linear(bits, zeros)
    feeds = [{"x": f32(4, 256, by=1.0)} for _ in range(8)]
    built = qcompile.compile(model, calibration=feeds, output=tmp_path, name="packed")
    loaded = qcompile.load(built.path)
    share = built.manifest["weights_bytes"] / (96 * 256)
    assert (share < 0.65) == (bits == 4), f"{share:.2f} bytes a weight"
    assert any("integer multiples" in n for n in built.notes) == (bits == 4)
    for feed in feeds:
        want = ort.InferenceSession(model.SerializeToString()).run(None, feed)[0]
        off = loaded.run(feed)["y"] - want
        # zero points all over the range leave few multipliers
        assert np.sqrt(np.mean(off**2)) < (0.06 if zeros else 0.03) * np.sqrt(np.mean(want**2))


def test_packed_weights_keep_their_codes_behind_channels_of_unequal_size(tmp_path):
    model = packed_linear(4, False, gamma=np.where(np.arange(256) % 32 == 0, 30.0, 1.0))
    feeds = [{"x": f32(4, 256, by=1.0)} for _ in range(8)]
    built = qcompile.compile(model, calibration=feeds, output=tmp_path, name="packed")
    assert built.manifest["weights_bytes"] / (96 * 256) < 0.8
