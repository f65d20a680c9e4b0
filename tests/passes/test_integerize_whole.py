"""Float graphs that need more than one family of handlers, compared with ONNX Runtime on the float model."""

import numpy as np
import onnxruntime
import pytest
import qcompile
from onnx import TensorProto, helper, numpy_helper

RANDOM = np.random.default_rng(3)
WEIGHTS = {k: (RANDOM.standard_normal((16, 16)) / 4).astype(np.float32) for k in "qkv"}
NODE = helper.make_node
PRODUCTS = [NODE("MatMul", ["x", k], [k + "o"]) for k in "qkv"]
SCORES = [*PRODUCTS, NODE("Transpose", ["ko"], ["kt"], perm=[0, 2, 1]), NODE("MatMul", ["qo", "kt"], ["s"])]
ATTEND = [NODE("Softmax", ["s2"], ["p"], axis=-1), NODE("MatMul", ["p", "vo"], ["a"])]


def samples(count: int, **extra: np.ndarray) -> list[dict[str, np.ndarray]]:
    return [{"x": RANDOM.standard_normal((1, 6, 16)).astype(np.float32), **extra} for _ in range(count)]


def compile_and_compare(folder, nodes, inputs, constants, feeds, tolerance, target="host"):
    graph = helper.make_graph(
        nodes,
        "whole",
        [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    built = qcompile.load(qcompile.compile(model, target, output=folder, name="net", calibration=feeds).path)
    (want,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feeds[0])
    got = built.run(feeds[0])["y"]
    assert np.array_equal(got, built.reference(feeds[0])["y"]), "native code and numpy meaning differ"
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max(), f"error {np.abs(got - want).max():.4f}"


@pytest.mark.parametrize("target", ["host", "arm-a76"])
def test_attention_that_feeds_a_16_bit_sum_directly(tmp_path, target):
    nodes = [
        *SCORES,
        NODE("Mul", ["s", "c"], ["s2"]),
        *ATTEND,
        NODE("Add", ["a", "x"], ["sum"]),
        NODE("LayerNormalization", ["sum", "g", "b"], ["n"]),
        NODE("MatMul", ["n", "q"], ["y"]),
    ]
    constants = {**WEIGHTS, "c": np.float32(0.25), "g": np.ones(16, np.float32), "b": np.zeros(16, np.float32)}
    compile_and_compare(tmp_path, nodes, [("x", TensorProto.FLOAT, [1, 6, 16])], constants, samples(8), 0.03, target)


def test_attention_with_more_masks_than_sequences(tmp_path):
    nodes = [
        *SCORES,
        NODE("Cast", ["m"], ["mf"], to=TensorProto.FLOAT),
        NODE("Sub", ["one", "mf"], ["off"]),
        NODE("Mul", ["off", "big"], ["lowered"]),
        NODE("Add", ["s", "lowered"], ["s2"]),
        *ATTEND,
        NODE("MatMul", ["a", "q"], ["y"]),
    ]
    mask = np.array([[[1, 1, 1, 1, 0, 0]], [[1, 1, 1, 1, 1, 1]], [[1, 0, 0, 0, 0, 0]]], np.int64)
    compile_and_compare(
        tmp_path,
        nodes,
        [("x", TensorProto.FLOAT, [1, 6, 16]), ("m", TensorProto.INT64, [3, 1, 6])],
        {**WEIGHTS, "one": np.float32(1), "big": np.float32(-1e4)},
        samples(8, m=mask),
        0.05,
    )


def test_an_unused_input_stays_an_input(tmp_path):
    unused = RANDOM.standard_normal((2, 3)).astype(np.float32)
    compile_and_compare(
        tmp_path,
        [NODE("Relu", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, [1, 6, 16]), ("u", TensorProto.FLOAT, [2, 3])],
        {},
        samples(8, u=unused),
        0.02,
    )


def test_a_mean_over_everything_is_a_scalar(tmp_path):
    feeds = [{"x": s["x"] + 2} for s in samples(8)]  # a mean far from 0, so that a relative tolerance is fair
    compile_and_compare(
        tmp_path,
        [NODE("ReduceMean", ["x"], ["y"], keepdims=0)],
        [("x", TensorProto.FLOAT, [1, 6, 16])],
        {},
        feeds,
        0.02,
    )
