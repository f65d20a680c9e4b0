"""Products of two activations: the second operand is packed at run time, then the matrix-product kernel runs.

With b' the signed bytes that are packed and z' their zero point,
sum (a - za)(b' - z') = sum a b' - z' sum(a) - za (sum(b') - K z'): a term per row and one per column.
"""

from __future__ import annotations

import numpy as np
from qcompile.kernels.cpu.builder import (
    Expr,
    Pointer,
    T,
    bind,
    cast,
    extract,
    local,
    splat,
)
from qcompile.kernels.cpu.chain import CONSTANT_PADDING, head_and_chain
from qcompile.kernels.cpu.general.movement import broadcast_calls
from qcompile.kernels.cpu.isa import Isa, get_isa
from qcompile.kernels.cpu.isa.dot import Dot
from qcompile.kernels.cpu.kernel import kernel, pointers, scalars
from qcompile.kernels.cpu.linear.conv import PARALLEL_CYCLES, plan_sizes, size_table
from qcompile.kernels.cpu.linear.microkernel import Geometry, matrix_kernel
from qcompile.kernels.cpu.linear.repack import pack_columns, pack_rows
from qcompile.kernels.cpu.linear.tiles import choose_tiling
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import SLACK_BYTES, Buffer, Constant, Kernel, KernelCall, NodeContext, Workspace


def lower_matmul(ctx: NodeContext) -> list[KernelCall]:
    """matmul [..., M, K] x [..., K, N] (or [..., N, K] with transpose_b) -> [..., M, N], with what follows it."""
    head, chain = head_and_chain(ctx, get_isa(ctx.target))
    a, b = (ctx.types[i] for i in head.inputs)
    transposed = bool(head.attrs["transpose_b"])
    m, k = a.shape[-2:]
    n = b.shape[-2 if transposed else -1]
    lead = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    images = int(np.prod(lead, dtype=np.int64))
    calls: list[KernelCall] = []
    (left, lead_a), (right, lead_b) = (
        _whole_or_one(chain.isa, name, t, lead, calls) for name, t in zip(head.inputs, (a, b))
    )
    if lead_b == 1:  # one matrix for all: the images are more rows
        m, images, lead_a = m * images, 1, 1
    shift = 128 if b.dtype == "uint8" else 0
    b_zero_point, a_zero_point = head.attrs["b_zero_point"] - shift, head.attrs["a_zero_point"]

    tiling = choose_tiling(chain.isa.activation_dots, m, n, k, 1, uniform=True)
    columns = tiling.panels(n)[0][1]
    padded_n = len(tiling.panels(n)) * columns
    groups = -(-k // tiling.dot.group)
    panel_bytes = groups * tiling.dot.group * columns
    w_image, bias_image = panel_bytes * (padded_n // columns), padded_n + CONSTANT_PADDING
    packed = Workspace("packed", w_image * images + SLACK_BYTES)
    bias = Workspace("bias", bias_image * images * 4)
    calls.append(
        KernelCall(
            _pack_kernel(tiling.dot, columns, transposed, b.dtype),
            (right, packed, bias, images, n, k, padded_n // columns, bias_image, a_zero_point, b_zero_point),
        )
    )
    sizes = plan_sizes(ctx.target, tiling, rows=m, n=n, run=k, all_runs=1, images=images, groups=1)
    sizes |= {"pixel_step": k, "x_image": m * k if lead_a > 1 else 0, "w_image": w_image, "bias_image": bias_image}
    terms: tuple[Workspace, ...] = ()
    if b_zero_point:
        terms = (Workspace("row_terms", m * images * 4),)
        calls.append(
            KernelCall(
                _row_kernel(a.dtype, chain.isa),
                (left, terms[0], images, m, k, m * k if lead_a > 1 else 0, -b_zero_point),
            )
        )
    geometry = Geometry(
        single=m == tiling.rows,
        walk=tiling.dot.walk(groups),
        outer=images > 1,
        row_term=bool(terms),
        parallel=images * m * n * k >= PARALLEL_CYCLES * tiling.dot.macs_a_cycle and sizes["tasks"] > 1,
    )
    product = matrix_kernel("matmul", tiling, geometry, chain.code, a.dtype)
    calls.append(
        KernelCall(
            product, (left, packed, bias, Buffer(chain.result), Constant(size_table(sizes)), *terms, *chain.operands)
        )
    )
    return calls


def _whole_or_one(
    isa: Isa, name: str, type_: Type, lead: tuple[int, ...], calls: list[KernelCall]
) -> tuple[Buffer | Workspace, int]:
    """An operand and how many matrices it has: one for each of `lead` or one for all, others are expanded first."""
    images, own = (int(np.prod(shape, dtype=np.int64)) for shape in (lead, type_.shape[:-2]))
    if own in (1, images):
        return Buffer(name), own
    full = Type((*lead, *type_.shape[-2:]), type_.dtype)
    expanded = Workspace(f"full {name}", full.nbytes + SLACK_BYTES)
    calls += broadcast_calls(isa, type_, full.shape, Buffer(name), expanded)
    return expanded, images


def _pack_kernel(dot: Dot, columns: int, transposed: bool, dtype: str) -> Kernel:
    """Packs b and writes the column terms.

    Parameters: b, packed, bias, images, n, k, panels, bias_image, a_zero_point, b_zero_point.
    """
    order = dot.order(columns)

    def body(
        b: Pointer,
        packed: Pointer,
        bias: Pointer,
        images: Expr,
        n: Expr,
        k: Expr,
        panels: Expr,
        bias_image: Expr,
        a_zero_point: Expr,
        b_zero_point: Expr,
    ) -> None:
        groups = bind(T.truncdiv(k + (dot.group - 1), T.int32(dot.group)))
        with T.serial(0, images) as image, T.serial(0, panels) as panel:
            start = bind(image * n * k)
            out = bind((image * panels + panel) * groups * (dot.group * columns))
            terms = bind(image * bias_image + panel * columns)
            (pack_rows if transposed else pack_columns)(
                dot, columns, order, b, packed, bias, n, k, groups, start, out, terms, panel
            )
            sums = bias.load(terms, columns)
            bias.store(
                terms, (sums - splat(k * b_zero_point, "int32", columns)) * splat(0 - a_zero_point, "int32", columns)
            )

    numbers = scalars("images", "n", "k", "panels", "bias_image", "a_zero_point", "b_zero_point")
    parameters = [*pointers(b=dtype, packed="int8", bias="int32"), *numbers]
    return kernel(f"pack_{dtype}_{dot.group}x{columns}", (dot, columns, transposed), parameters, body)


def _row_kernel(dtype: str, isa: Isa) -> Kernel:
    """terms[row] = factor * sum of the row: (a, terms, images, rows, k, a_image, factor)."""
    lanes = isa.lanes

    def body(a: Pointer, terms: Pointer, images: Expr, rows: Expr, k: Expr, a_image: Expr, factor: Expr) -> None:
        with T.serial(0, images) as image, T.serial(0, rows) as row:
            at = bind(image * a_image + row * k)
            whole = bind(T.truncdiv(k, T.int32(lanes)))
            acc, total = local(lanes, "int32"), local(1, "int32")
            acc.store(0, splat(0, "int32", lanes))
            with T.serial(0, whole) as i:
                acc.store(0, acc.load(0, lanes) + cast(a.load(at + i * lanes, lanes), "int32"))
            total.store(
                0,
                sum((extract(acc.load(0, lanes), i, 1) for i in range(1, lanes)), extract(acc.load(0, lanes), 0, 1)),
            )
            with T.serial(0, k - whole * lanes) as i:
                total.store(0, total.load(0) + T.cast(a.load(at + whole * lanes + i), "int32"))
            terms.store(image * rows + row, total.load(0) * factor)

    parameters = [*pointers(a=dtype, terms="int32"), *scalars("images", "rows", "k", "a_image", "factor")]
    return kernel("row_terms", (isa,), parameters, body)
