"""Integer operators on integers."""

from __future__ import annotations

import numpy as np

from fuzz.build import INTEGER, Build
from fuzz.operators import draws


def _pair(b: Build, unsigned: bool = False, high: int = 100) -> list[str]:
    dtype = np.uint8 if unsigned else np.int32
    shape = b.any_shape(b.whole(1, 3))
    x = b.input(shape, INTEGER, high, dtype)
    y = b.input(shape, INTEGER, high, dtype) if b.chance(0.5) else b.constant(b.rng.integers(1, high, shape), dtype)
    return [x, y]


@draws("BitShift", weight=0.2)
def bit_shift(b: Build, op: str) -> str:
    x, _ = _pair(b, unsigned=True)
    amount = b.constant(b.rng.integers(0, 8, b.shape(x)), np.uint8)
    return b.add(op, [x, amount], direction=b.one_of(("LEFT", "RIGHT")))


@draws("BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", weight=0.15, since=18)
def bitwise(b: Build, op: str) -> str:
    pair = _pair(b)
    return b.add(op, pair[:1] if op == "BitwiseNot" else pair)


@draws("Mod", weight=0.3)
def mod(b: Build, op: str) -> str:
    if b.chance(0.3):
        return b.add(op, [b.take(), b.constant(b.real(0.5, 3), np.float32)], fmod=1)
    x, _ = _pair(b)
    return b.add(op, [x, b.constant(b.whole(1, 9), np.int32)])


@draws("IntegerArithmetic", weight=0.8)
def arithmetic(b: Build, op: str) -> str:
    """Sums, products, limits and comparisons of integers, then a Cast where floats go on."""
    x, y = _pair(b)
    which = b.one_of(("Add", "Sub", "Mul", "Max", "Min", "Div", "Equal", "Less", "Greater"))
    if which == "Div":
        y = b.constant(b.rng.integers(1, 9, b.shape(x)), np.int32)
    result = b.add(which, [x, y])
    return b.add("Cast", [result], to=1) if b.chance(0.6) else result
