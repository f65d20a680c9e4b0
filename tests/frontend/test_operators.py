"""Operators that are compositions of others: what they become computes what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
import qcompile
from onnx import TensorProto, helper, numpy_helper
from qcompile.frontend import load_model, normalise
from qcompile.targets.errors import CompileError
from small_models import model

RNG = np.random.default_rng(13)
INT64 = TensorProto.INT64


def f32(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def model_of(op, shapes, constants=(), outputs=1, opset=18, dtypes=(), **attrs):
    """One node of `shapes` inputs and then `constants`."""
    names = [f"x{i}" for i in range(len(shapes))] + ["" if c is None else f"c{i}" for i, c in enumerate(constants)]
    made = [f"y{i}" for i in range(outputs)]
    types = [*dtypes, *[TensorProto.FLOAT] * len(shapes)]
    graph = helper.make_graph(
        [helper.make_node(op, names, made, name="the_node", **attrs)],
        "g",
        [helper.make_tensor_value_info(f"x{i}", types[i], s) for i, s in enumerate(shapes)],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in made],
        [numpy_helper.from_array(np.asarray(c), f"c{i}") for i, c in enumerate(constants) if c is not None],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def same(model, feed, gone):
    normal = normalise(load_model(model))
    assert gone not in {n.op_type for n in normal.graph.node}
    for a, b in zip(*(ort.InferenceSession(m.SerializeToString()).run(None, feed) for m in (normal, model))):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize(
    "op, shapes, constants, attrs",
    [
        ("CumSum", [(3, 5)], [np.array(1)], {}),
        ("CumSum", [(3, 5)], [np.array(0)], {"reverse": 1, "exclusive": 1}),
        ("CumSum", [(7,)], [np.array(0)], {"exclusive": 1}),
        ("Einsum", [(2, 4, 5, 8), (2, 4, 6, 8)], [], {"equation": "bhqd,bhkd->bhqk"}),
        ("Einsum", [(2, 4, 5, 6), (2, 6, 4, 8)], [], {"equation": "bhqk,bkhd->bqhd"}),
        ("Einsum", [(2, 5, 8), (8, 6)], [], {"equation": "...i,ij->...j"}),
        ("Einsum", [(3, 4), (3, 4)], [], {"equation": "ij,ij->i"}),
        ("Einsum", [(3, 4)], [], {"equation": "ij->ji"}),
        ("Einsum", [(3,), (4,)], [], {"equation": "i,j"}),
        ("LRN", [(1, 8, 4, 4)], [], {"size": 5, "alpha": 0.1, "beta": 0.75, "bias": 2.0}),
        ("LRN", [(1, 8, 4, 4)], [], {"size": 3}),
        ("LpNormalization", [(3, 8)], [], {"axis": -1, "p": 2}),
        ("LpNormalization", [(3, 8, 4)], [], {"axis": 1, "p": 2}),
        ("ReduceLogSumExp", [(3, 8)], [np.array([1])], {"keepdims": 0}),
        ("ReduceProd", [(3, 4)], [np.array([1])], {"keepdims": 1}),
        ("Split", [(3, 4)], [np.array([4])], {"axis": 1}),
        ("Hardmax", [(3, 8)], [], {"axis": -1}),
        ("Trilu", [(2, 5, 6)], [np.array(1)], {"upper": 1}),
        ("Trilu", [(5, 6)], [], {"upper": 0}),
        ("ReverseSequence", [(4, 3, 2)], [np.array([4, 2, 1])], {"batch_axis": 1, "time_axis": 0}),
        ("GatherElements", [(3, 4)], [np.array([[0, -1], [2, 1], [1, 1]])], {"axis": 1}),
        ("GatherND", [(3, 4, 5)], [np.array([[0, 1], [2, -1]])], {}),
        ("GatherND", [(2, 4, 5)], [np.array([[[1], [3]], [[0], [2]]])], {"batch_dims": 1}),
    ],
)
def test_compositions(op, shapes, constants, attrs):
    feed = {f"x{i}": f32(*s) for i, s in enumerate(shapes)}
    same(model_of(op, shapes, constants, **attrs), feed, op)


@pytest.mark.parametrize("op, index", [("ScatterND", [[1], [-1]]), ("ScatterElements", [[0, 2, 1, 0], [2, 0, 2, 1]])])
def test_scattering_by_constants(op, index):
    graph = model_of(op, [(3, 4), (2, 4)], [np.array(index)])
    node = graph.graph.node[0]
    node.input[:] = ["x0", "c0", "x1"]
    same(graph, {"x0": f32(3, 4), "x1": f32(2, 4)}, op)


def test_sums_of_exponentials_that_leave_float():
    nodes = [("Exp", ["x"], ["e"]), ("ReduceSum", ["e", "axes"], ["s"]), ("Log", ["s"], ["y"])]
    graph = helper.make_graph(
        [helper.make_node(*n) for n in nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array([1]), "axes")],
    )
    normal = normalise(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    x = 100 * f32(2, 8)
    got = ort.InferenceSession(normal.SerializeToString()).run(None, {"x": x})[0]
    np.testing.assert_allclose(got, np.logaddexp.reduce(x.astype(np.float64), axis=1, keepdims=True), rtol=1e-5)


def test_uneven_split():
    same(model_of("Split", [(7, 2)], outputs=4, num_outputs=4, axis=0), {"x0": f32(7, 2)}, "none")


def test_one_hot():
    model = model_of("OneHot", [(2, 3)], [np.array(5), np.float32([0.0, 2.0])], dtypes=[INT64], axis=-1)
    same(model, {"x0": np.array([[0, 4, -1], [3, 7, -5]])}, "OneHot")


@pytest.mark.parametrize(
    "op, shapes, attrs, words",
    [
        ("Einsum", [(2, 2)], {"equation": "ii->i"}, ["the_node", "repeats an index"]),
        ("LpPool", [(1, 2, 8, 8)], {"kernel_shape": [2, 2], "p": 3}, ["the_node", "p above 2"]),
        ("Det", [(2, 2)], {}, ["the_node", "Det", "opset 21"]),
    ],
)
def test_refusals_name_the_node(op, shapes, attrs, words):
    with pytest.raises(CompileError) as caught:
        normalise(model_of(op, shapes, **attrs))
    assert all(w in str(caught.value) for w in words), caught.value


def test_products_over_axes_of_one_element(tmp_path):
    """The parts of such an axis are one, and TVM's split into one part is a tuple."""
    x = np.linspace(-1, 1, 6, dtype=np.float32).reshape(1, 6, 1)
    net = model_of("ReduceProd", [(1, 6, 1)], [np.array([0, 2])], keepdims=0)
    result = qcompile.load(qcompile.compile(net, calibration=[{"x0": x}], output=tmp_path).path).run({"x0": x})
    np.testing.assert_allclose(result["y0"], x.reshape(6), atol=0.01)


@pytest.mark.parametrize("written", ["one operator", "Log, ReduceSum, Exp", "with the maximum taken off"])
def test_log_sum_exp_takes_the_maximum_off_once(written):
    axes = {"axes": np.array([1], np.int64)}
    spelled = [("Exp", ["x"], ["e"], {}), ("ReduceSum", ["e", "axes"], ["s"], {}), ("Log", ["s"], ["y"], {})]
    stable = [("ReduceMax", ["x", "axes"], ["m"], {}), ("Sub", ["x", "m"], ["b"], {}), ("Exp", ["b"], ["e"], {})]
    stable += [*spelled[1:2], ("Log", ["s"], ["l"], {}), ("Add", ["l", "m"], ["y"], {})]
    forms = {"one operator": [("ReduceLogSumExp", ["x", "axes"], ["y"], {})], "Log, ReduceSum, Exp": spelled}
    net = model(*forms.get(written, stable), inputs={"x": [2, 9]}, constants=axes)
    kinds = [n.op_type for n in normalise(net).graph.node]
    assert kinds.count("ReduceMax") == kinds.count("Sub") == kinds.count("Log") == 1, kinds
