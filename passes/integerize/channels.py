"""Numbers per channel on what has few codes: a factor and a shift for each channel with one rounding at the end."""

from __future__ import annotations

import numpy as np
from qcompile.passes.integerize.functions import as_function
from qcompile.passes.integerize.reader import Reader
from qcompile.passes.integerize.values import Accumulator, Function, Integers, Value

WEIGHT = 64  # of a pixel in its sum, so that a shift is rounded to so small a part of a step
STRAIGHT = 1e-5  # of the range: how far float32 steps may lie from a straight line


def scaled_channels(r: Reader, v: Value, constant: np.ndarray) -> Accumulator | None:
    """An affine function of 8-bit codes as sums, to which factors and shifts of its channels may be added, where
    `constant` differs along one axis of it only; None for anything else."""
    axis = _axis(constant, v.shape)
    if axis is None or not isinstance(v, Function | Integers) or (isinstance(v, Integers) and v.graph_input):
        return None
    if isinstance(v, Integers) and r.builder.types[v.name].dtype not in ("int8", "uint8"):
        return None
    f = as_function(r, v)
    steps = np.arange(len(f.values)) * (f.values[-1] - f.values[0]) / max(len(f.values) - 1, 1)
    reach = np.abs(steps).max()
    if f.source.dtype != "int8" or not reach or np.abs(f.values - f.values[0] - steps).max() > STRAIGHT * reach:
        return None
    rank, c = len(v.shape), v.shape[axis]
    rest = [i for i in range(rank) if i != axis]
    layout = [0] * rank
    for place, i in enumerate([*rest, axis]):
        layout[i] = place
    x = r.make.relayout(f.source, tuple(layout))
    weight = r.builder.constant(np.full((c, 1, 1, 1), WEIGHT, np.int8), "weight")
    physical = [v.shape[i] for i in (*rest, axis)]
    name = r.builder.emit("reshape", [x.name], shape=[1, 1, int(np.prod(physical[:-1])), c])

    def emit(bias: np.ndarray | None) -> str:
        each = np.broadcast_to(np.int32(0) if bias is None else bias, (c,)).astype(np.int32)
        attrs = {"strides": [1, 1], "dilations": [1, 1], "pads": [0] * 4, "groups": c, "x_zero_point": x.zero_point}
        y = r.builder.emit("conv2d", [name, weight, r.builder.constant(each, "bias")], **attrs)
        return r.builder.emit("reshape", [y], shape=physical)

    slope = float(steps[1]) if len(steps) > 1 else 1.0
    at_zero = float(f.values[0] - (x.lo - x.zero_point) * slope)
    scale = np.full(c, slope / WEIGHT)
    bound = float(x.magnitude * WEIGHT)
    return Accumulator(emit, x.axes, v.shape, scale, bound, r.where, np.full(c, at_zero), takes_bias=True)


def _axis(constant: np.ndarray, shape: tuple[int, ...]) -> int | None:
    """The axis of a value along which a constant has its elements."""
    if constant.size == 1 or constant.ndim > len(shape):
        return None
    full = (1,) * (len(shape) - constant.ndim) + constant.shape
    axes = [i for i, n in enumerate(full) if n != 1]
    return axes[0] if len(axes) == 1 and full[axes[0]] == shape[axes[0]] else None
