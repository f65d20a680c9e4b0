"""What it takes for elementwise ops to follow another in one kernel, on every target.

Passes move reshapes out of the way by these facts, which program.npz depends on; kernels read operands by them.
"""

from __future__ import annotations

import numpy as np
from qcompile.kernels.dialect import OPS
from qcompile.kernels.program import Node


def operand_kind(shape: tuple[int, ...], operand: tuple[int, ...]) -> str | None:
    """How an operand lies under a value of `shape` [..., C]; None where a kernel cannot read it.

    same: one element each; channel: [C]; scalar: one element; row: [..., 1]; image: [N, 1, ..., C].
    """
    size = int(np.prod(operand, dtype=np.int64))
    if len(operand) > len(shape):
        operand = operand[len(operand) - len(shape) :] if size == np.prod(operand[len(operand) - len(shape) :]) else ()
        if not operand:
            return None
    full = (1,) * (len(shape) - len(operand)) + tuple(operand)
    if full == tuple(shape):
        return "same"
    if size == 1:
        return "scalar"
    if full[-1] == size and size == shape[-1]:
        return "channel"
    if full[:-1] == tuple(shape[:-1]) and full[-1] == 1:
        return "row"
    outer = next(i for i, (a, b) in enumerate(zip(full, shape)) if a != b)
    if full[-1] == shape[-1] and all(n == 1 for n in full[outer:-1]):
        return "image"
    return None


def tensor_inputs(step: Node) -> tuple[str, ...]:
    """The inputs of a step that are tensors, rather than parameters such as multipliers and tables."""
    op = OPS[step.op]
    return tuple(name for argument, name in zip(op.arguments, step.inputs) if argument not in op.parameters)
