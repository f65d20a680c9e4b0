"""Calibration samples with a wild value: a sensor that failed, a unit that was mistaken."""

from __future__ import annotations

import numpy as np

FAR, GAP = 300.0, 30.0  # times the median of the samples' largest values, and times the largest that is not wild
SHARE, FEWEST = 10, 4  # at most one sample in SHARE is wild, of at least FEWEST
Feed = dict[str, np.ndarray]


def without_wild(samples: list[Feed], notes: list[str]) -> list[Feed]:
    """The samples but those of which an input's largest value lies far beyond that of all others; `notes` names each.

    A heavy tail has values of all sizes up to its largest. A wild one has nothing near it: it is more than FAR times
    the median, and more than GAP times the next sample's.
    """
    if len(samples) < FEWEST:
        return samples
    wild: dict[int, None] = {}
    for name, first in samples[0].items():
        if first.dtype.kind != "f" or not first.size:
            continue
        peaks = np.array([float(np.abs(s[name]).max()) for s in samples])
        for i in _far_ones(peaks):
            rest = np.delete(peaks, _far_ones(peaks)).max()
            held = f"input '{name}' holds {peaks[i]:.4g}, the others at most {rest:.4g}"
            notes.append(f"calibration sample {i} is left out: {held}")
            wild[i] = None
    return [s for i, s in enumerate(samples) if i not in wild]


def _far_ones(peaks: np.ndarray) -> list[int]:
    """The samples above a gap that few others are above."""
    order = np.argsort(peaks)
    median = float(np.median(peaks))
    for count in range(max(1, len(peaks) // SHARE), 0, -1):
        low, high = peaks[order[-count - 1]], peaks[order[-count]]
        if high > GAP * low and high > FAR * median and median > 0:
            return sorted(int(i) for i in order[-count:])
    return []
