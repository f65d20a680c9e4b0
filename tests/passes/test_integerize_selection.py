"""Gathering, scattering and sorting by computed numbers, against ONNX's reference on integers."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from test_integerize_integers import outputs_of

RNG = np.random.default_rng(8)
X = RNG.integers(-100_000, 100_000, (3, 4, 5))
CASES = [
    ("GatherElements", [X, RNG.integers(-4, 4, (3, 2, 5))], {"axis": 1}),
    ("GatherElements", [X, RNG.integers(0, 3, (6, 4, 5))], {"axis": 0}),
    ("GatherND", [X, RNG.integers(-3, 3, (6, 2))], {}),
    ("GatherND", [X, RNG.integers(0, 4, (3, 2, 1))], {"batch_dims": 1}),
    ("GatherND", [X, RNG.integers(0, 3, (2, 3))], {}),
    ("ScatterElements", [X, RNG.permutation(4)[None, :3, None].repeat(5, 2) - 2, X[:1, :3]], {"axis": 1}),
    ("ScatterElements", [X, RNG.integers(0, 4, (2, 3, 5)), X[:2, :3]], {"axis": 1, "reduction": "add"}),
    ("ScatterElements", [X, RNG.integers(0, 4, (2, 3, 5)), X[:2, :3]], {"axis": 1, "reduction": "max"}),
    ("ScatterND", [X, RNG.permutation(3)[:2, None], X[1:]], {}),
    ("ScatterND", [X, np.array([[0, 1], [2, -1], [0, 1]]), X[0, :3]], {"reduction": "add"}),
    ("ScatterND", [X, np.array([[0, 1], [2, -1], [0, 1]]), X[0, :3]], {"reduction": "mul"}),
]


@pytest.mark.parametrize("op, inputs, attrs", CASES, ids=[f"{i}{c[0]}" for i, c in enumerate(CASES)])
def test_computed_numbers(op, inputs, attrs):
    names = list("abc")[: len(inputs)]
    node = helper.make_node(op, names, ["y"], **attrs)
    feed = dict(zip(names, inputs))
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.INT64, v.shape) for n, v in feed.items()],
        [helper.make_tensor_value_info("y", TensorProto.INT64, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (want,) = ReferenceEvaluator(model).run(None, feed)
    (got,) = outputs_of([node], feed)
    if attrs.get("reduction") == "mul":  # wraps where the artifact keeps int64 inputs in 32 bits
        want = want.astype(got.dtype)
    assert np.array_equal(got, want)


@pytest.mark.parametrize("axis, largest", [(0, 1), (1, 0), (2, 1)])
def test_top_k_takes_the_lower_number_of_equals(axis, largest):
    x = X // 50_000
    node = helper.make_node("TopK", ["a", "k"], ["y", "i"], axis=axis, largest=largest)
    values, numbers = outputs_of([node], {"a": x}, {"k": np.array([2])}, ("y", "i"))
    order = np.argsort(-x if largest else x, axis, kind="stable").take([0, 1], axis)
    assert np.array_equal(numbers, order)
    assert np.array_equal(values, np.take_along_axis(x, order, axis))
