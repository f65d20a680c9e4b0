"""Convolutions and products: exact sums, one rounding, channels last without transposes between layers."""

from __future__ import annotations

import numpy as np
import pytest
from qcompile.passes.tidy import tidy
from qdq_models import Graph, check, kind, ops

CONV = {
    "plain": ((6, 8, 3, 3), {}),
    "padded": ((6, 8, 3, 3), {"pads": [1, 1, 1, 1]}),
    "asymmetric pads, strides, dilations": (
        (6, 8, 3, 3),
        {"pads": [0, 1, 2, 1], "strides": [2, 1], "dilations": [1, 2]},
    ),
    "grouped": ((8, 2, 3, 3), {"group": 4}),
    "depthwise": ((8, 1, 3, 3), {"group": 8, "pads": [1, 1, 1, 1]}),
    "depthwise, two filters a channel": ((16, 1, 3, 3), {"group": 8}),
    "same upper": ((8, 8, 3, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same lower": ((8, 8, 2, 2), {"auto_pad": "SAME_LOWER"}),
}


@pytest.mark.parametrize("name", CONV)
@pytest.mark.parametrize(
    "grid", [{}, {"zero_point": -7}, {"zero_point": 131, "dtype": "uint8"}], ids=["symmetric", "int8", "uint8"]
)
def test_conv2d(name, grid):
    shape, attrs = CONV[name]
    g = Graph()
    y = g.op("Conv", g.data("x", 2, 8, 9, 10, **grid), g.weight(*shape), g.const(g.normal(shape[0])), **attrs)
    assert ops(check(g.model(g.q(y, 0.3, 5))))["conv2d"] == 1


@pytest.mark.parametrize("attrs", [{}, {"pads": [4, 0], "dilations": [2], "strides": [2]}, {"auto_pad": "SAME_UPPER"}])
def test_conv1d(attrs):
    g = Graph()
    y = g.op("Conv", g.data("x", 1, 8, 24), g.weight(6, 8, 3), g.const(g.normal(6)), **attrs)
    assert ops(check(g.model(g.q(y, 0.2))))["conv2d"] == 1


TRANSPOSED = {
    "stride 2": ((8, 6, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    "groups": ((8, 3, 2, 2), {"strides": [2, 2], "group": 2}),
    "stride beyond the kernel": ((8, 6, 2, 2), {"strides": [3, 3]}),
    "dilated": ((8, 6, 3, 3), {"dilations": [2, 2], "pads": [1, 1, 1, 1]}),
    "kernel of a stride": ((8, 6, 2, 2), {"strides": [2, 2]}),
    "kernel of two strides": ((8, 6, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "each axis its own": ((8, 6, 5, 3), {"strides": [3, 1], "pads": [2, 0, 1, 1], "output_padding": [1, 0]}),
    "long kernel": ((8, 6, 9, 8), {"strides": [4, 2], "pads": [3, 2, 2, 3]}),
    "pads larger than half of the kernel": ((8, 6, 3, 3), {"strides": [2, 2], "pads": [2, 2, 2, 2]}),
    "same": ((8, 6, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose(name):
    shape, attrs = TRANSPOSED[name]
    g = Graph()
    weight = (
        g.weight(*shape, axis=1)
        if attrs.get("group", 1) == 1
        else g.op(
            "DequantizeLinear",
            g.const(g.rng.integers(-127, 128, shape).astype(np.int8)),
            g.const(np.float32(0.01)),
            g.const(np.int8(0)),
        )
    )
    y = g.op("Relu", g.op("ConvTranspose", g.data("x", 1, 8, 5, 6, zero_point=3), weight, **attrs))
    program = check(g.model(g.q(y, 0.3)))
    zeros_between = "group" in attrs
    assert ("pad" in ops(program)) == zeros_between
    if "strides" in attrs and not zeros_between:
        kinds = [kind(n.op) for n in tidy(program).nodes if kind(n.op) in ("conv2d", "requantize")]
        types = tidy(program).types()
        assert kinds == ["conv2d", "requantize"]
        moved = [types[n.name].dtype for n in tidy(program).nodes if n.op in ("transpose", "slice", "reshape")]
        assert set(moved) == {"int8"}, "sums are rounded before they are moved"


def test_conv_transpose_1d():
    g = Graph()
    check(
        g.model(
            g.q(g.op("ConvTranspose", g.data("x", 1, 8, 9), g.weight(8, 6, 4, axis=1), strides=[2], pads=[1, 1]), 0.3)
        )
    )


def test_neighbouring_convolutions_need_no_transposes():
    g = Graph()
    y = g.q(g.op("Relu", g.op("Conv", g.data("x", 1, 4, 8, 8), g.weight(8, 4, 3, 3))), 0.1, -128)
    y = g.q(g.op("MaxPool", y, kernel_shape=[2, 2], strides=[2, 2]), 0.1, -128)
    y = g.q(g.op("Conv", y, g.weight(6, 8, 1, 1)), 0.3)
    assert ops(check(g.model(y))) == {"transpose": 2, "conv2d": 2, "requantize": 2, "max_pool2d": 1}


def test_bias_activation_and_requantization_are_one_rounding():
    g = Graph()
    y = g.op("Add", g.op("MatMul", g.data("x", 3, 16), g.weight(16, 8, axis=1)), g.const(g.normal(8)))
    program = check(g.model(g.q(g.op("Clip", y, g.const(np.float32(0)), g.const(np.float32(6))), 0.03, -128)))
    assert ops(program) == {"dense": 1, "requantize": 1}


@pytest.mark.parametrize("order", [0, 1])
def test_residual_is_one_rounding(order):
    g = Graph()
    x = g.data("x", 1, 8, 6, 6)
    a = g.op("Conv", x, g.weight(8, 8, 3, 3), pads=[1, 1, 1, 1])
    y = g.op("Relu", g.op("Add", *((a, x) if order else (x, a))))
    assert ops(check(g.model(g.q(y, 0.2, -128)))) == {"transpose": 2, "conv2d": 1, "add_residual": 1}


def test_wide_residual_keeps_the_precision_of_both_terms():
    """16-bit streams of transformers: the residual's multiplier needs bits that a large sum must leave it."""
    g = Graph()
    a = g.op("MatMul", g.data("x", 1, 4, 384), g.weight(384, 384, axis=1))
    y = g.q(g.op("Add", a, g.data("r", 1, 4, 384, scale=0.00031, dtype="int16")), 0.00143, dtype="int16")
    check(g.model(y), steps=32, mean=8)


def test_an_input_quantized_twice_is_stored_on_the_wider_grid():
    g = Graph()
    x = g.input("x", 1, 12)
    a, b = g.op("MatMul", g.q(x, 0.05), g.weight(12, 12, axis=1)), g.q(x, 0.0003, dtype="int16")
    program = check(g.model(g.q(a, 0.1), g.q(g.op("Abs", b), 0.0003, dtype="int16")))
    assert program.inputs["x"].dtype == "int16"


def test_products_of_activations():
    g = Graph()
    a, b = g.data("a", 2, 4, 12, 16, zero_point=3), g.data("b", 2, 4, 16, 9, zero_point=-4)
    assert ops(check(g.model(g.q(g.op("MatMul", a, b), 0.2)))) == {"matmul": 1, "requantize": 1}


def test_transposed_operand_costs_no_copy():
    g = Graph()
    b = g.op("Transpose", g.data("b", 2, 9, 16), perm=[0, 2, 1])
    assert ops(check(g.model(g.q(g.op("MatMul", g.data("a", 2, 12, 16), b), 0.2)))) == {"matmul": 1, "requantize": 1}


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm(transposed):
    g = Graph()
    w = g.weight(5, 16) if transposed else g.weight(16, 5, axis=1)
    y = g.op("Gemm", g.data("x", 3, 16), w, g.const(g.normal(5)), transB=transposed)
    assert ops(check(g.model(g.q(y, 0.2)))) == {"dense": 1, "requantize": 1}


def test_channel_factors_fold_into_the_rescaling():
    g = Graph()
    y = g.op("Mul", g.op("Conv", g.data("x", 1, 4, 5, 5), g.weight(6, 4, 1, 1)), g.const(g.normal(6, 1, 1)))
    assert ops(check(g.model(g.q(y, 0.1)))) == {"transpose": 2, "conv2d": 1, "requantize": 1}
