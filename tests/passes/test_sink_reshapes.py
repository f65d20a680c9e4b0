"""Tidying moves elementwise steps before reshapes and changes no result."""

from __future__ import annotations

import numpy as np
import pytest
from qcompile.kernels.dialect import Type
from qcompile.kernels.program import Node, Program
from qcompile.passes.tidy import tidy

REQUANTIZE = {"x_zero_point": 0, "shift": 3, "pre": 0, "zero_point": 4, "qmin": -128, "qmax": 127, "dtype": "int8"}


@pytest.mark.parametrize(
    "bias, moves",
    [
        ((1, 6, 4), True),  # a position embedding
        ((4,), True),
        ((1, 1, 4), True),
        ((6, 1), False),
    ],
)
def test_steps_move_before_a_reshape(bias: tuple[int, ...], moves: bool) -> None:
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.integers(-127, 128, (4, 5)).astype(np.int8),
        "b": rng.integers(-100, 100, 4).astype(np.int32),
        "position": rng.integers(-1000, 1000, bias).astype(np.int32),
        "m": rng.integers(1 << 27, 1 << 28, 4).astype(np.int32),
    }
    nodes = [
        Node("product", "dense", ("x", "w", "b"), {"x_zero_point": 3}),
        Node("tokens", "reshape", ("product",), {"shape": [1, 6, 4]}),
        Node("placed", "bias_add", ("tokens", "position"), {}),
        Node("y", "requantize", ("placed", "m"), REQUANTIZE),
    ]
    program = Program({"x": Type((6, 5), "int8")}, ["y"], constants, nodes)
    inputs = {"x": rng.integers(-128, 128, (6, 5)).astype(np.int8)}
    tidied = tidy(program)
    np.testing.assert_array_equal(tidied.run(inputs)["y"], program.run(inputs)["y"])
    assert tidied.types()["y"] == program.types()["y"]
    ops = [n.op for n in tidied.nodes if n.inputs[0] not in constants]
    assert ops == (["dense", "bias_add", "requantize", "reshape"] if moves else [n.op for n in nodes])
