"""Attention on 8-bit tensors: scores, 8-bit numerators and their product with the values, a few query rows at a time.

For each head, k and v are packed once for the dot-product tiles. A block of query rows then keeps its int32 scores and
its 8-bit numerators in scratch memory that stays in the first cache. What is constant along a row of scores cancels in
the distance to the maximum, so k's zero point never matters; q's is one term per column, v's one per row. Sums may
wrap on their way, since what they add up to fits int32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from qcompile.kernels.cpu.chain import Chain
from qcompile.kernels.cpu.general.attention_blocks import (
    arranged_bias,
    arranged_mask,
    choose_blocks,
    lanes_call,
)
from qcompile.kernels.cpu.general.attention_call import attention_call
from qcompile.kernels.cpu.general.attention_kernel import Body, Plan
from qcompile.kernels.cpu.general.common import (
    TASKS,
    Source,
    operand,
)
from qcompile.kernels.cpu.general.elementwise import chain_call
from qcompile.kernels.cpu.general.movement import broadcast_calls
from qcompile.kernels.cpu.isa import Isa, get_isa
from qcompile.kernels.cpu.linear.tiles import Tiling, choose_tiling
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import SLACK_BYTES, KernelCall, NodeContext, Workspace
from qcompile.kernels.program import Node

PARALLEL_MACS = 1 << 15  # for each int32 lane of a register


def lower_attention(ctx: NodeContext) -> list[KernelCall]:
    """One kernel; blocks of heads run in parallel, each with its own scratch memory."""
    isa, a = get_isa(ctx.target), ctx.node.attrs
    names = list(ctx.node.inputs)
    q, k, v = (ctx.types[n] for n in names[:3])
    lead, (m, d), (length, e) = ctx.out.shape[:-2], q.shape[-2:], v.shape[-2:]
    heads = int(np.prod(lead, dtype=np.int64))
    native = "uint8" if ctx.target.unsigned_activations else "int8"
    calls: list[KernelCall] = []
    parallel = heads > 1 and heads * m * length * (d + e) >= PARALLEL_MACS * isa.lanes
    blocks = choose_blocks(isa, m, length, d, e)
    arranged = _arranged(ctx, names[4:], m, length) if blocks else None
    if blocks and arranged is not None:
        k_source, _ = _native(ctx, names[1], native, isa, calls)
        shapes = [*(t.shape for t in (q, k, v)), *(shape for _, shape in arranged.values())]
        offsets = [_head_offsets(s[:-2], lead, s[-2] * s[-1]) for s in shapes]
        signed = a["q_zero_point"] - (128 if q.dtype == "uint8" else 0)
        extra = {name: source for name, (source, _) in arranged.items()}
        return [*calls, lanes_call(ctx, blocks, (k_source, native), extra, offsets, signed, parallel)]
    q_source, q_zero_point = _native(ctx, names[0], native, isa, calls)
    dots = isa.activation_dots
    scores = choose_tiling(dots, m, length, d, 1, uniform=True)
    values = choose_tiling(dots, scores.rows, e, length, 1, uniform=True)
    extras = dict(zip([n for n in ("mask", "bias") if a[f"has_{n}"]], names[4:]))
    sources: dict[str, Source] = {}
    rows: dict[str, int] = {}
    offsets = [_head_offsets(t.shape[:-2], lead, t.shape[-2] * t.shape[-1]) for t in (q, k, v)]
    for kind, name in extras.items():
        shape, full = ctx.types[name].shape, (*lead, m, length)
        sources[kind] = operand(ctx, name)
        if not shape or shape[-1] != length:
            sources[kind] = Workspace(f"full {kind}", Type(full, ctx.types[name].dtype).nbytes + SLACK_BYTES)
            calls += broadcast_calls(isa, ctx.types[name], full, operand(ctx, name), sources[kind])
            shape = full
        shape = (1,) * (len(full) - len(shape)) + tuple(shape)
        rows[kind] = length if shape[-2] > 1 else 0
        offsets.append(_head_offsets(shape[:-2], lead, shape[-2] * length))
    # 64 int32 of a bias would reach further past its end than reads may
    width = 64 if isa.table_width == 64 and length > 32 and "bias" not in extras else 16
    plan = Plan(
        isa,
        scores,
        values,
        width,
        0,
        (native, k.dtype, v.dtype, ctx.out.dtype),
        "mask" in extras,
        "bias" in extras,
        a["score_shift"] < 0,
        "mask" in extras and bool(a.get("uniform", False)),
        parallel,
    )
    k_columns, v_columns = plan.columns
    plan = Plan(**{**plan.__dict__, "tail": e % v_columns})
    tasks = min(TASKS, heads) if plan.parallel else 1
    scratch = _scratch(plan, length, d, e, tasks)
    own = {
        "tasks": tasks,
        "k_panels": -(-length // k_columns),
        "v_panels": -(-e // v_columns),
        "stride": _stride(plan, length),
        "q_zero_point": q_zero_point,
        "v_zero_point": a["v_zero_point"] - (128 if v.dtype == "uint8" else 0),
        "mask_row": rows.get("mask", 0),
        "bias_row": rows.get("bias", 0),
    }
    k_source = operand(ctx, names[1])
    return [*calls, attention_call(ctx, plan, Body, q_source, k_source, offsets, scratch, sources, own)]


def _arranged(
    ctx: NodeContext, names: list[str], m: int, length: int
) -> dict[str, tuple[np.ndarray | Source, tuple[int, ...]]] | None:
    """mask and bias as attention_call takes them, with shapes whose last two axes are those of a head; None where one
    would have to be arranged at run time."""
    arranged: dict[str, tuple[np.ndarray | Source, tuple[int, ...]]] = {}
    for kind, name in zip([n for n in ("mask", "bias") if ctx.node.attrs[f"has_{n}"]], names):
        shape = (1,) * (2 - len(ctx.types[name].shape)) + tuple(ctx.types[name].shape)
        if name in ctx.constants:
            array = (arranged_mask if kind == "mask" else arranged_bias)(ctx.constants[name].reshape(shape), m, length)
            arranged[kind] = array, (*shape[:-2], 1, array[(0,) * len(shape[:-2])].size)
        elif kind == "mask" and shape[-2:] == (1, length):
            arranged[kind] = operand(ctx, name), shape
        else:
            return None
    return arranged


def _native(ctx: NodeContext, name: str, native: str, isa: Isa, calls: list[KernelCall]) -> tuple[Source, int]:
    """q in the signedness that the dot products read, and its zero point."""
    type_, zero_point = ctx.types[name], ctx.node.attrs["q_zero_point"]
    if type_.dtype == native:
        return operand(ctx, name), zero_point
    offset = 128 if native == "uint8" else -128
    chain = Chain([Node("native", "cast", (name,), {"offset": offset, "dtype": native})], name, {name: type_}, {}, isa)
    target = Workspace(f"native {name}", type_.nbytes + SLACK_BYTES)
    calls.append(chain_call(chain, operand(ctx, name), target, Type(type_.shape, native)))
    return target, zero_point + offset


def _head_offsets(lead: Sequence[int], out: Sequence[int], size: int) -> np.ndarray:
    """Where each head of `out` begins in a tensor of leading axes `lead` and `size` elements a head."""
    return np.broadcast_to(np.arange(int(np.prod(lead, dtype=np.int64))).reshape(lead), out).reshape(-1) * size


def _stride(plan: Plan, length: int) -> int:
    """Elements between rows of scores and of numerators: whole panels and whole vectors."""
    return -(-length // max(64, plan.columns[0])) * max(64, plan.columns[0]) + 64


def _scratch(plan: Plan, length: int, d: int, e: int, tasks: int) -> dict[str, tuple[str, Workspace]]:
    """name -> (dtype, memory for all tasks)."""
    (k_columns, v_columns), stride = plan.columns, _stride(plan, length)

    def up(n, by):
        return -(-n // by) * by

    elements = {
        "packed_k": ("int8", _packed_bytes(plan.scores, length, k_columns, d)),
        "packed_v": ("int8", _packed_bytes(plan.values, e, v_columns, length)),
        "k_terms": ("int32", up(length, k_columns)),
        "v_terms": ("int32", up(e, v_columns)),
        "scores": ("int32", plan.rows * stride),
        "numerators": ("int8" if plan.signed else "uint8", plan.rows * stride),
        "row_terms": ("int32", plan.rows),
        "ratios": ("int32", plan.rows),
    }
    return {
        n: (t, Workspace(n, tasks * up(count, 16) * np.dtype(t).itemsize + SLACK_BYTES))
        for n, (t, count) in elements.items()
    }


def _packed_bytes(tiling: Tiling, n: int, columns: int, run: int) -> int:
    group = tiling.dot.group
    return -(-n // columns) * columns * -(-run // group) * group


LOWERINGS = {"attention": lower_attention}
