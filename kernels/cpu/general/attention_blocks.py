"""Attention with its queries in lanes: when, with which tiles, and the call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from qcompile.kernels.cpu.general.attention_call import attention_call
from qcompile.kernels.cpu.general.attention_lanes import CHUNK, KEYS, Body, Plan
from qcompile.kernels.cpu.general.common import TASKS, Source, operand
from qcompile.kernels.cpu.isa import Isa, get_isa
from qcompile.kernels.cpu.isa.dot import Dot, Tile
from qcompile.kernels.lowering import SLACK_BYTES, Constant, KernelCall, NodeContext, Workspace

TILE_OVERHEAD = 15.0  # cycles
QUERY_CYCLES = 0.2  # to weigh a key
MOST_SCORES = 1 << 18  # bytes of a block of queries
MOST_SCRATCH = 1 << 19  # bytes of all tasks, unless that leaves too few
FEWEST_TASKS = 4


@dataclass(frozen=True)
class Blocks:
    """Tiles of both products: keys by queries, columns of v by queries."""

    dot: Dot
    scores: Tile
    values: Tile


def choose_blocks(isa: Isa, m: int, length: int, d: int, e: int) -> Blocks | None:
    """The cheapest tiles for m queries of d elements and `length` keys with values of e; None: too few queries, or dot
    products whose accumulators are not neighbouring queries."""
    dot = isa.activation_dots[0]
    if not dot.in_order or dot.group != KEYS:
        return None
    candidates: list[tuple[float, Blocks]] = []
    for n in sorted({c for _, c in dot.tiles if c & (c - 1) == 0 and c % dot.lanes == 0 and c <= m}):
        scores, values = (_best(dot, n, rows, run) for rows, run in ((length, d), (e, length)))
        if scores and values and (4 * n * length <= MOST_SCORES or not candidates):
            cost = -(-m // n) * (scores[0] + values[0] + QUERY_CYCLES * n * length)
            candidates.append((cost, Blocks(dot, scores[1], values[1])))
    return min(candidates, key=lambda c: c[0])[1] if candidates else None


def _best(dot: Dot, n: int, rows: int, run: int) -> tuple[float, Tile] | None:
    """(cycles, tile) of n columns for a product of so many rows and a run of K."""
    tiles = [Tile(r, n) for r, c in dot.tiles if c == n and r <= rows]
    cost = {t: -(-rows // t.rows) * (-(-run // dot.group) * dot.cycles(t) + TILE_OVERHEAD) for t in tiles}
    return min(((c, t) for t, c in cost.items()), key=lambda c: c[0], default=None)


def lanes_call(
    ctx: NodeContext,
    blocks: Blocks,
    k: tuple[Source, str],
    extras: dict[str, np.ndarray | Source],
    offsets: Sequence[np.ndarray],
    q_zero_point: int,
    parallel: bool,
) -> KernelCall:
    """k: where it lies in the native signedness, and that. extras: bias and full masks as constants, arranged as
    `arranged_bias` and `arranged_mask` say, a mask of keys as it lies. offsets: where each head begins in q, k, v and
    the extras. q_zero_point: of q's signed codes."""
    isa, a = get_isa(ctx.target), ctx.node.attrs
    names = list(ctx.node.inputs)
    q, v = ctx.types[names[0]], ctx.types[names[2]]
    heads, d, (length, e) = len(offsets[0]), q.shape[-1], v.shape[-2:]
    mask = extras.get("mask")
    plan = Plan(
        isa,
        blocks.dot,
        blocks.scores,
        blocks.values,
        (q.dtype, k[1], v.dtype, ctx.out.dtype),
        "" if mask is None else "full" if isinstance(mask, np.ndarray) else "keys",
        "bias" in extras,
        a["score_shift"] < 0,
        mask is not None and bool(a.get("uniform", False)),
        q_zero_point == 0,
        parallel,
    )
    sizes = {
        name: (dtype, -(-count // CHUNK) * CHUNK * np.dtype(dtype).itemsize)
        for name, (dtype, count) in plan.scratch(length, d, e).items()
    }
    room = MOST_SCRATCH // sum(size for _, size in sizes.values())
    tasks = min(TASKS, heads, max(FEWEST_TASKS, room)) if parallel else 1
    scratch = {name: (dtype, Workspace(name, tasks * size + SLACK_BYTES)) for name, (dtype, size) in sizes.items()}
    own = {
        "tasks": tasks,
        "q_zero_point": q_zero_point,
        "v_zero_point": a["v_zero_point"] + {"int8uint8": 128, "uint8int8": -128}.get(v.dtype + k[1], 0),
    }
    sources = {n: Constant(x) if isinstance(x, np.ndarray) else x for n, x in extras.items()}
    return attention_call(ctx, plan, Body, operand(ctx, names[0]), k[0], offsets, scratch, sources, own)


def arranged_mask(mask: np.ndarray, m: int, length: int) -> np.ndarray:
    """int8 [..., m, length] as [..., groups of KEYS keys, m, KEYS]: -1 where a query sees a key, 0 elsewhere."""
    kept = np.where(np.broadcast_to(mask, (*mask.shape[:-2], m, length)) != 0, -1, 0).astype(np.int8)
    kept = np.concatenate([kept, np.zeros((*kept.shape[:-1], -length % KEYS), np.int8)], -1)
    return np.ascontiguousarray(kept.reshape(*kept.shape[:-1], -1, KEYS).swapaxes(-2, -3))


def arranged_bias(bias: np.ndarray, m: int, length: int) -> np.ndarray:
    """int32 [..., m, length] as [..., length, m]."""
    return np.ascontiguousarray(np.broadcast_to(bias, (*bias.shape[:-2], m, length)).swapaxes(-1, -2))
