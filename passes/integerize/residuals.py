"""Sums with a quantized tensor added to them, with one rounding: by 16-bit words, low products or high ones."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from qcompile.kernels.arithmetic import CODES, INT32_MAX, MAX_SHIFT, MOST_SHIFT, RANGES, SumScale, sum_scale
from qcompile.passes.integerize.builder import Builder
from qcompile.passes.integerize.values import Accumulator, Grid, Quantized, Value

LOST = 0.05  # of a step, at most, by rounding a residual's multiplier to 16 bits
WIDE_LOST = 1 / 4096  # of its range, at most, by rounding the multipliers of a 16-bit sum


class Summands(Protocol):
    """What adding asks of the one who turns values into tensors (`maker.Maker`)."""

    b: Builder

    def relayout(self, q: Quantized, wanted: tuple[int, ...]) -> Quantized: ...
    def quantize(self, v: Value, grid: Grid) -> Quantized: ...
    def accumulate(self, v: Accumulator) -> tuple[str, float]: ...
    def centred(self, v: Accumulator, grid: Grid, less: float = 0.0) -> tuple[Accumulator, float]: ...
    def rescale_sum(
        self, op: str, v: Accumulator, others: list[str], scale: SumScale, grid: Grid, **attrs: Any
    ) -> str: ...
    def fine(self, t: Value, grid: Grid) -> Grid: ...
    def add(self, a: Quantized, b: Quantized, grid: Grid) -> str: ...


def add_residual(make: Summands, a: Accumulator, r: Quantized, grid: Grid) -> str:
    """a + r on `grid`, in the cheapest way that is exact enough; both of one shape."""
    r = make.relayout(r, a.axes)
    cheap = _through_words(make, a, r, grid) or _by_low_products(make, a, r, grid)
    if cheap:
        return cheap
    name, bound = make.accumulate(a)
    factor, ratio = np.atleast_1d(np.asarray(a.scale) / grid.scale), float(r.scale) / grid.scale
    largest = float(np.abs(factor).max())
    top = largest * bound + r.magnitude * abs(ratio) + 2
    shift = int(min(MAX_SHIFT, np.floor(np.log2(INT32_MAX / top))))
    pre = max(0, int(np.floor(np.log2(max(largest, 1e-30)))) + 2 + shift)  # |multiplier| < 2^31
    lost = r.magnitude * abs(round(ratio * 2.0**shift) / 2.0**shift - ratio)  # by rounding the residual's multiplier
    if shift < 1 or bound * 2.0**pre > INT32_MAX or lost > max(0.125, (grid.hi - grid.lo) / 2048):
        x = make.quantize(a, make.fine(a, grid))  # too far apart for one sum in 32 bits
        return make.add(x, r, grid)
    multiplier = np.rint(factor * 2.0 ** (32 + shift - pre)).astype(np.int32)
    return make.b.emit(
        "add_residual",
        [name, r.name, make.b.constant(multiplier, "multiplier")],
        r_zero_point=r.zero_point,
        r_multiplier=round(ratio * 2**shift),
        shift=shift,
        pre=pre,
        **grid.attrs(),
    )


def _through_words(make: Summands, a: Accumulator, r: Quantized, grid: Grid) -> str | None:
    """The sum through 16 bits, where that is exact enough."""
    ratio, byte = float(r.scale) / grid.scale, r.dtype == "int8"
    if not a.takes_bias or grid.dtype != "int8" or not r.per_tensor or (r.zero_point and not byte):
        return None
    bits, largest = (7, 128) if byte else (15, r.magnitude)  # of the residual's multiplier before the fraction
    finest = int(min(7, np.floor(np.log2(RANGES["int16"][1] / (abs(ratio) * 2.0**bits)))))
    v, bound = make.centred(a, grid, r.zero_point * ratio)
    scale = sum_scale(np.asarray(v.scale) / grid.scale, bound, CODES + largest * abs(ratio), finest, True)
    if scale is None or scale.fraction < 4:
        return None
    unit = 2.0 ** (bits + scale.fraction)
    factor = round(ratio * unit)
    if largest * abs(factor / unit - ratio) > LOST:
        return None
    return make.rescale_sum("add_residual", v, [r.name], scale, grid, r_zero_point=0, r_multiplier=factor)


def _by_low_products(make: Summands, a: Accumulator, r: Quantized, grid: Grid) -> str | None:
    """The sum on a grid of 16 bits by 32-bit products, where they have bits enough."""
    ratio = float(r.scale) / grid.scale
    if not a.takes_bias or grid.dtype != "int16" or not r.per_tensor:
        return None
    v, bound = make.centred(a, grid, r.zero_point * ratio)
    factor = np.atleast_1d(np.asarray(v.scale, np.float64) / grid.scale)
    largest = float(np.abs(factor).max())
    top = 1.01 * (largest * bound + r.magnitude * abs(ratio)) + 2
    shift = int(min(14, np.floor(np.log2(INT32_MAX / top)), np.floor(np.log2(RANGES["int16"][1] / abs(ratio)))))
    x_shift = int(np.clip(np.floor(-np.log2(max(largest, 1e-30))), 0, MOST_SHIFT))  # by steps of the result
    multiplier = np.rint(factor * 2.0 ** (x_shift + shift))
    reach = np.minimum(bound, (grid.hi - grid.lo) / np.maximum(np.abs(factor), 1e-30))
    lost = reach * np.abs(multiplier / 2.0 ** (x_shift + shift) - factor)
    r_lost = r.magnitude * abs(round(ratio * 2.0**shift) / 2.0**shift - ratio)
    if shift < 1 or max(float(lost.max()), r_lost) > (grid.hi - grid.lo) * WIDE_LOST:
        return None
    before = (1 << x_shift >> 1) * np.asarray(v.scale)
    name, _ = make.accumulate(replace(v, bias=v.bias + 0.5 * grid.scale + before))
    return make.b.emit(
        "add_residual_low",
        [name, r.name, make.b.constant(multiplier.astype(np.int32), "multiplier")],
        x_shift=x_shift,
        r_zero_point=0,
        r_multiplier=round(ratio * 2**shift),
        shift=shift,
        **(grid.attrs() | {"zero_point": 0}),
    )
