"""The call of an attention kernel: what its variants read alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from qcompile.kernels.cpu.general.common import Source, operand
from qcompile.kernels.cpu.general.division import division
from qcompile.kernels.cpu.kernel import kernel, pointers, scalars
from qcompile.kernels.lowering import Buffer, Constant, KernelCall, NodeContext, Workspace

LARGEST_DISTANCE = 32767


def attention_call(
    ctx: NodeContext,
    plan: Any,
    body: Callable[[Any, dict[str, Any]], Any],
    q: Source,
    k: Source,
    offsets: Sequence[np.ndarray],
    scratch: Mapping[str, tuple[str, Workspace]],
    extras: Mapping[str, Source],
    own: Mapping[str, int],
) -> KernelCall:
    """plan: of the kernel, with its family and the dtypes of q, k, v and y; body(plan, parameters by name) emits it.

    q, k: where they lie in the dtypes of the plan; v lies as the node has it. offsets: where each head begins in q, k,
    v and the extras. scratch: name -> (dtype, memory for all tasks). extras: mask (int8), bias (int32), as there are.
    own: the numbers that are this kernel's, with both zero points and how many tasks there are.
    """
    a, names = ctx.node.attrs, ctx.node.inputs
    (m, d), (length, e) = ctx.types[names[0]].shape[-2:], ctx.types[names[2]].shape[-2:]
    shift, dtypes = a["score_shift"], dict(zip("qkvy", plan.dtypes))
    numbers = {
        "heads": len(offsets[0]),
        "m": m,
        "length": length,
        "d": d,
        "e": e,
        "score_shift": min(abs(shift), 31),
        "score_limit": (LARGEST_DISTANCE >> -shift) + 1 if shift < 0 else 0,
        **{n: int(a[n]) for n in ("score_multiplier", "shift", "zero_point", "qmin", "qmax")},
        **own,
    }
    parameters = [
        *pointers(**dtypes, table="uint8", numerator="int64", starts="int32"),
        *pointers(**{n: dtype for n, (dtype, _) in scratch.items()}),
        *pointers(**{n: "int8" if n == "mask" else "int32" for n in extras}),
        *scalars(*numbers),
    ]

    def emit(*arguments: Any) -> None:
        body(plan, dict(zip((name for name, _ in parameters), arguments))).emit()

    work = kernel(plan.family, (plan,), parameters, emit)
    operands = (
        q,
        k,
        operand(ctx, names[2]),
        Buffer(ctx.node.name),
        operand(ctx, names[3]),
        division(int(a["numerator"])),
        Constant(np.stack(offsets, 1).astype(np.int32)),
        *(w for _, w in scratch.values()),
        *extras.values(),
        *numbers.values(),
    )
    return KernelCall(work, operands)
