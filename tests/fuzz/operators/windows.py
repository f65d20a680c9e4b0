"""Pools, resizing and sampling."""

from __future__ import annotations

from typing import Any

import numpy as np

from fuzz.build import Build
from fuzz.operators import draws
from fuzz.operators.products import window


@draws("MaxPool", "AveragePool", weight=2.5)
@draws("LpPool", weight=0.2)
def pool(b: Build, op: str) -> str:
    x = b.take(ranks=(3, 4, 4, 4, 5) if b.chance(0.2) else (3, 4, 4))
    kernel, given = window(b, b.shape(x)[2:])
    if op != "MaxPool" and (b.opset < 19 or op == "LpPool"):
        given.pop("dilations", None)
    if b.chance(0.3) and "auto_pad" not in given:
        given["ceil_mode"] = 1
    if op == "AveragePool" and b.chance(0.4):
        given["count_include_pad"] = 1
    if op == "LpPool":
        given.pop("ceil_mode", None)
    return b.add(op, [x], kernel_shape=kernel, **given)


@draws("GlobalAveragePool", "GlobalMaxPool", weight=1.0)
@draws("GlobalLpPool", weight=0.1)
def whole_pool(b: Build, op: str) -> str:
    return b.add(op, [b.take(ranks=(3, 4, 5))])


@draws("Resize", weight=1.5)
def resize(b: Build, op: str) -> str:
    x = b.take(ranks=(3, 4))
    shape = b.shape(x)
    if b.chance(0.5):
        factors = [1.0, 1.0, *(b.one_of((1.0, 2.0, 2.0, 3.0, 0.5)) for _ in shape[2:])]
        target = ["", "", b.constant(factors, np.float32)]
    else:
        target = ["", "", "", b.ints([*shape[:2], *(b.whole(1, 2 * n + 1) for n in shape[2:])])]
    given: dict[str, Any] = {"mode": b.one_of(("nearest", "nearest", "linear", "linear", "cubic"))}
    given["coordinate_transformation_mode"] = b.one_of(
        ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    )
    if given["mode"] == "nearest":
        given["nearest_mode"] = b.one_of(("floor", "round_prefer_floor", "ceil", "round_prefer_ceil"))
    return b.add(op, [x, *target[1:]], **given)


@draws("DepthToSpace", "SpaceToDepth", weight=0.7)
def blocks(b: Build, op: str) -> str:
    x = b.take(ranks=(4,))
    _, c, h, w = b.shape(x)
    sizes = [d for d in (2, 3, 4) if (c % (d * d) == 0 if op == "DepthToSpace" else h % d == 0 and w % d == 0)] or [1]
    given = {"mode": b.one_of(("DCR", "CRD"))} if op == "DepthToSpace" else {}
    return b.add(op, [x], blocksize=b.one_of(sizes), **given)


@draws("GridSample", weight=0.3, since=16)
def grid_sample(b: Build, op: str) -> str:
    x = b.take(ranks=(4,))
    n = b.shape(x)[0]
    grid = b.constant(b.rng.uniform(-1.2, 1.2, (n, b.size(13), b.size(13), 2)), np.float32)
    mode = b.one_of(("bilinear", "nearest")) if b.opset < 20 else b.one_of(("linear", "nearest"))
    return b.add(op, [x, grid], mode=mode, padding_mode=b.one_of(("zeros", "border")), align_corners=b.whole(0, 1))


@draws("AffineGrid", weight=0.1, since=20)
def affine_grid(b: Build, op: str) -> str:
    x = b.take(ranks=(4,))
    n, c = b.shape(x)[:2]
    theta = b.constant(np.tile([[0.9, 0.1, 0.0], [-0.1, 0.9, 0.0]], (n, 1, 1)), np.float32)
    grid = b.add(op, [theta, b.ints([n, c, b.size(7), b.size(7)])])
    return b.add("GridSample", [x, grid])


@draws("Col2Im", weight=0.3, since=18)
def columns_to_image(b: Build, op: str) -> str:
    """One row of blocks."""
    x = b.take(ranks=(3,))
    _, c, count = b.shape(x)
    kernel = b.one_of([(h, w) for h in (1, 2, 3) for w in (1, 2, 3) if c % (h * w) == 0])
    stride = b.whole(1, 3)
    image = b.ints([kernel[0], (count - 1) * stride + kernel[1]])
    return b.add(op, [x, image, b.ints(kernel)], strides=[1, stride])
