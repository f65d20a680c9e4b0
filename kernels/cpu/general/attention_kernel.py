"""The attention kernel: packing, scores, numerators and values of one head after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qcompile.kernels.arithmetic import RANGES
from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, cast, flip, local, splat, store_lanes
from qcompile.kernels.cpu.general.attention_call import LARGEST_DISTANCE
from qcompile.kernels.cpu.general.common import (
    across,
    add,
    ceil_div,
    exact_vectors,
    loop,
    pin,
    rest,
    select,
)
from qcompile.kernels.cpu.general.division import quotient
from qcompile.kernels.cpu.isa import Isa
from qcompile.kernels.cpu.linear.repack import pack_columns, pack_rows
from qcompile.kernels.cpu.linear.tiles import Tiling


@dataclass(frozen=True)
class Plan:
    """What the code depends on: tilings of both products, vector width of a row pass, dtypes, and which parts exist."""

    isa: Isa
    scores: Tiling
    values: Tiling
    width: int
    tail: int  # columns of the last panel of v that exist, 0 for all
    dtypes: tuple[str, str, str, str]  # q, k, v, y
    masked: bool
    biased: bool
    left: bool  # distances are shifted left
    uniform: bool  # rows without unmasked keys weigh all alike
    parallel: bool

    @property
    def rows(self) -> int:
        return self.scores.rows

    @property
    def columns(self) -> tuple[int, int]:
        return tuple((t.tile or t.tail).columns for t in (self.scores, self.values))  # type: ignore[union-attr,return-value]

    @property
    def signed(self) -> bool:
        """The numerators are stored as int8, 128 less."""
        return self.dtypes[0] == "int8"

    @property
    def family(self) -> str:
        tiles = "_".join(f"{t.dot.name}_{t.rows}x{n}" for t, n in zip((self.scores, self.values), self.columns))
        return f"attention_{tiles}"


class Body:
    """Emission of one kernel; `v` holds its parameters by name."""

    def __init__(self, plan: Plan, v: dict[str, Any]) -> None:
        self.plan, self.v, self.isa, self.width = plan, v, plan.isa, plan.width

    def emit(self) -> None:
        v, block = self.v, None
        block = bind(ceil_div(v["heads"], v["tasks"]))
        with loop(v["tasks"], self.plan.parallel) as task, T.serial(0, T.min(block, v["heads"] - task * block)) as h:
            self._head(bind(task * block + h), task)

    def _head(self, head: Expr, task: Expr) -> None:
        v, plan = self.v, self.plan
        k_columns, v_columns = plan.columns
        columns = 3 + plan.masked + plan.biased
        starts = [bind(v["starts"].load(head * columns + i)) for i in range(columns)]

        def up16(n):
            return T.truncdiv(n + 15, T.int32(16)) * 16

        self.stride = v["stride"]
        self.k_groups, self.v_groups = (
            bind(ceil_div(n, t.dot.group)) for n, t in ((v["d"], plan.scores), (v["length"], plan.values))
        )
        self.k_panel, self.v_panel = (
            bind(g * (t.dot.group * n))
            for g, t, n in ((self.k_groups, plan.scores, k_columns), (self.v_groups, plan.values, v_columns))
        )
        self.at = {
            "packed_k": bind(task * up16(v["k_panels"] * self.k_panel)),
            "packed_v": bind(task * up16(v["v_panels"] * self.v_panel)),
            "k_terms": bind(task * up16(v["k_panels"] * k_columns)),
            "v_terms": bind(task * up16(v["v_panels"] * v_columns)),
            "rows": bind(task * (plan.rows * v["stride"])),
            "row_terms": bind(task * (-(-plan.rows // 16) * 16)),
        }
        self._pack(
            pack_rows,
            plan.scores,
            "k",
            starts[1],
            v["length"],
            v["d"],
            self.k_groups,
            self.k_panel,
            0 - v["q_zero_point"],
        )
        self._pack(
            pack_columns,
            plan.values,
            "v",
            starts[2],
            v["e"],
            v["length"],
            self.v_groups,
            self.v_panel,
            T.int32(128 if plan.signed else 0),
        )
        with T.serial(0, ceil_div(v["m"], plan.rows)) as t:
            first = bind(T.min(t * plan.rows, v["m"] - plan.rows))
            self._scores(starts[0], first)
            self._numerators(first, starts[3:])
            self._values(bind(head * v["m"] + first))

    def _pack(
        self,
        pack: Callable[..., None],
        tiling: Tiling,
        name: str,
        start: Expr,
        n: Expr,
        run: Expr,
        groups: Expr,
        panel_bytes: Expr,
        factor: Expr,
    ) -> None:
        """All panels of one operand; its column terms are `factor` times the sums of the packed bytes."""
        v, columns = self.v, (tiling.tile or tiling.tail).columns  # type: ignore[union-attr]
        with T.serial(0, v[f"{name}_panels"]) as panel:
            terms = bind(self.at[f"{name}_terms"] + panel * columns)
            pack(
                tiling.dot,
                columns,
                tiling.dot.order(columns),
                v[name],
                v[f"packed_{name}"],
                v[f"{name}_terms"],
                n,
                run,
                groups,
                start,
                bind(self.at[f"packed_{name}"] + panel * panel_bytes),
                terms,
                panel,
            )
            v[f"{name}_terms"].store(terms, v[f"{name}_terms"].load(terms, columns) * splat(factor, "int32", columns))

    def _product(
        self, tiling: Tiling, x: Pointer, rows: Sequence[Expr], w: Pointer, w_at: Expr, groups: Expr
    ) -> list[list[Expr]]:
        """A tile of sums: rows of x (by offset) times one packed panel."""
        dot, tile = tiling.dot, tiling.widest
        acc, many, size = dot.start(tile), dot.groups_a_step(tile), tile.columns * dot.group
        whole = bind(T.truncdiv(groups, T.int32(many)))

        def step(done: Expr, count: int) -> None:
            dot.step(tile, acc, [x.moved(r + done * dot.group) for r in rows], w.moved(w_at + done * size), count)

        with T.serial(0, whole) as s:
            step(s * many, many)
        if many > 1:
            with T.serial(0, groups - whole * many) as s:
                step(whole * many + s, 1)
        return dot.finish(tile, acc)

    def _scores(self, q_start: Expr, first: Expr) -> None:
        """q k^T of a block of rows, with the term of q's zero point."""
        v, tiling, columns = self.v, self.plan.scores, self.plan.columns[0]
        rows = [bind(q_start + (first + i) * v["d"]) for i in range(self.plan.rows)]
        with T.serial(0, v["k_panels"]) as panel:
            sums = self._product(
                tiling, v["q"], rows, v["packed_k"], bind(self.at["packed_k"] + panel * self.k_panel), self.k_groups
            )
            lanes = columns // len(sums[0])
            for j in range(len(sums[0])):
                at = bind(panel * columns + j * lanes)
                term = bind(v["k_terms"].load(self.at["k_terms"] + at, lanes))
                for i, vectors in enumerate(sums):
                    v["scores"].store(self.at["rows"] + i * self.stride + at, vectors[j] + term)

    def _numerators(self, first: Expr, extra_starts: Sequence[Expr]) -> None:
        """A block of rows of scores to numerators, their sums' terms and the rows' multipliers.

        One pass over all rows for the maxima, one for the numerators, one for the divisions: each is a chain of slow
        steps in a row, which the processor overlaps with those of the next rows.
        """
        v, plan = self.v, self.plan
        names = [n for n, on in (("mask", plan.masked), ("bias", plan.biased)) if on]

        def row(i: Expr) -> tuple[Expr, dict[str, Expr]]:
            extra = {n: bind(s + (first + i) * v[f"{n}_row"]) for n, s in zip(names, extra_starts)}
            return bind(self.at["rows"] + i * self.stride), extra

        tops, sums = local(plan.rows, "int32"), local(plan.rows, "int32")
        with T.serial(0, plan.rows) as i:
            tops.store(i, self._highest(*row(i)))
        with T.serial(0, plan.rows) as i:
            sums.store(i, self._weigh(*row(i), bind(tops.load(i))))
        if plan.uniform:
            with T.serial(0, plan.rows) as i, T.If(sums.load(i) == 0), T.Then():
                sums.store(i, self._weigh_alike(bind(self.at["rows"] + i * self.stride)))
        with T.serial(0, plan.rows) as i:
            row_sum, at = bind(sums.load(i)), self.at["row_terms"] + i
            v["ratios"].store(at, quotient(v["numerator"], row_sum))
            v["row_terms"].store(at, (0 - v["v_zero_point"]) * row_sum)

    def _each(self, visit: Callable[[Expr, Expr | None], None]) -> None:
        """Calls visit(start, which lanes exist or None for all) for the vectors of a row."""
        with exact_vectors(self.v["length"], self.width) as at:
            visit(at, None)
        at, exists = rest(self.v["length"], self.width)
        with T.If(at < self.v["length"]), T.Then():
            visit(at, exists)

    def _only(self, extra: dict[str, Expr], at: Expr, exists: Expr | None, value: Expr, other: int, dtype: str) -> Expr:
        """The lanes that exist and are not masked, `other` in their place."""
        n = self.width
        value = value if exists is None else select(exists, value, splat(other, dtype, n))
        if not self.plan.masked:
            return value
        keep = self.v["mask"].load(extra["mask"] + at, n) != splat(0, "int8", n)
        return select(keep, value, splat(other, dtype, n))

    def _highest(self, start: Expr, extra: dict[str, Expr]) -> Expr:
        v, n, lowest = self.v, self.width, RANGES["int32"][0]
        top = local(n, "int32")
        top.store(0, splat(lowest, "int32", n))

        def visit(at: Expr, exists: Expr | None) -> None:
            s = v["scores"].load(start + at, n)
            if self.plan.biased:
                s = pin(s + v["bias"].load(extra["bias"] + at, n))
                v["scores"].store(start + at, s)
            top.store(0, T.max(top.load(0, n), self._only(extra, at, exists, s, lowest, "int32")))

        self._each(visit)
        return across(top.load(0, n), T.max)

    def _weigh(self, start: Expr, extra: dict[str, Expr], highest: Expr) -> Expr:
        """Writes a row's numerators; their sum."""
        v, n, lanes = self.v, self.width, self.isa.byte_sum_lanes(self.width)
        top, total = bind(splat(highest, "int32", n)), local(lanes, "int32")
        total.store(0, splat(0, "int32", lanes))

        def visit(at: Expr, exists: Expr | None) -> None:
            weight = self.isa.lookup(v["table"], pin(self._exponent(top - v["scores"].load(start + at, n))))
            weight = pin(self._only(extra, at, exists, weight, 0, "uint8"))
            total.store(0, self.isa.add_bytes(total.load(0, lanes), weight))
            v["numerators"].store(start + at, flip(weight, "int8") if self.plan.signed else weight)

        self._each(visit)
        return across(total.load(0, lanes), add)

    def _weigh_alike(self, start: Expr) -> Expr:
        """Writes the largest numerator to all of a row; their sum."""
        v, largest = self.v, bind(self.v["table"].load(0))

        def visit(at: Expr, exists: Expr | None) -> None:
            weight = bind(splat(largest, "uint8", self.width))
            weight = weight if exists is None else bind(select(exists, weight, splat(0, "uint8", self.width)))
            v["numerators"].store(start + at, flip(weight, "int8") if self.plan.signed else weight)

        self._each(visit)
        return bind(T.cast(largest, "int32") * v["length"])

    def _exponent(self, distance: Expr) -> Expr:
        """t of the op's definition as uint8, from distances that fit 32 bits without sign."""
        n, v = self.width, self.v

        def const(value, dtype):
            return splat(value, dtype, n)

        d = cast(distance, "uint32")
        shift = const(v["score_shift"], "uint32")
        if self.plan.left:
            d = T.shift_left(T.min(d, const(v["score_limit"], "uint32")), shift)
        else:
            d = T.shift_right(d, shift)
        u = cast(pin(T.min(d, const(LARGEST_DISTANCE, "uint32"))), "int16")
        t = self.isa.mul_round(u, const(v["score_multiplier"], "int16"))
        return cast(T.min(t, const(255, "int16")), "uint8")

    def _values(self, row: Expr) -> None:
        """Numerators times v of a block of rows, divided and stored; `row` is the block's first row of the result."""
        plan, v, columns = self.plan, self.v, self.plan.columns[1]
        count = plan.values.rows
        with T.serial(0, ceil_div(T.int32(plan.rows), count)) as t:
            start = bind(T.min(t * count, T.int32(plan.rows - count)))
            rows = [bind(self.at["rows"] + (start + i) * self.stride) for i in range(count)]
            with T.serial(0, v["v_panels"]) as panel:
                sums = self._product(
                    plan.values,
                    v["numerators"],
                    rows,
                    v["packed_v"],
                    bind(self.at["packed_v"] + panel * self.v_panel),
                    self.v_groups,
                )
                lanes = columns // len(sums[0])
                cell = local(columns * count, "int32")  # the sums once, for whole and partial panels
                for i, vectors in enumerate(sums):
                    for j, vector in enumerate(vectors):
                        term = v["v_terms"].load(self.at["v_terms"] + panel * columns + j * lanes, lanes)
                        cell.store(i * columns + j * lanes, vector + term if plan.signed else vector)

                place = (bind(row + start), bind(panel * columns), self.at["row_terms"] + start)
                if plan.tail:
                    with T.If(panel < v["v_panels"] - 1):
                        with T.Then():
                            self._store(cell, count, *place, columns)
                        with T.Else():
                            self._store(cell, count, *place, plan.tail)
                else:
                    self._store(cell, count, *place, columns)

    def _store(self, cell: Pointer, count: int, row: Expr, column: Expr, at: Expr, valid: int) -> None:
        v, columns = self.v, self.plan.columns[1]
        for i in range(count):
            ratio, term = bind(v["ratios"].load(at + i)), bind(v["row_terms"].load(at + i))
            done = 0
            while done < valid:
                lanes = min(16, columns - done)
                while (columns - done) % lanes or lanes & (lanes - 1):
                    lanes -= 1
                o = bind(cell.load(i * columns + done, lanes) + splat(term, "int32", lanes))
                y = self.isa.saturate(
                    self.isa.rescale(o, splat(ratio, "int32", lanes), v["shift"]),
                    v["zero_point"],
                    v["qmin"],
                    v["qmax"],
                    self.plan.dtypes[3],
                )
                store_lanes(v["y"], bind((row + i) * v["e"] + column + done), y, min(lanes, valid - done))
                done += lanes
