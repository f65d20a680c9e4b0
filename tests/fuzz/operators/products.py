"""Convolutions, matrix products and what is made of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fuzz.build import MICROSOFT, Build, Unsuitable
from fuzz.operators import draws

MOST_MACS = 4_000_000


def _padding(b: Build, spatial: tuple[int, ...], kernel: list[int]) -> dict[str, Any]:
    way = b.rng.random()
    if way < 0.2:
        return {"auto_pad": b.one_of(("SAME_UPPER", "SAME_LOWER", "VALID"))}
    if way < 0.4:
        return {}
    if way < 0.7:
        return {"pads": [k // 2 for k in kernel] * 2}
    return {"pads": [b.whole(0, k - 1) for k in kernel * 2]}


def window(b: Build, spatial: tuple[int, ...]) -> tuple[list[int], dict[str, Any]]:
    """(kernel, attributes) of a window that fits."""
    kernel = [b.whole(1, min(n, b.one_of((1, 3, 3, 5, 7)))) for n in spatial]
    given: dict[str, Any] = {}
    if b.chance(0.4):
        given["strides"] = [b.whole(1, 3) for _ in spatial]
    if b.chance(0.2):
        given["dilations"] = [b.whole(1, 2) if (k - 1) * 2 < n else 1 for k, n in zip(kernel, spatial)]
    if "dilations" not in given:
        given |= _padding(b, spatial, kernel)
    return kernel, given


def _groups(b: Build, channels: int) -> int:
    """1, as many as channels, or a divisor."""
    way = b.rng.random()
    if way < 0.55:
        return 1
    return channels if way < 0.8 else b.one_of([d for d in range(1, channels + 1) if channels % d == 0])


@draws("Conv", weight=10.0)
def conv(b: Build, op: str, x: str = "") -> str:
    x = x or b.take(ranks=(3, 4, 4, 4, 4, 5) if b.chance(0.2) else (3, 4, 4))
    _, channels, *spatial = b.shape(x)
    kernel, given = window(b, tuple(spatial))
    groups = _groups(b, channels)
    out = groups * b.one_of((1, 1, 2)) if groups > 1 else b.size(129)
    depth = channels // groups
    if int(np.prod([out, depth, *kernel, *spatial])) > MOST_MACS:
        raise Unsuitable("too many products")
    w = b.weight([out, depth, *kernel], depth * int(np.prod(kernel)))
    bias = [b.weight([out], 4)] if b.chance(0.6) else []
    y = b.add(op, [x, w, *bias], group=groups, **given)
    return _activation(b, y)


def _activation(b: Build, y: str) -> str:
    """What usually follows."""
    way = b.rng.random()
    if way < 0.3:
        return b.add("Relu", [y])
    if way < 0.35:
        return b.add("Clip", [y, b.constant(0, np.float32), b.constant(6, np.float32)])
    if way < 0.42:
        return b.add("Mul", [y, b.add("Sigmoid", [y])])
    return y


@draws("FusedConv", weight=0.4)
def fused_conv(b: Build, op: str) -> str:
    x = b.take(ranks=(4,))
    _, channels, *spatial = b.shape(x)
    kernel = [min(3, n) for n in spatial]
    w = b.weight([b.size(35), channels, *kernel], channels * 9)
    return b.add(op, [x, w], domain=MICROSOFT, activation=b.one_of(("Relu", "Sigmoid", "Tanh")))


@draws("ConvTranspose", weight=2.0)
def conv_transpose(b: Build, op: str) -> str:
    x = b.take(ranks=(3, 4, 4))
    _, channels, *spatial = b.shape(x)
    kernel = [b.whole(1, 4) for _ in spatial]
    groups = _groups(b, channels)
    out = b.size(17)
    if int(np.prod([channels, out, *kernel, *spatial])) > MOST_MACS:
        raise Unsuitable("too many products")
    given: dict[str, Any] = {"group": groups}
    if b.chance(0.7):
        given["strides"] = [b.whole(1, 3) for _ in spatial]
    if b.chance(0.4):
        given["pads"] = [b.whole(0, k // 2) for k in kernel * 2]
    if b.chance(0.2) and "strides" in given:
        given["output_padding"] = [b.whole(0, s - 1) for s in given["strides"]]
    if b.chance(0.15):
        given["dilations"] = [b.whole(1, 2) for _ in spatial]
    w = b.weight([channels, out, *kernel], channels * int(np.prod(kernel)), axis=1)
    bias = [b.weight([out * groups], 4)] if b.chance(0.5) else []
    return b.add(op, [x, w, *bias], **given)


@draws("MatMul", weight=8.0)
def matmul(b: Build, op: str) -> str:
    """By a constant on either side, or of two tensors."""
    x = b.take()
    shape = b.shape(x)
    way = b.rng.random()
    if way < 0.6 or len(shape) < 2:
        n = b.size(129)
        if int(np.prod(shape)) * n > MOST_MACS:
            raise Unsuitable("too many products")
        batch = list(shape[:-2]) if len(shape) > 2 and b.chance(0.15) else []
        w = b.weight([*batch, shape[-1], n] if batch or b.chance(0.93) else [shape[-1]], shape[-1], axis=-1)
        return _activation(b, b.add(op, [x, w]))
    if way < 0.75:
        m = b.size(70)
        return b.add(op, [b.weight([m, shape[-2]], shape[-2]), x])
    others = b.tensors(lambda n: b.rank(n) == len(shape) and b.shape(n)[:-2] == shape[:-2] and b.kind(n) == "float")
    fitting = [n for n in others if b.shape(n)[-2] == shape[-1]]
    if fitting and b.chance(0.6):
        return b.add(op, [x, b.one_of(fitting)])
    turned = [n for n in others if b.shape(n)[-1] == shape[-1]]
    perm = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    return b.add(op, [x, b.add("Transpose", [b.one_of(turned)], perm=perm)])


@draws("Gemm", weight=4.0)
def gemm(b: Build, op: str) -> str:
    x = b.take(ranks=(2,))
    m, k = b.shape(x)
    given: dict[str, Any] = {}
    if b.chance(0.15):
        given["transA"], m, k = 1, k, m
    n = b.size(129)
    if b.chance(0.5):
        given["transB"] = 1
    if b.chance(0.2):
        given["alpha"], given["beta"] = b.real(0.2, 2), b.real(0.2, 2)
    w = b.weight([n, k] if "transB" in given else [k, n], k, axis=0 if "transB" in given else 1)
    extra = b.one_of(([], [n], [1, n], [m, n], [1], [m, 1]))
    return _activation(b, b.add(op, [x, w, *([b.weight(extra, 4, axis=-1)] if extra else [])], **given))


@draws("FusedGemm", "FusedMatMul", weight=0.4)
def fused(b: Build, op: str) -> str:
    x = b.take(ranks=(2,))
    k, n = b.shape(x)[1], b.size(65)
    if op == "FusedMatMul":
        return b.add(op, [x, b.weight([n, k], k)], domain=MICROSOFT, transB=1, alpha=b.real(0.2, 2))
    bias = b.weight([n], 4)
    return b.add(op, [x, b.weight([k, n], k, axis=1), bias], domain=MICROSOFT, activation=b.one_of(("Relu", "Tanh")))


@draws("MatMulNBits", weight=0.5)
def matmul_nbits(b: Build, op: str) -> str:
    x = b.take(ranks=(2, 3))
    k, n, block = b.shape(x)[-1], b.size(65), b.one_of((16, 32))
    blocks = -(-k // block)
    codes = b.constant(b.rng.integers(0, 256, (n, blocks, block // 2)), np.uint8)
    scales = b.constant(np.abs(b.rng.standard_normal(n * blocks)) * 0.05 + 0.01, np.float32)
    return b.add(op, [x, codes, scales], domain=MICROSOFT, K=k, N=n, bits=4, block_size=block)


@draws("Einsum", weight=0.6)
def einsum(b: Build, op: str) -> str:
    x = b.take(ranks=(3,))
    d = b.shape(x)[-1]
    equation, shape = b.one_of(
        [
            ("btd,de->bte", (d, b.size(33))),
            ("btd,ed->bte", (b.size(33), d)),
            ("btd,d->bt", (d,)),
            ("btd,btd->bt", None),
            ("btd,bsd->bts", None),
        ]
    )
    return b.add(op, [x, x if shape is None else b.weight(shape, d)], equation=equation)


@draws("CumSum", weight=0.3)
def cum_sum(b: Build, op: str) -> str:
    x = b.modest(b.take())
    axis = b.constant(b.whole(-b.rank(x), b.rank(x) - 1), np.int64)
    return b.add(op, [x, axis], exclusive=b.whole(0, 1), reverse=b.whole(0, 1))


@draws("LRN", weight=0.3)
def lrn(b: Build, op: str) -> str:
    x = b.modest(b.take(ranks=(4,)))
    return b.add(op, [x], size=b.one_of((1, 3, 5)), alpha=b.real(0.01, 0.5), bias=b.real(0.5, 2.0))
