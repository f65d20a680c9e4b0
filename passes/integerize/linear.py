"""Convolutions and products: exact int32 accumulators, emitted once their bias is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from qcompile.passes.integerize.multipliers import Blocks, exact_multipliers, find_steps, nearest_multipliers
from qcompile.passes.integerize.reader import Reader, handles, integers, shape_of
from qcompile.passes.integerize.subpixel import Phases, phase_weights
from qcompile.passes.integerize.values import (
    Accumulator,
    Quantized,
    Real,
    UnnormalisedSoftmax,
    identity,
    symmetric_grid,
)
from qcompile.targets.errors import CompileError

LARGEST_CODE = 127
CODES = 255  # from the smallest to the largest code of 8 bits
FEW_CODES = 64  # of a layer's data, below which its weights may lie on a finer grid
MOST_FINER = 18  # codes of 4 bits on the finest grid that int8 has
LEAST_MULTIPLIER = 4  # blocks whose multipliers are coarser than this are not worth keeping


def weight_codes(
    values: np.ndarray,
    step: np.ndarray | None,
    notes: list[str] | None = None,
    fine: bool = False,
    offsets: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Float weights [O, ...] -> (int8 codes, scale [O]); int16 codes, within 255 of each other in a channel, where the
    model has 8 bits with zero points.

    On the model's own grid where that is one step per output channel and fits, or where the steps of a channel's blocks
    are multiples of one (floats that lie on such a grid have it too: fake-quantized weights that an exporter folded);
    else, for blocks of few bits, on the multiples that are nearest to the steps; else per-channel symmetric.
    offsets: whether codes may be out of the reach of int8; else they are rounded.
    `notes` receives a word where weights are rounded again. fine: codes of few bits are taken so many times, and the
    scale as much smaller, as fits: a bias is rounded to whole sums, which beside data of few bits are coarse.
    """
    flat = values.reshape(len(values), -1).astype(np.float64)
    if not np.isfinite(flat).all():
        raise CompileError("its weights are not finite")
    if step is not None and step.shape == values.shape and flat.size:  # transposed, it may repeat one a channel
        rows = step.reshape(flat.shape)
        if (rows == rows[:, :1]).all():
            step = rows[:, 0].reshape(-1, *(1,) * (values.ndim - 1))
    if step is not None and flat.size and _one_a_channel(step, values.shape):
        column = np.broadcast_to(step.reshape(-1, 1), (len(flat), 1)).astype(np.float64)
        codes = np.rint(flat / column)
        largest = max(codes.max(), -codes.min())
        if largest > LARGEST_CODE:
            kept = np.ptp(codes, axis=1, keepdims=True) <= CODES if offsets else np.zeros((len(codes), 1), bool)
            kept = (kept & (np.abs(codes).max(1, keepdims=True) <= CODES)) | _is_int8(codes)
            if not kept.all():
                narrow, wide = _narrowed(flat, codes, column)
                codes, column = np.where(kept, codes, narrow), np.where(kept, column, wide)
                if notes is not None:
                    notes.append(f"weights with codes up to {largest:.0f} from their zero point are rounded to 8 bits")
            dtype = np.int8 if _is_int8(codes).all() else np.int16
            return codes.astype(dtype).reshape(values.shape), column[:, 0]
        if fine:
            finer = min(MOST_FINER, int(LARGEST_CODE // max(largest, 1)))
            codes, column = codes * finer, column / finer
        return codes.astype(np.int8).reshape(values.shape), column[:, 0]
    elif flat.size:
        steps = None if step is None else np.broadcast_to(step, values.shape).reshape(flat.shape)
        if steps is None:
            steps = find_steps(flat)
        found = None if steps is None else _codes_on_grid(flat, steps, notes)
        if found is not None:
            return found[0].astype(np.int8).reshape(values.shape), found[1]
    scale = np.abs(flat).max(1, initial=0) / LARGEST_CODE
    scale[scale == 0] = scale[scale > 0].min(initial=1.0)  # channels of zeros
    return np.rint(flat / scale[:, None]).astype(np.int8).reshape(values.shape), scale


def _is_int8(codes: np.ndarray) -> np.ndarray:
    """Whether each row's codes are int8, [N, 1]."""
    return (codes.min(1, keepdims=True) >= -LARGEST_CODE - 1) & (codes.max(1, keepdims=True) <= LARGEST_CODE)


def _narrowed(flat: np.ndarray, codes: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(codes within LARGEST_CODE, step [O, 1]): channels that do not fit are clipped, where a single -128 is all that
    is lost, or rounded on wider steps, whichever is nearer to the weights."""
    wide = step * np.maximum(np.abs(codes).max(1, keepdims=True) / LARGEST_CODE, 1.0)
    clipped, rounded = np.clip(codes, -LARGEST_CODE, LARGEST_CODE), np.rint(flat / wide)
    clip = ((clipped * step - flat) ** 2).sum(1, keepdims=True) <= ((rounded * wide - flat) ** 2).sum(1, keepdims=True)
    return np.where(clip, clipped, rounded), np.where(clip, step, wide)


def _one_a_channel(step: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether a step has one value, or one for each channel of weights [O, ...]."""
    return step.size == 1 or (step.ndim == len(shape) and step.size == step.shape[0])


def _codes_on_grid(
    flat: np.ndarray, steps: np.ndarray, notes: list[str] | None
) -> tuple[np.ndarray, np.ndarray] | None:
    """(codes, scale) of weights [O, K] with the model's steps [O, K], or None where they do not fit 8 bits."""
    notes = [] if notes is None else notes
    codes = np.rint(flat / steps)
    blocks = Blocks.of(codes, steps)
    scale, multipliers, found = exact_multipliers(blocks, LARGEST_CODE)
    if not found.all():
        if LARGEST_CODE // max(blocks.largest[~found].max(), 1) < LEAST_MULTIPLIER:
            notes.append("weights in blocks of 6 bits and more are rounded to 8 bits with one scale a channel")
            return None
        nearest, near, error = nearest_multipliers(blocks, LARGEST_CODE)
        scale, multipliers = np.where(found, scale, nearest), np.where(found[:, None], multipliers, near)
        loss = 100 * float(np.sqrt(error[~found].mean()))
        notes.append(
            f"block scales are brought to integer multiples of one scale a channel ({loss:.2g} % of the weights)"
        )
    return codes * blocks.along(codes.shape[1], multipliers), scale


def _accumulator_bound(codes: np.ndarray, x: Quantized) -> float:
    return float(np.abs(codes.reshape(len(codes), -1).astype(np.int64)).sum(1).max(initial=0)) * x.magnitude


def coarser(codes: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Weights [O, ...] on steps 2^k[o] times larger."""
    return np.rint(codes / (2.0**k).reshape(-1, *[1] * (codes.ndim - 1))).astype(codes.dtype)


def centred(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 codes [O, ...], int32 offsets [O]) whose sum the codes are; no offset where 8 bits reach."""
    flat = codes.reshape(len(codes), -1).astype(np.int32)
    low, high = flat.min(1, initial=0), flat.max(1, initial=0)
    offset = np.where(low < -LARGEST_CODE - 1, low + LARGEST_CODE + 1, np.where(high > LARGEST_CODE, high - 127, 0))
    return (flat - offset[:, None]).astype(np.int8).reshape(codes.shape), offset.astype(np.int32)


def accumulator(
    r: Reader,
    x: Quantized,
    codes: np.ndarray,
    scale: np.ndarray,
    call_op: Callable[[np.ndarray, str], str],
    axes: tuple[int, ...],
    out: tuple[int, ...],
    takes_bias: bool = True,
    copies: int = 1,
    groups: int = 1,
) -> Accumulator:
    """The sums of a layer with constant weights; call_op(weight codes, bias) emits it, with `copies` of the biases.

    With codes w + z, w int8, it is the sum of x * w, and z times the sum of x: a layer of one output with weights of 1,
    or with as many as the layer has where `groups` read different channels.
    """

    def sums(codes: np.ndarray, bias: np.ndarray | None) -> str:
        w, offset = centred(codes)
        y = call_op(w, _bias_constant(r, bias, len(w), copies))
        if not offset.any():
            return y
        ones = np.ones_like(w if groups > 1 else w[:1])
        total = call_op(ones, _bias_constant(r, None, len(ones), copies))
        return r.builder.emit("add_sums", [y, total, r.builder.constant(offset, "offset")])

    emitter = lambda codes: lambda bias: sums(codes, bias)  # noqa: E731
    return Accumulator(
        emitter(codes),
        axes,
        out,
        scale * float(x.scale),
        _accumulator_bound(codes, x),
        r.where,
        takes_bias=takes_bias,
        coarsen=lambda k: emitter(coarser(codes, k)),
    )


def _bias_constant(r: Reader, bias: np.ndarray | None, channels: int, copies: int = 1) -> str:
    each = np.broadcast_to(np.int32(0) if bias is None else bias, (channels,))
    return r.builder.constant(np.tile(each, copies).astype(np.int32), "bias")


@handles("relax.nn.conv2d", "relax.nn.conv1d")
def conv(r: Reader, call: Any, args: list[Any]) -> Accumulator:
    x, w, a = r.operand(args[0], "input"), args[1], call.attrs
    if not isinstance(w, Real):
        raise CompileError("a convolution whose weights are computed is not supported")
    one_d = len(x.shape) == 3
    out = shape_of(call)
    codes, scale = weight_codes(w.values, w.step, r.notes, x.hi - x.lo < FEW_CODES)
    if one_d:
        x = r.make.relayout(x, (0, 2, 1))
        n, c, length = x.shape
        name = r.builder.emit("reshape", [x.name], shape=[n, 1, length, c])
        codes = codes[:, :, None, :]
        pads = [0, int(a.padding[0]), 0, int(a.padding[1])]
        strides, dilations = [1, int(a.strides[0])], [1, int(a.dilation[0])]
        axes: tuple[int, ...] = (0, 2, 1)
    else:
        x = r.make.relayout(x, (0, 3, 1, 2))
        name, pads, strides, dilations, axes = (
            x.name,
            integers(a.padding),
            integers(a.strides),
            integers(a.dilation),
            (0, 3, 1, 2),
        )

    def call_op(codes: np.ndarray, bias: str) -> str:
        weight = r.builder.constant(codes.transpose(0, 2, 3, 1), "weight")
        y = r.builder.emit(
            "conv2d",
            [name, weight, bias],
            strides=strides,
            dilations=dilations,
            pads=pads,
            groups=int(a.groups),
            x_zero_point=x.zeros,
        )
        return r.builder.emit("reshape", [y], shape=[out[0], out[2], len(codes)]) if one_d else y

    return accumulator(r, x, codes, scale, call_op, axes, out, groups=int(a.groups))


@handles("relax.nn.conv2d_transpose")
def conv_transpose(r: Reader, call: Any, args: list[Any]) -> Accumulator:
    """A convolution for each place within a stride or, with groups or dilations, one of the input with zeros put
    between its pixels, with the flipped kernel."""
    x, w, a = r.operand(args[0], "input"), args[1], call.attrs
    if not isinstance(w, Real):
        raise CompileError("a convolution whose weights are computed is not supported")
    groups, (sh, sw), (dh, dw) = int(a.groups), integers(a.strides), integers(a.dilation)
    t, left, b, right = integers(a.padding)
    oh, ow = integers(a.output_padding)
    c, og, kh, kw = w.shape

    def regroup(v: np.ndarray) -> np.ndarray:
        return v.reshape(groups, c // groups, og, kh, kw).swapaxes(1, 2).reshape(groups * og, c // groups, kh, kw)

    w = w.map(regroup)
    codes, scale = weight_codes(w.values, w.step, r.notes, x.hi - x.lo < FEW_CODES)
    x = r.make.relayout(x, (0, 3, 1, 2))
    out = shape_of(call)
    _, _, h, wd = x.shape
    if groups == dh == dw == 1 and max(sh, sw) > 1:
        rows, columns = Phases.of(kh, sh, t, h, out[2]), Phases.of(kw, sw, left, wd, out[3])
        if rows and columns:
            return _subpixel(r, x, codes, scale, (rows, columns), out)
    codes = codes[:, :, ::-1, ::-1]
    name = x.name
    for axis, (stride, size) in ((1, (sh, h)), (2, (sw, wd))):  # zero_point rows and columns between the pixels
        if stride == 1:
            continue
        shape = list(r.builder.types[name].shape)
        split = [*shape[: axis + 1], 1, *shape[axis + 1 :]]
        name = r.builder.emit("reshape", [name], shape=split)
        after = [0] * 5
        after[axis + 1] = stride - 1
        name = r.builder.emit("pad", [name], before=[0] * 5, after=after, mode="constant", value=x.zero_point)
        shape[axis] = size * stride
        name = r.builder.emit("reshape", [name], shape=shape)
        end = list(shape)
        end[axis] = (size - 1) * stride + 1
        name = r.builder.emit("slice", [name], begin=[0] * 4, end=end, step=[1] * 4)
    pads = [dh * (kh - 1) - t, dw * (kw - 1) - left, dh * (kh - 1) - b + oh, dw * (kw - 1) - right + ow]
    if min(pads) < 0:
        raise CompileError("a transposed convolution with pads larger than its kernel is not supported")

    def call_op(codes: np.ndarray, bias: str) -> str:
        weight = r.builder.constant(codes.transpose(0, 2, 3, 1), "weight")
        return r.builder.emit(
            "conv2d",
            [name, weight, bias],
            strides=[1, 1],
            dilations=[dh, dw],
            pads=pads,
            groups=groups,
            x_zero_point=x.zero_point,
        )

    return accumulator(r, x, codes, scale, call_op, (0, 3, 1, 2), out, groups=groups)


def _subpixel(
    r: Reader, x: Quantized, codes: np.ndarray, scale: np.ndarray, axes: tuple[Phases, Phases], out: tuple[int, ...]
) -> Accumulator:
    """codes int8 [O, C, KH, KW] as the transposed convolution has them; out [N, O, OH, OW]."""
    rows, columns = axes
    n, _, oh, ow = out

    def call_op(codes: np.ndarray, bias: str) -> str:
        o = len(codes)
        weight = r.builder.constant(phase_weights(codes, rows, columns), "weight")
        y = r.builder.emit(
            "conv2d",
            [x.name, weight, bias],
            strides=[1, 1],
            dilations=[1, 1],
            pads=[rows.before, columns.before, rows.after, columns.after],
            groups=1,
            x_zero_point=x.zero_point,
        )
        y = r.builder.emit("reshape", [y], shape=[n, rows.count, columns.count, rows.stride, columns.stride, o])
        if rows.stride > 1:
            y = r.builder.emit("transpose", [y], axes=[0, 1, 3, 2, 4, 5])
        y = r.builder.emit("reshape", [y], shape=[n, rows.count * rows.stride, columns.count * columns.stride, o])
        if rows.whole and columns.whole:
            return y
        begin, end = [0, rows.crop, columns.crop, 0], [n, rows.crop + oh, columns.crop + ow, o]
        return r.builder.emit("slice", [y], begin=begin, end=end, step=[1] * 4)

    return accumulator(r, x, codes, scale, call_op, (0, 3, 1, 2), out, copies=rows.stride * columns.stride)


@handles("relax.matmul")
def matmul(r: Reader, call: Any, args: list[Any]) -> Any:
    a, b = args
    if isinstance(a, Real) and isinstance(b, Real):
        return Real(np.matmul(a.values, b.values))
    one_matrix = isinstance(b, Real) and (b.values.ndim <= 2 or int(np.prod(b.shape[:-2])) == 1)
    if one_matrix and not isinstance(a, UnnormalisedSoftmax):
        return _dense(r, call, a, b)
    if isinstance(b, Real):
        b = _constant_operand(r, b)
    if isinstance(a, Real):
        a = _constant_operand(r, a)
    if len(a.shape) < 2 or len(b.shape) < 2:
        raise CompileError("a product of two activations needs at least 2 axes on both sides; reshape them")
    if isinstance(a, UnnormalisedSoftmax):
        from qcompile.passes.integerize.softmax import attention

        return attention(r, a, b, shape_of(call))
    return product(r, r.operand(a, "first operand"), r.operand(b, "second operand"), shape_of(call))


def _dense(r: Reader, call: Any, x: Any, w: Real) -> Accumulator:
    w = w.map(lambda v: v.reshape(v.shape[-2:]) if v.ndim > 2 else v)
    vector = w.values.ndim == 1
    w = w.map(lambda v: v.reshape(1, -1) if vector else v.T)
    out = shape_of(call)
    x = r.make.plain(r.operand(x, "input"))
    codes, scale = weight_codes(w.values, w.step, r.notes, x.hi - x.lo < FEW_CODES)

    def call_op(codes: np.ndarray, bias: str) -> str:
        y = r.builder.emit("dense", [x.name, r.builder.constant(codes, "weight"), bias], x_zero_point=x.zero_point)
        return r.builder.emit("reshape", [y], shape=list(out)) if vector else y

    return accumulator(r, x, codes, scale, call_op, identity(len(out)), out, takes_bias=not vector)


def _constant_operand(r: Reader, v: Real) -> Quantized:
    """A constant as operand of a product: on its own grid where 8 bits hold that, else symmetric over its range."""
    return own_codes(r, v) or r.make.quantize(v, symmetric_grid(float(v.values.min()), float(v.values.max()), "int8"))


def own_codes(r: Reader, v: Real) -> Quantized | None:
    """A constant of one step as 8-bit codes with a zero point, where they reach."""
    if v.step is None or not v.step.size or v.step.min() != v.step.max():
        return None
    step = float(v.step.flat[0])
    codes = np.rint(v.values / step)
    low, high = codes.min(initial=0), codes.max(initial=0)
    if high - low > 255:
        return None
    zero = 0 if max(-low, high) <= LARGEST_CODE else int(-128 - low)
    name = r.builder.constant((codes + zero).astype(np.int8), "weight")
    return Quantized(name, identity(v.values.ndim), v.shape, step, zero, "int8", -128, 127)


def contraction_last(r: Reader, b: Quantized) -> tuple[Quantized, bool]:
    """(b laid out plainly or with its last two axes swapped, whichever costs no copy; whether they are swapped)."""
    rank = len(b.shape)
    swapped = (*range(rank - 2), rank - 1, rank - 2)
    order = np.argsort(b.axes)
    if b.axes == swapped or (b.axes != identity(rank) and list(order).index(rank - 2) > list(order).index(rank - 1)):
        return r.make.relayout(b, swapped), True
    return r.make.plain(b), False


def product(r: Reader, a: Quantized, b: Quantized, out: tuple[int, ...]) -> Accumulator:
    a = r.make.plain(a)
    b, transposed = contraction_last(r, b)

    def emit(_: np.ndarray | None) -> str:
        return r.builder.emit(
            "matmul", [a.name, b.name], transpose_b=transposed, a_zero_point=a.zero_point, b_zero_point=b.zero_point
        )

    bound = float(a.magnitude) * b.magnitude * a.shape[-1]
    return Accumulator(
        emit,
        identity(len(out)),
        out,
        float(a.scale) * float(b.scale),
        bound,
        r.where,
        scores=(a, replace(b), transposed),
    )
