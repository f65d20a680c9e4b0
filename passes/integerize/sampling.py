"""GridSample: positions from a grid in fractions of a pixel, weights from a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import INT32_MAX
from qcompile.passes.integerize.reader import Reader, handles, shape_of
from qcompile.passes.integerize.resample import fixed_point
from qcompile.passes.integerize.values import Accumulator, Quantized, Real, Value, symmetric_grid, value_range
from qcompile.passes.interpolation import KEYS, interpolation_weight

FRACTION = 8  # bits of a pixel, where the sums leave room
FURTHEST = 1 << 29  # of a constant position: all beyond it lies outside


def weights_of(mode: str, fraction: int) -> np.ndarray:
    """int16 [2^fraction, taps]: the weights of a position's pixels; they add up to 2^fraction (nearest: to 1)."""
    t = np.arange(1 << fraction) / (1 << fraction)
    if mode == "nearest":
        return np.ones((1 << fraction, 1), np.int16)
    around = (0, 1) if mode == "linear" else (-1, 0, 1, 2)
    exact = np.stack([interpolation_weight(mode, KEYS, np.abs(t - at)) for at in around])
    return fixed_point(exact, fraction).T.astype(np.int16)


def _fraction(mode: str, magnitude: int, axes: int) -> int:
    """Bits of a weight along each of `axes`, so that sums of numbers up to `magnitude` fit 32 bits."""
    reach = 1.4 if mode == "cubic" else 1.01
    return min(FRACTION, int(np.log2(INT32_MAX / (magnitude * reach**axes)) / axes))


@handles("source.grid_sample")
def grid_sample(r: Reader, call: Any, args: list[Any]) -> Value:
    mode, corners, out = str(call.attrs["mode"]), bool(int(call.attrs["corners"])), shape_of(call)
    axes = len(out) - 2
    image = args[0]
    if isinstance(image, Real):
        image = r.make.quantize(image, symmetric_grid(*value_range(image), "int8"))
    x = r.make.settle(r.settled(image, None), "int8" if axes > 2 else "int16")
    x = r.make.relayout(x, (0, axes + 1, *range(1, axes + 1)))
    fraction = _fraction(mode, x.magnitude, axes)
    table = weights_of(mode, fraction)
    grid, attrs = _positions(r, args[1], x.shape[2:], fraction, mode, corners)
    given = {"fraction": fraction, "padding": str(call.attrs["padding"]), "corners": corners}
    names = [x.name, grid, r.builder.constant(table, "weights")]
    one = 1.0 if mode == "nearest" else float(1 << (fraction * axes))
    bound = float(x.magnitude) * float(np.abs(table).sum(1).max()) ** axes

    def emit(_: np.ndarray | None) -> str:
        return r.builder.emit("grid_sample", names, x_zero_point=x.zero_point, **attrs, **given)

    return Accumulator(emit, x.axes, out, float(x.scale) / one, bound, r.where)


def _positions(
    r: Reader, v: Value, sizes: Sequence[int], fraction: int, mode: str, corners: bool
) -> tuple[str, dict[str, Any]]:
    """The grid's tensor, and what makes positions of it: from -1 to 1 over the image, by its edges or corners."""
    spans = [s - 1 if corners else s for s in sizes]
    if isinstance(v, Real):
        at = _exact_positions(v.values.astype(np.float32), sizes, corners)
        at = np.rint(at) if mode == "nearest" else at
        codes = np.clip(np.rint(at * float(1 << fraction)), -FURTHEST, FURTHEST).astype(np.int32)
        whole = {"multipliers": [2] * len(sizes), "offsets": [0] * len(sizes), "shift": 1}
        return r.builder.constant(codes, "positions"), whole
    q: Quantized = r.make.plain(r.make.settle(r.settled(v, None)))
    steps = [float(q.scale) * s / 2 * (1 << fraction) for s in spans]
    shift = int(np.clip(30 - np.ceil(np.log2(max(*steps, 2.0**-32))), 1, 62))
    multipliers = [round(s * 2.0**shift) for s in steps]
    offsets = [round((n - 1) / 2 * (1 << fraction) - q.zero_point * s) for n, s in zip(sizes, steps)]
    return q.name, {"multipliers": multipliers, "offsets": offsets, "shift": shift}


def _exact_positions(grid: np.ndarray, sizes: Sequence[int], corners: bool) -> np.ndarray:
    """In pixels, as ONNX Runtime rounds them."""
    made = np.empty(grid.shape, np.float32)
    for a, size in enumerate(reversed(sizes)):
        n, length = grid[..., a], np.float32(size)
        made[..., a] = (n + 1) / 2 * (length - 1) if corners else ((n + 1) * length - 1) / 2
    return made.astype(np.float64)
