"""Where ONNX's Resize looks along one axis: the numbers of the elements that it reads, and their weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from qcompile.passes.interpolation import interpolation_weight
from qcompile.targets.errors import CompileError

NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
}
SUPPORT = {"linear": 1, "cubic": 2}  # elements on either side


@dataclass(frozen=True)
class Axis:
    """One axis that is resized: sizes, scale = output by input as the node gives it, and the part of the input that
    tf_crop_and_resize takes."""

    size: int
    out: int
    scale: float
    begin: float = 0.0
    end: float = 1.0


def positions(axis: Axis, mode: str) -> np.ndarray:
    """Where each output element lies in the input (coordinate_transformation_mode); CompileError for unknown modes."""
    i, n, out = np.arange(axis.out, dtype=np.float64), axis.size, axis.out
    if mode == "asymmetric":
        return i / axis.scale
    if mode == "align_corners":
        return i * (n - 1) / max(out - 1, 1)
    if mode == "tf_crop_and_resize":
        if out == 1:
            return np.array([0.5 * (axis.begin + axis.end) * (n - 1)])
        return axis.begin * (n - 1) + i * (axis.end - axis.begin) * (n - 1) / (out - 1)
    if mode == "pytorch_half_pixel" and out == 1:
        return np.zeros(1)
    centre = 0.0
    if mode == "half_pixel_symmetric":
        centre = n / 2 * (1 - out / (axis.scale * n))
    elif mode not in ("half_pixel", "pytorch_half_pixel"):
        raise CompileError(f"Resize with coordinate mode {mode} is not supported")
    return centre + (i + 0.5) / axis.scale - 0.5


def taps(
    axis: Axis, method: str, mode: str, nearest: str, a: float, antialias: bool, exclude_outside: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(numbers int32 [T, out], weights [T, out]): out[i] = sum_t weights[t, i] * in[numbers[t, i]].

    Elements beyond an end count as that end; where tf_crop_and_resize leaves the input, all weights are 0.
    """
    x = np.round(positions(axis, mode), 9)
    if method == "nearest":
        numbers, weights = NEAREST[nearest](x)[None], np.ones((1, axis.out))
    else:
        shrink = min(axis.scale, 1.0) if antialias else 1.0
        first = int(np.floor(-SUPPORT[method] / shrink)) + 1
        left = np.ceil(x) - 1
        numbers = left + np.arange(first, 2 - first)[:, None]
        weights = interpolation_weight(method, a, np.abs(numbers - x) * shrink)
        if exclude_outside:
            weights = weights * ((numbers >= 0) & (numbers < axis.size))
        weights = weights / weights.sum(0)
    if mode == "tf_crop_and_resize":
        weights = weights * ((x >= 0) & (x <= axis.size - 1))
    return np.clip(numbers, 0, axis.size - 1).astype(np.int32), weights
