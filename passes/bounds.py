"""Proves that no integer of a program leaves its type: intervals from inputs to outputs, op by op.

What each op does to intervals, and what its shifts and multipliers may be, its declaration says (`kernels/ops`).
Accumulators and every 32-bit intermediate of the op's meaning are checked on the way.
"""

from __future__ import annotations

import numpy as np
from qcompile.kernels.arithmetic import RANGES
from qcompile.kernels.bounds import REMEDY, BoundCall, Interval, ends
from qcompile.kernels.dialect import OPS
from qcompile.kernels.program import Program


def prove_bounds(program: Program) -> dict[str, Interval]:
    """Interval of every tensor of an unfused program; CompileError names the node whose 32-bit numbers may overflow,
    or whose shifts and multipliers are none that kernels know."""
    types = program.types()
    known: dict[str, Interval] = {n: RANGES[t.dtype] for n, t in program.inputs.items()}
    known |= {name: ends(array) for name, array in program.constants.items()}
    for node in program.nodes:
        call = BoundCall(
            node.name,
            node.op,
            OPS[node.op].arguments,
            node.attrs,
            [known[i] for i in node.inputs],
            [program.constants.get(i) for i in node.inputs],
            [types[i] for i in node.inputs],
        )
        _check_ranges(call)
        low, high = OPS[node.op].bound(call)
        least, most = RANGES[types[node.name].dtype]
        if low < least or high > most:
            raise call.refusal(
                f"{node.op} may give [{low}, {high}], more than {types[node.name].dtype} holds; {REMEDY}"
            )
        known[node.name] = (low, high)
    return known


def _check_ranges(call: BoundCall) -> None:
    for name, (least, most) in OPS[call.op].ranges.items():
        value = call.attrs[name] if name in call.attrs else call.constant(name)
        low, high = ends(np.asarray(value))
        if low < least or high > most:
            raise call.refusal(f"{name} of {call.op} is {low if low < least else high}, not from {least} to {most}")
