"""Softmax and attention: scores stay int32 accumulators, masks stay masks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from qcompile.kernels.arithmetic import INT32_MAX, MAX_SHIFT, Dyadic, TooFine, dyadic
from qcompile.kernels.ops.softmax import EXP2, LARGEST_EXPONENT, LOG_BITS, LONGEST_ROW, OCTAVE_BITS
from qcompile.passes.integerize.approximations import STEPS
from qcompile.passes.integerize.elementwise import scaled
from qcompile.passes.integerize.functions import apply, as_function
from qcompile.passes.integerize.reader import Reader, handles, shape_of
from qcompile.passes.integerize.values import (
    MASKED,
    NO_CLAMP,
    Accumulator,
    Deferred,
    Function,
    Grid,
    Integers,
    Real,
    Sum,
    UnnormalisedSoftmax,
    Value,
    identity,
    symmetric_grid,
    value_range,
)
from qcompile.targets.errors import CompileError

MOST_SCORES = 1 << 28  # codes of scores, above and below 0
FINEST_ROW_DIVISION = 32.0  # output steps per step of the values, so that floor(numerator / sum) fits 31 bits
ABSORBING = -1e8  # float32 scores that this is added to are all the same; of less, a row masked whole keeps its scores


@dataclass
class Masked(Deferred):
    """`scores` where the int8 tensor `keep` is not 0, a large negative number elsewhere: of weight 0 in a softmax."""

    scores: Value = None  # type: ignore[assignment]
    keep: str = ""


def keep_tensor(r: Reader, condition: Value, wanted: bool = True) -> str:
    """An int8 tensor, 1 where the condition is `wanted`, 0 elsewhere."""
    if isinstance(condition, Real):
        return r.builder.constant(((condition.values != 0) == wanted).astype(np.int8), "mask")
    f = apply(r, lambda x: ((x != 0) == wanted).astype(np.float64), as_function(r, condition))
    q = r.make.plain(r.make.quantize(f, Grid(1.0, 0, "int8", 0, 1)))
    return q.name


def masked_scores(r: Reader, condition: Value, a: Value, b: Value, shape: tuple[int, ...]) -> Masked | None:
    """Where(condition, scores, -large) or Where(condition, -large, scores) as masked scores; None if it is neither."""
    for scores, fill, wanted in ((a, b, True), (b, a, False)):
        if (
            isinstance(fill, Real)
            and fill.values.size == 1
            and fill.values.ravel()[0] <= MASKED
            and not isinstance(scores, Real)
        ):
            if scores.shape != shape or isinstance(scores, Integers):
                return None
            return masked(r, scores, keep_tensor(r, condition, wanted), fill)
    return None


def masked(r: Reader, scores: Value, keep: str, fill: Real) -> Masked:
    def make(grid: Grid) -> str:
        low = r.make.quantize(fill.map(lambda v: v.reshape((1,) * len(scores.shape))), grid)
        return r.builder.emit("where", [keep, r.make.plain(r.make.quantize(scores, grid)).name, low.name])

    low, high = value_range(scores)
    return Masked(
        make,
        identity(len(scores.shape)),
        scores.shape,
        min(low, float(fill.values.min())),
        high,
        scores=scores,
        keep=keep,
    )


def split_masks(r: Reader, v: Value) -> tuple[Value, list[str], list[np.ndarray]]:
    """(scores, masks, additive constants) of what goes into a softmax."""
    if isinstance(v, Masked) and v.clamp == NO_CLAMP and v.factor > 0:
        scores, masks, biases = split_masks(r, scaled(r, v.scores, v.factor))
        return scores, [*masks, v.keep], biases
    if isinstance(v, Sum) and v.clamp == NO_CLAMP:
        for scores, term in ((v.a, v.b), (v.b, v.a)):
            if isinstance(term, Real):
                base, masks, biases = split_masks(r, scores)
                keep = term.values > MASKED
                if not keep.all():
                    weak = term.values[~keep].min() > ABSORBING
                    none = np.logical_not(keep.any(-1, keepdims=True)) if weak else False
                    masks = [*masks, r.builder.constant((keep | none).astype(np.int8), "mask")]
                rest = np.where(keep, term.values, 0.0)
                return base, masks, [*biases, rest] if rest.any() else biases
            if isinstance(term, Function) and (term.values <= MASKED).any():
                base, masks, biases = split_masks(r, scores)
                kept = term.values[term.values > MASKED]
                relevant = kept[np.abs(kept) < -MASKED]
                if np.ptp(relevant) > 1e-6 and len(np.unique(np.round(relevant, 6))) > 1 and not _flag_like(term):
                    raise CompileError(
                        "a mask that is neither 0 nor a large negative number is added to attention scores"
                    )
                seen = apply(r, lambda x: (x > MASKED).astype(np.float64), term)
                q = r.make.plain(r.make.quantize(seen, Grid(1.0, 0, "int8", 0, 1)))
                weak = term.values[term.values <= MASKED].max() > ABSORBING
                return base, [*masks, _seeing_rows(r, q.name) if weak else q.name], biases
    return v, [], []


def _seeing_rows(r: Reader, mask: str) -> str:
    """The mask without its rows that mask everything."""
    shape = r.builder.types[mask].shape
    rows = r.builder.emit("reshape", [mask], shape=[int(np.prod(shape[:-1], dtype=np.int64)), shape[-1], 1])
    some = r.builder.emit("reduce_max", [rows], minimum=False)
    some = r.builder.emit("reshape", [some], shape=[*shape[:-1], 1])
    return r.builder.emit("where", [some, mask, r.builder.constant(np.ones((), np.int8), "mask")])


def _flag_like(f: Function) -> bool:
    """A mask made from an integer input: only the codes 0 and 1 occur, and one of them is 0 after the chain."""
    zero, one = -f.source.lo, 1 - f.source.lo
    return f.source.scale == 1.0 and any(f.values[i] == 0 for i in (zero, one) if 0 <= i < len(f.values))


def merged_mask(r: Reader, masks: list[str]) -> list[str]:
    """At most one int8 mask: all of them multiplied."""
    while len(masks) > 1:
        a, b, *rest = masks
        rank = max(len(r.builder.types[m].shape) for m in (a, b))
        a, b = (_ranked(r, m, rank) for m in (a, b))
        if all(m in r.builder.program.constants for m in (a, b)):
            c = r.builder.program.constants
            masks = [r.builder.constant(c[a] * c[b], "mask"), *rest]
            continue
        masks = [r.builder.emit("where", [a, b, a]), *rest]  # a and b
    return masks


def _ranked(r: Reader, name: str, rank: int) -> str:
    shape = r.builder.types[name].shape
    return (
        name if len(shape) == rank else r.builder.emit("reshape", [name], shape=[1] * (rank - len(shape)) + list(shape))
    )


@handles("relax.nn.softmax")
def softmax(r: Reader, call: Any, args: list[Any]) -> Value:
    v, shape = args[0], shape_of(call)
    rank = len(shape)
    axis = int(call.attrs.axis) % rank
    if isinstance(v, Real):
        e = np.exp(v.values - v.values.max(axis, keepdims=True))
        return Real(e / e.sum(axis, keepdims=True))
    _check_length(shape[axis])
    scores, masks, biases = split_masks(r, v)
    if len(scores.shape) != rank and (masks or biases):
        raise CompileError("a mask has more axes than the scores that it is added to; give both the same")
    if axis != rank - 1 and (masks or biases):
        raise CompileError("a masked softmax must run along the last axis; transpose the scores")
    scores, biases = _without_bias(scores, biases)
    guarded = _guarded(r, r.call_var)
    deferred = _normalised(r, scores, masks, biases, axis, shape, uniform=not guarded)
    if (
        isinstance(scores, Accumulator)
        and scores.scores
        and axis == rank - 1
        and scores.clamp == NO_CLAMP
        and np.ndim(scores.scale) == 0
        and scores.scale > 0
        and np.all(np.asarray(scores.bias) == 0)
        and scores.bound + sum(float(np.abs(bias).max()) for bias in biases) / scores.scale <= INT32_MAX // 2
    ):
        return UnnormalisedSoftmax(scores, [masks, biases], shape, deferred, uniform=not guarded)
    return deferred


def _without_bias(v: Value, biases: list[np.ndarray]) -> tuple[Value, list[np.ndarray]]:
    """(scores, constants) with a bias of the scores that is large beside their steps among the constants."""
    if not isinstance(v, Accumulator) or v.axes != identity(len(v.shape)) or v.clamp != NO_CLAMP or np.ndim(v.scale):
        return v, biases
    bias = np.asarray(v.bias)
    if v.bound + np.abs(bias).max() / abs(v.scale) <= MOST_SCORES:
        return v, biases
    return replace(v, bias=0.0), [*biases, bias]


def _guarded(r: Reader, var: Any) -> bool:
    """Whether a guard against NaN reads a tensor, or its codes: what gives 0 in place of rows that are masked whole."""
    users = [(b.var, getattr(getattr(b.value, "op", None), "name", "")) for b in r.users.get(var, [])]
    pairs = ("relax.quantize", "relax.dequantize")
    return any(name == "relax.isnan" or (name in pairs and _guarded(r, user)) for user, name in users)


def _check_length(count: int) -> None:
    if count > LONGEST_ROW:
        raise CompileError(f"a softmax over {count} elements is too long: its sums fit 32 bits up to {LONGEST_ROW}")


def _normalised(
    r: Reader,
    scores: Value,
    masks: list[str],
    biases: list[np.ndarray],
    axis: int,
    shape: tuple[int, ...],
    uniform: bool,
) -> Deferred:
    """uniform: rows that are masked whole weigh all alike, rather than nothing, as behind a guard against NaN."""
    rank = len(shape)
    last = tuple([*range(axis), rank - 1, *range(axis, rank - 1)])

    def make(grid: Grid) -> str:
        if (
            isinstance(scores, Accumulator)
            and np.ndim(scores.scale) == 0
            and scores.axes == last
            and scores.clamp == NO_CLAMP
        ):
            x, bound = r.make.accumulate(scores)
            scale = float(scores.scale)
        else:
            q = r.make.relayout(r.make.settle(scores), last)
            x, scale, bound = q.name, float(q.scale), q.hi - q.lo
        reach = bound + sum(float(np.abs(bias).max()) for bias in biases) / scale
        if reach > MOST_SCORES:  # steps that such scores need not have
            shift = min(int(np.ceil(np.log2(reach / MOST_SCORES))), 31)
            if r.builder.types[x].dtype != "int32":
                x = r.builder.emit("cast", [x], offset=0, dtype="int32")
            count = r.builder.constant(np.full([1] * rank, shift, np.int32), "shift")
            x = r.builder.emit("whole", [x, count], function="right_shift", dtype="int32")
            scale, bound = scale * 2.0**shift, bound / 2.0**shift + 1
        for bias in biases:
            offset = np.rint(np.broadcast_to(bias, shape) / scale)
            bound += float(np.abs(offset).max())
            if r.builder.types[x].dtype != "int32":
                x = r.builder.emit("cast", [x], offset=0, dtype="int32")
            x = r.builder.emit("bias_add", [x, r.builder.constant(offset.astype(np.int32), "bias")])
        d = octaves(scale, 2 * bound)
        numerator, out_shift = row_division(2.0**-15 / grid.scale, EXP2[0])
        names = [x, *merged_mask(r, list(masks))]
        return r.builder.emit(
            "softmax",
            names,
            multiplier=int(d.multiplier[0]),
            shift=d.shift,
            pre=d.pre,
            numerator=numerator,
            out_shift=out_shift,
            uniform=bool(masks) and uniform,
            **grid.attrs(),
        )

    return Deferred(make, last, shape, 0.0, 1.0)


def row_division(factor: float, smallest_sum: int) -> tuple[int, int]:
    """(numerator, shift): floor(numerator / l) * 2^-(32 + shift) ~ factor / l for every row sum l >= smallest_sum."""
    shift = 15
    while factor * 2.0 ** (32 + shift) / smallest_sum >= INT32_MAX and shift > 1:
        shift -= 1
    numerator = int(np.rint(factor * 2.0 ** (32 + shift)))
    if numerator // smallest_sum > INT32_MAX:
        raise TooFine("the scale of a softmax's result is too small")
    return numerator, shift


@handles("relax.nn.log_softmax")
def log_softmax(r: Reader, call: Any, args: list[Any]) -> Deferred:
    v, shape = args[0], shape_of(call)
    rank = len(shape)
    axis = int(call.attrs.axis) % rank
    last = tuple([*range(axis), rank - 1, *range(axis, rank - 1)])
    _check_length(shape[axis])
    q = r.make.relayout(r.make.settle(v), last)
    spread = (q.hi - q.lo) * float(q.scale)

    def make(grid: Grid) -> str:
        d = octaves(float(q.scale), q.hi - q.lo)
        factors = float(q.scale) / grid.scale, np.log(2) / (1 << LOG_BITS) / grid.scale
        bounds = q.hi - q.lo, (1 << LOG_BITS) * (np.log2(shape[axis]) + 1)
        shift = log_shift(factors, bounds)
        (x_m, x_pre), (log_m, log_pre) = (multiplier_at(f, shift) for f in factors)
        return r.builder.emit(
            "log_softmax",
            [q.name],
            multiplier=int(d.multiplier[0]),
            shift=d.shift,
            pre=d.pre,
            x_multiplier=x_m,
            x_pre=x_pre,
            log_multiplier=log_m,
            log_pre=log_pre,
            out_shift=shift,
            **grid.attrs(),
        )

    return Deferred(make, last, shape, -spread - np.log(shape[axis]), 0.0)


def octaves(scale: float, bound: float) -> Dyadic:
    """Scores of this scale as octaves below the maximum; what a single code more makes zero need not be exact."""
    return dyadic(min(scale * np.log2(np.e) * (1 << OCTAVE_BITS), float(LARGEST_EXPONENT + 1)), int(bound))


def multiplier_at(factor: float, shift: int) -> tuple[int, int]:
    """(multiplier, pre) with mulhi(a << pre, multiplier) ~ a * factor * 2^shift and multiplier < 2^31."""
    pre = max(0, int(np.floor(np.log2(factor))) + 2 + shift)
    return int(np.rint(factor * 2.0 ** (32 + shift - pre))), pre


def log_shift(factors: tuple[float, float], bounds: tuple[float, float]) -> int:
    """The largest rounding shift at which both terms of a log-softmax and their sum fit 32 bits."""
    for shift in range(MAX_SHIFT, 0, -1):
        terms = [b * f * 2.0**shift for f, b in zip(factors, bounds)]
        if sum(terms) < INT32_MAX / 2 and all(
            b * 2.0 ** multiplier_at(f, shift)[1] <= INT32_MAX for f, b in zip(factors, bounds)
        ):
            return shift
    raise TooFine("the output scale of a log-softmax is too small for its range")


def attention(r: Reader, w: UnnormalisedSoftmax, v: Value, shape: tuple[int, ...]) -> Deferred:
    """softmax(scores) v with the normalisation after the product."""
    assert w.scores.scores is not None  # softmax made it of a product
    query, key, transposed = w.scores.scores
    masks, biases = w.masks
    value = r.operand(v, "value")
    scale = float(w.scores.scale)

    def make(grid: Grid) -> str:
        factor = float(value.scale) / grid.scale
        if factor > FINEST_ROW_DIVISION:  # too fine for one division a row: made on a coarser grid, then rescaled
            coarse = replace(symmetric_grid(-1.0, 1.0), scale=float(value.scale) / FINEST_ROW_DIVISION)
            made = Deferred(make, identity(len(shape)), shape, 0.0, 0.0)
            return r.make.quantize(r.make.quantize(made, coarse), grid).name
        rows, asked = key.name, query.name
        lead = np.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
        added = [*(r.builder.types[m].shape for m in masks), *(b.shape for b in biases)]
        full = np.broadcast_shapes(lead, *(a[:-2] for a in added))
        if full != lead:  # the mask has more batches than the operands
            asked = r.builder.emit("broadcast", [query.name], shape=[*full, *query.shape[-2:]])
        if not transposed:  # attention wants k as [..., L, D]
            rank = len(key.shape)
            rows = r.builder.emit("transpose", [key.name], axes=[*range(rank - 2), rank - 1, rank - 2])
        extra, has_bias = merged_mask(r, list(masks)), bool(biases)
        if biases:
            offset = np.rint(sum(biases) / scale)
            extra = [*extra, r.builder.constant(offset.astype(np.int32), "bias")]
        length = key.shape[-1]
        if 255.0 * value.magnitude * length > INT32_MAX:
            raise CompileError(f"{r.where}: attention over {length} keys overflows 32 bits")
        steps = scale * np.log2(np.e) * STEPS  # table steps per unit of score
        # 2^11 <= multiplier < 2^12: u and t both resolve 1/16 step
        shift = max(-15, int(np.floor(-3 - np.log2(steps))))
        multiplier = min(int(np.rint(steps * 2.0 ** (shift + 15))), 32767)
        numerators = r.approximation.numerators()
        numerator, out_shift = row_division(factor, int(numerators[0]))
        names = [asked, rows, r.make.plain(value).name, r.builder.constant(numerators, "numerators"), *extra]
        return r.builder.emit(
            "attention",
            names,
            has_mask=bool(masks),
            has_bias=has_bias,
            q_zero_point=query.zero_point,
            k_zero_point=key.zero_point,
            v_zero_point=value.zero_point,
            score_shift=shift,
            score_multiplier=multiplier,
            numerator=numerator,
            shift=out_shift,
            uniform=bool(masks) and w.uniform,
            **grid.attrs(),
        )

    low, high = value.range()
    return Deferred(make, identity(len(shape)), shape, min(low, 0.0), max(high, 0.0))
