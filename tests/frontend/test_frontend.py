"""Loading and normalising: structure as meant, outputs equal to the original model's."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from qcompile.frontend import load_model, normalise
from qcompile.targets.errors import CompileError

RNG = np.random.default_rng(7)


def model_of(nodes, inputs, outputs, constants=(), opset=17, dtypes=None):
    info = lambda n, s: helper.make_tensor_value_info(n, (dtypes or {}).get(n, TensorProto.FLOAT), s)  # noqa: E731
    graph = helper.make_graph(
        [helper.make_node(t, i, o, name=f"n{k}", **a) for k, (t, i, o, a) in enumerate(nodes)],
        "test",
        [info(n, s) for n, s in inputs.items()],
        [info(n, s) for n, s in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in dict(constants).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(model, feed):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options).run(None, feed)


def ops(model):
    return [n.op_type for n in model.graph.node]


def check_same(model, feed, want_ops):
    result = normalise(load_model(model))
    assert ops(result) == want_ops
    for a, b in zip(run(model, feed), run(result, feed)):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)
    again = normalise(result)
    assert again.SerializeToString() == normalise(again).SerializeToString(), "a second normalisation changes nothing"
    assert ops(again) == want_ops
    return result


def f32(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("divide", [False, True])
def test_erf_gelu_becomes_gelu(swap, divide):
    two = lambda a, b: [b, a] if swap else [a, b]  # noqa: E731
    root = math.sqrt(2) if divide else 1 / math.sqrt(2)
    m = model_of(
        [("Div", ["x", "r"], ["a"], {}) if divide else ("Mul", two("x", "r"), ["a"], {}), ("Erf", ["a"], ["b"], {}),
         ("Add", two("b", "one"), ["c"], {}), ("Mul", two("x", "c"), ["d"], {}), ("Mul", two("d", "h"), ["y"], {})],
        {"x": [2, 8]}, {"y": [2, 8]},
        {"r": np.float32(root), "one": np.float32(1), "h": np.float32(0.5)},
    )  # fmt: skip
    check_same(m, {"x": f32(2, 8)}, ["Gelu"])


def test_tanh_gelu_and_hard_swish():
    m = model_of(
        [("Pow", ["x", "three"], ["p"], {}), ("Mul", ["p", "k"], ["q"], {}), ("Add", ["x", "q"], ["r"], {}),
         ("Mul", ["r", "s"], ["t"], {}), ("Tanh", ["t"], ["u"], {}), ("Add", ["u", "one"], ["v"], {}),
         ("Mul", ["x", "v"], ["w"], {}), ("Mul", ["h", "w"], ["g"], {}), ("Add", ["g", "c3"], ["a"], {}),
         ("Clip", ["a", "zero", "six"], ["b"], {}), ("Mul", ["g", "b"], ["c"], {}), ("Div", ["c", "six"], ["y"], {})],
        {"x": [3, 4]}, {"y": [3, 4]},
        {k: np.float32(v) for k, v in dict(three=3, k=0.044715, s=math.sqrt(2 / math.pi), one=1, h=0.5, c3=3, zero=0,
                                           six=6).items()},
    )  # fmt: skip
    result = check_same(m, {"x": f32(3, 4)}, ["Gelu", "HardSwish"])
    assert helper.get_attribute_value(result.graph.node[0].attribute[0]) == b"tanh"


@pytest.mark.parametrize("square", ["Pow", "Mul"])
@pytest.mark.parametrize("affine", [False, True])
def test_layer_norm(square, affine):
    nodes = [("ReduceMean", ["x"], ["m"], {"axes": [-1]}), ("Sub", ["x", "m"], ["d"], {}),
             ("Pow", ["d", "two"], ["s"], {}) if square == "Pow" else ("Mul", ["d", "d"], ["s"], {}),
             ("ReduceMean", ["s"], ["v"], {"axes": [-1]}), ("Add", ["v", "e"], ["w"], {}), ("Sqrt", ["w"], ["r"], {}),
             ("Div", ["d", "r"], ["n" if affine else "y"], {})]  # fmt: skip
    constants = {"two": np.float32(2), "e": np.float32(1e-5)}
    if affine:
        nodes += [("Mul", ["n", "g"], ["o"], {}), ("Add", ["b", "o"], ["y"], {})]
        constants |= {"g": f32(8), "b": f32(8)}
    check_same(
        model_of(nodes, {"x": [2, 3, 8]}, {"y": [2, 3, 8]}, constants), {"x": f32(2, 3, 8)}, ["LayerNormalization"]
    )


def test_rms_norm_raises_the_opset():
    nodes = [("Pow", ["x", "two"], ["s"], {}), ("ReduceMean", ["s"], ["v"], {"axes": [-1]}),
             ("Add", ["v", "e"], ["w"], {}), ("Sqrt", ["w"], ["r"], {}), ("Reciprocal", ["r"], ["i"], {}),
             ("Mul", ["x", "i"], ["n"], {}), ("Mul", ["g", "n"], ["y"], {})]  # fmt: skip
    m = model_of(nodes, {"x": [2, 8]}, {"y": [2, 8]}, {"two": np.float32(2), "e": np.float32(1e-6), "g": f32(8)})
    assert check_same(m, {"x": f32(2, 8)}, ["RMSNormalization"]).opset_import[0].version == 23


def test_batch_norm_folds_into_conv():
    stats = {k: np.abs(f32(4)) + 0.5 for k in ("g", "b", "m", "v")}
    m = model_of([("Conv", ["x", "w"], ["c"], {"kernel_shape": [3, 3]}),
                  ("BatchNormalization", ["c", "g", "b", "m", "v"], ["y"], {})],
                 {"x": [1, 2, 6, 6]}, {"y": [1, 4, 4, 4]}, {"w": f32(4, 2, 3, 3), **stats})  # fmt: skip
    check_same(m, {"x": f32(1, 2, 6, 6)}, ["Conv"])


def test_shape_arithmetic_folds():
    m = model_of([("Shape", ["x"], ["s"], {}), ("Gather", ["s", "i"], ["b"], {}), ("Unsqueeze", ["b", "z"], ["u"], {}),
                  ("Concat", ["u", "rest"], ["t"], {"axis": 0}), ("Reshape", ["x", "t"], ["y"], {})],
                 {"x": [2, 3, 4]}, {"y": [2, 12]},
                 {"i": np.int64(0), "z": np.array([0]), "rest": np.array([-1])})  # fmt: skip
    result = check_same(m, {"x": f32(2, 3, 4)}, ["Reshape"])
    assert numpy_helper.to_array(result.graph.initializer[0]).tolist() == [2, 12]


def test_old_softmax_and_slice_keep_their_meaning():
    m = model_of([("Slice", ["x"], ["s"], {"starts": [1], "ends": [3], "axes": [1]}), ("Softmax", ["s"], ["y"],
        {"axis": 1})],
                 {"x": [2, 4, 5]}, {"y": [2, 2, 5]}, opset=9)  # fmt: skip
    check_same(m, {"x": f32(2, 4, 5)}, ["Slice", "Reshape", "Softmax", "Reshape"])


def test_quantized_weights_stay_quantized():
    m = model_of([("QuantizeLinear", ["w", "s", "z"], ["q"], {}), ("DequantizeLinear", ["q", "s", "z"], ["d"], {}),
                  ("MatMul", ["x", "d"], ["y"], {})], {"x": [2, 3]}, {"y": [2, 4]},
                 {"w": f32(3, 4), "s": np.float32(0.02), "z": np.int8(0)})  # fmt: skip
    check_same(m, {"x": f32(2, 3)}, ["DequantizeLinear", "MatMul"])


def test_dynamic_axes():
    m = model_of([("Relu", ["x"], ["y"], {})], {"x": ["n", 3]}, {"y": ["n", 3]})
    notes: list[str] = []
    assert normalise(load_model(m), None, notes).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1
    assert "batch axis" in notes[0]
    assert normalise(m, {"x": (5, 3)}).graph.output[0].type.tensor_type.shape.dim[0].dim_value == 5
    m = model_of([("Relu", ["x"], ["y"], {})], {"x": ["n", 3, "h"]}, {"y": ["n", 3, "h"]})
    with pytest.raises(CompileError, match=r"input 'x': axis 2.*--shapes x:1x3x224"):
        normalise(m)
    with pytest.raises(CompileError, match="contradicts"):
        normalise(m, {"x": (1, 4, 4)})
    with pytest.raises(CompileError, match="no such input"):
        normalise(m, {"z": (1, 4, 4)})


def test_files_that_are_refused(tmp_path):
    with pytest.raises(CompileError, match="no such file"):
        load_model(tmp_path / "none.onnx")
    m = model_of([("MatMul", ["x", "w"], ["y"], {})], {"x": [1, 8]}, {"y": [1, 8]}, {"w": f32(8, 8)})
    whole = m.SerializeToString()
    for name, data in {"cut": whole[: len(whole) // 2], "text": b"hello world, no model", "empty": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CompileError):
            load_model(tmp_path / name)
    path = tmp_path / "external.onnx"
    onnx.save(m, str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    assert len(load_model(path).graph.initializer) == 1
    (tmp_path / "w.bin").write_bytes(b"123")
    with pytest.raises(CompileError, match=r"'w'.*too short"):
        load_model(path)
    (tmp_path / "w.bin").unlink()
    with pytest.raises(CompileError, match=r"'w'.*missing"):
        load_model(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(bad):
    w = f32(8, 8)
    w[3, 3] = bad
    with pytest.raises(CompileError, match="weight 'w'"):
        load_model(model_of([("MatMul", ["x", "w"], ["y"], {})], {"x": [1, 8]}, {"y": [1, 8]}, {"w": w}))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan])
def test_scales_that_are_not_positive(scale):
    m = model_of([("QuantizeLinear", ["x", "s"], ["y"], {})], {"x": [4]}, {"y": [4]}, {"s": np.float32(scale)},
                 dtypes={"y": TensorProto.UINT8})  # fmt: skip
    with pytest.raises(CompileError, match="'s'"):
        load_model(m)


def test_control_flow_names_the_node():
    branch, other = (
        helper.make_graph([helper.make_node(op, inputs, ["b"], **attrs)], "b", [],
                          [helper.make_tensor_value_info("b", TensorProto.FLOAT, [size])])
        for op, inputs, attrs, size in (("Relu", ["x"], {}, 2), ("Concat", ["x", "x"], {"axis": 0}, 4)))  # fmt: skip
    m = model_of([("If", ["c"], ["y"], {"then_branch": branch, "else_branch": other})], {"x": [2], "c": []},
        {"y": [2]},
                 dtypes={"c": TensorProto.BOOL})  # fmt: skip
    with pytest.raises(CompileError, match="If 'n0'"):
        normalise(load_model(m))


def test_group_normalization_becomes_instance_normalization():
    m = model_of(
        [("GroupNormalization", ["x", "s", "b"], ["y"], {"num_groups": 2})],
        {"x": [2, 6, 5, 4]},
        {"y": [2, 6, 5, 4]},
        {"s": f32(6), "b": f32(6)},
        opset=21,
    )
    m.ir_version = 10
    check_same(m, {"x": f32(2, 6, 5, 4)}, ["Reshape", "InstanceNormalization", "Reshape", "Mul", "Add"])


@pytest.mark.parametrize(
    ("shape", "want"), [((5,), ["Gemm"]), ((1, 5), ["Gemm"]), ((3, 5), ["Gemm", "Add"]), ((3, 1), ["Gemm", "Add"])]
)
def test_gemm_bias_that_differs_by_row_is_added_after_it(shape, want):
    constants = {"w": f32(8, 5), "c": f32(*shape)}
    m = model_of([("Gemm", ["x", "w", "c"], ["y"], {})], {"x": [3, 8]}, {"y": [3, 5]}, constants)
    check_same(m, {"x": f32(3, 8)}, want)
