"""Samples of one row for a network that is compiled for a batch: so many of them make one of its inputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from qcompile.targets.errors import CompileError

Shape = tuple[int, ...]
Feed = dict[str, np.ndarray]


def batch_axis(have: Shape, want: Shape) -> int | None:
    """The axis along which one row lacks the others of a batch."""
    differing = [i for i, (h, w) in enumerate(zip(have, want)) if h != w]
    if len(have) != len(want) or len(differing) != 1 or have[differing[0]] != 1:
        return None
    return differing[0]


def batches(samples: list[Feed], shapes: Mapping[str, Shape]) -> list[Feed]:
    """The samples joined to the network's batch where they are rows of it; the last batch is filled up with the first
    rows, and inputs that have no batch come from a batch's first row.

    Raises CompileError naming an input that no batch explains.
    """
    axes: dict[str, int] = {}
    for name, shape in shapes.items():
        kinds = {s[name].shape for s in samples} - {shape}
        for have in kinds:
            axis = batch_axis(have, shape)
            if axis is None:
                raise _misfit(name, have, shape)
            axes[name] = axis
    if not axes:
        return samples
    sizes = {shapes[n][axis] for n, axis in axes.items()}
    name = next(iter(axes))
    if len(sizes) > 1 or 0 not in axes.values() or any(s[n].shape[a] != 1 for n, a in axes.items() for s in samples):
        raise _misfit(name, min((s[name].shape for s in samples), key=len), shapes[name])
    (size,) = sizes
    made = []
    for start in range(0, len(samples), size):
        rows = [samples[(start + i) % len(samples)] for i in range(size)]
        made.append(rows[0] | {n: np.concatenate([r[n] for r in rows], axis) for n, axis in axes.items()})
    return made


def _misfit(name: str, have: Shape, want: Shape) -> CompileError:
    return CompileError(f"calibration: input '{name}' has shape {have}, expected {want}")
