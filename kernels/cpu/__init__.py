"""CPU kernels in TIR: which code runs an op of the integer dialect on a CPU.

Every module or package here that has a table LOWERINGS (op name -> Lowering) contributes its ops.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from qcompile.kernels.lowering import KernelCall, Lowering, NodeContext
from qcompile.targets.errors import CompileError
from qcompile.targets.target import CpuTarget


@cache
def lowerings() -> dict[str, Lowering]:
    """op name -> lowering, of all families."""
    table: dict[str, Lowering] = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(__path__)):
        table |= getattr(importlib.import_module(f"{__name__}.{module}"), "LOWERINGS", {})
    return table


def head_op(ctx: NodeContext[CpuTarget]) -> str:
    """The op that names the kernel of a node: its own, or the first of a fused body."""
    return ctx.node.body[0].op if ctx.node.op == "fused" else ctx.node.op


def lower_node(ctx: NodeContext[CpuTarget]) -> list[KernelCall]:
    """The kernel calls that compute a node; CompileError names the node if its op has no CPU kernel."""
    op = head_op(ctx)
    if op not in lowerings():
        raise CompileError(f"{ctx.node.name}: op {op} has no CPU kernel")
    return lowerings()[op](ctx)


__all__ = ["head_op", "lower_node", "lowerings"]
