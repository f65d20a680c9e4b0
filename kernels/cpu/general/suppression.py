"""Non-maximum suppression: candidates in a heap by score, each compared with the boxes kept before."""

from __future__ import annotations

from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, cast, local
from qcompile.kernels.cpu.general.common import operand, select
from qcompile.kernels.cpu.isa import get_isa
from qcompile.kernels.cpu.kernel import kernel, pointers, scalars
from qcompile.kernels.lowering import Buffer, KernelCall, NodeContext, Workspace
from qcompile.kernels.ops.suppression import FRACTION

SIDES = 4


def find_corners(boxes: Pointer, corners: Pointer, start: Expr, count: Expr, zero_point: Expr, centers: bool) -> None:
    """(low y, low x, high y, high x) of each box of one image; see kernels.ops.suppression.corners."""
    with T.serial(0, count) as i:
        at = bind(i * SIDES)
        a, b, c, d = (bind(cast(boxes.load(start + at + k), "int32") - zero_point) for k in range(SIDES))
        if centers:  # x, y, width, height
            width, height = (bind(T.max(v, T.int32(0))) for v in (c, d))
            sides = (b * 2 - height, a * 2 - width, b * 2 + height, a * 2 + width)
        else:
            sides = (T.min(a, c), T.min(b, d), T.max(a, c), T.max(b, d))
        for k, side in enumerate(sides):
            corners.store(at + k, side)


def sift(heap: Pointer, root: Expr, size: Expr, levels: Expr) -> None:
    """Move the key at `root` down to where no key below it is larger."""
    at, key = local(1, "int32"), bind(heap.load(root))
    at.store(0, root)
    with T.serial(0, levels):
        here = bind(at.load(0))
        left = bind(T.max(T.min(here * 2 + 1, size - 1), T.int32(0)))
        right = bind(T.max(T.min(here * 2 + 2, size - 1), T.int32(0)))
        below = bind(select(heap.load(right) > heap.load(left), right, left))
        larger = bind(heap.load(below))
        moves = bind(T.And(here * 2 + 1 < size, larger > key))
        heap.store(here, select(moves, larger, key))
        at.store(0, select(moves, below, here))
    heap.store(at.load(0), key)


def overlaps(corners: Pointer, i: Expr, k: Expr, overlap: Expr) -> Expr:
    """Whether boxes i and k share more than overlap / 2^FRACTION of what they cover."""
    first, second = ([bind(corners.load(box * SIDES + s)) for s in range(SIDES)] for box in (i, k))

    def wide(x: Expr) -> Expr:
        return cast(x, "int64")

    def area(box: list[Expr]) -> Expr:
        return wide(box[2] - box[0]) * wide(box[3] - box[1])

    high, width = (T.max(T.min(first[s + 2], second[s + 2]) - T.max(first[s], second[s]), T.int32(0)) for s in range(2))
    common = bind(wide(high) * wide(width))
    joined = area(first) + area(second) - common
    return common * T.IntImm("int64", 1 << FRACTION) > joined * wide(overlap)


def lower_non_max_suppression(ctx: NodeContext) -> list[KernelCall]:
    (boxes, scores), a = ctx.node.inputs, ctx.node.attrs
    images, classes, count = ctx.types[scores].shape
    centers = bool(a["centers"])

    def body(
        boxes: Pointer, scores: Pointer, corners: Pointer, heap: Pointer, kept: Pointer, y: Pointer,
        images: Expr, classes: Expr, count: Expr, most: Expr, levels: Expr,
        limit: Expr, overlap: Expr, boxes_zero_point: Expr, scores_zero_point: Expr,
    ) -> None:  # fmt: skip
        rows, total, number, free = (local(1, "int32") for _ in range(4))
        rows.store(0, T.int32(0))
        with T.serial(0, images) as image:
            find_corners(boxes, corners, image * count * SIDES, count, boxes_zero_point, centers)
            with T.serial(0, classes) as label:
                start = bind((image * classes + label) * count)
                total.store(0, T.int32(0))
                with T.serial(0, count) as i:
                    score = bind(cast(scores.load(start + i), "int32") - scores_zero_point)
                    key = cast(score, "int64") * T.IntImm("int64", 1 << 32) + cast(count - 1 - i, "int64")
                    heap.store(total.load(0), key)
                    total.store(0, total.load(0) + cast(score > limit, "int32"))
                candidates = bind(total.load(0))
                with T.serial(0, T.truncdiv(candidates, T.int32(2))) as t:
                    sift(heap, bind(T.truncdiv(candidates, T.int32(2)) - 1 - t), candidates, levels)
                number.store(0, T.int32(0))
                with T.serial(0, candidates) as t, T.If(number.load(0) < most), T.Then():
                    best = bind(count - 1 - cast(heap.load(0), "int32"))  # the low half of the key
                    left = bind(candidates - 1 - t)
                    heap.store(0, heap.load(left))
                    sift(heap, T.int32(0), left, levels)
                    free.store(0, T.int32(1))
                    with T.serial(0, number.load(0)) as k:
                        hit = overlaps(corners, best, bind(kept.load(k)), overlap)
                        free.store(0, select(hit, T.int32(0), free.load(0)))
                    with T.If(free.load(0) > 0), T.Then():
                        kept.store(number.load(0), best)
                        number.store(0, number.load(0) + 1)
                        at = bind(rows.load(0) * 3)
                        for k, value in enumerate((image, label, best)):
                            y.store(at + k, value)
                        rows.store(0, rows.load(0) + 1)
        used = bind(rows.load(0) * 3)
        with T.serial(0, images * classes * most * 3 - used) as i:
            y.store(used + i, T.int32(-1))

    parameters = [
        *pointers(boxes=ctx.types[boxes].dtype, scores=ctx.types[scores].dtype, corners="int32", heap="int64"),
        *pointers(kept="int32", y="int32"),
        *scalars("images", "classes", "count", "most", "levels"),
        *scalars("limit", "overlap", "boxes_zero_point", "scores_zero_point"),
    ]
    work = kernel("non_max_suppression", (get_isa(ctx.target), centers), parameters, body)
    scratch = (
        Workspace("corners", 4 * SIDES * count),
        Workspace("heap", 8 * (count + 1)),  # the key that does not count may lie behind the others
        Workspace("kept", 4 * a["most"]),
    )
    sizes = (images, classes, count, a["most"], count.bit_length())
    limits = (a["limit"], a["overlap_multiplier"], a["boxes_zero_point"], a["scores_zero_point"])
    return [KernelCall(work, (operand(ctx, boxes), operand(ctx, scores), *scratch, Buffer(ctx.node.name),
                              *sizes, *limits))]  # fmt: skip


LOWERINGS = {"non_max_suppression": lower_non_max_suppression}
