"""What has no integer form is refused with one message that names the node."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto
from qcompile.targets.errors import CompileError
from qdq_models import INT64, Graph, compiled


def float_input(g):
    return g.op("MatMul", g.input("x", 3, 16), g.weight(16, 8, axis=1))


def unknown_operator(g):
    return g.op("Det", g.data("x", 4, 4))


def computed_weights(g):
    return g.op("Conv", g.data("x", 1, 4, 6, 6), g.data("w", 4, 4, 3, 3))


def infinite_scale(g):
    return g.q(g.data("x", 3, 16), np.inf)


def negative_scale(g):
    return g.q(g.data("x", 3, 16), -0.5)


def scale_per_channel(g):
    scale, zero = g.const(np.float32([0.1, 0.2, 0.3])), g.const(np.zeros(3, np.int8))
    return g.op(
        "DequantizeLinear", g.op("QuantizeLinear", g.input("x", 3, 16), scale, zero, axis=0), scale, zero, axis=0
    )


def computed_exponent(g):
    return g.op("Pow", g.data("x", 3, 16), g.data("y", 3, 16))


def index_outside(g):
    return g.op("Gather", g.data("x", 3, 16), g.const(np.array([0, 16])), axis=1)


def wrapped_pad(g):
    return g.op("Pad", g.data("x", 3, 16), g.const(np.array([0, 1, 0, 1])), mode="wrap")


def overflow(g):
    codes = g.const(np.full((70_000, 1), 127, np.int8))
    w = g.op("DequantizeLinear", codes, g.const(np.float32(0.01)), g.const(np.int8(0)))
    return g.op("MatMul", g.data("x", 1, 70_000, zero_point=-128), w)


REFUSED = {
    float_input: ["x", "QuantizeLinear"],
    unknown_operator: ["Det"],
    computed_weights: ["Conv_", "weights"],
    infinite_scale: ["QuantizeLinear_", "scale inf"],
    negative_scale: ["QuantizeLinear_", "positive"],
    scale_per_channel: ["per channel"],
    computed_exponent: ["Pow_", "exponent"],
    index_outside: ["Gather_", "16"],
    wrapped_pad: ["Pad_", "wrap"],
    overflow: ["MatMul_", "32 bits"],
}


@pytest.mark.parametrize("build", REFUSED, ids=lambda f: f.__name__)
def test_refused_by_name(build):
    g = Graph()
    with pytest.raises(CompileError) as caught:
        compiled(g.model(g.q(build(g))))
    message = str(caught.value)
    assert all(word in message for word in REFUSED[build]), message
    assert "lv" not in message and "\n" not in message


def test_ids_in_place_of_floats():
    g = Graph()
    with pytest.raises(CompileError, match="MatMul_"):
        compiled(
            g.model(
                g.q(
                    g.op(
                        "MatMul",
                        g.op("Cast", g.input("ids", 3, 16, dtype=INT64), to=TensorProto.FLOAT),
                        g.weight(16, 4, axis=1),
                    )
                )
            )
        )
