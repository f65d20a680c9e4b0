"""Integer inputs that mean numbers: counts, timesteps, ages. And those that are masks."""

import numpy as np
import pytest
import qcompile
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from qcompile.targets import CompileError
from small_models import model

HALF = (("Cast", ["x"], ["f"], {"to": 1}), ("Mul", ["f", "c"], ["y"], {}))
LINE = (*HALF[:1], ("Mul", ["f", "c"], ["g"], {}), ("Sub", ["g", "c"], ["y"], {}))
CONSTANTS = {"c": np.float32(0.5)}


def net(nodes, dtype=TensorProto.INT64, size=4, **constants):
    return model(*nodes, inputs={"x": [1, size]}, dtypes={"x": dtype}, constants={**CONSTANTS, **constants})


def run(folder, made, x, target="host", **options):
    """(artifact's, float model's) result on x; the reference gives the artifact's integers."""
    loaded = qcompile.load(qcompile.compile(made, target, output=folder, name="n", **options).path)
    got, (want,) = loaded.run({"x": x})["y"], ReferenceEvaluator(made).run(None, {"x": x})
    np.testing.assert_array_equal(got, loaded.reference({"x": x})["y"])
    return got, want


@pytest.mark.parametrize("target", ["host", "arm-a72"])
@pytest.mark.parametrize(
    ("values", "most"),
    [([5, 127, 128, 300], 0.01), ([-3, 2, 999, 32767], 1), ([5, -1000, 20000, 40000], 2), ([7, 70000, -5, 10**6], 20)],
)
@pytest.mark.parametrize("nodes", [HALF, LINE], ids=["half", "line"])
def test_numbers_are_no_masks(tmp_path, nodes, values, most, target):
    """300 * 0.5 was 63.5: integers were saturated at 127."""
    x = np.array([values])
    got, want = run(tmp_path, net(nodes), x, target, calibration=[{"x": x}])
    np.testing.assert_allclose(got, want, atol=most)


def test_numbers_that_nothing_is_computed_with_are_exact(tmp_path):
    x = np.array([[5, 127, 128, 300]])
    got, want = run(tmp_path, net([("Cast", ["x"], ["y"], {"to": 1})]), x, calibration=[{"x": x}])
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("op", ["Sin", "Log", "Sigmoid", "Sqrt"])
def test_functions_of_numbers(tmp_path, op):
    """A timestep's sine: each of up to 4096 integers has its own entry of the table."""
    x = np.array([[1, 127, 128, 1000]])
    nodes = [("Cast", ["x"], ["f"], {"to": 1}), (op, ["f"], ["y"], {})]
    got, want = run(tmp_path, net(nodes), x, calibration=[{"x": x}])
    np.testing.assert_allclose(got, want, atol=np.abs(want).max() / 200)


def test_numbers_in_a_product(tmp_path):
    x = np.array([[18, 64, 131, 200], [70, 25, 90, 255]])
    w = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    made = net([("Cast", ["x"], ["f"], {"to": 1}), ("MatMul", ["f", "w"], ["y"], {})], TensorProto.INT32, w=w)
    got, want = run(tmp_path, made, x[:1].astype(np.int32), calibration=[{"x": v[None].astype(np.int32)} for v in x])
    assert np.abs(got - want).max() < 0.02 * np.abs(want).max()


@pytest.mark.parametrize(
    ("dtype", "values", "most"),
    [
        (TensorProto.UINT8, [0, 3, 128, 255], 0.01),
        (TensorProto.INT8, [-128, 0, 100, 127], 0.01),
        (TensorProto.INT16, [-32768, 5, 300, 32767], 1),
        (TensorProto.BOOL, [0, 1, 1, 0], 0.01),
    ],
)
def test_small_types_need_no_samples(tmp_path, dtype, values, most):
    x = np.array([values]).astype(helper.tensor_dtype_to_np_dtype(dtype))
    got, want = run(tmp_path, net(HALF, dtype), x)
    np.testing.assert_allclose(got, want, atol=most)


@pytest.mark.parametrize("dtype", [TensorProto.INT32, TensorProto.INT64])
def test_wide_types_without_samples_are_refused(tmp_path, dtype):
    with pytest.raises(CompileError, match=r"node Cast .*: input 'x' .* used as numbers; give samples with --calib"):
        qcompile.compile(net(HALF, dtype), output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_masks_of_scores_need_no_samples(tmp_path):
    from programs import attention_net

    built = qcompile.compile(attention_net(), output=tmp_path, name="n")
    loaded, feed = qcompile.load(built.path), {"ids": np.arange(6)[None], "mask": np.array([[[1, 1, 1, 1, 0, 0]]])}
    got, (want,) = loaded.run(feed)["y"], ReferenceEvaluator(attention_net()).run(None, feed)
    assert np.square(want).sum() > 100 * np.square(got - want).sum()


def test_flags_stay_exact(tmp_path):
    """Zeros and ones, as samples show, have grids that hold them exactly."""
    x = np.array([[1, 0, 1, 1]])
    got, want = run(tmp_path, net(HALF), x, calibration=[{"x": x}])
    np.testing.assert_allclose(got, want, atol=1e-4)


READERS = {
    "Softmax": {}, "LogSoftmax": {}, "ReduceMax": {"axes": [-1]}, "ReduceL2": {"axes": [-1]}, "LpNormalization": {},
    "MaxPool": {"kernel_shape": [2]}, "AveragePool": {"kernel_shape": [2]}, "ReduceProd": {"axes": [-1]},
    "Add": "v", "Mul": "v", "Div": "v", "Max": "v", "Sub": "v",
}  # fmt: skip


@pytest.mark.parametrize("op", READERS)
def test_small_numbers_are_numbers_too(tmp_path, op):
    """Integers of few values were taken for masks, and refused as operands of most operators or cut to 0 and 1."""
    rng, attributes = np.random.default_rng(0), READERS[op]
    operand = ["v"] if attributes == "v" else []
    constants = {"v": rng.uniform(0.5, 2, 6).astype(np.float32)} if operand else {}
    nodes = [("Cast", ["x"], ["f"], {"to": 1}), (op, ["f", *operand], ["y"], {} if operand else attributes)]
    made = model(*nodes, inputs={"x": [1, 4, 6]}, dtypes={"x": TensorProto.INT32}, constants=constants, opset=17)
    most = 3 if op == "ReduceProd" else 60
    feeds = [{"x": 1 + rng.integers(0, most, (1, 4, 6)).astype(np.int32)} for _ in range(6)]
    loaded = qcompile.load(qcompile.compile(made, calibration=feeds, output=tmp_path, name="n").path)
    exact = np.stack([ReferenceEvaluator(made).run(None, f)[0] for f in feeds])
    noise = np.stack([loaded.run(f)["y"] for f in feeds]) - exact
    assert 10 * np.log10(np.square(exact).sum() / max(np.square(noise).sum(), 1e-20)) > 30
