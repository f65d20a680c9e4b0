"""Block scales as one scale times small integers: step[n, g] = s[n] * m[n, g].

A weight is then m * q on the one grid s: q the code of few bits that the model stores, m a multiplier of its block. So
block scales cost an integer kernel nothing but the code's unpacking (ZeroQuant-V2 and QServe use the same two levels).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EXACT = 1e-6  # a float32 scale lies this close to an integer multiple, relative to itself
CANDIDATES = 96  # common scales tried where no exact one exists
REACH = 2.0  # the coarsest candidate, relative to the finest that fits
ROWS = 64  # channels searched together


@dataclass(frozen=True)
class Blocks:
    """The runs of equal steps along the columns of a matrix [N, K].

    starts: first column of each run [G]; steps, largest, energy [N, G]: the step, largest |q| and sum of q^2 of each.
    """

    starts: np.ndarray
    steps: np.ndarray
    largest: np.ndarray
    energy: np.ndarray

    @classmethod
    def of(cls, codes: np.ndarray, steps: np.ndarray, size: int = 0) -> Blocks:
        """codes (integers as floats) and steps, both [N, K]; runs of `size` columns, or as long as steps are equal."""
        edges = np.flatnonzero((steps[:, 1:] != steps[:, :-1]).any(0)) + 1
        starts = np.concatenate([[0], edges]).astype(np.int64)
        if size:
            starts = np.arange(0, codes.shape[1], size)
        magnitude = np.abs(codes)
        return cls(
            starts,
            steps[:, starts].astype(np.float64),
            np.maximum.reduceat(magnitude, starts, axis=1).astype(np.float64),
            np.add.reduceat(np.square(magnitude, dtype=np.float64), starts, axis=1),
        )

    def joined(self) -> Blocks:
        """All rows as one: one common scale for a whole table."""
        steps, largest, energy = (a.reshape(1, -1) for a in (self.steps, self.largest, self.energy))
        kinds, index = np.unique(steps, return_inverse=True)
        merged = np.zeros((2, len(kinds)))
        np.maximum.at(merged[0], index.ravel(), largest.ravel())
        np.add.at(merged[1], index.ravel(), energy.ravel())
        return Blocks(self.starts, kinds[None], merged[:1], merged[1:])

    def along(self, columns: int, multipliers: np.ndarray) -> np.ndarray:
        """One multiplier a column, [N, K]."""
        return np.repeat(multipliers, np.diff([*self.starts, columns]), axis=1)


def exact_multipliers(blocks: Blocks, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scale [N], integer multipliers [N, G], found [N]): step = scale * multiplier to float32 rounding, and
    multiplier * largest <= limit; the largest such scale. Blocks of zeros fit any scale."""
    used = blocks.largest > 0
    steps = np.where(used, blocks.steps, np.inf)
    at = steps.argmin(1)[:, None]
    least = np.take_along_axis(steps, at, 1)
    least[~np.isfinite(least)] = 1.0
    ratio = np.where(used, blocks.steps / least, 1.0)
    scale, found = least[:, 0].copy(), np.zeros(len(steps), bool)
    multipliers = np.ones(steps.shape)
    for j in range(1, limit + 1):
        wanted = ratio * j
        m = np.rint(wanted)
        fits = (np.abs(m - wanted) <= EXACT * wanted) & (m * blocks.largest <= limit)
        new = fits.all(1) & ~found
        scale[new], multipliers[new] = least[new, 0] / j, m[new]
        found |= new
        if found.all() or j * blocks.largest.min(initial=limit, where=used) > limit:
            break
    return scale, multipliers, found


def nearest_multipliers(blocks: Blocks, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(scale [N], multipliers [N, G], squared error [N] of the weights relative to their energy): the common scale of
    each row, among CANDIDATES and then refined, at which rounded multipliers miss the weights least."""
    n, g = blocks.steps.shape
    scale, best = np.ones(n), np.ones((n, g))
    error = np.zeros(n)
    factors = np.geomspace(1.0, REACH, CANDIDATES)
    for part in (slice(i, i + ROWS) for i in range(0, n, ROWS)):
        steps, largest, energy = blocks.steps[part], blocks.largest[part], blocks.energy[part]
        finest = (steps * largest).max(1) / limit
        finest[finest == 0] = 1.0
        least = np.full(len(steps), np.inf)
        for factor in factors:
            s = finest * factor
            m = np.clip(np.rint(steps / s[:, None]), 1, np.floor(limit / np.maximum(largest, 1)))
            s = (energy * m * steps).sum(1) / np.maximum((energy * m * m).sum(1), 1e-300)
            s = np.where(s > 0, s, finest)
            missed = (energy * (m * s[:, None] - steps) ** 2).sum(1)
            better = missed < least
            least[better] = missed[better]
            scale[part][better], best[part][better] = s[better], m[better]
        error[part] = least / np.maximum((energy * steps**2).sum(1), 1e-300)
    return scale, best, error


LEVELS = 127  # codes of a grid that is found from values
ON_GRID = 2e-3  # of a step: float32 weights of a grid of 127 steps lie much closer
EVIDENCE = 8  # numbers that must lie on a grid before it counts as meant
SIZES = (128, 64, 32)  # columns of a block


def find_steps(values: np.ndarray) -> np.ndarray | None:
    """The steps [N, K] of float weights [N, K] that lie on uniform grids of few codes, one for each row or for each
    block of SIZES columns; None where some row has none."""
    n, k = values.shape
    for size in (k, *(s for s in SIZES if s < k and k % s == 0)):
        rows = values.reshape(-1, size)
        if size < EVIDENCE or len(np.unique(rows[0])) > 2 * LEVELS + 1:
            continue
        steps = np.array([_step(row) for row in rows]) if _step(rows[0]) else np.zeros(1)
        if steps.all():
            steps[np.isinf(steps)] = steps.min(initial=1.0)
            return np.repeat(steps, size).reshape(n, k)
    return None


def _step(row: np.ndarray) -> float:
    """The largest step of which all numbers of `row` are multiples up to LEVELS: 0 if there is none, inf for zeros."""
    levels = np.unique(np.abs(row))
    top = levels[-1]
    if top == 0:
        return np.inf
    if len(levels) > LEVELS + 1:
        return 0.0
    gaps = np.diff(np.concatenate([[0.0], levels]))
    least = gaps[gaps > top * 1e-4].min(initial=top)
    for j in (1, 2, 3, 4, 5):
        count = round(top * j / least)
        if count > LEVELS:
            return 0.0
        ratio = levels * (count / top)
        if np.abs(ratio - np.rint(ratio)).max() <= ON_GRID:
            return float(top / count)
    return 0.0
