"""Inputs that are fixed, Ifs on data, and sparse constants: compiled as what they mean."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import qcompile
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from qcompile.cli import qcompile as command
from qcompile.frontend.fixed_inputs import parse_constants
from small_models import model, save, value


def branch(name, scale, shape=(1, 8), inner=None):
    """x * scale, or the nodes `inner`, as a branch."""
    nodes = inner or [
        helper.make_node("Constant", [], [f"{name}_c"], value_float=float(scale)),
        helper.make_node("Mul", ["x", f"{name}_c"], [f"{name}_y"]),
    ]
    return helper.make_graph(nodes, name, [], [value(f"{name}_y", list(shape))])


def conditional(then, other):
    """y = then or other, as the rate sr is 16000."""
    return model(
        ("Equal", ["sr", "wanted"], ["c"], {}),
        ("If", ["c"], ["y"], {"then_branch": then, "else_branch": other}),
        inputs={"x": [1, 8], "sr": []},
        dtypes={"sr": TensorProto.INT64},
        constants={"wanted": np.int64(16000)},
    )


def on_data(nested=False):
    """y = 2x or -x (nested: or 3x) as the sum of x is above 0."""
    then = branch("t", 2.0)
    if nested:
        inner = helper.make_node("If", ["c2"], ["t_y"], then_branch=branch("a", 2.0), else_branch=branch("b", 3.0))
        then = branch("t", 0, inner=[inner])
    return model(
        ("ReduceSum", ["x"], ["s"], {"keepdims": 0}),
        ("Greater", ["s", "zero"], ["c"], {}),
        ("Greater", ["s", "one"], ["c2"], {}),
        ("If", ["c"], ["y"], {"then_branch": then, "else_branch": branch("e", -1.0)}),
        inputs={"x": [1, 8]},
        constants={"zero": np.float32(0), "one": np.float32(1)},
    )


def samples():
    rng = np.random.default_rng(0)
    return [{"x": rng.uniform(-1, 1, (1, 8)).astype(np.float32) + d} for d in (-0.3, -0.1, 0.1, 0.3) for _ in range(4)]


@pytest.mark.parametrize("rate, scale", [(16000, 2.0), (8000, -1.0)])
def test_an_input_that_is_set_decides(tmp_path, rate, scale):
    net = conditional(branch("t", 2.0), branch("e", -1.0))
    built = qcompile.compile(net, constants={"sr": rate}, calibration=samples(), output=tmp_path)
    loaded = qcompile.load(built.path)
    x = samples()[0]["x"]
    assert [i["name"] for i in built.manifest["inputs"]] == ["x"]
    np.testing.assert_allclose(loaded.run({"x": x})["y"], scale * x, atol=0.05)


def test_set_on_the_command_line(tmp_path):
    path = save(conditional(branch("t", 2.0), branch("e", -1.0, (1, 8))), tmp_path / "net.onnx")
    result = CliRunner().invoke(command.main, [str(path), "--set", "sr=16000", "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert parse_constants(("sr=16000", "go=true", "n=[1,2]")) == {"sr": 16000, "go": True, "n": [1, 2]}
    assert parse_constants(("a=b=3",)) == {"a=b": 3}
    with pytest.raises(qcompile.CompileError, match="--set"):
        parse_constants(("x=" + "[" * 100_000,))


@pytest.mark.parametrize(
    "given, words",
    [
        ({"rate": 1}, ["rate", "x, sr"]),
        ({"sr": 0.5}, ["sr=0.5", "int64"]),
        ({"sr": "fast"}, ["sr='fast'"]),
        ({"sr": [1, 2]}, ["sr", "[2]"]),
    ],
)
def test_settings_that_do_not_fit(tmp_path, given, words):
    with pytest.raises(qcompile.CompileError) as failure:
        qcompile.compile(conditional(branch("t", 2.0), branch("e", -1.0)), constants=given, output=tmp_path / "out")
    assert all(w in str(failure.value) for w in ["--set", *words]), failure.value


@pytest.mark.parametrize("nested", [False, True])
def test_both_branches_of_an_if_on_data_run(tmp_path, nested):
    net = on_data(nested)
    built = qcompile.compile(net, calibration=samples(), output=tmp_path)
    loaded, session = qcompile.load(built.path), ort.InferenceSession(net.SerializeToString())
    for sample in samples():
        if min(abs(sample["x"].sum() - e) for e in (0, 1)) > 0.2:  # rounding may decide otherwise where it is close
            np.testing.assert_allclose(loaded.run(sample)["y"], session.run(None, sample)[0], atol=0.1)


def test_branches_of_unlike_shapes_are_refused(tmp_path):
    short = [
        helper.make_node("Constant", [], ["k"], value_ints=[1]),
        helper.make_node("ReduceMean", ["x"], ["e_y"], axes=[1]),
    ]
    with pytest.raises(qcompile.CompileError, match=r"the_y.*\[1, 8\].*\[1, 1\].*--set"):
        net = conditional(branch("t", 2.0), branch("e", 0, (1, 1), inner=short))
        qcompile.compile(net, output=tmp_path / "out")


@pytest.mark.parametrize("linear", [True, False])
def test_sparse_constants(tmp_path, linear):
    weight = np.zeros((8, 4), np.float32)
    weight[[0, 3, 7], [1, 2, 0]] = [1.0, -2.0, 0.5]
    at = np.flatnonzero(weight) if linear else np.argwhere(weight)
    values = numpy_helper.from_array(weight[weight != 0], "w")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(at.astype(np.int64), "at"), [8, 4])
    as_node = model(("Constant", [], ["w"], {"sparse_value": sparse}), ("MatMul", ["x", "w"], ["y"], {}))
    as_initializer = onnx.ModelProto.FromString(model(("MatMul", ["x", "w"], ["y"], {})).SerializeToString())
    as_initializer.graph.sparse_initializer.append(sparse)
    for k, net in enumerate((as_node, as_initializer)):
        built = qcompile.compile(net, calibration=samples(), output=tmp_path / str(k))
        x = samples()[0]["x"]
        np.testing.assert_allclose(qcompile.load(built.path).run({"x": x})["y"], x @ weight, atol=0.1)
