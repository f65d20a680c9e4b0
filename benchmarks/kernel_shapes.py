"""The grid of shapes for kernels.py: one op each, as the smallest program that computes it, with random operands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from qcompile.kernels.dialect import Type
from qcompile.kernels.program import Node, Program

BOUNDS = {"zero_point": -3, "qmin": -128, "qmax": 127, "dtype": "int8"}
REQUANTIZE = {"x_zero_point": 0, "shift": 9, "pre": 0, **BOUNDS}
LAYER = {"shift": 3, "fraction": 5, **BOUNDS, "zero_point": 0}  # what the sums of layers end in where 16 bits suffice
LAYER_MULTIPLIER = 2**14 + 1234
MULTIPLIER = 2**30 + 12345


@dataclass(frozen=True)
class KernelCase:
    """family: what the table groups by; program() has one op (and its epilogue) on int8 activations."""

    name: str
    family: str
    program: Callable[[], Program]


class _Builder:
    """Operands from one seed."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.inputs: dict[str, Type] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.nodes: list[Node] = []

    def activation(self, shape: tuple[int, ...], dtype: str = "int8") -> str:
        name = f"x{len(self.inputs)}"
        self.inputs[name] = Type(shape, dtype)
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def weights(self, shape: tuple[int, ...], bits: int = 8, group: int = 0) -> tuple[str, str]:
        """group: elements of the last axis with a multiplier of their own; 0: none."""
        limit = 2 ** (bits - 1) - 1
        w = self.rng.integers(-limit, limit + 1, shape).astype(np.int8)
        if group:
            w = w * self.rng.integers(1, 127 // limit, (*shape[:-1], shape[-1] // group), np.int8).repeat(group, -1)
        return self.constant(w), self.constant(self.rng.integers(-(10**4), 10**4, shape[0]).astype(np.int32))

    def emit(self, op: str, inputs: list[str], **attrs: Any) -> str:
        name = f"{op}_{len(self.nodes)}"
        self.nodes.append(Node(name, op, tuple(inputs), attrs))
        return name

    def requantized(self, name: str, channels: int) -> Program:
        multiplier = self.constant(np.full(channels, MULTIPLIER, np.int32))
        return self.done(self.emit("requantize", [name, multiplier], **REQUANTIZE))

    def layer(self, name: str, channels: int) -> Program:
        multiplier = self.constant(np.full(channels, LAYER_MULTIPLIER, np.int32))
        return self.done(self.emit("requantize_word", [name, multiplier], **LAYER))

    def done(self, name: str) -> Program:
        return Program(self.inputs, [name], self.constants, self.nodes)


def dense(m: int, k: int, n: int, bits: int = 8, group: int = 0) -> Program:
    b = _Builder()
    y = b.emit("dense", [b.activation((m, k)), *b.weights((n, k), bits, group)], x_zero_point=4)
    return b.layer(y, n)


def product(images: int, m: int, k: int, n: int) -> Program:
    """Of two activations."""
    b = _Builder()
    operands = [b.activation((images, m, k)), b.activation((images, n, k))]
    y = b.emit("matmul", operands, transpose_b=True, a_zero_point=3, b_zero_point=-2)
    return b.requantized(y, 1)


def conv(
    shape: tuple[int, int, int],
    out: int,
    kernel: Any,
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    bits: int = 8,
) -> Program:
    """shape: [H, W, C]; padded so that stride 1 keeps the size."""
    b, (kh, kw) = _Builder(), kernel
    top, left = ((k - 1) * dilation // 2 for k in (kh, kw))
    attrs = {
        "strides": [stride, stride],
        "dilations": [dilation if kh > 1 else 1, dilation if kw > 1 else 1],
        "pads": [top, left, top, left],
        "groups": groups,
        "x_zero_point": -7,
    }
    x = b.activation((1, *shape))
    y = b.emit("conv2d", [x, *b.weights((out, kh, kw, shape[2] // groups), bits)], **attrs)
    return b.layer(y, out)


def depthwise(shape: tuple[int, int, int], kernel: Any, stride: int = 1) -> Program:
    return conv(shape, shape[2], kernel, stride, groups=shape[2])


def attention(heads: int, length: int, size: int) -> Program:
    b = _Builder()
    table = b.constant(np.rint(255 * 0.5 ** (np.arange(256) / 40)).astype(np.uint8))
    operands = [b.activation((heads, length, size)) for _ in range(3)]
    attrs = {"score_shift": 3, "score_multiplier": 12345, "numerator": 1 << 38, "shift": 7}
    points = {"q_zero_point": 5, "k_zero_point": -9, "v_zero_point": 3, "has_mask": False, "has_bias": False}
    return b.done(b.emit("attention", [*operands, table], **attrs, **points, **BOUNDS))


def softmax(rows: int, length: int) -> Program:
    b = _Builder()
    attrs = {"multiplier": MULTIPLIER, "shift": 2, "pre": 3, "out_shift": 5, "numerator": 1 << 45}
    return b.done(b.emit("softmax", [b.activation((rows, length))], **attrs, **BOUNDS))


def layer_norm(rows: int, size: int, dtype: str) -> Program:
    b = _Builder()
    gamma = b.constant(b.rng.integers(2**12, 2**14, size).astype(np.int16))
    beta = b.constant(b.rng.integers(-4000, 4000, size).astype(np.int32))
    attrs = {"x_zero_point": 2, "epsilon": 1000, "rms": False, "per_row": False, "shift": 18}
    return b.done(b.emit("layer_norm", [b.activation((rows, size), dtype), gamma, beta], **attrs, **BOUNDS))


def add(size: int) -> Program:
    b = _Builder()
    operands = [b.activation((size,)), b.activation((size,))]
    attrs = {"x_multiplier": 40000, "r_multiplier": 25000, "x_zero_point": 1, "r_zero_point": -2, "shift": 16}
    return b.done(b.emit("add", operands, **attrs, **BOUNDS))


def table(size: int) -> Program:
    b = _Builder()
    values = b.constant(b.rng.integers(-128, 128, 256).astype(np.int8))
    return b.done(b.emit("lut", [b.activation((size,)), values], first=-128))


def rescale(size: int) -> Program:
    b = _Builder()
    return b.requantized(b.activation((size,), "int16"), 1)


def max_pool(shape: tuple[int, int, int], kernel: int, stride: int) -> Program:
    b = _Builder()
    attrs = {"kernel": [kernel] * 2, "strides": [stride] * 2, "dilations": [1, 1], "pads": [0, 0, 0, 0]}
    return b.done(b.emit("max_pool2d", [b.activation((1, *shape))], **attrs))


def average_pool(shape: tuple[int, int, int]) -> Program:
    b = _Builder()
    attrs = {"kernel": list(shape[:2]), "strides": [1, 1], "pads": [0, 0, 0, 0], "x_zero_point": 5}
    return b.requantized(b.emit("sum_pool2d", [b.activation((1, *shape))], **attrs), 1)


GRID = [
    KernelCase(name, family, program)
    for family, cases in {
        "matmul": {
            "128x768x768": lambda: dense(128, 768, 768),
            "128x768x3072": lambda: dense(128, 768, 3072),
            "32x384x1536": lambda: dense(32, 384, 1536),
            "3136x64x64": lambda: dense(3136, 64, 64),
            "7x512x512": lambda: dense(7, 512, 512),
        },
        "matrix-vector": {
            "1x768x768": lambda: dense(1, 768, 768),
            "1x128x128": lambda: dense(1, 128, 128),
        },
        "weights of 4 bits": {
            "128x768x768": lambda: dense(128, 768, 768, 4),
            "128x768x768, groups of 32": lambda: dense(128, 768, 768, 4, 32),
            "64x768x768": lambda: dense(64, 768, 768, 4),
            "64x768x768, groups of 32": lambda: dense(64, 768, 768, 4, 32),
            "64x768x768, 8 bits": lambda: dense(64, 768, 768),
            "1x768x768": lambda: dense(1, 768, 768, 4),
            "1x768x768, groups of 32": lambda: dense(1, 768, 768, 4, 32),
            "1x2048x2048": lambda: dense(1, 2048, 2048, 4),
            "1x2048x2048, groups of 32": lambda: dense(1, 2048, 2048, 4, 32),
            "1x2048x2048, 8 bits": lambda: dense(1, 2048, 2048),
            "4x768x768": lambda: dense(4, 768, 768, 4),
            "4x768x768, groups of 32": lambda: dense(4, 768, 768, 4, 32),
            "4x768x768, 8 bits": lambda: dense(4, 768, 768),
            "conv 3x3, 28x28x128": lambda: conv((28, 28, 128), 128, (3, 3), bits=4),
        },
        "product of activations": {"12x128x64x128": lambda: product(12, 128, 64, 128)},
        "conv 3x3": {
            "56x56x64": lambda: conv((56, 56, 64), 64, (3, 3)),
            "28x28x128": lambda: conv((28, 28, 128), 128, (3, 3)),
            "7x7x512": lambda: conv((7, 7, 512), 512, (3, 3)),
            "56x56x64 to 128, stride 2": lambda: conv((56, 56, 64), 128, (3, 3), 2),
            "32x32x16": lambda: conv((32, 32, 16), 16, (3, 3)),
        },
        "conv 1x1": {
            "56x56x64 to 256": lambda: conv((56, 56, 64), 256, (1, 1)),
            "14x14x256 to 1024": lambda: conv((14, 14, 256), 1024, (1, 1)),
            "28x28x512 to 256, stride 2": lambda: conv((28, 28, 512), 256, (1, 1), 2),
        },
        "first conv": {
            "7x7, 112x112x3 to 64, stride 2": lambda: conv((112, 112, 3), 64, (7, 7), 2),
            "3x3, 96x96x3 to 16, stride 2": lambda: conv((96, 96, 3), 16, (3, 3), 2),
            "10x4, 49x10x1 to 64, stride 2": lambda: conv((49, 10, 1), 64, (10, 4), 2),
        },
        "conv 1-D": {
            "128x256, 5 taps": lambda: conv((1, 128, 256), 256, (1, 5)),
            "128x128, 3 taps, dilation 2": lambda: conv((1, 128, 128), 128, (1, 3), dilation=2),
        },
        "grouped conv": {"28x28x128, 32 groups": lambda: conv((28, 28, 128), 128, (3, 3), groups=32)},
        "depthwise": {
            "3x3, 56x56x64": lambda: depthwise((56, 56, 64), (3, 3)),
            "3x3, 56x56x64, stride 2": lambda: depthwise((56, 56, 64), (3, 3), 2),
            "3x3, 7x7x512": lambda: depthwise((7, 7, 512), (3, 3)),
            "5x5, 28x28x128": lambda: depthwise((28, 28, 128), (5, 5)),
            "1x33, 150x256": lambda: depthwise((1, 150, 256), (1, 33)),
        },
        "attention": {
            "12 heads, 128x64": lambda: attention(12, 128, 64),
            "3 heads, 197x64": lambda: attention(3, 197, 64),
        },
        "softmax": {"1536x128": lambda: softmax(1536, 128), "16x1000": lambda: softmax(16, 1000)},
        "layer_norm": {
            "128x768, int16": lambda: layer_norm(128, 768, "int16"),
            "128x384, int8": lambda: layer_norm(128, 384, "int8"),
        },
        "elementwise": {
            "add 56x56x64": lambda: add(56 * 56 * 64),
            "table 128x3072": lambda: table(128 * 3072),
            "requantize int16 128x768": lambda: rescale(128 * 768),
        },
        "pool": {
            "maximum 3x3, 56x56x64, stride 2": lambda: max_pool((56, 56, 64), 3, 2),
            "average 7x7x1024": lambda: average_pool((7, 7, 1024)),
        },
    }.items()
    for name, program in cases.items()
]


def values(program: Program) -> list[np.ndarray]:
    """One random input."""
    rng = np.random.default_rng(1)
    limits = {name: np.iinfo(t.dtype) for name, t in program.inputs.items()}
    return [
        rng.integers(limits[n].min, limits[n].max, t.shape, t.dtype, endpoint=True) for n, t in program.inputs.items()
    ]
