"""Data movement: no arithmetic, any dtype."""

from __future__ import annotations

import numpy as np
from qcompile.kernels.dialect import Type, integer_op


@integer_op("reshape")
class Reshape:
    """The same elements in the same order with another shape."""

    def infer(x, *, shape):
        return Type(tuple(shape), x.dtype)

    def evaluate(x, *, shape):
        return x.reshape(shape)


@integer_op("transpose")
class Transpose:
    """Axes permuted: y.shape[i] = x.shape[axes[i]]."""

    def infer(x, *, axes):
        return Type(tuple(x.shape[i] for i in axes), x.dtype)

    def evaluate(x, *, axes):
        return x.transpose(axes)


@integer_op("slice")
class Slice:
    """y = x[begin:end:step] along every axis; steps may be negative (ends then as in numpy, -1 - size for "to the
    front")."""

    def infer(x, *, begin, end, step):
        return Type(
            tuple(len(range(*slice(b, e, s).indices(n))) for n, b, e, s in zip(x.shape, begin, end, step)), x.dtype
        )

    def evaluate(x, *, begin, end, step):
        return x[tuple(slice(b, e, s) for b, e, s in zip(begin, end, step))]


@integer_op("concat")
class Concat:
    """Tensors of one dtype and scale joined along an axis (not negative)."""

    def infer(*xs, axis):
        shape = list(xs[0].shape)
        shape[axis] = sum(x.shape[axis] for x in xs)
        return Type(tuple(shape), xs[0].dtype)

    def evaluate(*xs, axis):
        return np.concatenate(xs, axis)


@integer_op("pad")
class Pad:
    """before[i] and after[i] elements added along each axis; mode constant (of `value`), edge or reflect."""

    def infer(x, *, before, after, mode, value):
        return Type(tuple(n + b + a for n, b, a in zip(x.shape, before, after)), x.dtype)

    def evaluate(x, *, before, after, mode, value):
        return np.pad(
            x, list(zip(before, after)), mode=mode, **({"constant_values": value} if mode == "constant" else {})
        )


@integer_op("broadcast")
class Broadcast:
    """x repeated to `shape` as numpy broadcasts."""

    def infer(x, *, shape):
        return Type(tuple(shape), x.dtype)

    def evaluate(x, *, shape):
        return np.broadcast_to(x, shape)


@integer_op("take")
class Take:
    """Rows by number: y[..., i..., ...] = x[..., indices[i...], ...] along `axis`; indices int8..int64, from -size to
    size-1, below 0 counted from the end; others are clamped, so that hostile ids cannot read foreign memory."""

    def infer(x, indices, *, axis):
        return Type(x.shape[:axis] + indices.shape + x.shape[axis + 1 :], x.dtype)

    def evaluate(x, indices, *, axis):
        size, rows = x.shape[axis], indices.astype(np.int64)
        return np.take(x, np.clip(np.where(rows < 0, rows + size, rows), 0, size - 1), axis)
