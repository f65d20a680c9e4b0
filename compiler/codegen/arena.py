"""One static arena: buffers whose lives do not overlap share memory."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass
from itertools import accumulate

ALIGNMENT = 64
ROUNDS = 60  # of search for a layout without waste


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
    section 5.2. Where that needs more than the largest live set, the buffers that reach the top are moved to the front
    of the order and all are placed again ("squeaky wheel" search: Joslin and Clements, 1999); the best layout is kept.
    """
    least = largest_live_set(lifetimes)
    order = sorted(lifetimes, key=lambda b: (-b.nbytes, b.first, b.name))
    best: tuple[dict[str, int], int] = _place(order)
    offsets, used = best
    for _ in range(ROUNDS):
        if best[1] <= least:
            break
        top = {b.name for b in order if offsets[b.name] + align(max(b.nbytes, 1)) == used}
        order = [b for b in order if b.name in top] + [b for b in order if b.name not in top]
        offsets, used = _place(order)
        if used < best[1]:
            best = offsets, used
    return best


def _place(order: list[Lifetime]) -> tuple[dict[str, int], int]:
    """Each buffer in turn at the smallest gap that fits."""
    placed: list[tuple[int, int, Lifetime]] = []  # by offset
    for b in order:
        size = align(max(b.nbytes, 1))
        best, at = None, 0
        for start, end, other in placed:
            if other.last < b.first or b.last < other.first:
                continue
            if start - at >= size and (best is None or start - at < best[0]):
                best = (start - at, at)
            at = max(at, end)
        offset = best[1] if best else at
        insort(placed, (offset, offset + size, b), key=lambda p: p[0])
    return {b.name: start for start, _, b in placed}, max((end for _, end, _ in placed), default=0)
