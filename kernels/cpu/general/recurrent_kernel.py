"""The code of a recurrent cell: a loop over steps with the matrix-product kernel's tiles inside, then the gates.

A step multiplies the packed weights with the narrowed state into int32 sums, which stay in the first cache, and then
visits the units in vectors: rescaling, activations and the new state are one pass. The states live behind the results
of the last step, where they end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qcompile.kernels.cpu.builder import (
    Expr,
    Pointer,
    T,
    bind,
    cast,
    lanes_of,
    splat,
    store_lanes,
)
from qcompile.kernels.cpu.chain import ChainCode
from qcompile.kernels.cpu.general.common import loop, pin, select
from qcompile.kernels.cpu.isa import Isa
from qcompile.kernels.cpu.linear.microkernel import Body, Geometry
from qcompile.kernels.cpu.linear.tiles import Tiling
from qcompile.kernels.ops.recurrent import GATE_BITS, LIMIT, PIECE_BITS, PIECES, UNIT_BITS

NUMBERS = (
    "steps",
    "rows",
    "units",
    "x_multiplier",
    "constant",
    "lowest",
    "h_multiplier",
    "h_zero_point",
    "h_qmin",
    "h_qmax",
)  # the int32 table that a kernel reads, in this order
SHIFTS = ("shift", "pre", "h_shift", "h_pre")  # part of the code, for instruction sets that gain by it


@dataclass(frozen=True)
class Product:
    """One recurrent product of a step: the gates from `first` on; decoded_bytes: room for a panel of coded weights."""

    tiling: Tiling
    geometry: Geometry
    first: int
    decoded_bytes: int = 0


@dataclass(frozen=True)
class Cell:
    """What the code of a cell depends on.

    op: lstm, gru or rnn; gates: how many; bits: fraction bits of the cell state (lstm) or of the hidden state (gru);
    kinds: of the activations; shifts: the SHIFTS; width: units of a vector; tail: those left for the last, which has
    tail_width lanes.
    """

    op: str
    gates: int
    states: int
    bits: int
    kinds: tuple[str, ...]
    shifts: tuple[int, ...]
    reset_after: int
    reverse: bool
    lengths: bool
    width: int
    tail: int
    tail_width: int
    parallel: bool


class CellKernel:
    """Emission of one cell's kernel."""

    def __init__(
        self,
        isa: Isa,
        cell: Cell,
        products: Sequence[Product],
        sums: ChainCode,
        x: Pointer,
        initial: Sequence[Pointer],
        lengths: Pointer | None,
        y: Pointer,
        narrow: Pointer,
        acc: Pointer,
        multiplier: Pointer,
        tables: Sequence[Pointer],
        numbers: Pointer,
        weights: Sequence[tuple[Pointer, Pointer, Pointer]],
    ) -> None:
        self.isa, self.cell, self.products, self.sums = isa, cell, products, sums
        self.x, self.initial, self.lengths, self.y, self.narrow, self.acc = x, initial, lengths, y, narrow, acc
        self.multiplier, self.tables, self.weights = multiplier, tables, weights
        self.n = {name: bind(numbers.load(i)) for i, name in enumerate(NUMBERS)}
        self.n |= {name: T.int32(value) for name, value in zip(SHIFTS, cell.shifts)}
        self.width = cell.width  # of the vectors that are being written
        self.size = bind(self.n["rows"] * self.n["units"])  # elements of a state

    # ---- the loops
    def emit(self) -> None:
        self._start()
        steps = self.n["steps"]
        with T.serial(0, steps) as s:
            t = bind(steps - 1 - s) if self.cell.reverse else s
            self._multiply(0)
            if len(self.products) > 1:  # gru: the second product sees the reset state
                self._visit(t, self._reset)
                self._multiply(1)
            self._visit(t, getattr(self, f"_{self.cell.op}"), final=True)

    def _start(self) -> None:
        """The initial states behind the results, and the first narrowed state."""
        for index, state in enumerate(self.initial):

            def begin(row: Expr, unit: Expr, valid: int, index: int = index, state: Pointer = state) -> None:
                at = bind(row * self.n["units"] + unit)
                value = bind(state.load(at, self.width))
                store_lanes(self.y, self._state(index) + at, value, valid)
                if index == 0:
                    store_lanes(self.narrow, at, self._narrowed(cast(value, "int32")), valid)

            self._vectors(begin)

    def _multiply(self, index: int) -> None:
        product, (w, bias, sizes) = self.products[index], self.weights[index]
        acc = self.acc.moved(bind(product.first * self.n["units"])) if product.first else self.acc
        Body(
            product.tiling,
            product.geometry,
            self.sums,
            self.narrow,
            w,
            bias,
            acc,
            sizes,
            None,
            (),
            product.decoded_bytes,
        ).emit()

    def _visit(self, t: Expr, update: Callable[..., Any], final: bool = False) -> None:
        """update(x at, state at, unit, valid) for all vectors of a step; rows that have ended give zeros."""

        def visit(row: Expr, unit: Expr, valid: int) -> None:
            at = bind(row * self.n["units"] + unit)
            x_at = bind((t * self.n["rows"] + row) * (self.n["units"] * self.cell.gates) + unit)
            acc_at = bind(row * (self.n["units"] * self.cell.gates) + unit)

            def run() -> None:
                hidden = update(x_at, acc_at, at, unit, valid)
                if final:
                    hidden = bind(hidden)
                    words = bind(cast(hidden, "int16"))
                    store_lanes(self.y, t * self.size + at, words, valid)
                    store_lanes(self.y, self._state(0) + at, words, valid)
                    store_lanes(self.narrow, at, self._narrowed(hidden), valid)

            if self.lengths is None:
                run()
                return
            with T.If(t < self.lengths.load(row)):
                with T.Then():
                    run()
                if final:
                    with T.Else():
                        store_lanes(self.y, t * self.size + at, splat(0, "int16", self.width), valid)

        self._vectors(visit)

    def _vectors(self, visit: Callable[[Expr, Expr, int], None]) -> None:
        """visit(row, first unit, valid units) for vectors that cover every unit once."""
        width, tail = self.cell.width, self.cell.tail
        with loop(self.n["rows"], self.cell.parallel) as row:
            with T.serial(0, T.truncdiv(self.n["units"], T.int32(width))) as v:
                visit(row, bind(v * width), width)
            if tail:
                self.width = self.cell.tail_width
                visit(row, bind(T.truncdiv(self.n["units"], T.int32(width)) * width), tail)
                self.width = width

    def _state(self, index: int) -> Expr:
        return (self.n["steps"] + index) * self.size

    # ---- the cells; each gives the hidden state as int32
    def _lstm(self, x_at: Expr, acc_at: Expr, at: Expr, unit: Expr, valid: int) -> Expr:
        i, o, f, g = (self._gate(k, x_at, acc_at, unit, 0 if k < 3 else 1) for k in range(4))
        c = cast(self.y.load(self._state(1) + at, self.width), "int32")
        bits = self.cell.bits
        added = self._down(i * g, UNIT_BITS - bits)
        c = bind(self._limited(self._rounded(f * c + added, UNIT_BITS)))
        store_lanes(self.y, self._state(1) + at, cast(c, "int16"), valid)
        if bits >= GATE_BITS:
            argument = self._limited(self._rounded(c, bits - GATE_BITS)) if bits > GATE_BITS else c
        else:
            reach = LIMIT >> (GATE_BITS - bits)
            argument = T.shift_left(self._between(c, -reach, reach), splat(GATE_BITS - bits, "int32", lanes_of(c)))
        return self._rounded(o * self._activate(cast(argument, "int16"), 2), UNIT_BITS)

    def _gru(self, x_at: Expr, acc_at: Expr, at: Expr, unit: Expr, valid: int) -> Expr:
        h = bind(cast(self.y.load(self._state(0) + at, self.width), "int32"))
        z = self._gate(0, x_at, acc_at, unit, 0)
        if self.cell.reset_after:
            reset = self._gate(1, x_at, acc_at, unit, 0)
            rn = cast(self._sum(2, x_at, acc_at, unit, T.int32(0)), "int32")
            step = self.cell.reset_after
            x = T.shift_left(cast(self._x(2, x_at), "int32"), splat(step, "int32", lanes_of(rn)))
            n = x + self._rounded(reset * rn, UNIT_BITS - step)
            n = self._activate(cast(self._limited(n), "int16"), 1)
        else:
            n = self._gate(2, x_at, acc_at, unit, 1)
        kept = self._down((splat(1 << UNIT_BITS, "int32", lanes_of(z)) - z) * n, UNIT_BITS - self.cell.bits) + z * h
        return self._limited(self._rounded(kept, UNIT_BITS))

    def _reset(self, x_at: Expr, acc_at: Expr, at: Expr, unit: Expr, valid: int) -> None:
        """The narrowed r * h, over the narrowed state that the first product has read."""
        h = cast(self.y.load(self._state(0) + at, self.width), "int32")
        reset = self._gate(1, x_at, acc_at, unit, 0)
        store_lanes(self.narrow, at, self._narrowed(self._rounded(reset * h, UNIT_BITS)), valid)

    def _rnn(self, x_at: Expr, acc_at: Expr, at: Expr, unit: Expr, valid: int) -> Expr:
        return self._gate(0, x_at, acc_at, unit, 0)

    # ---- pieces
    def _x(self, gate: int, x_at: Expr) -> Expr:
        return self.x.load(x_at + gate * self.n["units"], self.width)

    def _gate(self, gate: int, x_at: Expr, acc_at: Expr, unit: Expr, function: int) -> Expr:
        """The activation of a gate, int32."""
        return self._activate(self._sum(gate, x_at, acc_at, unit, self.n["x_multiplier"]), function)

    def _sum(self, gate: int, x_at: Expr, acc_at: Expr, unit: Expr, factor: Expr) -> Expr:
        """A gate's recurrent product rescaled, plus its x times `factor`: rounded to int16, limited."""
        at = gate * self.n["units"]
        acc = bind(self.acc.load(acc_at + at, self.width))
        total = self.isa.add_scaled(
            acc,
            self.n["pre"],
            bind(self.multiplier.load(at + unit, self.width)),
            bind(self._x(gate, x_at)),
            factor,
            self.n["constant"],
            True,
        )
        # -LIMIT from memory: LLVM makes that constant with an instruction for 16-bit floats
        limits = (T.int32(0), self.n["lowest"], T.int32(LIMIT))
        return self.isa.saturate_shifted(bind(total), self.n["shift"], *limits, "int16")

    def _activate(self, x: Expr, function: int) -> Expr:
        """int32 of int16; see `ops.recurrent.activate`."""
        x, n, kind = pin(x), lanes_of(x), self.cell.kinds[function]
        zero = splat(0, "int16", n)
        if kind == "relu":
            return bind(cast(T.max(x, zero), "int32"))
        magnitude = bind(cast(T.max(x, zero - x), "uint16"))
        piece = bind(T.shift_right(magnitude, splat(PIECE_BITS, "uint16", n)))
        offset = T.bitwise_and(magnitude, splat((1 << PIECE_BITS) - 1, "uint16", n))
        offset = bind(cast(T.shift_left(offset, splat(UNIT_BITS - PIECE_BITS, "uint16", n)), "int16"))
        base, slope = self.isa.look_up_piece(self.tables[function], piece, PIECES)
        y = bind(base + self.isa.mul_round(bind(slope), offset))
        mirrored = zero - y if kind == "odd" else splat(LIMIT, "int16", n) - y + splat(1, "int16", n)
        return cast(pin(select(x < zero, mirrored, y)), "int32")

    def _narrowed(self, hidden: Expr) -> Expr:
        multiplier = bind(self._vector(self.n["h_multiplier"]))
        pre, shift, zero_point, low, high = (
            self.n[f"h_{name}"] for name in ("pre", "shift", "zero_point", "qmin", "qmax")
        )
        dtype = self.narrow.dtype
        return self.isa.requantize(bind(hidden), pre, multiplier, shift, zero_point, low, high, dtype)

    def _vector(self, value: Expr) -> Expr:
        return splat(value, "int32", self.width)

    @staticmethod
    def _rounded(x: Expr, shift: int) -> Expr:
        n = lanes_of(x)
        return T.shift_right(x + splat(1 << shift >> 1, "int32", n), splat(shift, "int32", n))

    @staticmethod
    def _down(x: Expr, shift: int) -> Expr:
        return T.shift_right(x, splat(shift, "int32", lanes_of(x))) if shift else x

    @classmethod
    def _limited(cls, x: Expr) -> Expr:
        return cls._between(x, -LIMIT, LIMIT)

    @staticmethod
    def _between(x: Expr, low: int, high: int) -> Expr:
        n = lanes_of(x)
        return T.max(T.min(x, splat(high, "int32", n)), splat(low, "int32", n))
