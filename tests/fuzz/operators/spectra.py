"""Fourier transforms of rows."""

from __future__ import annotations

import numpy as np

from fuzz.build import Build
from fuzz.operators import draws


@draws("DFT", weight=0.3, since=20)
def dft(b: Build, op: str) -> str:
    x = b.take(ranks=(2,))
    signal = b.add("Reshape", [x, b.ints([*b.shape(x), 1])])
    return b.add(op, [signal, "", b.constant(1, np.int64)], onesided=b.whole(0, 1))


@draws("STFT", weight=0.3, since=17)
def stft(b: Build, op: str) -> str:
    x = b.take(ranks=(2,))
    rows, length = b.shape(x)
    signal = b.add("Reshape", [x, b.ints([rows, length, 1])])
    frame = b.whole(2, max(2, min(length, 17)))
    step = b.constant(b.whole(1, frame), np.int64)
    window = b.constant(np.hanning(frame + 2)[1:-1], np.float32)
    return b.add(op, [signal, step, window, b.constant(frame, np.int64)], onesided=1)
