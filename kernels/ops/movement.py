"""Data movement: no arithmetic, any dtype."""

from __future__ import annotations

import numpy as np
from qcompile.kernels.bounds import BoundCall, Interval, hull, unchanged
from qcompile.kernels.dialect import Type, integer_op


@integer_op("reshape", kind="layout")
class Reshape:
    """The same elements in the same order with another shape."""

    @staticmethod
    def infer(x, *, shape):
        return Type(tuple(shape), x.dtype)

    @staticmethod
    def evaluate(x, *, shape):
        return x.reshape(shape)

    bound = staticmethod(unchanged)


@integer_op("transpose", kind="layout")
class Transpose:
    """Axes permuted: y.shape[i] = x.shape[axes[i]]."""

    @staticmethod
    def infer(x, *, axes):
        return Type(tuple(x.shape[i] for i in axes), x.dtype)

    @staticmethod
    def evaluate(x, *, axes):
        return x.transpose(axes)

    bound = staticmethod(unchanged)


@integer_op("slice", kind="layout")
class Slice:
    """y = x[begin:end:step] along every axis; steps may be negative (ends then as in numpy, -1 - size for "to the
    front")."""

    @staticmethod
    def infer(x, *, begin, end, step):
        return Type(
            tuple(len(range(*slice(b, e, s).indices(n))) for n, b, e, s in zip(x.shape, begin, end, step)), x.dtype
        )

    @staticmethod
    def evaluate(x, *, begin, end, step):
        return x[tuple(slice(b, e, s) for b, e, s in zip(begin, end, step))]

    bound = staticmethod(unchanged)


@integer_op("concat", kind="layout")
class Concat:
    """Tensors of one dtype and scale joined along an axis (not negative)."""

    @staticmethod
    def infer(*xs, axis):
        shape = list(xs[0].shape)
        shape[axis] = sum(x.shape[axis] for x in xs)
        return Type(tuple(shape), xs[0].dtype)

    @staticmethod
    def evaluate(*xs, axis):
        return np.concatenate(xs, axis)

    bound = staticmethod(hull)


@integer_op("pad", kind="layout")
class Pad:
    """before[i] and after[i] elements added along each axis; mode constant (of `value`), edge or reflect."""

    @staticmethod
    def infer(x, *, before, after, mode, value):
        return Type(tuple(n + b + a for n, b, a in zip(x.shape, before, after)), x.dtype)

    @staticmethod
    def evaluate(x, *, before, after, mode, value):
        return np.pad(
            x, list(zip(before, after)), mode=mode, **({"constant_values": value} if mode == "constant" else {})
        )

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        low, high = c.interval("x")
        value = c.attrs["value"]
        return (min(low, value), max(high, value)) if c.attrs["mode"] == "constant" else (low, high)


@integer_op("broadcast", kind="layout")
class Broadcast:
    """x repeated to `shape` as numpy broadcasts."""

    @staticmethod
    def infer(x, *, shape):
        return Type(tuple(shape), x.dtype)

    @staticmethod
    def evaluate(x, *, shape):
        return np.broadcast_to(x, shape)

    bound = staticmethod(unchanged)


@integer_op("take", kind="layout", plain=("indices",))
class Take:
    """Rows by number: y[..., i..., ...] = x[..., indices[i...], ...] along `axis`; indices int8..int64, from -size to
    size-1, below 0 counted from the end; others are clamped, so that hostile ids cannot read foreign memory."""

    @staticmethod
    def infer(x, indices, *, axis):
        return Type(x.shape[:axis] + indices.shape + x.shape[axis + 1 :], x.dtype)

    @staticmethod
    def evaluate(x, indices, *, axis):
        size, rows = x.shape[axis], indices.astype(np.int64)
        return np.take(x, np.clip(np.where(rows < 0, rows + size, rows), 0, size - 1), axis)

    bound = staticmethod(unchanged)
