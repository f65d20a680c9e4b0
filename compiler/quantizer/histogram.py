"""Streaming histograms of activations, and the choice of scale and zero point from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 4096  # bins on each side of zero
SAMPLE = 1 << 15  # elements of one tensor that one sample contributes to the histogram
PERCENTILES = (99.999, 99.99, 99.9)
SHRINKS = np.linspace(1.0, 0.3, 36)
NARROW_SHRINKS = np.linspace(1.0, 0.1, 31)
HEADROOM = 1.25  # 16-bit ranges: room for inputs larger than those seen
ROOM = 8  # integers may be so many times larger than in the samples, where 16 bits allow
TABLE_CODES = 4096  # codes of an activation's table
SYMMETRIC_COST = 1.1  # a range may grow by so much to have zero point 0


@dataclass(frozen=True)
class Quantization:
    """real = scale * (q - zero_point); q of `bits` signed bits, restricted to [qmin, qmax]."""

    scale: float
    zero_point: int = 0
    bits: int = 8
    qmin: int = -128
    qmax: int = 127

    @property
    def dtype(self) -> type:
        return np.int8 if self.bits == 8 else np.int16

    @property
    def clipped(self) -> bool:
        """Whether the codes are fewer than the type has, so that a Clip must precede the rounding."""
        return (self.qmin, self.qmax) != (-(2 ** (self.bits - 1)), 2 ** (self.bits - 1) - 1)

    def quantize(self, x: np.ndarray) -> np.ndarray:
        """ONNX QuantizeLinear: saturate(round_half_even(x / scale) + zero_point)."""
        return np.clip(np.rint(x / np.float32(self.scale)) + self.zero_point, self.qmin, self.qmax).astype(self.dtype)


class Histogram:
    """Counts of |bin| <= BINS around multiples of a width that doubles as larger values arrive; exact extremes."""

    def __init__(self) -> None:
        self.counts = np.zeros(2 * BINS + 1, np.float64)
        self.width = 0.0
        self.low = self.high = 0.0

    def add(self, x: np.ndarray) -> None:
        x = x.reshape(-1)
        if not x.size:
            return
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        peak = max(-self.low, self.high)
        if peak == 0.0:
            self.counts[BINS] += min(x.size, SAMPLE)
            return
        if self.width == 0.0:
            self.width = peak / BINS
        while peak > self.width * BINS:
            self._widen()
        if x.size > SAMPLE:
            x = x[:: -(-x.size // SAMPLE)]
        index = np.rint(x * (1.0 / self.width)).astype(np.int32) + BINS
        self.counts += np.bincount(np.clip(index, 0, 2 * BINS), minlength=2 * BINS + 1)

    def _widen(self) -> None:
        target = np.rint(np.arange(-BINS, BINS + 1) / 2).astype(int) + BINS
        self.counts = np.bincount(target, self.counts, minlength=2 * BINS + 1).astype(np.float64)
        self.width *= 2

    def merge(self, other: Histogram) -> None:
        """Add the counts of `other`."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        wide, narrow = (self, other) if self.width >= other.width else (other, self)
        if narrow.width:
            index = np.rint(np.arange(-BINS, BINS + 1) * (narrow.width / wide.width)).astype(int) + BINS
        else:
            index = np.full(2 * BINS + 1, BINS)
        self.counts, self.width = wide.counts + np.bincount(index, narrow.counts, minlength=2 * BINS + 1), wide.width

    @property
    def values(self) -> np.ndarray:
        return np.arange(-BINS, BINS + 1) * self.width

    def error(self, q: Quantization) -> float:
        """Mean squared error of rounding to `q`'s codes."""
        used = self.counts > 0
        x = self.values[used]
        back = (np.clip(np.rint(x / q.scale) + q.zero_point, q.qmin, q.qmax) - q.zero_point) * q.scale
        return float((self.counts[used] * (x - back) ** 2).sum() / max(self.counts.sum(), 1.0))

    def percentile(self, percent: float) -> tuple[float, float]:
        """The range that leaves (100 - percent) % of the mass outside, split over the two ends by where it lies."""
        mass = np.cumsum(self.counts) / max(self.counts.sum(), 1.0)
        tail = (100.0 - percent) / 100.0
        low = self.values[np.searchsorted(mass, tail)] if self.low < 0 else 0.0
        high = self.values[min(int(np.searchsorted(mass, 1.0 - tail)), 2 * BINS)] if self.high > 0 else 0.0
        return max(min(low, 0.0), self.low), min(max(high, 0.0), self.high)


def affine(low: float, high: float) -> Quantization:
    """8-bit codes for [low, high] with zero exactly representable; zero point 0 where that costs little."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-12:
        return Quantization(1.0 / 127)
    peak = max(-low, high)
    if 2 * peak <= SYMMETRIC_COST * (high - low):
        return Quantization(float(np.float32(peak / 127)), 0)
    scale = float(np.float32((high - low) / 255))
    return Quantization(scale, int(np.clip(np.rint(-128 - low / scale), -128, 127)))


def choose_8bit(h: Histogram, method: str) -> Quantization:
    """The 8-bit quantization of least measured error among min-max, percentile and shrunken ranges."""
    full = affine(h.low, h.high)
    if method == "minmax" or h.width == 0.0:
        return full
    candidates = [full]
    if method in ("auto", "percentile"):
        candidates += [affine(*h.percentile(p)) for p in PERCENTILES]
    if method in ("auto", "mse"):
        candidates += [affine(h.low * a, h.high * a) for a in SHRINKS[1:]]
        if h.low < 0 < h.high:
            candidates += [affine(h.low * a, h.high) for a in SHRINKS[1::3]]
            candidates += [affine(h.low, h.high * a) for a in SHRINKS[1::3]]
    return min(candidates, key=h.error)


def choose_narrow(h: Histogram, method: str, bits: int = 4) -> Quantization:
    """The least measured error among ranges of 2^bits codes around zero point 0: unsigned where nothing is negative."""
    if h.width == 0.0:
        return _narrow(h.low, h.high, bits)
    candidates = [_narrow(h.low, h.high, bits)]
    if method in ("auto", "percentile"):
        candidates += [_narrow(*h.percentile(p), bits) for p in PERCENTILES]
    if method in ("auto", "mse"):
        candidates += [_narrow(h.low * a, h.high * b, bits) for a in NARROW_SHRINKS for b in NARROW_SHRINKS]
    return min(dict.fromkeys(candidates), key=h.error)


def _narrow(low: float, high: float, bits: int) -> Quantization:
    low, high = min(low, 0.0), max(high, 0.0)
    last = 2**bits - 1
    scale = float(np.float32(max(high - low, 1e-12) / last))
    qmin = int(np.clip(np.rint(low / scale), -last, 0))
    return Quantization(scale, 0, 8, qmin, qmin + last)


def choose_16bit(h: Histogram) -> Quantization:
    """Symmetric 16-bit codes with headroom."""
    peak = max(-h.low, h.high) * HEADROOM
    return Quantization(float(np.float32(peak / 32767)) if peak > 1e-12 else 1.0 / 32767, 0, 16, -32768, 32767)


def choose_whole(h: Histogram, codes: int) -> Quantization:
    """16-bit codes of integers: the integers themselves where `codes` of them, and 16 bits, hold all that were seen, in
    steps of a power of two that leave room for ROOM times as many; else steps of 4.5 and more, with headroom, of which
    at most `codes` are used."""
    top = min(codes // 2, 32767) if codes < 65536 else 32767
    peak = max(-h.low, h.high)
    if codes < 65536:
        return Quantization(max(float(np.float32(peak * HEADROOM / top)), 1.0), 0, 16, -top, top)
    scale = 2.0 ** -max(np.floor(np.log2(top / (ROOM * max(peak, 1)))), 0)
    if peak > top:
        scale = max(float(np.float32(peak * HEADROOM / top)), 4.5)
    return Quantization(float(scale), 0, 16, -32768, 32767)


def choose_table(h: Histogram, floor: float) -> Quantization:
    """Symmetric 16-bit codes of which at most TABLE_CODES are used; below `floor` the function is flat."""
    low, high = max(h.low, floor) if floor > -np.inf else h.low * 1.1, h.high * 1.1
    span = max(high - low, 1e-6)
    scale = float(np.float32(span / (TABLE_CODES - 4)))
    qmin = max(int(np.floor(low / scale)), -32768)
    return Quantization(scale, 0, 16, qmin, min(qmin + TABLE_CODES - 1, 32767))
