"""Integer weights: symmetric codes per output channel or in groups, scales searched by squared error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute
from qcompile.quantizer.bits import LayerBits
from qcompile.quantizer.columns import Columns

QMAX = 127
TABLE_LIMIT = 255 * 8  # largest magnitude of a 16-bit table's values
CLIPS = (1.0, 0.97, 0.94, 0.9, 0.86, 0.82, 0.78)
NARROW_CLIPS = tuple(np.linspace(1.0, 0.4, 16).round(3).tolist())  # of few codes, many are spent on an outlier
BLOCK = 1 << 18  # weights that are looked at together: they stay in the cache while all ranges are tried
CLIP_GAIN = 0.9  # a narrower range must bring the error below this share


@dataclass(frozen=True)
class QuantizedWeight:
    """real = codes * scale * multiplier: `scale` along `axis` (None: one scale), codes of `bits` bits, and an integer
    multiplier for each `group` weights along `group_axis` (None: all are 1)."""

    codes: np.ndarray
    scale: np.ndarray
    axis: int | None
    bits: int = 8
    multipliers: np.ndarray | None = None
    group: int = 0
    group_axis: int = 0

    def steps(self) -> np.ndarray:
        """float32 scales of the codes: along `axis`, or one for each group [.., length / group, ..]."""
        if self.multipliers is None:
            return self.scale
        return (self._along(self.codes.ndim) * self.multipliers).astype(np.float32)

    def _along(self, rank: int) -> np.ndarray:
        if self.axis is None:
            return self.scale
        shape = [1] * rank
        shape[self.axis] = -1
        return self.scale.reshape(shape)

    def dequantized(self) -> np.ndarray:
        if self.multipliers is None:
            return self.codes * self._along(self.codes.ndim)
        return self.codes * self.steps().repeat(self.group, self.group_axis)


def channel_axis(node: NodeProto, index: int, weight: np.ndarray) -> int | None:
    """The axis of a weight that counts output channels, None where one scale must serve all."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm" and index == 1:
        return 0 if attribute(node, "transB", 0) else 1
    if node.op_type == "MatMul" and index == 1 and weight.ndim >= 2:
        return weight.ndim - 1
    return None


def channels_first(a: np.ndarray, axis: int | None) -> np.ndarray:
    """A view with the channels' axis in front: one of a single channel where there is none."""
    return a[None] if axis is None else np.moveaxis(a, axis, 0)


def quantize_weight(
    weight: np.ndarray,
    axis: int | None,
    importance: np.ndarray | None = None,
    clip: bool = True,
    least: np.ndarray | None = None,
) -> QuantizedWeight:
    """8-bit codes in [-127, 127] of `weight` (float, any shape).

    `importance` (broadcastable to the weight) weighs squared errors in the search for a narrower range; `least` is a
    lower bound of the scales.
    """
    channels, codes = channels_first(weight, axis), np.empty(weight.shape, np.int8)
    count = len(channels)
    scale = np.empty((count, *(1,) * (channels.ndim - 1)), np.float32)
    bounds = np.zeros_like(scale) if least is None else least.reshape(scale.shape).astype(np.float32)
    shares = None if importance is None else channels_first(importance, axis).astype(np.float32)
    rows = max(1, BLOCK * count // max(weight.size, 1))
    for part in (slice(i, i + rows) for i in range(0, count, rows)):
        w = np.ascontiguousarray(channels[part], np.float32)
        share = shares if shares is None or len(shares) == 1 else shares[part]
        scale[part] = np.maximum(_scale(w, share, CLIPS if clip else ()), bounds[part])
        channels_first(codes, axis)[part] = np.clip(np.rint(w / scale[part]), -QMAX, QMAX)
    return QuantizedWeight(codes, scale.reshape(-1) if axis is not None else scale.reshape(()), axis)


def _scale(w: np.ndarray, share: np.ndarray | None, clips: tuple[float, ...]) -> np.ndarray:
    """The scale [channels, 1, ...] of each channel of `w` [channels, ...], for the share of its range, among `clips`,
    that has the least error."""
    axes = tuple(range(1, w.ndim))
    peak = np.abs(w).max(axes, keepdims=True, initial=0).astype(np.float64)
    peak[peak < 1e-30] = 1.0
    best, ratio, error = None, np.ones_like(peak), np.empty_like(w)
    for r in clips:
        scale = (peak * r / QMAX).astype(np.float32)
        np.rint(np.multiply(w, 1 / scale, out=error), out=error)
        np.clip(error, -QMAX, QMAX, out=error)
        error *= scale
        error -= w
        error *= error
        if share is not None:
            error *= share
        total = error.sum(axes, keepdims=True)
        if best is None:
            best = total
        else:
            better = total < best * CLIP_GAIN
            ratio, best = np.where(better, r, ratio), np.where(better, total, best)
    return (peak * ratio / QMAX).astype(np.float32)


def choose_steps(
    w: np.ndarray, share: np.ndarray, bits: int, group: int = 0, clip: bool = True, least: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Scales [N] and integer multipliers [N, groups, taps] for narrow codes of `w` [N, inputs, taps].

    `share` [inputs, taps] weighs squared errors; groups of `group` inputs at one tap have their own multiplier where
    they divide the inputs, else [N, 1, 1] ones come back. `least` [N] is a lower bound of the scales.
    """
    n, inputs, taps = w.shape
    qmax = 2 ** (bits - 1) - 1
    grouped = bool(group) and inputs % group == 0 and inputs * taps > group
    shape = (n, inputs // group, group, taps) if grouped else (n, 1, inputs * taps, 1)
    shares = np.broadcast_to(share, (inputs, taps)).astype(np.float32).reshape(1, *shape[1:])
    best = np.empty((n, shape[1], shape[3]), np.float32)
    rows = max(1, BLOCK * n // max(w.size, 1))
    for start in range(0, n, rows):
        part = np.ascontiguousarray(w[start : start + rows], np.float32).reshape(-1, *shape[1:])
        best[start : start + rows] = _narrow_scales(part, shares, qmax, NARROW_CLIPS if clip else (1.0,))
    floor = np.full(n, 1e-30, np.float32) if least is None else np.maximum(least, 1e-30).astype(np.float32)
    if not grouped:
        best = np.where(best > 0, best, np.float32(1 / qmax))
        return np.maximum(best[:, 0, 0], floor), np.ones((n, 1, 1), np.int32)
    energy = (best**2 * shares.sum(2)).astype(np.float64)
    return _common_scale(best, energy, QMAX // qmax, floor)


def _narrow_scales(w: np.ndarray, share: np.ndarray, qmax: int, clips: tuple[float, ...]) -> np.ndarray:
    """The scales [N, J, T] of least weighted error over axis 2 of `w` [N, J, K, T]; 0 where all is 0."""
    peak = np.abs(w).max(2, keepdims=True)
    nothing = peak < 1e-30
    peak = np.where(nothing, np.float32(1), peak)
    best = ratio = None
    for r in clips:
        scale = peak * np.float32(r / qmax)
        error = np.clip(np.rint(w / scale), -qmax, qmax) * scale - w
        total = (error * error * share).sum(2, keepdims=True)
        if best is None:
            best, ratio = total, np.full_like(peak, r)
        else:
            ratio = np.where(total < best, np.float32(r), ratio)
            best = np.minimum(best, total)
    return np.where(nothing, np.float32(0), peak * ratio / qmax)[:, :, 0]


def _common_scale(steps: np.ndarray, energy: np.ndarray, most: int, floor: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales [N] and multipliers up to `most` whose products come near `steps` [N, J, T], weighed by `energy`."""
    peak = steps.max((1, 2))
    peak = np.where(peak > 0, peak, np.float32(1))
    wanted = np.where(steps > 0, steps, np.float32(1))  # groups of zeros have no energy: any step serves
    best = scale = multipliers = None
    for m in range(max(most // 2, 1), most + 1):
        s = np.maximum(peak / m, floor)
        integers = np.clip(np.rint(steps / s[:, None, None]), 1, most)
        error = (energy * np.square(integers * s[:, None, None] / wanted - 1)).sum((1, 2))
        if best is None:
            best, scale, multipliers = error, s, integers
        else:
            better = error < best
            best, scale = np.minimum(best, error), np.where(better, s, scale)
            multipliers = np.where(better[:, None, None], integers, multipliers)
    return scale.astype(np.float32), multipliers.astype(np.int32)


def narrow_weight(
    columns: Columns, codes: np.ndarray, scale: np.ndarray, multipliers: np.ndarray, bits: LayerBits
) -> QuantizedWeight:
    """The weight of `codes` [groups, N, inputs, taps] in the layer's own layout."""
    axis, scale = columns.channel_axis, scale.astype(np.float32)
    if multipliers.shape[2:] == (1, 1):
        return QuantizedWeight(columns.weight(codes), scale, axis, bits.weights)
    laid = columns.weight(multipliers)
    return QuantizedWeight(columns.weight(codes), scale, axis, bits.weights, laid, bits.group, columns.input_axis)


def quantize_table(table: np.ndarray, bits: LayerBits, limit: int) -> QuantizedWeight:
    """Codes of an embedding table [rows, width] in groups along its rows: one scale, integer multipliers, with
    |multiplier * code| <= `limit`. A row is one group where `bits.group` is 0 or does not divide the width."""
    rows, width = table.shape
    group = bits.group if bits.group and width % bits.group == 0 else width
    qmax = 2 ** (bits.weights - 1) - 1
    steps = np.empty((rows, width // group), np.float32)
    part = max(1, BLOCK // width)
    for start in range(0, rows, part):
        w = np.asarray(table[start : start + part], np.float32).reshape(-1, width // group, group, 1)
        steps[start : start + part] = _narrow_scales(w, np.ones((1, 1, 1, 1), np.float32), qmax, NARROW_CLIPS)[..., 0]
    most = min(limit // qmax, 255)
    scale = np.float32(max(float(steps.max()), 1e-30) / most)
    multipliers = np.clip(np.rint(steps / scale), 1, most).astype(np.int32)
    codes = np.empty(table.shape, np.int8)
    for start in range(0, rows, part):
        step = (multipliers[start : start + part] * scale).repeat(group, 1)
        codes[start : start + part] = np.clip(np.rint(table[start : start + part] / step), -qmax, qmax)
    return QuantizedWeight(codes, np.array(scale, np.float32), None, bits.weights, multipliers, group, 1)


def input_importance(graph: Graph, node: NodeProto, weight: np.ndarray, square: np.ndarray | None) -> np.ndarray | None:
    """Mean square of each input channel, broadcastable to the weight; None where it is unknown."""
    if square is None:
        return None
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        if square.size != weight.shape[1] * groups:
            return None
        per_group = square.reshape(groups, weight.shape[1]).repeat(weight.shape[0] // groups, 0)
        return per_group.reshape(*weight.shape[:2], *(1,) * (weight.ndim - 2))
    if node.op_type in ("Gemm", "MatMul") and weight.ndim == 2:
        k_axis = 1 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 0
        return (square[None, :] if k_axis == 1 else square[:, None]) if square.size == weight.shape[k_axis] else None
    return None


def bias_shift(node: NodeProto, error: np.ndarray, mean: np.ndarray | None) -> np.ndarray | None:
    """Mean output error per channel, E[x] through the weight error (Nagel et al. 2019, section 4.2)."""
    if mean is None:
        return None
    if node.op_type == "Conv":
        groups = attribute(node, "group", 1)
        if mean.size != error.shape[1] * groups or (any(attribute(node, "pads") or []) and _border_dominates(error)):
            return None
        per_group = mean.reshape(groups, error.shape[1]).repeat(error.shape[0] // groups, 0)
        return (error.reshape(*error.shape[:2], -1).sum(2) * per_group).sum(1)
    if node.op_type in ("Gemm", "MatMul") and error.ndim == 2:
        error = error.T if node.op_type == "Gemm" and attribute(node, "transB", 0) else error
        return mean.astype(error.dtype) @ error if mean.size == error.shape[0] else None
    return None


def _border_dominates(error: np.ndarray) -> bool:
    """Kernels so long that zero padding changes the mean a tap sees."""
    return max(error.shape[2:], default=1) > 9
