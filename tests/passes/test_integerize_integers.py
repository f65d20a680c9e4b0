"""Operators on declared integers are exact: equal to numpy in the declared type, beyond 16 and 32 bits too."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from qcompile.passes.bounds import prove_bounds
from qcompile.passes.check import check as check_program
from qcompile.passes.tidy import tidy
from qdq_models import compiled

TYPES = {
    "int8": TensorProto.INT8,
    "uint8": TensorProto.UINT8,
    "int16": TensorProto.INT16,
    "uint16": TensorProto.UINT16,
    "int32": TensorProto.INT32,
    "uint32": TensorProto.UINT32,
    "int64": TensorProto.INT64,
    "uint64": TensorProto.UINT64,
}
STORED = {"int64": "int32"}  # at the border


def outputs_of(nodes, feeds, constants=(), outputs=("y",), types=TensorProto.INT64, opset=21):
    """Outputs of the integer program; feeds {name: array}, constants {name: array}."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in feeds.items()],
        [helper.make_tensor_value_info(o, types, None) for o in outputs],
        [numpy_helper.from_array(v, n) for n, v in dict(constants).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    program = tidy(compiled(model))
    check_program(program, "integerize")
    prove_bounds(program)
    values = program.run({n: v.astype(program.inputs[n].dtype) for n, v in feeds.items()})
    return [values[t] for t in program.outputs]


def node(op, inputs=("a", "b"), **attrs):
    return helper.make_node(op, list(inputs), ["y"], **attrs)


A = [[7, -7, 100, -128], [3, 0, 55, 127]]
B = [[2, -2, 3, -1], [5, 9, -4, 1]]
CASES = [
    ("Add", {}, np.add),
    ("Sub", {}, np.subtract),
    ("Mul", {}, np.multiply),
    ("Max", {}, np.maximum),
    ("Min", {}, np.minimum),
    ("Mod", {}, np.mod),
    ("Mod", {"fmod": 1}, np.fmod),
    ("BitwiseAnd", {}, np.bitwise_and),
    ("BitwiseOr", {}, np.bitwise_or),
    ("BitwiseXor", {}, np.bitwise_xor),
    ("Equal", {}, np.equal),
    ("Less", {}, np.less),
    ("GreaterOrEqual", {}, np.greater_equal),
]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("op, attrs, meaning", CASES, ids=[f"{c[0]}{len(c[1])}" for c in CASES])
def test_two_operands(op, attrs, meaning, dtype):
    a, b = (np.array(v).astype(dtype if dtype[0] != "u" else "int64") for v in (A, B))
    if dtype.startswith("u"):
        a, b = np.abs(a).astype(dtype), np.abs(b).astype(dtype)
    result = "bool" if op in ("Equal", "Less", "GreaterOrEqual") else dtype
    with np.errstate(all="ignore"):
        want = meaning(a, b)
    (got,) = outputs_of(
        [node(op, **attrs)], {"a": a, "b": b}, types=TensorProto.BOOL if result == "bool" else TYPES[dtype]
    )
    assert np.array_equal(got.astype(np.int64), want.astype(np.int64)), f"{got} instead of {want}"


def test_int64_keeps_what_32_bits_do_not_hold():
    a = np.array([100_000, -100_000, 2**31 - 1, 7])
    (got,) = outputs_of([node("Mul", ("a", "a"))], {"a": a})
    assert np.array_equal(got, a * a)
    (got,) = outputs_of(
        [helper.make_node("Add", ["a", "one"], ["more"]), node("Mul", ("more", "three"))],
        {"a": a},
        {"one": np.array(1), "three": np.array(3)},
    )
    assert np.array_equal(got, (a + 1) * 3)


def test_int32_wraps_as_declared():
    a = np.array([2**31 - 1, -(2**31), 65536], np.int32)
    (got,) = outputs_of([node("Mul", ("a", "a"))], {"a": a}, types=TensorProto.INT32)
    assert np.array_equal(got, (a.astype(np.int64) * a).astype(np.int32))
    (got,) = outputs_of([node("Abs", ("a",))], {"a": a}, types=TensorProto.INT32)
    assert np.array_equal(got, np.array([2**31 - 1, -(2**31), 65536]))


def test_division_rounds_toward_zero():
    a, b = np.array([7, -7, 7, -7, 2_000_000_000]), np.array([2, 2, -2, -2, 7])
    (got,) = outputs_of([node("Div")], {"a": a, "b": b})
    assert got.tolist() == [3, -3, -3, 3, 285714285]


def test_unary_and_shifts():
    a = np.array([5, -70_000, 0, 123_456])
    assert outputs_of([node("Neg", ("a",))], {"a": a})[0].tolist() == (-a).tolist()
    assert outputs_of([node("Sign", ("a",))], {"a": a})[0].tolist() == [1, -1, 0, 1]
    assert outputs_of([node("BitwiseNot", ("a",))], {"a": a})[0].tolist() == (~a).tolist()
    u, n = np.array([16, 255, 1], np.uint8), np.array([1, 2, 9], np.uint8)
    shift = [node("BitShift", direction="LEFT")], {"a": u, "b": n}
    assert outputs_of(*shift, types=TensorProto.UINT8)[0].tolist() == [32, 252, 0]


def test_comparisons_and_choices_beyond_16_bits():
    a, b = np.array([100_000, 200_000, -5]), np.array([200_000, 100_000, 2**30])
    (got,) = outputs_of([node("Less")], {"a": a, "b": b}, types=TensorProto.BOOL)
    assert got.tolist() == [1, 0, 1]
    less = helper.make_node("Less", ["a", "b"], ["less"])
    (got,) = outputs_of([less, node("Where", ("less", "a", "b"))], {"a": a, "b": b})
    assert got.tolist() == [100_000, 100_000, -5]
    (got,) = outputs_of([node("Cast", ("a",), to=TensorProto.UINT8)], {"a": a}, types=TensorProto.UINT8)
    assert got.tolist() == (a.astype(np.uint8)).tolist()


def test_gather_by_computed_numbers_beyond_16_bits():
    table = np.arange(70_000, dtype=np.int64)
    ids = np.array([69_990, 3, 40_000])
    (got,) = outputs_of(
        [helper.make_node("Add", ["a", "two"], ["moved"]), node("Gather", ("t", "moved"))],
        {"a": ids},
        {"t": table, "two": np.array(2)},
    )
    assert np.array_equal(got, ids + 2)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64])
@pytest.mark.parametrize("exclusive, reverse", [(0, 0), (1, 0), (0, 1), (1, 1)])
@pytest.mark.parametrize("op", ["CumSum", "CumProd"])
def test_running_sums_and_products(op, exclusive, reverse, dtype):
    x = np.random.default_rng(5).integers(1, 4, (3, 5, 2)).astype(dtype)
    running = helper.make_node(op, ["a", "axis"], ["y"], exclusive=exclusive, reverse=reverse)
    (got,) = outputs_of(
        [running], {"a": x}, {"axis": np.array(1)}, types=helper.np_dtype_to_tensor_dtype(x.dtype), opset=26
    )
    run, neutral = (np.cumsum, 0) if op == "CumSum" else (np.cumprod, 1)
    moved = x[:, ::-1] if reverse else x
    want = run(moved.astype(np.int64), 1)
    if exclusive:
        want = np.concatenate([np.full((3, 1, 2), neutral), want[:, :-1]], 1)
    want = (want[:, ::-1] if reverse else want).astype(dtype)
    assert np.array_equal(got, want)
