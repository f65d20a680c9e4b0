"""Convolutions and matrix products: int8 operands, exact int32 accumulators.

Layouts: activations channels-last, weights output-channel first. 1-D convolutions are 2-D ones of height 1.
"""

from __future__ import annotations

import math

import numpy as np
from qcompile.kernels.arithmetic import checked_int32, integer_matmul
from qcompile.kernels.bounds import BoundCall, Interval, product
from qcompile.kernels.dialect import Attrs, Type, integer_op


def conv_output_size(size: int, kernel: int, stride: int, dilation: int, pad: int) -> int:
    return (size + pad - dilation * (kernel - 1) - 1) // stride + 1


def windows(x: np.ndarray, kernel, strides, dilations, pads, fill) -> np.ndarray:
    """x [N,H,W,C] -> view [N,OH,OW,C,KH,KW] of the padded input; pads = [top, left, bottom, right]."""
    (kh, kw), (sh, sw), (dh, dw), (t, left, b, r) = kernel, strides, dilations, pads
    x = np.pad(x, ((0, 0), (t, b), (left, r), (0, 0)), constant_values=fill)
    v = np.lib.stride_tricks.sliding_window_view(x, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(1, 2))
    return v[:, ::sh, ::sw, :, ::dh, ::dw]


def conv_kind(types: list[Type], attrs: Attrs) -> str:
    return "depthwise" if 1 < attrs["groups"] == types[1].shape[0] else "conv"


def weighted(c: BoundCall) -> Interval:
    """The exact extremes of each output channel; a tap may also see padding, which is 0."""
    weight, bias = c.constant("weight"), c.constant("bias")
    zeros = np.atleast_1d(c.attrs["x_zero_point"])
    low, high = c.intervals[0][0] - int(zeros.max()), c.intervals[0][1] - int(zeros.min())
    if any(c.attrs.get("pads", ())):
        low, high = min(low, 0), max(high, 0)
    weight = weight.reshape(len(weight), -1)
    positive, negative = np.maximum(weight, 0).sum(1), np.minimum(weight, 0).sum(1)
    lowest, highest = positive * low + negative * high + bias, positive * high + negative * low + bias
    c.fits("the accumulator", int(lowest.min()), int(highest.max()))
    return int(lowest.min()), int(highest.max())


def weighted_macs(types: list[Type], out: Type) -> int:
    return out.size * math.prod(types[1].shape[1:])


@integer_op("conv2d", kind=conv_kind, parameters=("weight", "bias"), heads_fusion=True)
class Conv2d:
    """acc[n,oh,ow,o] = bias[o] + sum (x - x_zero_point) * weight; padding counts as x_zero_point.

    x_zero_point: one number, or a list of one for each channel of x (images whose channels have means of their own).
    x int8|uint8 [N,H,W,C], weight int8 [O,KH,KW,C/groups], bias int32 [O] -> int32 [N,OH,OW,O].
    pads = [top, left, bottom, right]. groups == C with one filter per channel is a depthwise convolution.
    """

    @staticmethod
    def infer(x, weight, bias, *, strides, dilations, pads, groups, x_zero_point):
        n, h, w, _ = x.shape
        o, kh, kw, _ = weight.shape
        return Type(
            (
                n,
                conv_output_size(h, kh, strides[0], dilations[0], pads[0] + pads[2]),
                conv_output_size(w, kw, strides[1], dilations[1], pads[1] + pads[3]),
                o,
            ),
            "int32",
        )

    @staticmethod
    def evaluate(x, weight, bias, *, strides, dilations, pads, groups, x_zero_point):
        o, kh, kw, cg = weight.shape
        v = windows(x.astype(np.int32) - np.asarray(x_zero_point, np.int32), (kh, kw), strides, dilations, pads, 0)
        n, oh, ow = v.shape[:3]
        if cg == 1 and groups == o:
            acc = np.einsum("nhwcij,cij->nhwc", v.astype(np.float64), weight[..., 0].astype(np.float64), optimize=True)
            return checked_int32(np.rint(acc).astype(np.int64) + bias, "conv2d")
        v = v.reshape(n * oh * ow, groups, cg, kh, kw).transpose(1, 0, 3, 4, 2).reshape(groups, n * oh * ow, -1)
        w = weight.reshape(groups, o // groups, -1).transpose(0, 2, 1)
        acc = integer_matmul(v, w).transpose(1, 0, 2).reshape(n, oh, ow, o)
        return checked_int32(acc + bias, "conv2d")

    bound = staticmethod(weighted)
    macs = staticmethod(weighted_macs)


@integer_op("dense", kind="matmul", parameters=("weight", "bias"), heads_fusion=True)
class Dense:
    """acc[..., n] = bias[n] + sum_k (x[..., k] - x_zero_point) * weight[n, k].

    x int8|uint8 [..., K], weight int8 [N, K], bias int32 [N] -> int32 [..., N].
    """

    @staticmethod
    def infer(x, weight, bias, *, x_zero_point):
        return Type((*x.shape[:-1], weight.shape[0]), "int32")

    @staticmethod
    def evaluate(x, weight, bias, *, x_zero_point):
        return checked_int32(integer_matmul(x.astype(np.int32) - x_zero_point, weight.T) + bias, "dense")

    bound = staticmethod(weighted)
    macs = staticmethod(weighted_macs)


@integer_op("matmul", kind="matmul", heads_fusion=True)
class Matmul:
    """Product of two activations: acc = (a - a_zero_point) @ (b - b_zero_point), int32, exact.

    a int8|uint8 [..., M, K], b int8|uint8 [..., K, N], or [..., N, K] with transpose_b; leading axes broadcast as in
    numpy.
    """

    @staticmethod
    def infer(a, b, *, transpose_b, a_zero_point, b_zero_point):
        n = b.shape[-2] if transpose_b else b.shape[-1]
        return Type((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], n), "int32")

    @staticmethod
    def evaluate(a, b, *, transpose_b, a_zero_point, b_zero_point):
        b = b.astype(np.int32) - b_zero_point
        return checked_int32(
            integer_matmul(a.astype(np.int32) - a_zero_point, b.swapaxes(-1, -2) if transpose_b else b), "matmul"
        )

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        low, high = product(c.interval("a"), c.interval("b"))
        k = c.type("a").shape[-1]
        c.fits("the accumulator", low * k, high * k)
        return low * k, high * k

    @staticmethod
    def macs(types: list[Type], out: Type) -> int:
        return out.size * types[0].shape[-1]
