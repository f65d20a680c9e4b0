"""Windows: pooling and resizing. Channels last."""

from __future__ import annotations

import math

import numpy as np
from qcompile.kernels.arithmetic import RANGES, rescale, saturate
from qcompile.kernels.bounds import BoundCall, Interval, unchanged
from qcompile.kernels.dialect import Type, integer_op
from qcompile.kernels.ops.linear import conv_output_size, windows
from qcompile.kernels.ops.reduce import sum_of
from qcompile.kernels.ops.requantize import DYADIC


@integer_op("max_pool2d", kind="pool")
class MaxPool2d:
    """Maximum over each window; padding never wins. x [N,H,W,C]; pads = [top, left, bottom, right] (bottom and right
    already include what ceil_mode needs)."""

    @staticmethod
    def infer(x, *, kernel, strides, dilations, pads):
        n, h, w, c = x.shape
        return Type(
            (
                n,
                conv_output_size(h, kernel[0], strides[0], dilations[0], pads[0] + pads[2]),
                conv_output_size(w, kernel[1], strides[1], dilations[1], pads[1] + pads[3]),
                c,
            ),
            x.dtype,
        )

    @staticmethod
    def evaluate(x, *, kernel, strides, dilations, pads):
        return windows(x, kernel, strides, dilations, pads, np.iinfo(x.dtype).min).max((-2, -1))

    bound = staticmethod(unchanged)


@integer_op("sum_pool2d", kind="pool", heads_fusion=True)
class SumPool2d:
    """acc = sum of (x - x_zero_point) over each window, padding counts 0; int32. (An average is this and a
    requantize.)"""

    @staticmethod
    def infer(x, *, kernel, strides, pads, x_zero_point):
        return Type(MaxPool2d.infer(x, kernel=kernel, strides=strides, dilations=[1, 1], pads=pads).shape, "int32")

    @staticmethod
    def evaluate(x, *, kernel, strides, pads, x_zero_point):
        return windows(x.astype(np.int32) - x_zero_point, kernel, strides, [1, 1], pads, 0).sum(
            (-2, -1), dtype=np.int32
        )

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        return sum_of(c, math.prod(c.attrs["kernel"]))


@integer_op(
    "resize_linear",
    kind="resize",
    parameters=("rows", "row_weights", "columns", "column_weights"),
    ranges=DYADIC | {"multiplier": RANGES["int32"]},
)
class ResizeLinear:
    """Interpolation with integer weights, one rounding.

    acc = sum_{i,j} row_weights[i,oh] * column_weights[j,ow] * (x[n, rows[i,oh], columns[j,ow], c] -
    x_zero_point),
    y = clamp(zero_point + rescale(acc, multiplier)). rows, columns int32 [taps, OH|OW]; weights int32 of the same
    shapes, so small that acc fits int32 (proved). x [N,H,W,C] int8|uint8|int16.
    """

    @staticmethod
    def infer(
        x,
        rows,
        row_weights,
        columns,
        column_weights,
        *,
        x_zero_point,
        multiplier,
        shift,
        pre,
        zero_point,
        qmin,
        qmax,
        dtype,
    ):
        return Type((x.shape[0], rows.shape[1], columns.shape[1], x.shape[3]), dtype)

    @staticmethod
    def evaluate(
        x,
        rows,
        row_weights,
        columns,
        column_weights,
        *,
        x_zero_point,
        multiplier,
        shift,
        pre,
        zero_point,
        qmin,
        qmax,
        dtype,
    ):
        d, acc = x.astype(np.int64) - x_zero_point, 0
        for i in range(len(rows)):
            for j in range(len(columns)):
                w = row_weights[i][:, None, None].astype(np.int64) * column_weights[j][:, None]
                acc = acc + d[:, rows[i]][:, :, columns[j]] * w
        return saturate(rescale(acc, multiplier, shift, pre), zero_point, qmin, qmax, dtype)

    @staticmethod
    def bound(c: BoundCall) -> Interval:
        low, high = c.interval("x")
        reach = math.prod(int(np.abs(c.constant(n)).sum(0).max(initial=0)) for n in ("row_weights", "column_weights"))
        top = max(abs(low), abs(high)) * reach * 2 ** c.attrs["pre"]
        c.fits("the sum", -top, top)
        return c.clamped()
