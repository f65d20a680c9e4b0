"""Standalone elementwise ops: the chains that other kernels run as epilogues, run on tensors in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, splat, store_lanes
from qcompile.kernels.cpu.chain import STEPS, Chain
from qcompile.kernels.cpu.general.common import PARALLEL_WORK, Source, loop, operand, select, static, vectors
from qcompile.kernels.cpu.general.movement import broadcast_calls
from qcompile.kernels.cpu.isa import Isa, get_isa
from qcompile.kernels.cpu.kernel import kernel, pointers, scalars
from qcompile.kernels.dialect import Type
from qcompile.kernels.fusion import operand_kind, tensor_inputs
from qcompile.kernels.lowering import SLACK_BYTES, Buffer, KernelCall, NodeContext, Workspace
from qcompile.kernels.program import Node, infer_node

BLOCK = 1 << 14  # elements of a flat tensor that one thread takes at a time
ROW_ELEMENTS = 1024  # short rows are joined until they are about this long


def lower_elementwise(ctx: NodeContext) -> list[KernelCall]:
    """One kernel for a node, or for a fused body whose first op is elementwise.

    Operands that lie under the result in no simple way are broadcast to memory first.
    """
    body = _swapped(ctx)
    source, shape = body[0].inputs[0], ctx.out.shape
    types, calls = dict(ctx.types), []
    expanded: dict[str, Source] = {}
    inner = {step.name for step in body}
    for step in body:
        for name in tensor_inputs(step):
            if name in inner or name in expanded:
                continue
            fits = types[name].size == ctx.out.size if name == source else operand_kind(shape, types[name].shape)
            if not fits:
                full = Type(shape, types[name].dtype)
                expanded[name] = Workspace(f"full {name}", full.nbytes + SLACK_BYTES)
                calls += broadcast_calls(get_isa(ctx.target), types[name], shape, operand(ctx, name), expanded[name])
                types[name] = full
    types[source] = Type(shape, types[source].dtype)
    constants = {n: a for n, a in ctx.constants.items() if n not in expanded and n != source}
    chain = _chain(body, source, types, constants, get_isa(ctx.target))
    chain.operands[:] = [expanded.get(o.name, o) if isinstance(o, Buffer) else o for o in chain.operands]
    x = expanded.get(source) or operand(ctx, source)
    return [*calls, chain_call(chain, x, Buffer(ctx.node.name), ctx.out)]


def _swapped(ctx: NodeContext) -> tuple[Node, ...]:
    """The body, with the operands of a leading add or mul exchanged where only the second has the result's size."""
    head, *others = ctx.node.body or (ctx.node,)
    size = infer_node(head, ctx.types).size
    if head.op in ("add", "mul") and ctx.types[head.inputs[0]].size != size == ctx.types[head.inputs[1]].size:
        exchange = {"x": "r", "r": "x"}
        attrs = {exchange[k[0]] + k[1:] if k[1:2] == "_" and k[0] in exchange else k: v for k, v in head.attrs.items()}
        head = replace(head, inputs=(head.inputs[1], head.inputs[0], *head.inputs[2:]), attrs=attrs)
    return (head, *others)


def _chain(
    body: tuple[Node, ...], source: str, types: dict[str, Type], constants: dict[str, np.ndarray], isa: Any
) -> Chain:
    """The chain of the body; short rows along which nothing but constants runs are joined to longer ones."""
    chain = Chain(body, source, types, constants, isa)
    channels, rows = chain.channels, int(np.prod(chain.shape[:-1], dtype=np.int64))
    joined = max((k for k in range(1, ROW_ELEMENTS // max(channels, 1) + 1) if rows % k == 0), default=1)
    along = {
        n for step in body for n in step.inputs if n in types and operand_kind(chain.shape, types[n].shape) == "channel"
    }
    if _is_flat(chain) or chain.code.reads("row", "image") or joined == 1 or not along <= set(constants):
        return chain
    shape = (rows // joined, joined * channels)
    known = {"same": shape, "scalar": (1,)}  # a scalar may have had more axes than the joined rows
    types = {n: Type(known.get(operand_kind(chain.shape, t.shape) or "", t.shape), t.dtype) for n, t in types.items()}
    for name in along:
        constants = constants | {name: np.tile(constants[name].reshape(-1), joined)}
        types[name] = Type((joined * channels,), types[name].dtype)
    return Chain(body, source, types, constants, isa)


def _is_flat(chain: Chain) -> bool:
    """Nothing that the chain reads depends on the channel or the row."""
    return not chain.code.reads("channel", "row", "image")


def chain_call(chain: Chain, x: Source, y: Source, out: Type) -> KernelCall:
    """A chain over x, written to y."""
    flat, code = _is_flat(chain), chain.code
    channels = out.size if flat else chain.channels
    rows = out.size // max(channels, 1)
    # the only vector of a short row may read past its end, by no more than the slack
    width = code.width if channels >= code.width else min(code.width, SLACK_BYTES // code.widest_bytes)
    parallel = out.size >= PARALLEL_WORK and (flat or rows > 1)
    fixed = static(channels, width)

    def flat_body(x: Pointer, y: Pointer, rows: Expr, channels: Expr, *rest: Any) -> None:
        emitter = code.start(rest)
        if fixed:
            store_lanes(y, T.int32(0), emitter.emit(x.load(0, width), T.int32(0), T.int32(0), T.int32(0)), fixed)
            return
        block = BLOCK if parallel else width
        with loop(T.truncdiv(channels + (block - 1), T.int32(block)), parallel) as b, T.serial(0, block // width) as t:
            at = bind(T.min(b * block + t * width, channels - width))
            y.store(at, emitter.emit(x.load(at, width), T.int32(0), at, at))

    def rows_body(x: Pointer, y: Pointer, rows: Expr, channels: Expr, *rest: Any) -> None:
        with loop(rows, parallel) as row:
            emitter = code.start(rest)
            if fixed:
                flat = bind(row * fixed)
                store_lanes(y, flat, emitter.emit(x.load(flat, width), row, T.int32(0), flat), fixed)
                return
            with vectors(channels, width) as at:
                flat = bind(row * channels + at)
                y.store(flat, emitter.emit(x.load(flat, width), row, at, flat))

    parameters = [*pointers(x=code.source_dtype, y=code.dtype), *scalars("rows", "channels"), *code.parameters]
    family, body = ("chain_flat", flat_body) if flat else ("chain_rows", rows_body)
    work = kernel(family, (code, parallel, fixed, width), parameters, body)
    return KernelCall(work, (x, y, rows, channels, *chain.operands))


def whole_or_single(ctx: NodeContext, isa: Isa) -> tuple[list[Source], list[str], list[KernelCall]]:
    """(operands, "v" for whole tensors and "s" for single elements, calls that broadcast others to memory first) of a
    node whose operands lie under its result as in numpy."""
    operands, kinds, calls = list[Source](), list[str](), list[KernelCall]()
    for name in ctx.node.inputs:
        type_ = ctx.types[name]
        kinds.append("s" if type_.size == 1 and ctx.out.size > 1 else "v")
        if type_.size in (1, ctx.out.size):
            operands.append(operand(ctx, name))
            continue
        operands.append(Workspace(f"full {len(operands)}", Type(ctx.out.shape, type_.dtype).nbytes + SLACK_BYTES))
        calls += broadcast_calls(isa, type_, ctx.out.shape, operand(ctx, name), operands[-1])
    return operands, kinds, calls


def lower_where(ctx: NodeContext) -> list[KernelCall]:
    """y = condition ? x : r, vectors of the tensors' dtype; operands are whole tensors or single elements."""
    isa, out = get_isa(ctx.target), ctx.out
    operands, kinds, calls = whole_or_single(ctx, isa)
    width, parallel = 16, out.size >= PARALLEL_WORK
    fixed = static(out.size, width)
    condition_dtype = ctx.types[ctx.node.inputs[0]].dtype

    def body(condition: Pointer, x: Pointer, r: Pointer, y: Pointer, count: Expr) -> None:
        def vector(pointer: Pointer, kind: str, at: Expr) -> Expr:
            return pointer.load(at, width) if kind == "v" else splat(pointer.load(0), pointer.dtype, width)

        def result(at: Expr) -> Expr:
            c, a, b = (vector(p, k, at) for p, k in zip((condition, x, r), kinds))
            return select(c != splat(0, condition_dtype, width), a, b)

        if fixed:
            store_lanes(y, T.int32(0), result(T.int32(0)), fixed)
            return
        block = BLOCK if parallel else width
        with loop(T.truncdiv(count + (block - 1), T.int32(block)), parallel) as b, T.serial(0, block // width) as t:
            at = bind(T.min(b * block + t * width, count - width))
            y.store(at, result(at))

    parameters = [*pointers(condition=condition_dtype, x=out.dtype, r=out.dtype, y=out.dtype), *scalars("count")]
    work = kernel("where", (isa, tuple(kinds), width, parallel, fixed), parameters, body)
    return [*calls, KernelCall(work, (*operands, Buffer(ctx.node.name), out.size))]


LOWERINGS = {op: lower_elementwise for op in STEPS} | {"where": lower_where}
