"""Transposed convolutions as plain ones, without zeros between the pixels.

Output pixels that lie a stride apart read the same taps of the kernel: one convolution of the image computes those of
all places within a stride as channels of their own, which then go to their places (the sub-pixel convolution of Shi et
al., "Real-time single image and video super-resolution", 2016).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Phases:
    """One axis of a transposed convolution, y[p] = sum of x[i] * w[k] over i * stride + k = p + pad.

    taps[r][j]: the k that outputs p = r (mod stride), once `crop` more are counted before the first, multiply with
    pixel p // stride - before + j; -1: none. before, after: pixels of padding; count: pixels of the convolution's
    result.
    """

    stride: int
    taps: np.ndarray
    before: int
    after: int
    count: int
    crop: int
    size: int

    @staticmethod
    def of(kernel: int, stride: int, pad: int, length: int, size: int) -> Phases | None:
        """The one with fewest taps for an input of `length` and an output of `size` pixels; None where that would need
        negative padding."""
        found = [p for crop in (0, pad % stride) if (p := Phases._cropped(kernel, stride, pad, length, size, crop))]
        return min(found, key=lambda p: p.taps.shape[1], default=None)

    @staticmethod
    def _cropped(kernel: int, stride: int, pad: int, length: int, size: int, crop: int) -> Phases | None:
        begin = pad - crop  # the tap that would meet pixel 0 in the first output
        places = {
            (r, (r + begin - k) // stride): k
            for r in range(stride)
            for k in range((r + begin) % stride, kernel, stride)
        }
        reads = [offset for _, offset in places]
        low, high = min(reads), max(reads)
        taps = np.array([[places.get((r, j), -1) for j in range(low, high + 1)] for r in range(stride)])
        count = -(-(size + crop) // stride)
        after = count - 1 + high - (length - 1)
        return Phases(stride, taps, -low, after, count, crop, size) if low <= 0 <= after else None

    @property
    def whole(self) -> bool:
        """Every output of the convolution is one of the result."""
        return not self.crop and self.count * self.stride == self.size


def phase_weights(weight: np.ndarray, rows: Phases, columns: Phases) -> np.ndarray:
    """[O, C, KH, KW] -> [rows * columns of a stride * O, KH', KW', C], zero where a phase has no tap."""
    o, c, kh, kw = weight.shape
    padded = np.zeros((o, c, kh + 1, kw + 1), weight.dtype)  # tap -1 is the zero at the end
    padded[:, :, :kh, :kw] = weight
    made = padded[:, :, rows.taps[:, :, None, None], columns.taps[None, None]]  # [O, C, rows, KH', columns, KW']
    made = made.transpose(2, 4, 0, 3, 5, 1)
    return np.ascontiguousarray(made).reshape(-1, *made.shape[3:])


__all__ = ["Phases", "phase_weights"]
