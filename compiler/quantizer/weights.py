"""Integer weights: symmetric 8-bit codes per output channel, scales searched by squared error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute

QMAX = 127
CLIPS = (1.0, 0.97, 0.94, 0.9, 0.86, 0.82, 0.78)
BLOCK = 1 << 18  # weights that are looked at together: they stay in the cache while all ranges are tried
CLIP_GAIN = 0.9  # a narrower range must bring the error below this share


@dataclass(frozen=True)
class QuantizedWeight:
    """real = codes * scale, scale along `axis` (None: one scale)."""

    codes: np.ndarray
    scale: np.ndarray
    axis: int | None

    def dequantized(self) -> np.ndarray:
        if self.axis is None:
            return self.codes * self.scale
        shape = [1] * self.codes.ndim
        shape[self.axis] = -1
        return self.codes * self.scale.reshape(shape)


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
    first = (lambda a: a[None]) if axis is None else (lambda a: np.moveaxis(a, axis, 0))  # the channels' axis in front
    channels, codes = first(weight), np.empty(weight.shape, np.int8)
    count = len(channels)
    scale = np.empty((count, *(1,) * (channels.ndim - 1)), np.float32)
    bounds = np.zeros_like(scale) if least is None else least.reshape(scale.shape).astype(np.float32)
    shares = None if importance is None else first(importance).astype(np.float32)
    rows = max(1, BLOCK * count // max(weight.size, 1))
    for part in (slice(i, i + rows) for i in range(0, count, rows)):
        w = np.ascontiguousarray(channels[part], np.float32)
        share = shares if shares is None or len(shares) == 1 else shares[part]
        scale[part] = np.maximum(_scale(w, share, CLIPS if clip else ()), bounds[part])
        first(codes)[part] = np.clip(np.rint(w / scale[part]), -QMAX, QMAX)
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
