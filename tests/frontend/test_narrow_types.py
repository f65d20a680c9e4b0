"""Integers of 4 and 2 bits: their casts, inputs, outputs and quantization per tensor and per axis."""

import numpy as np
import pytest
import qcompile
from onnx import TensorProto, helper, numpy_helper
from qcompile.targets.errors import CompileError

NARROW = {"INT4": (-8, 7), "UINT4": (0, 15), "INT2": (-2, 1), "UINT2": (0, 3)}


def model(nodes, inputs, outputs, initializers=()):
    values = [[helper.make_tensor_value_info(n, t, s) for n, t, s in part] for part in (inputs, outputs)]
    graph = helper.make_graph([helper.make_node(*n[:3], **n[3]) for n in nodes], "g", *values, list(initializers))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25)], ir_version=11)


def compiled(made, folder, samples=None):
    return qcompile.load(qcompile.compile(made, calibration=samples, output=folder, name="n").path)


@pytest.mark.parametrize("kind", NARROW)
def test_casts_keep_the_lowest_bits(kind, tmp_path):
    low, high = NARROW[kind]
    to, back = getattr(TensorProto, kind), TensorProto.INT32
    made = model(
        [("Cast", ["x"], ["n"], {"to": to}), ("Cast", ["n"], ["y"], {"to": back})],
        [("x", TensorProto.INT32, [40])],
        [("y", back, [40]), ("n", to, [40])],
    )
    x = np.arange(-20, 20, dtype=np.int32)
    got = compiled(made, tmp_path).run({"x": x})
    want = (x - low) % (high - low + 1) + low
    np.testing.assert_array_equal(got["y"], want)
    np.testing.assert_array_equal(got["n"], want)
    assert got["n"].dtype == (np.int8 if low else np.uint8)


@pytest.mark.parametrize("kind", NARROW)
def test_inputs_are_bytes(kind, tmp_path):
    low, high = NARROW[kind]
    made = model(
        [("Cast", ["x"], ["f"], {"to": TensorProto.FLOAT}), ("Mul", ["f", "half"], ["y"], {})],
        [("x", getattr(TensorProto, kind), [high - low + 1])],
        [("y", TensorProto.FLOAT, [high - low + 1])],
        [numpy_helper.from_array(np.float32(0.5), "half")],
    )
    x = np.arange(low, high + 1).astype(np.int8 if low else np.uint8)
    got = compiled(made, tmp_path, [{"x": x}]).run({"x": x})["y"]
    np.testing.assert_allclose(got, x / 2, atol=0.05)


@pytest.mark.parametrize("scale", [[0.3], [2.0, 3.0, 4.0]], ids=["tensor", "axis"])
@pytest.mark.parametrize("kind", NARROW)
def test_quantized_outputs(kind, scale, tmp_path):
    low, high = NARROW[kind]
    type_, zero = getattr(TensorProto, kind), (high + low) // 2
    zeros = helper.make_tensor("z", type_, [len(scale)] if len(scale) > 1 else [], [zero] * len(scale))
    scales = numpy_helper.from_array(np.float32(scale if len(scale) > 1 else scale[0]), "s")
    made = model(
        [("QuantizeLinear", ["x", "s", "z"], ["y"], {"axis": 0} if len(scale) > 1 else {})],
        [("x", TensorProto.FLOAT, [3, 8])],
        [("y", type_, [3, 8])],
        [scales, zeros],
    )
    rng = np.random.default_rng(high)
    x = (rng.uniform(low - zero - 2, high - zero + 2, (3, 8)) * np.reshape(scale, (-1, 1))).astype(np.float32)
    got = compiled(made, tmp_path, [{"x": x}]).run({"x": x})["y"]
    exact = x / np.reshape(scale, (-1, 1)) + zero
    want = np.clip(np.rint(exact), low, high)
    sure = np.abs(exact - np.floor(exact) - 0.5) > 0.01  # the input itself has 16 bits
    np.testing.assert_array_equal(got[sure], want[sure])


@pytest.mark.parametrize("kind", ["FLOAT8E5M2", "FLOAT8E4M3FN"])
def test_inputs_of_8_bit_floats_are_refused(kind, tmp_path):
    made = model(
        [("DequantizeLinear", ["x", "s"], ["y"], {})],
        [("x", getattr(TensorProto, kind), [8])],
        [("y", TensorProto.FLOAT, [8])],
        [numpy_helper.from_array(np.float32(0.5), "s")],
    )
    with pytest.raises(CompileError, match=f"DequantizeLinear 'y': quantization to {kind.lower()} is not supported"):
        qcompile.compile(made, output=tmp_path, name="n")
