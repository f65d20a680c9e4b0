"""Patterns that exporters write in several nodes, and parts that networks are made of."""

from __future__ import annotations

import numpy as np

from fuzz.build import FLOAT, INTEGER, Build
from fuzz.operators import draws


def _constant(b: Build, value: float) -> str:
    return b.constant(value, np.float32)


def _mean(b: Build, x: str) -> str:
    extra, given = b.axes("axes", [-1], 18)
    return b.add("ReduceMean", [x, *extra], keepdims=1, **given)


@draws("LayerNormBlock", weight=1.0)
def layer_norm(b: Build, op: str) -> str:
    """As torch writes it, and as JAX does: mean(x^2) - mean(x)^2."""
    x = b.take(ranks=(2, 3))
    width = b.shape(x)[-1:]
    mean = _mean(b, x)
    centred = b.add("Sub", [x, mean])
    if b.chance(0.6):
        variance = _mean(b, b.add("Pow", [centred, _constant(b, 2.0)]))
        unit = b.add("Div", [centred, b.add("Sqrt", [b.add("Add", [variance, _constant(b, 1e-5)])])])
    else:
        spread = b.add("Sub", [_mean(b, b.add("Mul", [x, x])), b.add("Mul", [mean, mean])])
        variance = b.add("Max", [spread, _constant(b, 0.0)])
        root = b.add("Sqrt", [b.add("Add", [variance, _constant(b, 1e-5)])])
        unit = b.add("Mul", [centred, b.add("Reciprocal", [root])])
    gamma = b.constant(1 + 0.3 * b.rng.standard_normal(width), np.float32)
    return b.add("Add", [b.add("Mul", [unit, gamma]), b.weight(width, 4)])


@draws("GeluBlock", weight=0.7)
def gelu(b: Build, op: str) -> str:
    x = b.take()
    inner = b.add("Erf", [b.add("Div", [x, _constant(b, 2**0.5)])])
    return b.add("Mul", [b.add("Mul", [x, b.add("Add", [inner, _constant(b, 1.0)])]), _constant(b, 0.5)])


@draws("SoftmaxBlock", weight=0.4)
def softmax(b: Build, op: str) -> str:
    x = b.take(ranks=(2, 3))
    extra, given = b.axes("axes", [-1], 18)
    powers = b.add("Exp", [b.add("Sub", [x, b.add("ReduceMax", [x, *extra], keepdims=1, **given)])])
    extra, given = b.axes("axes", [-1], 13)
    return b.add("Div", [powers, b.add("ReduceSum", [powers, *extra], keepdims=1, **given)])


@draws("Residual", weight=2.0)
def residual(b: Build, op: str) -> str:
    """A branch that returns to its shape, added to where it began."""
    x = b.take(ranks=(2, 3, 4))
    shape = b.shape(x)
    if len(shape) == 4 and shape[1] <= 70:
        groups = b.one_of((1, shape[1]))
        w = b.weight([shape[1], shape[1] // groups, 3, 3], 9 * shape[1] // groups)
        y = b.add("Conv", [x, w], pads=[1] * 4, group=groups)
    else:
        y = b.add("MatMul", [x, b.weight([shape[-1], shape[-1]], shape[-1], axis=1)])
    if b.chance(0.5):
        y = b.add(b.one_of(("Relu", "Tanh", "HardSwish")), [y])
    total = b.add("Add", [x, y])
    return b.add("Relu", [total]) if b.chance(0.4) else total


@draws("SqueezeExcite", weight=0.8)
def squeeze_excite(b: Build, op: str) -> str:
    x = b.take(ranks=(4,))
    c, inner = b.shape(x)[1], b.size(17)
    y = b.add("GlobalAveragePool", [x])
    y = b.add("Relu", [b.add("Conv", [y, b.weight([inner, c, 1, 1], c)])])
    y = b.add("Conv", [y, b.weight([c, inner, 1, 1], inner)])
    return b.add("Mul", [x, b.add(b.one_of(("Sigmoid", "HardSigmoid")), [y])])


@draws("DetectionHead", weight=0.7)
def detection_head(b: Build, op: str) -> str:
    """Boxes in pixels and scores in 0..1 in one tensor."""
    x = b.take(ranks=(3,))
    boxes = b.add("Mul", [b.add("Sigmoid", [x]), _constant(b, b.one_of((32.0, 640.0)))])
    whole = b.add("Concat", [boxes, b.add("Sigmoid", [x])], axis=b.one_of((1, 2)))
    return b.add("Transpose", [whole], perm=[0, 2, 1]) if b.chance(0.5) else whole


@draws("ActivationChain", weight=0.7)
def activation_chain(b: Build, op: str) -> str:
    """Sums and PReLUs one after another."""
    x = b.take()
    shape = b.shape(x)
    for _ in range(b.whole(2, 5)):
        y = b.add("Add", [x, b.weight(shape[-1:], 2)])
        x = b.add("PRelu", [y, b.weight(shape[-1:], 2)]) if b.chance(0.5) else b.add("Add", [y, x])
        x = b.modest(x)
    return x


@draws("Camera", weight=0.6)
def camera(b: Build, op: str) -> str:
    """A uint8 image, scaled and centred, channels last or first, into a convolution."""
    n, h, w = b.whole(1, 2), b.size(17), b.size(17)
    last = b.chance(0.5)
    image = b.input([n, h, w, 3] if last else [n, 3, h, w], INTEGER, 256, np.uint8)
    x = b.add("Cast", [image], to=1)
    x = b.add("Transpose", [x], perm=[0, 3, 1, 2]) if last else x
    mean = b.constant(np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1) * b.one_of((1.0, 255.0)), np.float32)
    if b.chance(0.6):
        x = b.add("Div", [x, _constant(b, 255.0)])
    if b.chance(0.6):
        x = b.add("Sub", [x, mean])
    if b.chance(0.5):
        x = b.add("Div", [x, b.constant(np.array([0.229, 0.224, 0.225]).reshape(3, 1, 1), np.float32)])
    k = min(3, h, w)
    out = b.size(17)
    return b.add("Conv", [x, b.weight([out, 3, k, k], 27)], strides=[b.whole(1, 2)] * 2)


@draws("Recurrence", weight=0.5)
def recurrence(b: Build, op: str) -> str:
    """A state that goes from input to output: what --state is for."""
    x = b.take(ranks=(2,))
    batch, width = b.shape(x)
    state = b.input([batch, width], FLOAT)
    total = b.add("Add", [x, b.add("MatMul", [state, b.weight([width, width], width, axis=1)])])
    return b.add("Tanh", [total])
