"""Softmax, normalisations and reductions."""

from __future__ import annotations

import numpy as np

from fuzz.build import MICROSOFT, Build, Unsuitable
from fuzz.operators import draws


@draws("Softmax", weight=3.0)
@draws("LogSoftmax", "Hardmax", weight=0.4)
def softmax(b: Build, op: str) -> str:
    x = b.take()
    return b.add(op, [x], axis=b.one_of((-1, -1, -1, b.whole(-b.rank(x), b.rank(x) - 1))))


@draws("LayerNormalization", weight=3.0, since=17)
def layer_norm(b: Build, op: str) -> str:
    x = b.take(ranks=(2, 3, 4))
    axis = b.one_of((-1, -1, -1, b.whole(1 - b.rank(x), -1)))
    shape = b.shape(x)[axis:]
    parts = [b.constant(1 + 0.3 * b.rng.standard_normal(shape), np.float32)]
    parts += [b.weight(shape, 4)] if b.chance(0.8) else []
    epsilon = {"epsilon": b.one_of((1e-5, 1e-12, 1e-3))} if b.chance(0.5) else {}
    return b.add(op, [x, *parts], axis=axis, **epsilon)


@draws("RMSNormalization", weight=1.0, since=23)
@draws("SimplifiedLayerNormalization", weight=0.7)
def rms_norm(b: Build, op: str) -> str:
    x = b.take(ranks=(2, 3))
    return b.add(op, [x, b.constant(1 + 0.3 * b.rng.standard_normal(b.shape(x)[-1:]), np.float32)], axis=-1)


@draws("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", weight=0.5)
def skip_norm(b: Build, op: str) -> str:
    x = b.take(ranks=(3,))
    shape = b.shape(x)
    others = b.tensors(lambda n: b.shape(n) == shape and b.kind(n) == "float")
    gamma = b.constant(1 + 0.3 * b.rng.standard_normal(shape[-1:]), np.float32)
    beta = [b.weight(shape[-1:], 4)] if op == "SkipLayerNormalization" else []
    return b.add(op, [x, b.one_of(others), gamma, *beta], domain=MICROSOFT, epsilon=1e-5)


@draws("InstanceNormalization", weight=0.7)
def instance_norm(b: Build, op: str) -> str:
    x = b.take(ranks=(3, 4))
    channels = b.shape(x)[1]
    return b.add(op, [x, b.weight([channels]), b.weight([channels])])


@draws("GroupNormalization", weight=0.5, since=21)
def group_norm(b: Build, op: str) -> str:
    x = b.take(ranks=(3, 4))
    channels = b.shape(x)[1]
    groups = b.one_of([d for d in range(1, channels + 1) if channels % d == 0])
    return b.add(op, [x, b.weight([channels]), b.weight([channels])], num_groups=groups)


@draws("BatchNormalization", weight=2.0)
def batch_norm(b: Build, op: str) -> str:
    x = b.take(ranks=(2, 3, 4))
    c = b.shape(x)[1]
    variance = b.constant(np.abs(b.rng.standard_normal(c)) + 0.1, np.float32)
    return b.add(op, [x, b.weight([c]), b.weight([c]), b.weight([c]), variance])


@draws("MeanVarianceNormalization", weight=0.4)
def mean_variance(b: Build, op: str) -> str:
    x = b.take(ranks=(4,))
    return b.add(op, [x], axes=b.one_of(([0, 2, 3], [2, 3], [1, 2, 3], [3])))


@draws("LpNormalization", weight=0.4)
def lp_norm(b: Build, op: str) -> str:
    x = b.take()
    return b.add(op, [x], axis=b.whole(-b.rank(x), b.rank(x) - 1), p=b.one_of((2, 2, 1)))


@draws("ReduceMean", "ReduceSum", "ReduceMax", weight=1.5)
@draws("ReduceMin", "ReduceL2", "ReduceSumSquare", "ReduceL1", "ReduceLogSumExp", weight=0.5)
@draws("ReduceProd", "ReduceLogSum", weight=0.2)
def reduce(b: Build, op: str) -> str:
    x = b.take()
    if op not in ("ReduceMean", "ReduceMax", "ReduceMin"):
        x = b.modest(x)
    if op == "ReduceLogSum":
        x = b.within(x, 0.1, 100.0)
    rank = b.rank(x)
    axes = sorted({b.whole(0, rank - 1) for _ in range(b.whole(1, rank))})
    if op == "ReduceProd" and np.prod([b.shape(x)[a] for a in axes]) > 5:
        raise Unsuitable("a long product")
    axes = [a - rank if b.chance(0.4) else a for a in axes]
    extra, given = b.axes("axes", axes, 13 if op == "ReduceSum" else 18)
    if b.chance(0.1):
        extra, given = [], {}
    return b.add(op, [x, *extra], keepdims=b.whole(0, 1), **given)


@draws("ArgMax", "ArgMin", weight=0.3)
def arg(b: Build, op: str) -> str:
    x = b.take()
    axis = b.whole(-b.rank(x), b.rank(x) - 1)
    return b.add(op, [x], axis=axis, keepdims=b.whole(0, 1), select_last_index=b.whole(0, 1))


@draws("TopK", weight=0.3)
def top_k(b: Build, op: str) -> list[str]:
    x = b.take()
    axis = b.whole(-b.rank(x), b.rank(x) - 1)
    k = b.ints([b.whole(1, b.shape(x)[axis])])
    return b.add(op, [x, k], outputs=2, axis=axis, largest=b.whole(0, 1), sorted=1)


@draws("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss", weight=0.1, since=13)
def loss(b: Build, op: str) -> str:
    x = b.modest(b.take(ranks=(2,)))
    rows, classes = b.shape(x)
    labels = b.ints(b.rng.integers(0, classes, rows))
    return b.add(op, [x, labels], reduction=b.one_of(("none", "mean", "sum")))
