"""One static arena: buffers whose lives do not overlap share memory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

ALIGNMENT = 64


@dataclass(frozen=True)
class Lifetime:
    """nbytes of memory needed from step `first` to step `last`, both included."""

    name: str
    nbytes: int
    first: int
    last: int


def align(n: int) -> int:
    return -(-n // ALIGNMENT) * ALIGNMENT


def largest_live_set(lifetimes: list[Lifetime]) -> int:
    """Bytes of the buffers that are alive at the busiest step: no arena can be smaller."""
    change: dict[int, int] = {}
    for b in lifetimes:
        change[b.first] = change.get(b.first, 0) + align(max(b.nbytes, 1))
        change[b.last + 1] = change.get(b.last + 1, 0) - align(max(b.nbytes, 1))
    return max(accumulate(change[step] for step in sorted(change)), default=0)


def place(lifetimes: list[Lifetime]) -> tuple[dict[str, int], int]:
    """(offset of each buffer, bytes in all): largest first, each at the smallest gap that fits (best fit).

    Greedy by size, as in Pisarchyk and Lee, "Efficient memory management for deep neural net inference", 2020,
    section 5.2.
    """
    placed: list[tuple[int, int, Lifetime]] = []
    for b in sorted(lifetimes, key=lambda b: (-b.nbytes, b.first, b.name)):
        size = align(max(b.nbytes, 1))
        best, at = None, 0
        for start, end, other in sorted(placed, key=lambda p: p[0]):
            if other.last < b.first or b.last < other.first:
                continue
            if start - at >= size and (best is None or start - at < best[0]):
                best = (start - at, at)
            at = max(at, end)
        offset = best[1] if best else at
        placed.append((offset, offset + size, b))
    return {b.name: start for start, _, b in placed}, max((end for _, end, _ in placed), default=0)
