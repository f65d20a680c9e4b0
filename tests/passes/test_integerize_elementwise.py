"""Functions become tables, sums and products one rounding, clamps the limits of a grid."""

from __future__ import annotations

import numpy as np
import pytest
from qdq_models import BOOL, FLOAT, INT32, INT64, Graph, check, kind, ops

UNARY = {
    "Relu": {},
    "LeakyRelu": {"alpha": 0.1},
    "Sigmoid": {},
    "HardSigmoid": {},
    "HardSwish": {},
    "Tanh": {},
    "Erf": {},
    "Elu": {},
    "Selu": {},
    "Softplus": {},
    "Exp": {},
    "Abs": {},
    "Neg": {},
    "Sin": {},
    "Cos": {},
    "Sign": {},
    "Gelu": {},
    "Mish": {},
}


@pytest.mark.parametrize("kind", UNARY)
def test_functions_are_tables(kind):
    g = Graph()
    program = check(g.model(g.q(g.op(kind, g.data("x", 3, 40, zero_point=-3), **UNARY[kind]), 0.02, 4)))
    assert ops(program) == {"lut": 1}


def test_chains_of_functions_of_one_tensor_are_one_table():
    g = Graph()
    x = g.data("x", 3, 40)
    half = g.op("Mul", x, g.const(np.float32(0.5)))
    erf = g.op("Erf", g.op("Div", x, g.const(np.float32(np.sqrt(2)))))
    y = g.op("Mul", half, g.op("Add", erf, g.const(np.float32(1))))
    assert ops(check(g.model(g.q(y, 0.03, -90)))) == {"lut": 1}


def test_gelu_approximated_by_tanh():
    g = Graph()
    assert ops(check(g.model(g.q(g.op("Gelu", g.data("x", 3, 40), approximate="tanh"), 0.03, -90)))) == {"lut": 1}


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Max", "Min"])
@pytest.mark.parametrize("shape", [(1, 8, 5, 6), (1, 8, 1, 1), (5, 6), (6,)])
def test_two_tensors(kind, shape):
    g = Graph()
    a, b = g.data("x", 1, 8, 5, 6, zero_point=9), g.data("z", *shape, scale=0.03, zero_point=-20)
    assert len(check(g.model(g.q(g.op(kind, a, b), 0.0617, 3))).nodes) <= 4


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div", "Max", "Min"])
@pytest.mark.parametrize("shape", [(), (8, 1, 1), (6,), (1, 8, 5, 6)])
@pytest.mark.parametrize("swapped", [False, True])
def test_tensor_and_constant(kind, shape, swapped):
    if swapped and kind == "Div":
        pytest.skip("division by a tensor has its own test")
    g = Graph()
    values = np.abs(g.normal(*shape)) + np.float32(0.5)
    operands = [g.data("x", 1, 8, 5, 6), g.const(values.astype(np.float32))]
    check(g.model(g.q(g.op(kind, *(operands[::-1] if swapped else operands)), 0.0617)))


@pytest.mark.parametrize("kind", ["Max", "Min"])
def test_limits_of_16_bits_by_channel(kind):
    """Some of them zeros: what is left of the difference is the tensor itself, turned about."""
    g = Graph()
    limits = np.float32([[0], [0], [0]])
    y = g.op(kind, g.data("x", 3, 40, scale=0.001, dtype="int16"), g.const(limits))
    check(g.model(g.q(y, 0.001, dtype="int16")), steps=2, mean=0.6)


def test_constant_factors_cost_nothing():
    g = Graph()
    y = g.op("Div", g.op("Mul", g.data("x", 2, 9), g.const(np.float32(3))), g.const(np.float32(-2)))
    assert ops(check(g.model(g.q(y, 0.06)))) == {"requantize": 1}


def test_division_by_a_tensor():
    g = Graph()
    one = g.const(np.float32(1))
    y = g.op("Div", g.data("x", 4, 12), g.op("Add", one, g.op("Abs", g.data("z", 4, 1))))
    assert ops(check(g.model(g.q(y, 0.04))))["mul"] == 1


def test_silu_is_one_table():
    g = Graph()
    c = g.q(g.op("Conv", g.data("x", 1, 4, 6, 6), g.weight(6, 4, 3, 3)), 0.1)
    program = check(g.model(g.q(g.op("Mul", c, g.op("Sigmoid", c)), 0.06, -120)), steps=2)
    assert ops(program) == {"transpose": 2, "conv2d": 1, "requantize": 1, "lut": 1}


def test_clip_is_the_limit_of_the_grid():
    g = Graph()
    y = g.op("Clip", g.op("Conv", g.data("x", 1, 4, 6, 6), g.weight(6, 4, 3, 3)), g.const(np.float32(-0.5)), None)
    program = check(g.model(g.q(y, 0.1)))
    assert [n.attrs["qmin"] for n in program.nodes if kind(n.op) == "requantize"] == [-5]


@pytest.mark.parametrize("shape", [(1,), (6, 1, 1)])
def test_prelu(shape):
    g = Graph()
    c = g.op("Conv", g.data("x", 1, 4, 6, 6), g.weight(6, 4, 3, 3))
    check(g.model(g.q(g.op("PRelu", g.q(c, 0.1), g.const(np.abs(g.normal(*shape)))), 0.06)))


@pytest.mark.parametrize("dtype", [INT64, INT32, BOOL, FLOAT])
def test_masks_multiply(dtype):
    g = Graph()
    mask = g.input("mask", 1, 12, 1, dtype=dtype)
    mask = g.q(mask, 1 / 255, -128) if dtype == FLOAT else g.op("Cast", mask, to=FLOAT)
    check(g.model(g.q(g.op("Mul", g.data("x", 1, 12, 16), mask), 0.04)))


def test_integers_compare_with_any_constant():
    """Token ids do not fit 8 bits: the constant is subtracted first."""
    g = Graph()
    ids = g.input("ids", 1, 12, dtype=INT64)
    padding = g.op("Unsqueeze", g.op("Equal", ids, g.const(np.int64(50256))), g.const(np.array([-1])))
    y = g.op("Where", padding, g.const(np.float32(0)), g.data("x", 1, 12, 4))
    feed = {"ids": np.array([[50256, 80, 50256 + 256, 0, 50255, 50257, 50256, 1, 2, 3, 4, 5]]), "x": g.normal(1, 12, 4)}
    check(g.model(g.q(y, 0.04)), feeds=[feed])


def test_where_of_two_tensors():
    g = Graph()
    y = g.op("Where", g.input("flag", 1, 1, 16, dtype=BOOL), g.data("x", 1, 12, 16), g.data("z", 1, 12, 16, scale=0.03))
    assert ops(check(g.model(g.q(y, 0.05))))["where"] == 1


def test_mean_pooling_over_a_mask():
    """Sum(x * mask) / clip(Sum(mask)): the count is small and exact."""
    g = Graph()
    m = g.op("Cast", g.op("Unsqueeze", g.input("mask", 1, 12, dtype=INT64), g.const(np.array([-1]))), to=FLOAT)
    axis = g.const(np.array([1]))
    total = g.q(
        g.op("ReduceSum", g.q(g.op("Mul", g.data("x", 1, 12, 16), m), 0.04), axis, keepdims=0), 0.0012, dtype="int16"
    )
    count = g.op("Clip", g.op("ReduceSum", m, axis, keepdims=0), g.const(np.float32(1e-9)), None)
    check(g.model(g.q(g.op("Div", total, count), 0.0002, dtype="int16")), steps=8, mean=3)


@pytest.mark.parametrize("op", ["Less", "LessOrEqual", "Greater", "GreaterOrEqual", "Equal"])
def test_comparison_of_two_tensors_on_one_grid_is_exact(op):
    g = Graph()
    flags = g.op(op, g.data("x", 4, 32, scale=0.5), g.data("y", 4, 32, scale=0.5))
    chosen = g.op("Where", flags, g.data("z", 4, 32), g.const(np.float32(0)))
    check(g.model(g.q(chosen)), mean=1e-4)


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_truth_values(op):
    g = Graph()
    flags = [g.op("Greater", g.data(n, 4, 32), g.const(np.float32(0.1))) for n in "xy"]
    check(g.model(g.op(op, *flags), dtype=BOOL), mean=1e-4)


def test_arithmetic_of_integers_is_exact():
    g = Graph()
    ids = g.input("ids", 2, 5, dtype=INT64)
    moved = g.op("Add", ids, g.const(np.array(100_000)))
    program = check(g.model(moved, dtype=INT64), mean=1e-4)
    assert ops(program) == {"whole": 1}
    g = Graph()
    a, b = g.input("a", 2, 5, dtype=INT64), g.input("b", 2, 5, dtype=INT64)
    total = g.op("Sub", g.op("Mul", a, g.const(np.array(30))), b)
    check(g.model(total, dtype=INT64), mean=1e-4)


def test_computed_row_numbers():
    g = Graph()
    table = g.op(
        "DequantizeLinear", g.const(g.rng.integers(-127, 128, (20, 8)).astype(np.int8)), g.const(np.float32(0.1))
    )
    ids = g.op("Add", g.input("ids", 2, 5, dtype=INT64), g.const(np.array(2)))
    check(g.model(g.q(g.op("Gather", table, ids), scale=0.1)), mean=1e-4)


def test_quantized_parameters_of_batch_normalization():
    """ONNX Runtime's tool puts Q/DQ pairs on them: "nn.batch_norm has no integer form"."""
    g = Graph()
    x = g.data("x", 1, 8, 5, 5)
    parameters = [g.weight(8), g.weight(8), g.const(g.normal(8)), g.const(np.square(g.normal(8)) + 0.5)]
    check(g.model(g.q(g.op("BatchNormalization", x, *parameters), 0.02)), 1)
