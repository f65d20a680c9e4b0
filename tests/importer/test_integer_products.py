"""MatMulInteger and ConvInteger: sums of integers are exact, whoever reads them; dynamic scales reach nothing else."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import qcompile
from onnx import TensorProto, helper, numpy_helper
from qcompile.frontend import normalise
from qcompile.targets.errors import CompileError

TYPES = {"uint8": TensorProto.UINT8, "int8": TensorProto.INT8, "float32": TensorProto.FLOAT, "int32": TensorProto.INT32}


def graph(nodes, inputs, outputs, constants):
    """nodes: (op, inputs, output, attributes); inputs {name: (type, shape)}; outputs {name: type}."""
    made = helper.make_graph(
        [
            helper.make_node(op, reads, list(np.atleast_1d(y)), name=f"the_{op}_{y}", **attrs)
            for op, reads, y, attrs in nodes
        ],
        "g",
        [helper.make_tensor_value_info(n, TYPES[t], shape) for n, (t, shape) in inputs.items()],
        [helper.make_tensor_value_info(n, TYPES[t], None) for n, t in outputs.items()],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def codes(rng, dtype, *shape):
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def check_exact(model, feeds, tmp_path):
    session = ort.InferenceSession(model.SerializeToString())
    loaded = qcompile.load(qcompile.compile(model, output=tmp_path, name="product").path)
    names = [o.name for o in model.graph.output]
    for feed in feeds:
        got = loaded.run(feed)
        for name, want in zip(names, session.run(None, feed)):
            assert got[name].dtype == want.dtype
            np.testing.assert_array_equal(got[name], want, err_msg=name)


@pytest.mark.parametrize("zeros", ["none", "one", "each column"])
@pytest.mark.parametrize("x, w", [("uint8", "int8"), ("uint8", "uint8"), ("int8", "int8")])
def test_products_that_stand_alone_are_exact(tmp_path, x, w, zeros):
    rng = np.random.default_rng(1)
    constants, reads = {"w": codes(rng, w, 64, 9)}, ["x", "w"]
    if zeros != "none":
        constants |= {"xz": codes(rng, x, 1)[0:1].reshape(()), "wz": codes(rng, w, *([9] if zeros != "one" else []))}
        reads += ["xz", "wz"]
    model = graph([("MatMulInteger", reads, "y", {})], {"x": (x, [5, 64])}, {"y": "int32"}, constants)
    check_exact(model, [{"x": codes(rng, x, 5, 64)} for _ in range(3)], tmp_path)


@pytest.mark.parametrize("x, w", [("uint8", "uint8"), ("uint8", "int8")])
def test_convolutions_of_integers_are_exact(tmp_path, x, w):
    rng = np.random.default_rng(2)
    constants = {"w": codes(rng, w, 6, 3, 3, 3), "xz": codes(rng, x, 1).reshape(()), "wz": codes(rng, w, 1).reshape(())}
    node = ("ConvInteger", ["x", *constants], "y", {"pads": [1, 1, 1, 1], "strides": [2, 2]})
    order = {"x": (x, [1, 3, 7, 7])}
    node = (node[0], ["x", "w", "xz", "wz"], node[2], node[3])
    check_exact(graph([node], order, {"y": "int32"}, constants), [{"x": codes(rng, x, 1, 3, 7, 7)}], tmp_path)


def test_two_computed_operands_and_sums_read_as_integers(tmp_path):
    """The sums go to integer arithmetic, to floats, and out, all at once; they exceed 16 bits."""
    rng = np.random.default_rng(3)
    constants = {"az": np.uint8(7), "bz": np.uint8(250), "c": np.array([100000, -5, 7], np.int32), "s": np.float32(0.5)}
    nodes = [
        ("MatMulInteger", ["a", "b", "az", "bz"], "y", {}),
        ("Add", ["y", "c"], "moved", {}),
        ("Transpose", ["moved"], "turned", {"perm": [1, 0]}),
        ("Cast", ["y"], "real", {"to": TensorProto.FLOAT}),
        ("Mul", ["real", "s"], "half", {}),
        ("QuantizeLinear", ["half", "qs", "qz"], "q", {}),
    ]
    constants |= {"qs": np.float32(6000), "qz": np.int8(3)}
    inputs = {"a": ("uint8", [4, 128]), "b": ("uint8", [128, 3])}
    model = graph(nodes, inputs, {"y": "int32", "turned": "int32", "q": "int8"}, constants)
    check_exact(
        model, [{"a": codes(rng, "uint8", 4, 128), "b": codes(rng, "uint8", 128, 3)} for _ in range(3)], tmp_path
    )


def test_quantized_floats_by_an_integer_product(tmp_path):
    """QuantizeLinear, MatMulInteger, Cast, Mul by the scales: what a file may write instead of QLinearMatMul."""
    rng = np.random.default_rng(4)
    constants = {
        "s": np.float32(0.02),
        "z": np.uint8(120),
        "w": codes(rng, "int8", 32, 8),
        "k": np.float32(0.02 * 0.01),
    }
    constants |= {"ys": np.float32(0.05), "yz": np.uint8(128)}
    nodes = [
        ("QuantizeLinear", ["x", "s", "z"], "q", {}),
        ("MatMulInteger", ["q", "w", "z"], "sums", {}),
        ("Cast", ["sums"], "real", {"to": TensorProto.FLOAT}),
        ("Mul", ["real", "k"], "scaled", {}),
        ("QuantizeLinear", ["scaled", "ys", "yz"], "y", {}),
    ]
    model = graph(nodes, {"x": ("float32", [4, 32])}, {"y": "uint8"}, constants)
    session = ort.InferenceSession(model.SerializeToString())
    loaded = qcompile.load(qcompile.compile(model, output=tmp_path, name="product").path)
    feed = {"x": rng.standard_normal((4, 32)).astype(np.float32)}
    off = np.abs(loaded.run(feed)["y"].astype(int) - session.run(None, feed)[0])
    assert off.max() <= 1 and off.mean() < 0.02


DYNAMIC = [("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], {}), ("MatMulInteger", ["q", "w", "z"], "sums", {})]
CAST = ("Cast", ["sums"], "real", {"to": TensorProto.FLOAT})
WRONG = {
    "sums without the scale": ([*DYNAMIC, CAST, ("Mul", ["real", "k"], "y", {})], "the_Mul"),
    "codes without the zero point": (
        [DYNAMIC[0], ("MatMulInteger", ["q", "w"], "sums", {}), CAST, ("Mul", ["real", "s"], "y", {})],
        "the_MatMulInteger",
    ),
    "the scale by itself": ([*DYNAMIC, CAST, ("Mul", ["real", "s"], "m", {}), ("Add", ["m", "s"], "y", {})], "the_Add"),
    "codes as numbers": ([DYNAMIC[0], ("Cast", ["q"], "y", {"to": TensorProto.FLOAT})], "the_Cast"),
    "a scale of its own": ([DYNAMIC[0], ("DequantizeLinear", ["q", "k", "z"], "y", {})], "the_DequantizeLinear"),
    "divided by the scale": ([*DYNAMIC, CAST, ("Div", ["real", "s"], "y", {})], "the_Div"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_depends_on_a_dynamic_scale_is_refused(name):
    nodes, where = WRONG[name]
    constants = {"w": np.ones((4, 3), np.uint8), "k": np.float32(0.5)}
    model = graph(nodes, {"x": ("float32", [2, 4])}, {"y": "float32"}, constants)
    with pytest.raises(CompileError, match=where):
        normalise(model)
