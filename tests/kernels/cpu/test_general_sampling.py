"""Sampling of images at computed positions, against numpy on every instruction set."""

from __future__ import annotations

import numpy as np
from general_arrays import edge_array, node
from kernel_harness import Case, check_cases
from qcompile.kernels.ops.sampling import PADDINGS


def table_of(taps, fraction):
    """Weights as interpolation has them."""
    t = np.arange(1 << fraction)
    if taps == 1:
        return np.ones((1 << fraction, 1), np.int16)
    if taps == 2:
        return np.stack([(1 << fraction) - t, t], 1).astype(np.int16)
    outer = -((t * ((1 << fraction) - t)) >> fraction) // 3
    return np.stack([outer, (1 << fraction) - t - outer, t - outer, outer], 1).astype(np.int16)


SHAPES = [  # of x, of the grid
    ((1, 5, 7, 3), (1, 4, 6, 2)),
    ((2, 1, 9, 17), (2, 5, 1, 2)),
    ((1, 6, 1, 40), (1, 3, 3, 2)),
    ((2, 3, 4, 5, 2), (2, 2, 3, 2, 3)),
]


def cases(rng):
    for i, (shape, grid_shape) in enumerate(SHAPES):
        axes = grid_shape[-1]
        for taps in (1, 2, 4) if axes == 2 else (1, 2):
            for k, padding in enumerate(PADDINGS):
                name = f"sample_{i}_{taps}_{padding}"
                dtype = ("int8", "uint8", "int16")[(i + taps + k) % 3]
                fraction = 6 if dtype == "int16" else 8 if axes == 2 else 7
                if dtype == "int16" and axes == 3:
                    fraction = 4
                wide = (i + k) % 2 == 0
                x = edge_array(rng, shape, dtype)
                reach = 3 * max(shape[1:-1]) << fraction
                grid = rng.integers(-reach, reach, grid_shape).astype("int32" if wide else "int16")
                grid.ravel()[::3] = (grid.ravel()[::3] >> fraction) << fraction  # whole pixels
                constants = {f"t_{name}": table_of(taps, fraction)}
                attrs = {"multipliers": [2, 3, 1][:axes], "offsets": [5, -64, 0][:axes], "shift": 1, "padding": padding}
                attrs |= {"fraction": fraction, "corners": bool((i + k) % 2), "x_zero_point": (0, 3, 100)[k]}
                inputs = {f"x_{name}": x, f"g_{name}": grid}
                yield Case(node(name, "grid_sample", [*inputs, *constants], attrs), inputs, constants)


def test_sampling(target, tmp_path):
    check_cases(list(cases(np.random.default_rng(6))), target, tmp_path)
