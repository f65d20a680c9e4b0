"""Turns values into integer tensors: layouts, requantization, tables, and sums with one rounding."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import (
    CODES,
    INT32_MAX,
    RANGES,
    SUM_NOISE,
    SumScale,
    TooFine,
    dyadic,
    sum_scale,
)
from qcompile.passes.integerize.builder import Builder
from qcompile.passes.integerize.pieces import fit_pieces
from qcompile.passes.integerize.residuals import add_residual
from qcompile.passes.integerize.values import (
    NO_CLAMP,
    Accumulator,
    Deferred,
    Function,
    Grid,
    Integers,
    Quantized,
    Real,
    Sum,
    UnnormalisedSoftmax,
    Value,
    identity,
    symmetric_grid,
    unknown_range,
    value_range,
)
from qcompile.targets.errors import CompileError

BYTE_CODES = 256  # tables of more are looked up slowly: straight pieces are tried instead
WIDE_CODES = 1 << 11  # steps of a grid of more codes are finer than they have to be:
WIDE_NOISE = 2.0  # what rescaling may add there, of the noise that rounding to a step is
LOST_STEPS = 0.25  # of a sum's result, by the rounding of its multipliers
NARROWEST = 3  # fraction bits of 16-bit codes on the way to 8 bits
BIAS_BITS = 26  # larger bias codes make their channel's weights coarser


class Maker:
    """Turns values into integer tensors; owns the builder."""

    def __init__(self, builder: Builder) -> None:
        self.b = builder

    # ---- layout ------------------------------------------------------------------------------------------------------
    def physical(self, name: str, axes: tuple[int, ...], wanted: tuple[int, ...]) -> str:
        """`name` (logical = physical.transpose(axes)) laid out so that logical = physical.transpose(wanted)."""
        if axes == wanted:
            return name
        inverse = np.argsort(wanted)  # new physical axis i is logical axis inverse[i]
        order = [axes[i] for i in inverse]
        shape = self.b.types[name].shape
        if [i for i in order if shape[i] != 1] == sorted(i for i in order if shape[i] != 1):
            return self.b.emit("reshape", [name], shape=[shape[i] for i in order])
        return self.b.emit("transpose", [name], axes=order)

    def relayout(self, q: Quantized, wanted: tuple[int, ...]) -> Quantized:
        if q.axes == wanted:
            return q
        if not q.per_tensor and int(np.argsort(q.axes)[-1]) != int(np.argsort(wanted)[-1]):
            q = self.settle(q)
        return replace(q, name=self.physical(q.name, q.axes, wanted), axes=wanted)

    def plain(self, q: Quantized) -> Quantized:
        """Laid out in logical order."""
        return self.relayout(q, identity(len(q.shape)))

    # ---- values to grids ---------------------------------------------------------------------------------------------
    def quantize(self, v: Value, grid: Grid) -> Quantized:
        """The value on `grid`: emits what is needed. What may lie far beyond a fine grid comes there by way of a grid
        that covers all of it."""
        try:
            return self._quantize(v, grid)
        except TooFine:
            if isinstance(v, Accumulator) and np.any(v.bias):
                return self.quantize(self._apart(v), grid)
            clamp, whole = NO_CLAMP, v
            if isinstance(v, Quantized | Accumulator | Sum | Deferred):
                clamp, whole = v.clamp, replace(v, clamp=NO_CLAMP)
            coarse = symmetric_grid(*value_range(whole))
            if coarse.scale <= grid.scale:
                raise
            return self._quantize(replace(self._quantize(whole, coarse), clamp=clamp), grid)

    def _quantize(self, v: Value, grid: Grid) -> Quantized:
        if isinstance(v, Integers):
            v = self.numbers(v)
        if isinstance(v, Accumulator):
            v = self.balanced(self._saturated_bias(v, grid), dyadic(np.asarray(v.scale) / grid.scale).pre)
        limited = grid if isinstance(v, Real | Function | UnnormalisedSoftmax) else grid.clamp(v.clamp)
        axes = v.axes if not isinstance(v, Real) else identity(v.values.ndim)
        if isinstance(v, Real):
            with np.errstate(over="ignore"):  # masks of -3.4e38 saturate
                codes = np.clip(np.rint(v.values / grid.scale) + grid.zero_point, grid.lo, grid.hi)
            name = self.b.constant(np.where(np.isnan(codes), grid.zero_point, codes).astype(grid.dtype))
        elif isinstance(v, Quantized):
            name = self._rescale_quantized(v, limited)
        elif isinstance(v, Function):
            name = self._table(v, grid)
        elif isinstance(v, Accumulator):
            name = self._requantize(v, limited)
        elif isinstance(v, Sum):
            name, axes = self._sum(v, limited)
        elif isinstance(v, UnnormalisedSoftmax):
            name = v.normalised.make(grid)
        else:
            name = v.make(replace(limited, scale=limited.scale / v.factor))
        shape = v.shape
        return Quantized(name, axes, shape, grid.scale, grid.zero_point, grid.dtype, limited.lo, limited.hi)

    def numbers(self, v: Integers) -> Quantized:
        """Integers of up to 16 bits, or 32 saturated to 16, as numbers of scale 1."""
        dtype = "" if v.graph_input else self.b.types[v.name].dtype
        if dtype not in ("int8", "uint8", "int16", "int32"):
            raise unknown_range(v.name)
        offset = -128 if dtype == "uint8" else 0
        stored = {"uint8": "int8", "int32": "int16"}.get(dtype, dtype)
        name = v.name if stored == dtype else self.b.emit("cast", [v.name], offset=offset, dtype=stored)
        return Quantized(name, v.axes, v.shape, 1.0, offset, stored, *RANGES[stored])

    def _apart(self, v: Accumulator) -> Sum:
        """A sum and its bias as the two terms that they are."""
        shape = [1] * len(v.shape)
        shape[int(np.argsort(v.axes)[-1])] = np.size(v.bias)
        bias = Real(np.asarray(v.bias, np.float64).reshape(shape))
        return Sum(self.settle(replace(v, bias=0.0, clamp=NO_CLAMP)), bias, v.shape, v.clamp)

    def settle(self, v: Value, dtype: str = "int16") -> Quantized:
        """Some per-tensor Quantized for a value that nobody quantized: on the grid that its proved range asks for."""
        v = self.numbers(v) if isinstance(v, Integers) else v
        if (
            isinstance(v, Quantized)
            and v.per_tensor
            and v.clamp == NO_CLAMP
            and (dtype == "int16" or v.dtype == "int8")
        ):
            return v
        low, high = value_range(v)
        if (
            isinstance(v, Accumulator)
            and np.ndim(v.scale) == 0
            and dtype == "int16"
            and max(-low, high) <= 32767 * abs(float(v.scale))
        ):
            return self.quantize(v, Grid(abs(float(v.scale)), 0, "int16", -32767, 32767))  # every sum has its own code
        if isinstance(v, Quantized) and v.per_tensor and v.scale > 0 and (dtype == "int16" or v.dtype == "int8"):
            return self.quantize(v, Grid(float(v.scale), v.zero_point, v.dtype, v.lo, v.hi))
        return self.quantize(v, symmetric_grid(low, high, dtype))

    @staticmethod
    def _saturated_bias(v: Accumulator, grid: Grid) -> Accumulator:
        """Biases no larger than what saturates the grid whatever the sum is: the same result, in 32 bits."""
        if np.ndim(v.bias) == 0 or np.ndim(v.scale) == 0:
            return v
        ends = [(q - grid.zero_point) * grid.scale for q in (grid.lo - 1, grid.hi + 1)]
        reach = np.abs(v.scale) * v.bound
        return replace(v, bias=np.clip(v.bias, ends[0] - reach, ends[1] + reach))

    @staticmethod
    def balanced(v: Accumulator, pre: int = 0) -> Accumulator:
        """Channels whose weights are tiny beside their bias get coarser weights: their bias leaves headroom."""
        if v.coarsen is None or np.ndim(v.scale) == 0:
            return v
        codes = np.abs(np.asarray(v.bias, np.float64) / v.scale) + np.zeros(np.shape(v.scale))
        excess = np.maximum(0, np.ceil(np.log2(np.maximum(codes, 1))) - (BIAS_BITS - pre))
        return replace(v, emit=v.coarsen(excess), scale=v.scale * 2.0**excess) if excess.any() else v

    def accumulate(self, v: Accumulator) -> tuple[str, float]:
        """(int32 tensor with the bias in it, proved bound); `v` balanced."""
        top = v.bound
        if np.all(np.asarray(v.bias) == 0):
            return self._checked(v.emit(None), top, v)
        channels = self.b.types[v.emit(None)].shape[-1] if not v.takes_bias else np.size(v.bias)
        bias = np.rint(np.broadcast_to(np.asarray(v.bias, np.float64) / v.scale, (max(channels, np.size(v.scale)),)))
        top = top + float(np.abs(bias).max())
        if np.abs(bias).max() > INT32_MAX:
            raise TooFine(
                f"{v.what}: a bias of {np.abs(v.bias).max():.3g} overflows 32 bits at the scale of its accumulator"
            )
        bias = bias.astype(np.int32)
        if v.takes_bias:
            return self._checked(v.emit(bias), top, v)
        return self._checked(self.b.emit("bias_add", [v.emit(None), self.b.constant(bias, "bias")]), top, v)

    @staticmethod
    def _checked(name: str, bound: float, v: Accumulator) -> tuple[str, float]:
        if bound > INT32_MAX:
            raise CompileError(
                f"{v.what}: the accumulator may reach {bound:.3g}, more than 32 bits hold; split the layer's inputs"
            )
        return name, bound

    def rescale(self, name: str, zero_point: int, scale: float | np.ndarray, bound: float, grid: Grid) -> str:
        """Integers with real = scale * (q - zero_point), |q - zero_point| <= bound, on `grid`."""
        span = grid.hi - grid.lo + abs(grid.zero_point) + 2
        factor = np.clip(np.asarray(scale) / grid.scale, -span, span)  # beyond, all but 0 saturates just the same
        name, zero_point, bound = self._saturating(name, zero_point, factor, bound, span)
        d = dyadic(factor, int(bound))
        return self.b.emit(
            "requantize",
            [name, self.b.constant(d.multiplier, "multiplier")],
            x_zero_point=zero_point,
            shift=d.shift,
            pre=d.pre,
            **grid.attrs(),
        )

    def _saturating(
        self, name: str, zero_point: int, factor: np.ndarray, bound: float, span: float
    ) -> tuple[str, int, float]:
        """(name, zero point, bound) of integers that are scaled up, and that could leave 32 bits then: cut where all
        channels saturate on a grid of `span` steps."""
        top, least = float(np.abs(factor).max()), float(np.abs(factor).min())
        ends = np.ceil(span / least) if least else np.inf
        if top < 0.25 or bound * max(top, 1) * 4 < INT32_MAX or ends >= bound:
            return name, zero_point, bound
        if zero_point or self.b.types[name].dtype != "int32":
            name = self.b.emit("cast", [name], offset=-zero_point, dtype="int32")
        for function, end in (("minimum", ends), ("maximum", -ends)):
            limit = self.b.constant(np.array([end], np.int32).reshape([1] * len(self.b.types[name].shape)), "limit")
            name = self.b.emit("whole", [name, limit], function=function, dtype="int32")
        return name, 0, float(ends)

    def _requantize(self, v: Accumulator, grid: Grid) -> str:
        """Where the sums take a bias and go to 8 bits, that bias rounds and adds the zero point."""
        if v.takes_bias and grid.dtype in ("int8", "int16"):
            centred, bound = self.centred(v, grid)
            factor, codes, noise = np.asarray(centred.scale) / grid.scale, CODES, SUM_NOISE
            if grid.dtype == "int16":
                codes = 1 + max(abs(grid.lo), abs(grid.hi))
                noise = WIDE_NOISE if grid.hi - grid.lo >= WIDE_CODES else SUM_NOISE
            scale = sum_scale(factor, bound, codes, most_noise=noise)
            if scale:
                return self.rescale_sum("requantize", centred, [], scale, grid)
        name, bound = self.accumulate(v)
        return self.rescale(name, 0, v.scale, bound, grid)

    def centred(self, v: Accumulator, grid: Grid, less: float = 0.0) -> tuple[Accumulator, float]:
        """(v with the zero point, less some steps, in its bias; a bound of its sums with that bias)."""
        bias = np.asarray(v.bias, np.float64) + (grid.zero_point - less) * grid.scale
        # a channel of tiny weights must leave room for the zero point, as for any other bias
        v = replace(self.balanced(replace(v, bias=bias)), bias=bias)
        return v, v.bound + float(np.max((np.abs(bias) + grid.scale) / np.abs(v.scale)))

    def rescale_sum(self, op: str, v: Accumulator, others: list[str], scale: SumScale, grid: Grid, **attrs: Any) -> str:
        """`op` of sums with the zero point in their bias, and of `others`."""
        bias = v.bias + scale.half * grid.scale + scale.before * np.asarray(v.scale)
        name, _ = self.accumulate(replace(v, bias=bias))
        inputs = [name, *others, self.b.constant(scale.multiplier, "multiplier")]
        attrs |= {"fraction": scale.fraction, **grid.attrs(), "zero_point": 0}
        if scale.shift.size == 1:
            return self.b.emit(f"{op}_word", inputs, shift=scale.shift[0], **attrs)
        return self.b.emit(f"{op}_words", [*inputs, self.b.constant(scale.shift, "shift")], **attrs)

    def _rescale_quantized(self, v: Quantized, grid: Grid) -> str:
        same = v.per_tensor and np.isclose(v.scale, grid.scale, rtol=1e-6, atol=0) and v.dtype == grid.dtype
        if same and v.zero_point == grid.zero_point and grid.lo <= v.lo and v.hi <= grid.hi:
            return v.name
        return self._narrow_word(v, grid) or self.rescale(v.name, v.zero_point, v.scale, v.magnitude, grid)

    def _narrow_word(self, v: Quantized, grid: Grid) -> str | None:
        """16-bit codes on a grid of 8 bits by a multiplication of 16 bits, where that is exact enough."""
        factor = np.atleast_1d(np.asarray(v.scale, np.float64) / grid.scale)
        largest = float(np.abs(factor).max())
        if v.dtype != "int16" or grid.dtype != "int8" or v.zero_point or not 0 < largest < 1:
            return None
        fraction = int(min(7, np.floor(np.log2(RANGES["int16"][1] / (largest * 2.0**15)))))
        if fraction < NARROWEST:
            return None
        multiplier = np.rint(factor * 2.0 ** (15 + fraction)).astype(np.int32)
        inputs = [v.name, self.b.constant(multiplier, "multiplier")]
        return self.b.emit("narrow_word", inputs, fraction=fraction, **grid.attrs())

    def _table(self, f: Function, grid: Grid) -> str:
        f = self._whole_range(f)
        pieces = fit_pieces(f.values, grid) if f.source.dtype == "int16" and len(f.values) > BYTE_CODES else None
        if pieces:
            table = self.b.constant(pieces.table, "table")
            return self.b.emit(
                "interpolate", [f.source.name, table], first=f.source.lo, bits=pieces.bits, **grid.attrs()
            )
        codes = np.nan_to_num(
            np.rint(f.values / grid.scale) + grid.zero_point, nan=grid.zero_point, posinf=grid.hi, neginf=grid.lo
        )
        table = np.clip(codes, grid.lo, grid.hi).astype(grid.dtype)
        first = f.source.lo
        if f.source.dtype == "int8":  # byte tables cover all 256 codes
            table = table[np.clip(np.arange(-128, 128) - first, 0, len(table) - 1)]
            first = -128
        return self.b.emit("lut", [f.source.name, self.b.constant(table, "table")], first=first)

    def _whole_range(self, f: Function) -> Function:
        """A function of an input of 16 bits also takes its lowest code, which no float is rounded to."""
        low = RANGES["int16"][0]
        if f.source.name not in self.b.program.inputs or f.source.dtype != "int16" or f.source.lo != low + 1:
            return f
        return replace(f, source=replace(f.source, lo=low), values=np.concatenate([f.values[:1], f.values]))

    # ---- sums --------------------------------------------------------------------------------------------------------
    def _sum(self, v: Sum, grid: Grid) -> tuple[str, tuple[int, ...]]:
        a, b = v.a, v.b
        if not isinstance(a, Accumulator) and isinstance(b, Accumulator):
            a, b = b, a
        if isinstance(a, Accumulator) and a.shape == v.shape and a.clamp == NO_CLAMP:
            a = self.balanced(a)
            if isinstance(b, Real):
                return self._add_constant(a, b, grid)
            b = self.settle(b) if not isinstance(b, Accumulator) else self.quantize(b, self.fine(b, grid))
            if b.shape == a.shape:
                return add_residual(self, a, b, grid), a.axes
        a, b = (self._addend(t, len(v.shape), grid) for t in (a, b))
        axes = max(a, b, key=lambda t: np.prod(t.shape)).axes
        a, b = self.relayout(a, axes), self.relayout(b, axes)
        return self.add(a, b, grid), axes

    def _addend(self, t: Value, rank: int, grid: Grid) -> Quantized:
        """An operand of a sum as per-tensor integers of the sum's rank."""
        if isinstance(t, Real):
            q = self.quantize(t, symmetric_grid(*value_range(t)))
        else:
            q = self.quantize(t, self.fine(t, grid)) if isinstance(t, Accumulator) else self.settle(t)
        return self.with_rank(q, rank)

    def with_rank(self, q: Quantized, rank: int) -> Quantized:
        """Leading axes of size 1 added, for broadcasting."""
        missing = rank - len(q.shape)
        if missing == 0:
            return q
        q = self.plain(q)
        shape = (1,) * missing + q.shape
        return replace(q, name=self.b.emit("reshape", [q.name], shape=list(shape)), axes=identity(rank), shape=shape)

    @staticmethod
    def fine(t: Value, grid: Grid) -> Grid:
        """16 bits for a term of a sum whose result lies on `grid`: some 16 times finer where the range allows."""
        low, high = value_range(t)
        reach = max(abs(grid.lo - grid.zero_point), abs(grid.hi - grid.zero_point)) * grid.scale * 4
        return symmetric_grid(max(low, -reach), min(high, reach))

    def _add_constant(self, a: Accumulator, c: Real, grid: Grid) -> tuple[str, tuple[int, ...]]:
        name, bound = self.accumulate(a)
        offset = np.rint(np.broadcast_to(c.values, a.shape).transpose(np.argsort(a.axes)) / a.scale)
        bound += float(np.abs(offset).max())
        self._checked(name, bound, a)
        name = self.b.emit("bias_add", [name, self.b.constant(offset.astype(np.int32), "bias")])
        return self.rescale(name, 0, a.scale, bound, grid), a.axes

    def add(self, a: Quantized, b: Quantized, grid: Grid) -> str:
        """The sum on `grid`; an operand of which most codes only saturate it is cut first, so that both multipliers
        have bits enough."""
        ra, rb = float(a.scale) / grid.scale, float(b.scale) / grid.scale
        span = grid.hi - grid.lo + abs(grid.zero_point) + 2
        shift = _sum_shift(a, b, ra, rb)
        lost = [
            abs(round(r * 2.0**shift) / 2.0**shift - r) * min(q.magnitude, span / abs(r)) for q, r in ((a, ra), (b, rb))
        ]
        if shift < 1 or max(lost) > LOST_STEPS:
            reach = [span + q.magnitude * abs(r) for q, r in ((b, rb), (a, ra))]  # beyond, the other one cannot help
            a, b = (self._cut(q, int(np.ceil(top / abs(r)))) for q, r, top in ((a, ra, reach[0]), (b, rb, reach[1])))
            shift = _sum_shift(a, b, ra, rb)
        if shift < 1:
            raise TooFine("a sum's output scale is far too small for its operands: recalibrate the model")
        return self.b.emit(
            "add",
            [a.name, b.name],
            x_zero_point=a.zero_point,
            x_multiplier=round(ra * 2**shift),
            r_zero_point=b.zero_point,
            r_multiplier=round(rb * 2**shift),
            shift=shift,
            **grid.attrs(),
        )

    def _cut(self, q: Quantized, most: int) -> Quantized:
        """Codes no further than `most` from their zero point."""
        lo, hi = max(q.lo, q.zero_point - most), min(q.hi, q.zero_point + most)
        if (lo, hi) == (q.lo, q.hi):
            return q
        name = q.name
        for function, end in (("minimum", hi), ("maximum", lo)):
            limit = self.b.constant(np.array([end], np.int32).reshape([1] * len(q.shape)), "limit")
            name = self.b.emit("whole", [name, limit], function=function, dtype=q.dtype)
        return replace(q, name=name, lo=lo, hi=hi)


def _sum_shift(a: Quantized, b: Quantized, ra: float, rb: float) -> int:
    """The most fraction bits that the multipliers of a sum may have."""
    top = a.magnitude * abs(ra) + b.magnitude * abs(rb) + 2
    return int(min(22, np.floor(np.log2(INT32_MAX / top)), 30 - np.ceil(np.log2(max(abs(ra), abs(rb))))))
