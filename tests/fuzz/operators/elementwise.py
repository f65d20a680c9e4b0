"""Functions of one tensor, sums and products of two, comparisons and choices."""

from __future__ import annotations

import numpy as np

from fuzz.build import BOOL, FLOAT, MICROSOFT, Build
from fuzz.operators import draws

WIDE = (-1e6, 1e6)
DOMAINS = {  # where the function is defined and stays a number
    "Acos": (-1.0, 1.0),
    "Acosh": (1.0, 1e3),
    "Asin": (-1.0, 1.0),
    "Atanh": (-0.95, 0.95),
    "Cosh": (-6.0, 6.0),
    "Exp": (-20.0, 6.0),
    "Log": (0.01, 1e6),
    "Sinh": (-6.0, 6.0),
    "Sqrt": (0.0, 1e6),
    "Tan": (-1.2, 1.2),
    "Cos": (-20.0, 20.0),
    "Sin": (-20.0, 20.0),
}
ATTRIBUTES = {
    "Celu": {"alpha": (0.3, 2.0)},
    "Elu": {"alpha": (0.3, 2.0)},
    "HardSigmoid": {"alpha": (0.05, 0.5), "beta": (0.2, 0.8)},
    "LeakyRelu": {"alpha": (-0.3, 0.5)},
    "Selu": {"alpha": (1.0, 2.0), "gamma": (0.5, 1.5)},
    "Shrink": {"lambd": (0.0, 1.0), "bias": (0.0, 0.5)},
    "ThresholdedRelu": {"alpha": (0.0, 1.0)},
}


def _unary(b: Build, op: str, domain: str = "") -> str:
    x = b.within(b.take(), *DOMAINS.get(op, WIDE))
    given = {n: b.real(*span) for n, span in ATTRIBUTES.get(op, {}).items() if b.chance(0.6)}
    return b.add(op, [x], domain=domain, **given)


draws("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", weight=2.0)(_unary)
draws("Abs", "Neg", "Elu", "Celu", "Selu", "Softplus", "Softsign", "HardSigmoid", "Erf", "Exp", "Log", "Sqrt")(_unary)
draws("Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Asinh", "Acosh", "Atanh", weight=0.3)(_unary)
draws("Shrink", "ThresholdedRelu", "Identity", weight=0.5)(_unary)
draws("Floor", "Ceil", "Round", "Sign", weight=0.15)(_unary)
draws("Mish", weight=1.0, since=18)(_unary)
draws("HardSwish", weight=2.0, since=14)(_unary)
draws("Swish", since=24)(_unary)


@draws("Gelu", weight=2.0)
def gelu(b: Build, op: str) -> str:
    """ONNX's from opset 20 on, ONNX Runtime's before."""
    x = b.take()
    if b.opset >= 20:
        return b.add(op, [x], approximate=b.one_of(("none", "tanh")))
    return b.add(op, [x], domain=MICROSOFT)


@draws("QuickGelu", weight=0.5)
def quick_gelu(b: Build, op: str) -> str:
    return b.add(op, [b.take()], domain=MICROSOFT, alpha=b.one_of((1.702, 1.0, 2.5)))


@draws("BiasGelu", "FastGelu", weight=0.5)
def bias_gelu(b: Build, op: str) -> str:
    x = b.take()
    return b.add(op, [x, b.weight(b.shape(x)[-1:])], domain=MICROSOFT)


@draws("Clip", weight=1.5)
def clip(b: Build, op: str) -> str:
    x = b.take()
    low, high = sorted((b.real(-3, 3), b.real(0, 6)))
    which = b.one_of(("both", "low", "high"))
    bounds = [b.constant(low, np.float32) if which != "high" else "", b.constant(high, np.float32)]
    return b.add(op, [x, *(bounds if which != "low" else bounds[:1])])


@draws("Dropout", weight=0.3)
def dropout(b: Build, op: str) -> str:
    return b.add(op, [b.take()])


@draws("PRelu", weight=1.5)
def prelu(b: Build, op: str) -> str:
    x = b.take()
    shape = b.shape(x)
    rank = len(shape)
    slope = b.one_of([(1,), shape[-1:], shape, (shape[min(1, rank - 1)], *[1] * max(rank - 2, 0))])
    return b.add(op, [x, b.weight(slope)])


@draws("Reciprocal", weight=0.5)
def reciprocal(b: Build, op: str) -> str:
    return b.add(op, [b.within(b.take(), 0.2, 1e6)])


@draws("Add", "Mul", "Sub", weight=4.0)
def two(b: Build, op: str) -> str:
    x = b.take()
    pair = [x, b.partner(x)]
    return b.add(op, pair[::-1] if b.chance(0.3) else pair)


@draws("Div", weight=2.0)
def divide(b: Build, op: str) -> str:
    x = b.take()
    shape = b.shape(x)
    if b.chance(0.5):
        part = shape[b.whole(0, len(shape)) :]
        return b.add(op, [x, b.constant(np.abs(b.rng.standard_normal(part)) + 0.3, np.float32)])
    y = b.within(b.partner(x), 0.3, 1e6)
    return b.add(op, [x, y])


@draws("Pow", weight=1.0)
def power(b: Build, op: str) -> str:
    exponent = b.one_of((2.0, 2.0, 3.0, 0.5, -1.0, 1.5, 4.0))
    x = b.modest(b.take())
    x = x if exponent in (2.0, 3.0, 4.0) else b.within(x, 0.1, 1e3)
    return b.add(op, [x, b.constant(exponent, np.float32)])


@draws("Max", "Min", "Sum", "Mean", weight=1.0)
def several(b: Build, op: str) -> str:
    x = b.take()
    others = [b.partner(x) for _ in range(b.whole(0, 2))]
    return b.add(op, [x, *others])


@draws("Equal", "Greater", "Less", weight=0.3)
@draws("GreaterOrEqual", "LessOrEqual", weight=0.2)
def compare(b: Build, op: str) -> str:
    x = b.take()
    return b.add(op, [x, b.partner(x)])


@draws("And", "Or", "Xor", weight=0.25)
def logic(b: Build, op: str) -> str:
    x = b.take(BOOL)
    others = b.tensors(lambda n: b.kind(n) == BOOL and b.shape(n) == b.shape(x))
    return b.add(op, [x, b.one_of(others)])


@draws("Not", weight=0.25)
def negate(b: Build, op: str) -> str:
    return b.add(op, [b.take(BOOL)])


@draws("Where", weight=1.0)
def where(b: Build, op: str) -> str:
    """A choice by a mask: computed, an input, or a constant."""
    x = b.take()
    shape = b.shape(x)
    way = b.rng.random()
    if way < 0.4:
        mask = b.constant(b.rng.random(shape) < 0.5)
    elif way < 0.7:
        mask = b.input(shape, BOOL)
    else:
        mask = b.add("Greater", [x, b.constant(0.0, np.float32)])
    pair = [x, b.constant(b.one_of((0.0, -1.0, -1e4)), np.float32) if b.chance(0.5) else b.partner(x)]
    return b.add(op, [mask, *(pair if b.chance(0.5) else pair[::-1])])


@draws("IsNaN", "IsInf", weight=0.1)
def is_number(b: Build, op: str) -> str:
    return b.add(op, [b.take()])


@draws("Cast", weight=1.0)
def cast(b: Build, op: str) -> str:
    """Masks and counts to floats, floats to integers and back."""
    others = b.tensors(lambda n: b.kind(n) != FLOAT)
    if others and b.chance(0.7):
        return b.add(op, [b.one_of(others)], to=1)
    if b.chance(0.3):
        return b.add(op, [b.input(b.any_shape(b.whole(1, 3)), "integer", b.one_of((2, 5, 128, 300)))], to=1)
    return b.add(op, [b.within(b.take(), -1e4, 1e4)], to=b.one_of((1, 1, 6, 7, 9, 10, 11)))


@draws("CastLike", weight=0.2, since=15)
def cast_like(b: Build, op: str) -> str:
    mask = b.take(BOOL)
    return b.add(op, [mask, b.take()])
