"""Proves that the 32-bit numbers of recurrent cells fit; see `passes.bounds`."""

from __future__ import annotations

import numpy as np
from qcompile.kernels.arithmetic import INT32_MAX
from qcompile.kernels.dialect import OPS, Type
from qcompile.kernels.ops.recurrent import LIMIT, MOST_STEPS, PIECES
from qcompile.kernels.program import Node
from qcompile.targets.errors import CompileError

Interval = tuple[int, int]


def recurrent(
    node: Node, intervals: list[Interval], constants: list[np.ndarray | None], types: list[Type]
) -> Interval:
    """lstm, gru, rnn: every recurrent product, shifted and rescaled, plus the largest input; the tables."""
    values, a = dict(zip(OPS[node.op].arguments, constants)), node.attrs
    weight, bias, multiplier, tables = (values[n] for n in ("weight", "bias", "multiplier", "tables"))
    assert weight is not None and bias is not None and multiplier is not None and tables is not None
    reach = max(abs(a["h_qmin"] - a["h_zero_point"]), abs(a["h_qmax"] - a["h_zero_point"]))
    acc = (np.abs(weight.astype(np.int64)).sum(1) * reach + np.abs(bias.astype(np.int64))) << a["pre"]
    _fits(node, "the recurrent product", int(acc.max()))
    x = max(abs(i) for i in intervals[0]) * abs(a["x_multiplier"])
    total = (acc * np.abs(multiplier.astype(np.int64)) >> 32) + 1 + x + (1 << (a["shift"] - 1))
    _fits(node, "the pre-activation", int(total.max()))
    if not 0 < a["x_multiplier"] < 1 << 15:
        raise CompileError(f"{node.name}: the multiplier of x of {node.op} is {a['x_multiplier']}, not of 15 bits")
    if not 0 <= a.get("reset_after", 0) <= MOST_STEPS:
        raise CompileError(f"{node.name}: reset_after of {node.op} is {a['reset_after']}, not in 0..{MOST_STEPS}")
    base, slope = tables[:, 0].astype(np.int64), tables[:, 1].astype(np.int64)
    ends = np.concatenate([base, base + slope])
    if tables.shape[1:] != (2, PIECES) or ends.min() < -LIMIT or ends.max() > LIMIT:
        raise CompileError(f"{node.name}: an activation of {node.op} leaves 16 bits")
    return min(-LIMIT, intervals[1][0]), LIMIT


def _fits(node: Node, what: str, top: int) -> None:
    if top > INT32_MAX:
        raise CompileError(f"{node.name}: {what} of {node.op} may reach {top:.4g}, more than 32 bits hold")
