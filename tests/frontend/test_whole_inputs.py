"""Float inputs that are ids (Keras' embeddings), and Casts of computed floats to integers."""

import numpy as np
import onnxruntime as ort
import pytest
import qcompile
from accuracy import decibels
from onnx import TensorProto as T
from small_models import WEIGHT, model

ROWS = np.random.default_rng(1).standard_normal((3000, 4)).astype(np.float32)


def results(net, xs, folder, target="host"):
    """Of ONNX Runtime and of the artifact, whose reference agrees, over the samples."""
    loaded = qcompile.load(qcompile.compile(net, target, calibration=xs, output=folder, name="n").path)
    session = ort.InferenceSession(net.SerializeToString(), providers=["CPUExecutionProvider"])
    for x in xs[:2]:
        np.testing.assert_array_equal(loaded.run(x)["y"], loaded.reference(x)["y"])
    return tuple(
        np.stack([f(x) for x in xs]) for f in (lambda x: session.run(None, x)[0], lambda x: loaded.run(x)["y"])
    )


@pytest.mark.parametrize("target", ["host", "arm-a76"])
def test_float_ids(tmp_path, target):
    """Of a table larger than 8 bits, read by two Casts, one behind a Reshape; fractions are cut off."""
    net = model(
        ("Reshape", ["x", "column"], ["r"], {}),
        ("Cast", ["r"], ["i"], {"to": T.INT64}),
        ("Gather", ["rows", "i"], ["a"], {}),
        ("Cast", ["x"], ["j"], {"to": T.INT32}),
        ("Gather", ["rows", "j"], ["b"], {}),
        ("Reshape", ["b", "same"], ["c"], {}),
        ("Add", ["a", "c"], ["y"], {}),
        constants={"rows": ROWS, "column": np.array([8, 1]), "same": np.array([8, 1, 4])},
    )
    rng = np.random.default_rng(2)
    want, got = results(
        net, [{"x": rng.uniform(0, 2999, (1, 8)).astype(np.float32)} for _ in range(4)], tmp_path, target
    )
    assert decibels(want, got) > 30


def test_an_input_that_is_read_as_float_too_keeps_its_fractions(tmp_path):
    net = model(
        ("Cast", ["x"], ["i"], {"to": T.INT32}),
        ("Cast", ["i"], ["whole"], {"to": T.FLOAT}),
        ("Sub", ["x", "whole"], ["y"], {}),
    )
    rng = np.random.default_rng(3)
    want, got = results(net, [{"x": rng.uniform(-1, 1, (1, 8)).astype(np.float32)} for _ in range(8)], tmp_path)
    assert decibels(want, got) > 30


def test_computed_floats_are_cut_off(tmp_path):
    """And returned as integers: isfinite, which TVM guards them with, was refused."""
    net = model(
        ("MatMul", ["x", "w"], ["m"], {}),
        ("Cast", ["m"], ["y"], {"to": T.INT64}),
        constants={"w": WEIGHT * 9},
        dtypes={"y": T.INT64},
    )
    rng = np.random.default_rng(4)
    want, got = results(net, [{"x": rng.standard_normal((1, 8)).astype(np.float32)} for _ in range(16)], tmp_path)
    assert got.dtype == np.int64
    assert np.abs(want - got).max() <= 1
    assert (want == got).mean() > 0.8
