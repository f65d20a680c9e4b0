"""Lowering of dense layers and convolutions to the matrix-product kernels."""

from __future__ import annotations

import math

import numpy as np
from qcompile.kernels.cpu.chain import Chain, head_and_chain
from qcompile.kernels.cpu.codes import UNIT, Code, common_factor, find_code
from qcompile.kernels.cpu.isa import Isa, get_isa
from qcompile.kernels.cpu.isa.dot import Dot
from qcompile.kernels.cpu.linear.depthwise import depthwise_calls
from qcompile.kernels.cpu.linear.microkernel import SIZES, Geometry, matrix_kernel
from qcompile.kernels.cpu.linear.packing import check_weights, fold_bias, pack_codes, pack_weights
from qcompile.kernels.cpu.linear.padding import Frame, fill_margins, pad_image, split_frame
from qcompile.kernels.cpu.linear.tiles import DECODED_BYTES, Tiling, choose_tiling
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import Buffer, Constant, KernelCall, NodeContext, Workspace
from qcompile.kernels.program import Node, infer_node
from qcompile.targets.errors import CompileError
from qcompile.targets.target import CpuTarget

PARALLEL_CYCLES = 4000  # shorter layers are not worth waking threads for
PARALLEL_TASKS = 8
EVEN_TASKS = 32  # so many tasks are even enough
MORE_BLOCKS = 4
TASK_CYCLES = 80.0  # to begin a task
FETCHED_BYTES = 24.0  # of its weights a cycle
DECODED_LEAST = 1 << 14  # rooms for decoded panels are powers of two from here, so that layers share kernels


def lower_dense(ctx: NodeContext) -> list[KernelCall]:
    """dense [..., K] -> [..., N], with what follows it."""
    ctx, frame = split_frame(ctx)
    head, chain = head_and_chain(ctx, get_isa(ctx.target))
    x, weight, bias = _operands(ctx, head)
    k = x.shape[-1]
    rows, images = x.size // k if k else 0, x.shape[0] if frame else 1
    return matrix_calls(
        ctx.target,
        chain,
        Buffer(head.inputs[0]),
        x.dtype,
        fold_bias(bias, weight, head.attrs["x_zero_point"]),
        weight.reshape(len(weight), 1, k)[None],
        frame,
        rows=rows // images,
        pixel_step=k,
        images=images,
        x_image=rows // images * k,
    )


def lower_conv2d(ctx: NodeContext) -> list[KernelCall]:
    """conv2d [N, H, W, C] -> [N, OH, OW, O], with what follows it."""
    ctx, frame = split_frame(ctx)
    head, chain = head_and_chain(ctx, get_isa(ctx.target))
    x, weight, bias = _operands(ctx, head)
    a = head.attrs
    out = infer_node(head, ctx.types)
    if 0 in out.shape or min(out.shape) < 0:
        raise CompileError(
            f"{head.name}: the convolution's result {list(out.shape)} is empty; its kernel is larger than its input"
        )
    folded = fold_bias(bias, weight, a["x_zero_point"], a["groups"])
    if _depthwise(head, x, out):
        return depthwise_calls(chain, Buffer(head.inputs[0]), x, out, weight, folded, a)
    source: Buffer | Workspace = Buffer(head.inputs[0])
    shape, calls = x.shape, list[KernelCall]()
    if any(a["pads"]):
        source, calls = pad_image(Buffer(head.inputs[0]), x.shape, a["pads"], a["x_zero_point"], x.dtype)
        shape = Frame(tuple(a["pads"]), 0).shape(x.shape)
    return [*calls, *conv_calls(ctx.target, chain, source, x.dtype, shape, out.shape, weight, folded, a, frame)]


def framable(node: Node, types: dict[str, Type]) -> bool:
    """True where the result can be stored inside a frame: of 8 bits, [N, H, W, C], of a matrix-product kernel."""
    head, out = node.body[0] if node.body else node, types[node.name]
    if head.op not in ("conv2d", "dense") or len(out.shape) != 4 or out.dtype not in ("int8", "uint8"):
        return False
    return head.op == "dense" or not _depthwise(head, types[head.inputs[0]], out)


def _depthwise(conv: Node, x: Type, out: Type) -> bool:
    return conv.attrs["groups"] == x.shape[-1] == out.shape[-1]


def conv_calls(
    target: CpuTarget,
    chain: Chain,
    source: Buffer | Workspace,
    dtype: str,
    shape: tuple[int, ...],
    out: tuple[int, ...],
    weight: np.ndarray,
    bias: np.ndarray,
    a: dict,
    frame: Frame | None,
) -> list[KernelCall]:
    """A convolution of a padded image `shape` [N, H, W, C]."""
    n, h, w, c = shape
    (o, kh, kw, cg), groups = weight.shape, a["groups"]
    (sh, sw), (dh, dw) = a["strides"], a["dilations"]
    _, oh, ow, _ = out
    pointwise = kh == kw == 1 and groups == 1 and sw == 1 and (sh == 1 or oh == 1) and (oh == h and ow == w)
    if pointwise:
        images = n if frame else 1  # else the images are more rows
        rows = n * oh * ow // images
        weights = weight.reshape(1, o, 1, c)
        steps = {"rows": rows, "pixel_step": c, "images": images, "x_image": rows * c}
        return matrix_calls(target, chain, source, dtype, bias, weights, frame, **steps)
    contiguous = (dw == 1 or kw == 1) and groups == 1
    runs, taps = (kh, 1) if contiguous else (kh, kw)
    packed = weight.reshape(groups, o // groups, runs * taps, -1)
    return matrix_calls(
        target,
        chain,
        source,
        dtype,
        bias,
        packed,
        frame,
        rows=oh * ow,
        pixel_step=sw * c,
        width=ow,
        row_step=sh * w * c,
        runs=runs,
        run_step=dh * w * c,
        taps=taps,
        tap_step=dw * c,
        images=n,
        x_image=h * w * c,
        x_group=cg,
    )


def matrix_calls(
    target: CpuTarget,
    chain: Chain,
    source: Buffer | Workspace,
    dtype: str,
    bias: np.ndarray,
    weights: np.ndarray,
    frame: Frame | None = None,
    *,
    rows: int,
    pixel_step: int,
    width: int = 0,
    row_step: int = 0,
    runs: int = 1,
    run_step: int = 0,
    taps: int = 1,
    tap_step: int = 0,
    images: int = 1,
    x_image: int = 0,
    x_group: int = 0,
) -> list[KernelCall]:
    """Calls with constant weights, int8 [groups, N of a group, runs * taps, run]; `rows` pixels an image.

    width: of the image in pixels, 0: pixels lie `pixel_step` apart. frame: what the result [N, H, W, C] lies in.
    """
    groups, n, all_runs, run = weights.shape
    factor = common_factor(weights)
    weights = weights if factor == 1 else (weights.astype(np.int16) // factor).astype(np.int8)
    tiling, packed, sizes, decoded_bytes = plan_weights(target, chain.isa, weights, rows, images)
    sizes |= {
        "factor": factor,
        "width": width,
        "row_step": row_step,
        "pixel_step": pixel_step,
        "x_image": x_image,
        "x_group": x_group,
        "runs": runs,
        "run_step": run_step,
        "taps": taps,
        "tap_step": tap_step,
        "w_group": packed.size // groups,
    }
    calls, written = [], width
    if frame:
        _, _, written, channels = chain.shape
        sizes |= {
            "width": written,
            "y_first": frame.first(written, channels),
            "y_image": math.prod(frame.shape(chain.shape)[1:]),
            "y_gap": frame.gap(channels),
        }
        calls = [fill_margins(Buffer(chain.result), chain.shape, frame, chain.code.dtype)]
    macs = images * groups * rows * n * all_runs * run
    geometry = Geometry(
        single=rows == tiling.rows,
        image=bool(width),
        framed=frame is not None,
        wraps=bool(written % tiling.rows),
        walk=tiling.dot.walk(sizes["run_groups"], runs, taps),
        runs=all_runs > 1,
        taps=taps > 1,
        outer=images * groups > 1,
        factor=factor > 1,
        parallel=macs >= PARALLEL_CYCLES * tiling.dot.macs_a_cycle and sizes["tasks"] > 1,
    )
    kernel = matrix_kernel("conv" if width else "dense", tiling, geometry, chain.code, dtype, decoded_bytes)
    y, table = Buffer(chain.result), Constant(size_table(sizes))
    return [*calls, KernelCall(kernel, (source, Constant(packed), Constant(bias), y, table, *chain.operands))]


def plan_weights(
    target: CpuTarget, isa: Isa, weights: np.ndarray, rows: int, images: int = 1
) -> tuple[Tiling, np.ndarray, dict[str, int], int]:
    """(tiling, packed weights, sizes of the work, room for a panel that is decoded first) of constant weights int8
    [groups, N of a group, runs, run] times `rows` pixels an image."""
    groups, n, all_runs, run = weights.shape
    coded = find_code(weights)
    tiling = best_tiling(isa, rows, n, run, all_runs, coded.code if coded else None, isa.weight_dots(weights))
    decoded_bytes = 0
    if coded and tiling.code:
        packed = np.concatenate([pack_codes(coded.part(g), tiling) for g in range(groups)])
    else:
        packed = np.concatenate([pack_weights(g, tiling) for g in weights])
    sizes = plan_sizes(target, tiling, rows=rows, n=n, run=run, all_runs=all_runs, images=images, groups=groups)
    sizes["panel_bytes"] = packed.size // (groups * sizes["panels"]) if tiling.code else sizes["panel_bytes"]
    if tiling.code:
        unit = UNIT * tiling.dot.vector_bytes  # of bytes when decoded
        units = -(-sizes["run_groups"] * all_runs * tiling.dot.group * tiling.columns // unit)
        sizes["code_blocks"] = all_runs * run // tiling.code.group if tiling.code.group else 1
        sizes["code_units"] = units // sizes["code_blocks"]
        decoded_bytes = 0 if tiling.inline else max(DECODED_LEAST, 1 << (units * unit - 1).bit_length())
    return tiling, packed, sizes, decoded_bytes


def best_tiling(
    isa: Isa, rows: int, n: int, run: int, runs: int, code: Code | None, dots: tuple[Dot, ...] = ()
) -> Tiling:
    """The cheapest tiling for constant weights: decoded to panels first, in registers, or kept as signed digits; as
    bytes where no panel is small enough for the stack and nothing else is possible.

    dots: that may be used, those of the instruction set if none are given.
    """
    dots = dots or isa.dots
    if code is None:
        return choose_tiling(dots, rows, n, run, runs)
    decoded = choose_tiling(dots, rows, n, run, runs, code=code)
    choices = [decoded] if decoded.panel_bytes(run, runs) <= DECODED_BYTES else []
    digits = isa.digit_dots if code.digits else ()
    if digits and not code.group:
        choices.append(choose_tiling(digits, rows, n, run, runs))
    for some in (dots, digits if code.group else ()):
        in_order = tuple(dot for dot in some if dot.in_order)
        if in_order and runs == 1:
            choices.append(choose_tiling(in_order, rows, n, run, runs, code=code, inline=True))
    choices = choices or [choose_tiling(dots, rows, n, run, runs)]
    return min(choices, key=lambda tiling: tiling.cycles)


def plan_sizes(
    target: CpuTarget, tiling: Tiling, *, rows: int, n: int, run: int, all_runs: int, images: int, groups: int
) -> dict[str, int]:
    """How the work is cut into tasks: blocks of pixels whose activations stay in the L2 cache while panels pass by."""
    panels = tiling.panels(n)
    tiles = -(-rows // tiling.rows)
    k_bytes = -(-run // tiling.dot.group) * tiling.dot.group * all_runs
    block_tiles = max(1, min(tiles, target.l2 // 2 // max(1, k_bytes * tiling.rows)))
    blocks = -(-tiles // block_tiles)
    outer = len(panels) * images * groups
    if outer * blocks < PARALLEL_TASKS:
        blocks = min(tiles, -(-PARALLEL_TASKS // outer))
    if outer * blocks < EVEN_TASKS:
        begin = TASK_CYCLES + k_bytes * tiling.columns / FETCHED_BYTES
        blocks = even_blocks(tiles, outer, blocks, begin / (images * groups * tiling.cycles))
    block_tiles = -(-tiles // blocks)
    blocks = -(-tiles // block_tiles)
    # every step of a tile asks for a part of the next panel, which is there when its turn comes
    groups_of_tile = -(-run // tiling.dot.group) * all_runs
    panel_bytes = groups_of_tile * tiling.dot.packed_bytes(panels[0][1])
    tile_ahead = -(-panel_bytes // block_tiles)
    return {
        "tasks": outer * blocks,
        "panels": len(panels),
        "blocks": blocks,
        "groups": groups,
        "rows": rows,
        "block_tiles": block_tiles,
        "run_groups": -(-run // tiling.dot.group),
        "panel_bytes": panel_bytes,
        "tile_ahead": tile_ahead,
        "group_ahead": -(-tile_ahead // groups_of_tile),
        "group_channels": n,
        "channels": n * groups,
    }


def even_blocks(tiles: int, outer: int, fewest: int, begin: float) -> int:
    """Into how many blocks, `fewest` at least, to cut the tiles of each of `outer` panels so that two and four threads
    have equal work. begin: what a task takes beside its tiles, as a share of the layer."""

    def cost(blocks: int) -> float:
        size = -(-tiles // blocks)
        work = [min(size, tiles - at) for at in range(0, tiles, size) for _ in range(outer)]  # of the tasks in order
        uneven = 0.0
        for threads in (2, 4):
            chunk = -(-len(work) // threads)
            most = max(sum(work[at : at + chunk]) for at in range(0, len(work), chunk))
            uneven += most * threads / (tiles * outer) / 2
        return uneven + len(work) * begin

    return min(range(fewest, min(tiles, fewest + MORE_BLOCKS) + 1), key=cost)


def size_table(sizes: dict[str, int]) -> np.ndarray:
    unknown = set(sizes) - set(SIZES)
    if unknown:
        raise KeyError(f"not sizes of a kernel: {unknown}")
    return np.array([sizes.get(name, 0) for name in SIZES], np.int32)


def _operands(ctx: NodeContext, head: Node) -> tuple[Type, np.ndarray, np.ndarray]:
    name, weight, bias = head.inputs
    missing = [i for i in (weight, bias) if i not in ctx.constants]
    if missing:
        raise CompileError(
            f"{head.name}: weights and bias must be constants, {', '.join(missing)} is computed at run time"
        )
    check_weights(head.name, ctx.constants[weight])
    return ctx.types[name], ctx.constants[weight], ctx.constants[bias]
