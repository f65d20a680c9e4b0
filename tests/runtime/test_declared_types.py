"""The types that a graph declares hold at the border of its artifact."""

import numpy as np
import onnxruntime as ort
import pytest
import qcompile
from onnx import TensorProto
from small_models import WEIGHT, model

T = TensorProto
U8 = {"x": T.UINT8, "y": T.UINT8}
GRID = {"s": np.float32(0.05), "z": np.uint8(130), "ys": np.float32(0.07), "yz": np.uint8(120)}


def quantized_relu():
    """uint8 in, uint8 out, through Q/DQ pairs."""
    return model(
        ("DequantizeLinear", ["x", "s", "z"], ["d"], {}),
        ("Relu", ["d"], ["r"], {}),
        ("QuantizeLinear", ["r", "ys", "yz"], ["y"], {}),
        constants=GRID,
        dtypes=U8,
    )


def moved(dtype):
    """Integers that are only moved about."""
    return model(
        ("Transpose", ["x"], ["t"], {"perm": [1, 0]}),
        ("Slice", ["t", "a", "b", "axes"], ["y"], {}),
        constants={"a": np.array([2]), "b": np.array([7]), "axes": np.array([0])},
        inputs={"x": [2, 8]},
        dtypes={"x": dtype, "y": dtype},
    )


def largest():
    """int64 out of ArgMax."""
    return model(
        ("MatMul", ["x", "w"], ["m"], {}),
        ("ArgMax", ["m"], ["y"], {"axis": -1}),
        constants={"w": WEIGHT},
        dtypes={"y": T.INT64},
    )


def positive():
    return model(
        ("Cast", ["x"], ["f"], {"to": T.FLOAT}),
        ("Greater", ["f", "c"], ["y"], {}),
        constants={"c": np.float32(100)},
        dtypes={"x": T.UINT8, "y": T.BOOL},
    )


def wrapping():
    """int8 sums that wrap, compared with others."""
    return model(
        ("Add", ["x", "c"], ["s"], {}),
        ("Max", ["s", "x"], ["y"], {}),
        constants={"c": np.arange(-64, 64, 16, dtype=np.int8)},
        dtypes={"x": T.INT8, "y": T.INT8},
    )


def one_hot_product():
    """A table of weights read by Equal and MatMul, as JAX writes an embedding."""
    return model(
        ("Mod", ["x", "eight"], ["class"], {}),
        ("Unsqueeze", ["class", "last"], ["column"], {}),
        ("Equal", ["column", "classes"], ["hot"], {}),
        ("Cast", ["hot"], ["f"], {"to": T.FLOAT}),
        ("MatMul", ["f", "w"], ["m"], {}),
        ("ArgMax", ["m"], ["y"], {"axis": -1}),
        constants={"last": np.array([-1]), "classes": np.arange(8, dtype=np.int32), "eight": np.int32(8), "w": WEIGHT},
        dtypes={"x": T.INT32, "y": T.INT64},
    )


CASES = {
    "uint8 codes": quantized_relu,
    "uint8": lambda: moved(T.UINT8),
    "int8": lambda: moved(T.INT8),
    "int16": lambda: moved(T.INT16),
    "int32": lambda: moved(T.INT32),
    "int64": lambda: moved(T.INT64),
    "bool": lambda: moved(T.BOOL),
    "argmax": largest,
    "flags of pixels": positive,
    "int8 sums": wrapping,
    "one-hot product": one_hot_product,
}


@pytest.mark.parametrize("target", ["host", "arm-a76"])
@pytest.mark.parametrize("case", CASES)
def test_integers_have_the_declared_type(case, target, tmp_path):
    net, rng = CASES[case](), np.random.default_rng(3)
    tensor = net.graph.input[0].type.tensor_type
    dtype = {T.UINT8: "u1", T.INT8: "i1", T.INT16: "i2", T.INT32: "i4", T.INT64: "i8", T.BOOL: "?", T.FLOAT: "f4"}
    x = rng.integers(0, 256, [d.dim_value for d in tensor.shape.dim]).astype(dtype[tensor.elem_type])
    want = ort.InferenceSession(net.SerializeToString()).run(None, {"x": x})[0]
    loaded = qcompile.load(qcompile.compile(net, target, output=tmp_path, name="declared", calibration=[{"x": x}]).path)
    for got in (loaded.run({"x": x})["y"], loaded.reference({"x": x})["y"]):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_floats_have_the_declared_type(kind, tmp_path):
    declared = {"float16": T.FLOAT16, "float64": T.DOUBLE}[kind]
    net = model(
        ("MatMul", ["x", "w"], ["y"], {}),
        constants={"w": WEIGHT.astype(kind)},
        dtypes={"x": declared, "y": declared},
    )
    x = np.random.default_rng(4).standard_normal((1, 8)).astype(kind)
    loaded = qcompile.load(qcompile.compile(net, output=tmp_path, name="declared", calibration=[{"x": x}]).path)
    got = loaded.run({"x": x})["y"]
    assert got.dtype == kind
    np.testing.assert_allclose(got, x @ WEIGHT, atol=0.05)
