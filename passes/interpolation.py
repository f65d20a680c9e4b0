"""The weights of interpolation between pixels."""

from __future__ import annotations

import numpy as np

KEYS = -0.75  # the parameter of cubic interpolation that torch and ONNX take for GridSample


def interpolation_weight(method: str, a: float, t: np.ndarray) -> np.ndarray:
    """The interpolating function at distance t >= 0: a triangle, or Keys's cubic (1981) of parameter a."""
    if method == "linear":
        return np.clip(1 - t, 0, 1)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))
