"""Sums are rounded before they are moved, and no result changes."""

from __future__ import annotations

import numpy as np
import pytest
from qcompile.kernels.dialect import Type
from qcompile.kernels.program import Node, Program
from qcompile.passes.tidy import tidy

ROUND = {"x_zero_point": 0, "shift": 3, "pre": 0, "zero_point": 4, "qmin": -128, "qmax": 127}
SHUFFLE = [
    Node("split", "reshape", ("sums",), {"shape": [2, 3, 2, 2, 4]}),
    Node("turned", "transpose", ("split",), {"axes": [0, 2, 1, 3, 4]}),
    Node("merged", "reshape", ("turned",), {"shape": [2, 6, 2, 4]}),
    Node("cut", "slice", ("merged",), {"begin": [0, 1, 0, 0], "end": [2, 6, 2, 4], "step": [1, 1, 1, 1]}),
]


def program(moves: list[Node], *after: Node, outputs: tuple[str, ...] = ("y",)) -> Program:
    rng = np.random.default_rng(0)
    constants = {
        "w": rng.integers(-127, 128, (16, 5)).astype(np.int8),
        "b": rng.integers(-100, 100, 16).astype(np.int32),
        "m": rng.integers(1 << 27, 1 << 28, 4).astype(np.int32),
        "t": rng.integers(-128, 128, 256).astype(np.int8),
        "r": rng.integers(-9, 9, (2, 5, 2, 4)).astype(np.int8),
    }
    product = Node("sums", "dense", ("x", "w", "b"), {"x_zero_point": 3})
    return Program({"x": Type((2, 3, 5), "int8")}, list(outputs), constants, [product, *moves, *after])


def rounded(source: str, name: str, dtype: str = "int8") -> Node:
    return Node(name, "requantize", (source, "m"), {**ROUND, "dtype": dtype})


def tidied(p: Program) -> list[str]:
    x = {"x": np.random.default_rng(1).integers(-128, 128, (2, 3, 5)).astype(np.int8)}
    made = tidy(p)
    for name, value in made.run(x).items():
        np.testing.assert_array_equal(value, p.run(x)[name], err_msg=name)
    return [n.op for n in made.nodes]


MOVED = ["reshape", "transpose", "reshape", "slice"]


def test_rounding_and_table_come_before_the_moves():
    p = program(SHUFFLE, rounded("cut", "q"), Node("y", "lut", ("q", "t"), {"first": -128}))
    assert tidied(p) == ["dense", "requantize", "lut", *MOVED]


def test_the_last_step_that_can_moves():
    add = {"x_zero_point": 0, "x_multiplier": 3, "r_zero_point": 0, "r_multiplier": 5, "shift": 3, "zero_point": 0}
    add |= {"qmin": -128, "qmax": 127, "dtype": "int8"}
    p = program(SHUFFLE, rounded("cut", "q"), Node("y", "add", ("q", "r"), add))
    assert tidied(p) == ["dense", "requantize", *MOVED, "add"]


def test_a_move_of_channels_stays_before():
    turned = Node("turned", "transpose", ("split",), {"axes": [0, 2, 1, 4, 3]})
    p = program([SHUFFLE[0], turned, *SHUFFLE[2:]], rounded("cut", "y"))
    assert tidied(p) == ["dense", "reshape", "transpose", "reshape", "requantize", "slice"]


@pytest.mark.parametrize("case", ["read twice", "an output"])
def test_others_stay(case: str):
    twice = case == "read twice"
    after = [rounded("cut", "y"), *([rounded("cut", "z", "int16")] if twice else [])]
    p = program(SHUFFLE, *after, outputs=("y", "z" if twice else "cut"))
    assert tidied(p)[:5] == ["dense", *MOVED]
