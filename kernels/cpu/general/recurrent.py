"""Lowering of lstm, gru and rnn: one kernel call for a whole sequence."""

from __future__ import annotations

from typing import Any

import numpy as np
from qcompile.kernels.cpu.builder import Pointer
from qcompile.kernels.cpu.chain import CONSTANT_PADDING, ChainCode
from qcompile.kernels.cpu.general.common import operand
from qcompile.kernels.cpu.general.recurrent_kernel import NUMBERS, SHIFTS, Cell, CellKernel, Product
from qcompile.kernels.cpu.isa import Isa, get_isa
from qcompile.kernels.cpu.kernel import kernel, pointers
from qcompile.kernels.cpu.linear.conv import PARALLEL_CYCLES, plan_weights, size_table
from qcompile.kernels.cpu.linear.microkernel import Geometry
from qcompile.kernels.cpu.linear.packing import check_weights, fold_bias
from qcompile.kernels.dialect import OPS
from qcompile.kernels.lowering import SLACK_BYTES, Buffer, Constant, KernelCall, NodeContext, Workspace
from qcompile.kernels.ops.recurrent import LIMIT
from qcompile.targets.errors import CompileError
from qcompile.targets.target import CpuTarget

STATES = {"lstm": 2, "gru": 1, "rnn": 1}
PARALLEL_UNITS = 1 << 14  # of all rows, from which the gates are worth handing to threads


def lower_recurrent(ctx: NodeContext) -> list[KernelCall]:
    """A cell over a sequence: packed weights, sums and states are read again at each step."""
    isa, node = get_isa(ctx.target), ctx.node
    op, attrs = OPS[node.op], dict(node.attrs)
    names = dict(zip(op.arguments, node.inputs))
    weight, bias, multiplier, tables = (_constant(ctx, names[n]) for n in ("weight", "bias", "multiplier", "tables"))
    check_weights(node.name, weight)
    steps, rows, _ = ctx.types[names["x"]].shape
    units, gates = weight.shape[1], len(weight) // weight.shape[1]
    if ctx.target.unsigned_activations:
        for key in ("h_zero_point", "h_qmin", "h_qmax"):
            attrs[key] += 128
    narrow = "uint8" if ctx.target.unsigned_activations else "int8"
    folded = fold_bias(bias, weight, attrs["h_zero_point"])

    split = (2, 1) if node.op == "gru" and not attrs["reset_after"] else (gates,)
    products, weights, first = [], [], 0
    for count in split:
        part = slice(first * units, (first + count) * units)
        product, constants = _product(ctx.target, isa, weight[part], folded[part], rows, first, gates)
        products.append(product)
        weights.append(constants)
        first += count
    width = 32 if isa.lanes == 16 else 16
    cell = Cell(
        node.op,
        gates,
        STATES[node.op],
        int(attrs.get("cell_bits", attrs.get("hidden_bits", 0))),
        tuple(attrs["activations"]),
        tuple(int(attrs[n]) for n in SHIFTS),
        int(attrs.get("reset_after", 0)),
        bool(attrs["reverse"]),
        "lengths" in names,
        width,
        units % width,
        width if units % width > width // 2 else width // 2,
        rows > 1 and rows * units >= PARALLEL_UNITS,
    )
    attrs |= {"steps": steps, "rows": rows, "units": units, "lowest": -LIMIT, "constant": 1 << (attrs["shift"] - 1)}
    padded = np.concatenate([multiplier, np.zeros(CONSTANT_PADDING, np.int32)])
    looked_up = [isa.pieces(table) for table in tables]
    initial = [names[n] for n in ("hidden", "cell")[: cell.states]]
    sums = ChainCode(isa, "int32", (), ())
    dtypes = {"x": "int16", **dict.fromkeys(("hidden", "cell")[: cell.states], "int16")}
    dtypes |= {"lengths": "int32"} if cell.lengths else {}
    dtypes |= {"y": "int16", "narrow": narrow, "acc": "int32", "multiplier": "int32"}
    dtypes |= {f"t{i}": str(table.dtype) for i, table in enumerate(looked_up)} | {"numbers": "int32"}
    for i in range(len(products)):
        dtypes |= {f"w{i}": str(weights[i][0].array.dtype), f"b{i}": "int32", f"s{i}": "int32"}

    def body(*arguments: Pointer) -> None:
        a = dict(zip(dtypes, arguments))
        CellKernel(
            isa,
            cell,
            products,
            sums,
            a["x"],
            [a[n] for n in ("hidden", "cell")[: cell.states]],
            a.get("lengths"),
            a["y"],
            a["narrow"],
            a["acc"],
            a["multiplier"],
            [a[f"t{i}"] for i in range(len(looked_up))],
            a["numbers"],
            [(a[f"w{i}"], a[f"b{i}"], a[f"s{i}"]) for i in range(len(products))],
        ).emit()

    operands: list[Any] = [operand(ctx, names["x"]), *(_padded(ctx, n) for n in initial)]
    if cell.lengths:
        operands.append(operand(ctx, names["lengths"]))
    operands += [
        Buffer(node.name),
        Workspace("narrow", rows * units + SLACK_BYTES),
        Workspace("sums", rows * gates * units * 4 + 2 * SLACK_BYTES),
        Constant(padded),
        *(Constant(table) for table in looked_up),
        Constant(np.array([attrs.get(n, 0) for n in NUMBERS], np.int64).astype(np.int32)),
        *(constant for triple in weights for constant in triple),
    ]
    work = kernel(f"{node.op}_{units}", (isa, cell, tuple(products), len(looked_up)), pointers(**dtypes), body)
    return [KernelCall(work, tuple(operands))]


def _product(
    target: CpuTarget,
    isa: Isa,
    weight: np.ndarray,
    bias: np.ndarray,
    rows: int,
    first: int,
    gates: int,
) -> tuple[Product, tuple[Constant, Constant, Constant]]:
    """The product with weight int8 [gates of it * H, H], whose sums lie from gate `first` on in rows of all gates; with
    its packed weights, its bias and its sizes."""
    n, units = weight.shape
    tiling, packed, sizes, decoded_bytes = plan_weights(target, isa, weight.reshape(1, n, 1, units), rows)
    sizes |= {"pixel_step": units, "channels": gates * units}
    macs = rows * n * units
    geometry = Geometry(
        single=rows == tiling.rows,
        walk=tiling.dot.walk(sizes["run_groups"]),
        parallel=macs >= PARALLEL_CYCLES * tiling.dot.macs_a_cycle and sizes["tasks"] > 1,
    )
    padded = np.concatenate([bias, np.zeros(CONSTANT_PADDING, np.int32)])
    constants = (Constant(packed), Constant(padded), Constant(size_table(sizes)))
    return Product(tiling, geometry, first, decoded_bytes), constants


def _constant(ctx: NodeContext, name: str) -> np.ndarray:
    if name not in ctx.constants:
        raise CompileError(f"{ctx.node.name}: {name} must be constant, it is computed at run time")
    return ctx.constants[name]


def _padded(ctx: NodeContext, name: str) -> Buffer | Constant:
    """A state; constant ones with room for whole vectors."""
    if name not in ctx.constants:
        return Buffer(name)
    flat = ctx.constants[name].reshape(-1)
    return Constant(np.concatenate([flat, np.zeros(CONSTANT_PADDING, flat.dtype)]))


LOWERINGS = dict.fromkeys(STATES, lower_recurrent)
