"""Outputs beside a node's first, and outputs that are constants or inputs."""

from __future__ import annotations

import numpy as np
import pytest
import qcompile
from onnx import TensorProto, helper, numpy_helper
from qcompile.targets import CompileError

X = np.random.default_rng(3).normal(0.4, 2.0, (3, 6, 4)).astype(np.float32)


def outputs_of(nodes, outputs, tmp_path, constants=(), x=X):
    """Reals of the artifact for the samples of which it is calibrated."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [helper.make_tensor_value_info(o, t, None) for o, t in outputs.items()],
        [numpy_helper.from_array(v, n) for n, v in dict(constants).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    built = qcompile.compile(model, calibration=[{"x": x}], output=tmp_path, name="extra")
    return qcompile.load(built.path).run({"x": x}), built


@pytest.mark.parametrize("axis", [-1, 1, 0])
def test_moments_of_layer_normalization(axis, tmp_path):
    shape = X.shape[axis:]
    node = helper.make_node("LayerNormalization", ["x", "g", "b"], ["y", "m", "s"], axis=axis, epsilon=0.1)
    found, _ = outputs_of(
        [node],
        dict.fromkeys("yms", TensorProto.FLOAT),
        tmp_path,
        {"g": np.ones(shape, np.float32), "b": np.zeros(shape, np.float32)},
    )
    axes = tuple(range(axis % 3, 3))
    mean, deviation = X.mean(axes, keepdims=True), np.sqrt(X.var(axes, keepdims=True) + 0.1)
    for name, want in (("y", (X - mean) / deviation), ("m", mean), ("s", 1 / deviation)):
        assert found[name].shape == want.shape
        np.testing.assert_allclose(found[name], want, atol=0.03 * np.abs(want).max(), err_msg=name)


def test_batch_normalization_that_trains(tmp_path):
    scale, bias, mean, variance = (np.linspace(a, a + 1, 6, dtype=np.float32) for a in (0.5, -1, 0, 2))
    node = helper.make_node(
        "BatchNormalization", ["x", "g", "b", "mean", "var"], ["y", "m", "v"], training_mode=1, momentum=0.75
    )
    constants = {"g": scale, "b": bias, "mean": mean, "var": variance}
    found, _ = outputs_of([node], dict.fromkeys("ymv", TensorProto.FLOAT), tmp_path, constants)
    m, v = X.mean((0, 2)), X.var((0, 2))
    unit = (X - m[:, None]) / np.sqrt(v + 1e-5)[:, None]
    wants = {"y": unit * scale[:, None] + bias[:, None], "m": 0.75 * mean + 0.25 * m, "v": 0.75 * variance + 0.25 * v}
    for name, want in wants.items():
        np.testing.assert_allclose(found[name], want, atol=0.03 * np.abs(want).max(), err_msg=name)


def test_dropout_keeps_everything_at_inference(tmp_path):
    nodes = [helper.make_node("Dropout", ["x"], ["y", "mask"])]
    found, _ = outputs_of(nodes, {"y": TensorProto.FLOAT, "mask": TensorProto.BOOL}, tmp_path)
    assert found["mask"].shape == X.shape and (found["mask"] == 1).all()
    np.testing.assert_allclose(found["y"], X, atol=0.1)


def test_dropout_that_drops_is_refused(tmp_path):
    nodes = [helper.make_node("Dropout", ["x", "ratio", "mode"], ["y"], name="drop")]
    constants = {"ratio": np.float32(0.5), "mode": np.array(True)}
    with pytest.raises(CompileError, match="elements at random"):
        outputs_of(nodes, {"y": TensorProto.FLOAT}, tmp_path, constants)


def test_constants_are_outputs(tmp_path):
    table = np.linspace(-1, 3, 12, dtype=np.float32).reshape(3, 4)
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Size", ["x"], ["size"]),
        helper.make_node("Relu", ["x"], ["y"]),
    ]
    types = {"shape": TensorProto.INT64, "size": TensorProto.INT64, "y": TensorProto.FLOAT, "table": TensorProto.FLOAT}
    found, _ = outputs_of(nodes, types, tmp_path, {"table": table})
    assert found["shape"].tolist() == list(X.shape)
    assert found["size"].shape == () and found["size"] == X.size
    np.testing.assert_allclose(found["table"], table, atol=0.02)


@pytest.mark.parametrize("x", [X, np.arange(12, dtype=np.int32).reshape(3, 4)], ids=["float", "integer"])
def test_an_input_is_an_output(x, tmp_path):
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    nodes = [helper.make_node("Identity", ["x"], ["same"]), helper.make_node("Relu", ["x"], ["y"])]
    found, built = outputs_of(nodes, {"x": kind, "same": kind, "y": kind}, tmp_path, x=x)
    for name in ("x_output", "same"):
        np.testing.assert_allclose(found[name], x, atol=0.0 if x.dtype == np.int32 else 0.05)
    assert any("x_output" in note for note in built.notes)
