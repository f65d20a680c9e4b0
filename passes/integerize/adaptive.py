"""iRNN's adaptive piecewise-linear approximation: few straight segments between knots that lie where they matter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LEVEL = 1 / 16  # step of the 8-bit input levels among which knots are chosen: [-8, 8]
LEVELS = 129  # on each side, 0 included
SEGMENTS = 16  # on each side


def choose_knots(values: np.ndarray, count: int) -> np.ndarray:
    """Indices of the `count` knots that greedy removal leaves of all levels (Sari et al., 2021).

    Again and again the inner knot goes whose loss adds least to the squared error of the line through the others.
    """
    knots = list(range(len(values)))

    def loss(i: int) -> float:
        left, right = knots[i - 1], knots[i + 1]
        at = np.arange(left, right + 1)
        line = values[left] + (values[right] - values[left]) * (at - left) / (right - left)
        return float(np.square(line - values[left : right + 1]).sum())

    losses = [np.inf, *(loss(i) for i in range(1, len(knots) - 1)), np.inf]
    while len(knots) > count:
        i = int(np.argmin(losses))
        del knots[i], losses[i]
        for near in (i - 1, i):
            if 0 < near < len(knots) - 1:
                losses[near] = loss(near)
    return np.array(knots)


def adaptive(f: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    """f, odd or with f(-x) = 1 - f(x), as 2 * SEGMENTS straight segments; constant beyond [-8, 8]."""
    levels = np.arange(LEVELS) * LEVEL
    values = f(levels)
    knots = choose_knots(values, SEGMENTS + 1)
    middle = float(f(np.zeros(1))[0])

    def line(x: np.ndarray) -> np.ndarray:
        y = np.interp(np.abs(x), levels[knots], values[knots])
        return np.where(np.asarray(x) < 0, 2 * middle - y, y)

    return line
