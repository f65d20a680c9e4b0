"""Reshapes of tensors whose axes lie in memory in another order than they are counted, without a way through the plain
order: what a channels-last network splits and merges (shuffles of channels or pixels, windows) stays channels-last."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import mul

import numpy as np

IMAGE_RANK = 4


@dataclass(frozen=True)
class Reshape:
    """reshape to `split`, transpose by `order`, reshape to `merged`; `axes`: logical = physical.transpose(axes)."""

    split: list[int]
    order: list[int]
    merged: list[int]
    axes: tuple[int, ...]

    @property
    def moves(self) -> bool:
        """False where the elements stay in their order in memory."""
        return self.order != list(range(len(self.order)))


def refine(old: tuple[int, ...], new: tuple[int, ...]) -> list[int] | None:
    """The sizes of which both shapes are merges of neighbours, without ones; None where they cut an axis differently
    (as [4, 6] and [6, 4] do)."""
    cuts = sorted({1, *accumulate(old, mul), *accumulate(new, mul)})
    return None if 0 in cuts or any(b % a for a, b in pairwise(cuts)) else [b // a for a, b in pairwise(cuts)]


def plan_reshape(shape: tuple[int, ...], axes: tuple[int, ...], new: tuple[int, ...]) -> Reshape | None:
    """How a value of logical `shape`, logical = physical.transpose(axes), becomes one of logical shape `new`.

    The new axes lie in the order of their largest parts, if they are an image's or nothing has to be moved for it, else
    in plain order. None where the shapes have no common refinement.
    """
    sizes = refine(shape, new)
    if sizes is None:
        return None
    before, after = _parts(shape, sizes), _parts(new, sizes)
    there = [part for axis in np.argsort(axes) for part in before[axis]]  # parts in memory
    place = {part: at for at, part in enumerate(there)}
    whole = [axis for axis, parts in enumerate(after) if parts]
    by_place = sorted(whole, key=lambda axis: place[max(after[axis], key=lambda part: (sizes[part], part))])
    stays = [part for axis in by_place for part in after[axis]] == there
    wanted = by_place if stays or len(new) == IMAGE_RANK else whole
    layout = [axis for axis in range(len(new)) if not after[axis]] + wanted
    return Reshape(
        [sizes[part] for part in there],
        [place[part] for axis in wanted for part in after[axis]],
        [new[axis] for axis in layout],
        tuple(int(i) for i in np.argsort(layout)),
    )


def _parts(shape: tuple[int, ...], sizes: list[int]) -> list[list[int]]:
    """The numbers of the refined axes that each axis of `shape` consists of; none for those of size 1."""
    starts = {math.prod(sizes[:i]): i for i in range(len(sizes) + 1)}
    edges = [starts[n] for n in accumulate(shape, mul, initial=1)]
    return [list(range(a, b)) for a, b in pairwise(edges)]


__all__ = ["Reshape", "plan_reshape", "refine"]
