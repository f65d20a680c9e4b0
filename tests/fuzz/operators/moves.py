"""Operators that move values and compute nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from fuzz.build import BOOL, FLOAT, INTEGER, Build
from fuzz.operators import draws


@draws("Transpose", weight=3.0)
def transpose(b: Build, op: str) -> str:
    x = b.take()
    perm = [int(i) for i in b.rng.permutation(b.rank(x))]
    return b.add(op, [x], perm=perm if b.chance(0.9) else None)


@draws("Reshape", weight=2.5)
def reshape(b: Build, op: str) -> str:
    x = b.take()
    shape = list(b.shape(b.with_rank(x, b.whole(1, 5))))
    if b.chance(0.3):
        shape[b.whole(0, len(shape) - 1)] = -1
    return b.add(op, [x, b.ints(shape)])


@draws("Flatten", weight=1.0)
def flatten(b: Build, op: str) -> str:
    x = b.take()
    return b.add(op, [x], axis=b.whole(0, b.rank(x)))


@draws("Squeeze", "Unsqueeze", weight=0.7)
def squeeze(b: Build, op: str) -> str:
    x = b.take()
    ones = [i for i, n in enumerate(b.shape(x)) if n == 1]
    if op == "Squeeze" and not ones:
        x = b.with_rank(x, b.rank(x) + 1)
        ones = [i for i, n in enumerate(b.shape(x)) if n == 1]
    axis = b.one_of(ones) if op == "Squeeze" else b.whole(0, b.rank(x))
    extra, given = b.axes("axes", [axis], 13)
    return b.add(op, [x, *extra], **given)


@draws("Slice", weight=2.0)
def cut(b: Build, op: str) -> str:
    x = b.take()
    axis = b.whole(0, b.rank(x) - 1)
    n = b.shape(x)[axis]
    step = b.one_of((1, 1, 1, 2, 3, -1, -2))
    start = b.whole(0, n - 1)
    end = b.whole(start + 1, n) if step > 0 else -n - 1
    if b.chance(0.2) and step > 0:
        start, end = start - n, 2**31
    return b.add(op, [x, *(b.ints([v]) for v in (start, end, axis, step))])


@draws("Concat", weight=3.0)
def concat(b: Build, op: str) -> str:
    """Of tensors whose other axes agree: those that are there, slices of one, constants."""
    x = b.take()
    shape = b.shape(x)
    axis = b.whole(0, len(shape) - 1)

    def fits(n: str) -> bool:
        other = b.shape(n)
        return (
            b.kind(n) == FLOAT
            and len(other) == len(shape)
            and all(a == c or i == axis for i, (a, c) in enumerate(zip(shape, other)))
        )

    parts = [x, *(b.one_of(b.tensors(fits)) for _ in range(b.whole(1, 3)))]
    if b.chance(0.2):
        part = list(shape)
        part[axis] = b.size(7)
        parts.append(b.weight(part))
    if b.chance(0.3):
        parts[0] = b.add(b.one_of(("Sigmoid", "Relu", "Neg")), [parts[0]])
    return b.add(op, parts, axis=axis if b.chance(0.5) else axis - len(shape))


@draws("Split", weight=1.5)
def split(b: Build, op: str) -> list[str]:
    x = b.take()
    axis = int(np.argmax(b.shape(x))) if b.chance(0.7) else b.whole(0, b.rank(x) - 1)
    n = b.shape(x)[axis]
    if n == 1:
        return [b.add("Identity", [x])]
    parts = b.one_of([d for d in (2, 3, 4, 5, 7) if n % d == 0] or [2])
    sizes = [n // parts] * parts if n % parts == 0 and b.chance(0.6) else [b.whole(1, n - 1)]
    sizes = sizes if sum(sizes) == n else [sizes[0], n - sizes[0]]
    extra, given = b.axes("split", sizes, 13)
    return b.add(op, [x, *extra], outputs=len(sizes), axis=axis, **given)


@draws("Pad", weight=1.5)
def pad(b: Build, op: str) -> str:
    x = b.take()
    mode = b.one_of(("constant", "constant", "edge", "reflect"))
    most = [min(3, n - 1) if mode == "reflect" else 2 for n in b.shape(x)]
    pads = [b.whole(0, m) if b.chance(0.5) else 0 for m in most * 2]
    value = [b.constant(b.one_of((0.0, 1.0, -0.5)), np.float32)] if mode == "constant" and b.chance(0.7) else []
    return b.add(op, [x, b.ints(pads), *value], mode=mode)


@draws("Gather", weight=2.0)
def gather(b: Build, op: str) -> str:
    """Constant indices, or an embedding by an integer input."""
    if b.chance(0.3):
        rows, dim = b.size(129), b.size(70)
        ids = b.input(b.any_shape(b.whole(1, 2)), INTEGER, rows, b.one_of((np.int64, np.int32)))
        return b.add(op, [b.weight([rows, dim], 1), ids])
    x = b.take()
    axis = b.whole(-b.rank(x), b.rank(x) - 1)
    n = b.shape(x)[axis]
    indices = b.rng.integers(-n, n, b.one_of([(), (1,), (b.size(7),), (2, b.size(5))]))
    return b.add(op, [x, b.ints(indices)], axis=axis)


@draws("GatherElements", weight=0.4)
def gather_elements(b: Build, op: str) -> str:
    x = b.take(ranks=(2, 3))
    axis = b.whole(0, b.rank(x) - 1)
    return b.add(op, [x, b.ints(b.rng.integers(0, b.shape(x)[axis], b.shape(x)))], axis=axis)


@draws("GatherND", weight=0.4)
def gather_nd(b: Build, op: str) -> str:
    x = b.take(ranks=(2, 3))
    depth = b.whole(1, b.rank(x))
    return b.add(op, [x, b.ints(np.stack([b.rng.integers(0, n, 5) for n in b.shape(x)[:depth]], -1))])


@draws("ScatterND", weight=0.3)
def scatter_nd(b: Build, op: str) -> str:
    x = b.take(ranks=(2, 3))
    shape = b.shape(x)
    rows = b.rng.permutation(shape[0])[: max(1, shape[0] // 2)]
    return b.add(op, [x, b.ints(rows[:, None]), b.weight([len(rows), *shape[1:]])])


@draws("ScatterElements", weight=0.3)
def scatter_elements(b: Build, op: str) -> str:
    x = b.take(ranks=(2,))
    rows, columns = b.shape(x)
    axis = b.whole(0, 1)
    if axis:
        places = np.stack([b.rng.permutation(columns)[: max(1, columns // 2)] for _ in range(rows)])
    else:
        places = np.stack([b.rng.permutation(rows)[: max(1, rows // 2)] for _ in range(columns)], 1)
    return b.add(op, [x, b.ints(places), b.weight(places.shape)], axis=axis)


@draws("Tile", weight=0.7)
def tile(b: Build, op: str) -> str:
    x = b.take()
    return b.add(op, [x, b.ints([b.one_of((1, 1, 2, 3)) for _ in b.shape(x)])])


@draws("Expand", weight=0.7)
def expand(b: Build, op: str) -> str:
    x = b.take()
    target = [b.size(7) if n == 1 else b.one_of((n, 1)) for n in b.shape(x)]
    return b.add(op, [x, b.ints([*([2] if b.chance(0.2) else []), *target])])


@draws("ReverseSequence", weight=0.2)
def reverse_sequence(b: Build, op: str) -> str:
    x = b.take(ranks=(3,))
    time, batch = b.shape(x)[:2]
    return b.add(op, [x, b.ints(b.rng.integers(1, time + 1, batch))])


@draws("Trilu", weight=0.3, since=14)
def trilu(b: Build, op: str) -> str:
    x = b.take(ranks=(2, 3, 4))
    return b.add(op, [x, b.constant(b.whole(-2, 2), np.int64)], upper=b.whole(0, 1))


@draws("OneHot", weight=0.2)
def one_hot(b: Build, op: str) -> str:
    depth = b.size(33)
    ids = b.input(b.any_shape(b.whole(1, 2)), INTEGER, depth)
    return b.add(op, [ids, b.constant(depth, np.int64), b.constant([0.0, 1.0], np.float32)], axis=-1)


@draws("CenterCropPad", weight=0.2, since=18)
def center_crop_pad(b: Build, op: str) -> str:
    x = b.take()
    return b.add(op, [x, b.ints([b.whole(max(1, n - 2), n + 2) for n in b.shape(x)])])


@draws("Shape", weight=0.4)
def shape_arithmetic(b: Build, op: str) -> str:
    """A target computed from a shape, as exporters of dynamic models write it."""
    x = b.take(ranks=(2, 3, 4))
    first = b.add("Gather", [b.add(op, [x]), b.constant(0, np.int64)], axis=0)
    extra, given = b.axes("axes", [0], 13)
    column = b.add("Unsqueeze", [first, *extra], **given)
    return b.add("Reshape", [x, b.add("Concat", [column, b.ints([-1])], axis=0)])


@draws("Compress", weight=0.1)
def compress(b: Build, op: str) -> str:
    x = b.take()
    axis = b.whole(0, b.rank(x) - 1)
    kept = b.rng.random(b.shape(x)[axis]) < 0.7
    kept[0] = True
    return b.add(op, [x, b.constant(kept)], axis=axis)


@draws("ConstantOfShape", "Range", "EyeLike", weight=0.15)
def made(b: Build, op: str) -> str:
    """A constant made by a node, added to a tensor."""
    x: Any = b.take(ranks=(2,))
    rows, columns = b.shape(x)
    if op == "EyeLike":
        return b.add("Add", [x, b.add(op, [x], dtype=1)])
    if op == "Range":
        ends = [b.constant(v, np.float32) for v in (0, columns, 1)]
        return b.add("Mul", [x, b.add(op, ends)])
    return b.add("Add", [x, b.add(op, [b.ints([rows, columns])])])


@draws("Size", weight=0.1)
def counts(b: Build, op: str) -> str:
    return b.add(op, [b.take(BOOL)])
