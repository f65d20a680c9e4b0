"""Control flow that is known at compile time is unrolled; the rest is refused by name."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from qcompile.frontend import load_model, normalise

RNG = np.random.default_rng(2)
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL


def value(name, shape=None, dtype=FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def graph_of(nodes, inputs, outputs, constants=()):
    weights = [numpy_helper.from_array(np.asarray(v), k) for k, v in dict(constants).items()]
    return helper.make_graph([helper.make_node(*n[:3], **n[3]) for n in nodes], "g", inputs, outputs, weights)


def model_of(graph, opset=17):
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def run(model, feed):
    return ort.InferenceSession(model.SerializeToString()).run(None, feed)


def same(model, feed):
    normal = normalise(load_model(model))
    for a, b in zip(run(normal, feed), run(model, feed)):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    return [n.op_type for n in normal.graph.node]


def branches():
    return {
        "then_branch": graph_of([("Add", ["x", "c"], ["t"], {})], [], [value("t")], {"c": np.float32(2)}),
        "else_branch": graph_of([("Relu", ["x"], ["e"], {})], [], [value("e")]),
    }


@pytest.mark.parametrize("size, op", [(8, "Add"), (3, "Relu")])
def test_if_of_a_shape(size, op):
    nodes = [
        ("Shape", ["x"], ["s"], {}),
        ("Gather", ["s", "one"], ["n"], {}),
        ("Greater", ["n", "four"], ["b"], {}),
        ("If", ["b"], ["y"], branches()),
    ]
    constants = {"one": np.array(1), "four": np.array(4)}
    graph = graph_of(nodes, [value("x", [2, size])], [value("y")], constants)
    assert same(model_of(graph), {"x": RNG.standard_normal((2, size)).astype(np.float32)}) == [op]


def test_if_of_data_runs_both_branches():
    graph = graph_of(
        [("If", ["b"], ["y"], {"name": "the_if"} | branches())], [value("x", [2]), value("b", [], BOOL)], [value("y")]
    )
    made = normalise(load_model(model_of(graph)))
    assert sorted(n.op_type for n in made.graph.node) == ["Add", "Relu", "Where"]


def test_loop_of_a_fixed_count():
    body = graph_of(
        [
            ("Identity", ["on"], ["still"], {}),
            ("MatMul", ["h", "w"], ["p"], {}),
            ("Tanh", ["p"], ["next"], {}),
            ("Mul", ["next", "two"], ["row"], {}),
        ],
        [value("i", [], INT64), value("on", [], BOOL), value("h", [1, 4])],
        [value("still", [], BOOL), value("next", [1, 4]), value("row", [1, 4])],
        {"two": np.float32(2)},
    )
    graph = graph_of(
        [("Loop", ["count", "", "x"], ["last", "rows"], {"body": body})],
        [value("x", [1, 4])],
        [value("last"), value("rows")],
        {"count": np.array(3), "w": RNG.standard_normal((4, 4)).astype(np.float32)},
    )
    ops = same(model_of(graph), {"x": RNG.standard_normal((1, 4)).astype(np.float32)})
    assert ops.count("MatMul") == 3 and "Loop" not in ops


@pytest.mark.parametrize("direction", [0, 1])
def test_scan_over_a_sequence(direction):
    body = graph_of(
        [("Add", ["h", "x_t"], ["s"], {}), ("Tanh", ["s"], ["next"], {}), ("Relu", ["next"], ["out"], {})],
        [value("h", [4]), value("x_t", [4])],
        [value("next", [4]), value("out", [4])],
    )
    attrs = {"body": body, "num_scan_inputs": 1, "scan_input_directions": [direction]}
    attrs["scan_output_directions"] = [direction]
    graph = graph_of(
        [("Scan", ["h0", "x"], ["last", "rows"], attrs)],
        [value("x", [5, 4])],
        [value("last"), value("rows")],
        {"h0": np.zeros(4, np.float32)},
    )
    ops = same(model_of(graph), {"x": RNG.standard_normal((5, 4)).astype(np.float32)})
    assert ops.count("Tanh") == 5


OLD = {  # forms that later opsets changed
    "axes": ([("Squeeze", ["{x}"], ["s{k}"], {"axes": [0]}), ("Unsqueeze", ["s{k}"], ["{y}"], {"axes": [0]})]),
    "split": ([("Split", ["{x}"], ["a{k}", "b{k}"], {"split": [1, 3], "axis": 1}),
               ("Concat", ["b{k}", "a{k}"], ["{y}"], {"axis": 1})]),
    "flat softmax": [("Softmax", ["{x}"], ["{y}"], {"axis": 0})],
    "sum": [("ReduceSum", ["{x}"], ["{y}"], {"axes": [1]})],
}  # fmt: skip


def old_body(form, x, y):
    named = lambda names: [n.format(x=x, y=y, k=y) for n in names]  # noqa: E731
    return [(op, named(reads), named(makes), attrs) for op, reads, makes, attrs in OLD[form]]


@pytest.mark.parametrize("form", OLD)
@pytest.mark.parametrize("opset", [9, 11])
def test_bodies_are_of_the_opset_of_the_model(form, opset):
    branch = {f"{n}_branch": graph_of(old_body(form, "x", n), [], [value(n)]) for n in ("then", "else")}
    graph = graph_of([("If", ["c"], ["y"], branch)], [value("x", [1, 4])], [value("y")], {"c": np.bool_(True)})
    same(model_of(graph, opset), {"x": RNG.standard_normal((1, 4)).astype(np.float32)})


@pytest.mark.parametrize("opset", [11, 12])
def test_loop_with_rows_of_an_old_opset(opset):
    kept = ("Add", ["h", "row"], ["next"], {})
    body = graph_of(
        [("Identity", ["on"], ["still"], {}), *old_body("axes", "h", "row"), kept],
        [value("i", [], INT64), value("on", [], BOOL), value("h", [1, 4])],
        [value("still", [], BOOL), value("next", [1, 4]), value("row", [1, 4])],
    )
    graph = graph_of(
        [("Loop", ["count", "", "x"], ["last", "rows"], {"body": body})],
        [value("x", [1, 4])],
        [value("last"), value("rows")],
        {"count": np.array(3)},
    )
    same(model_of(graph, opset), {"x": RNG.standard_normal((1, 4)).astype(np.float32)})
