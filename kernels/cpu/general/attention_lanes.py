"""The attention kernel that keeps queries in lanes: maxima, sums and divisions of rows take no step across lanes.

Scores are made transposed, keys by queries: the keys are read as they lie, a block of queries is packed for the dot
products. Four keys' numerators of a query are then neighbouring bytes, which is how the second product wants them:
values (packed four keys at a time) by numerators, transposed again when it is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qcompile.kernels.arithmetic import RANGES
from qcompile.kernels.cpu.builder import (
    Expr,
    Pointer,
    T,
    bind,
    concat,
    extract,
    flip,
    local,
    reinterpret,
    splat,
)
from qcompile.kernels.cpu.general.common import across, add, ceil_div, lane_numbers, loop, pin, select
from qcompile.kernels.cpu.general.division import quotient
from qcompile.kernels.cpu.isa import Isa
from qcompile.kernels.cpu.isa.dot import Dot, Tile
from qcompile.kernels.cpu.linear.repack import interleave

KEYS = 4  # that share a group of bytes
CHUNK = 16  # bytes of a row that are packed at a time, and queries that are weighed at a time


@dataclass(frozen=True)
class Plan:
    """What the code depends on. scores: tile of keys by queries; values: of columns of v by queries; dtypes: q, k
    (native), v, y; mask: "", "keys" (the same for all queries) or "full"."""

    isa: Isa
    dot: Dot
    scores: Tile
    values: Tile
    dtypes: tuple[str, str, str, str]
    mask: str
    biased: bool
    left: bool  # distances are shifted left
    uniform: bool  # queries without unmasked keys weigh all alike
    centred: bool  # q's zero point is that of its signed codes
    parallel: bool

    @property
    def queries(self) -> int:
        return self.scores.columns

    @property
    def native(self) -> str:
        return self.dtypes[1]

    def scratch(self, length: Any, d: Any, e: Any) -> dict[str, tuple[str, Any]]:
        """name -> (dtype, elements) of the memory that a task needs; sizes are numbers, or those of the kernel."""

        def up(size, by):
            return (size + (by - 1)) // by * by if isinstance(size, int) else ceil_div(size, by) * by

        n, keys, columns = self.queries, up(length, KEYS), up(e, CHUNK)
        return {
            "packed_q": ("int8", up(d, CHUNK) * n),
            "scores": ("int32", keys * n),
            "weights": ("int8", keys * n),
            "packed_v": (self.native, keys * columns),
            "v_terms": ("int32", columns),
            "k_terms": ("int32", keys),
            "keep": ("int32", keys),
            "results": (self.dtypes[3], e * n),
        }

    @property
    def family(self) -> str:
        return "_".join(["attention_lanes", *(f"{t.rows}x{t.columns}" for t in (self.scores, self.values))])


class Body:
    """Emission of one kernel; `v` holds its parameters by name."""

    def __init__(self, plan: Plan, v: dict[str, Any]) -> None:
        self.plan, self.v, self.isa, self.dot = plan, v, plan.isa, plan.dot

    def emit(self) -> None:
        v = self.v
        block = bind(ceil_div(v["heads"], v["tasks"]))
        with loop(v["tasks"], self.plan.parallel) as task, T.serial(0, T.min(block, v["heads"] - task * block)) as h:
            self._head(bind(task * block + h), task)

    def _head(self, head: Expr, task: Expr) -> None:
        v, n = self.v, self.plan.queries
        extras = [name for name, on in (("mask", self.plan.mask), ("bias", self.plan.biased)) if on]
        names = ["q", "k", "v", *extras]
        self.start = {s: bind(v["starts"].load(head * len(names) + i)) for i, s in enumerate(names)}
        self.key_groups = bind(ceil_div(v["length"], KEYS))
        self.byte_groups = bind(ceil_div(v["d"], self.dot.group))
        self.width = bind(ceil_div(v["e"], CHUNK) * CHUNK)
        sizes = self.plan.scratch(v["length"], v["d"], v["e"])
        self.at = {name: bind(task * (ceil_div(size, CHUNK) * CHUNK)) for name, (_, size) in sizes.items()}
        self._pack_values()
        self._keep_keys()
        if not self.plan.centred:
            self._sum_keys()
        with T.serial(0, ceil_div(v["m"], n)) as t:
            first = bind(T.min(t * n, v["m"] - n))
            self._pack_queries(first)
            tops = self._scores(first)
            ratios, terms = self._weigh(first, tops)
            self._values(ratios, terms)
            self._store(bind(head * v["m"] + first))

    # ---- operands
    def _pack_values(self) -> None:
        """[groups of keys][columns][KEYS] in native bytes, zeros for keys past the end, and 128 times their sums."""
        v, native = self.v, self.plan.native
        with T.serial(0, T.truncdiv(self.width, T.int32(CHUNK))) as c:
            column = bind(c * CHUNK)
            sums = local(CHUNK, "int32")
            sums.store(0, splat(0, "int32", CHUNK))

            def group(g: Expr, whole: bool, column: Expr = column, sums: Pointer = sums) -> None:
                rows = []
                for i in range(KEYS):
                    key = bind(g * KEYS + i)
                    place = key if whole else T.min(key, v["length"] - 1)
                    row = self._native(v["v"].load(self.start["v"] + place * v["e"] + column, CHUNK))
                    if not whole:
                        mask = T.Select(key < v["length"], T.int32(-1), T.int32(0))
                        row = T.bitwise_and(row, splat(mask, native, CHUNK))
                    rows.append(bind(row))
                zipped = bind(interleave(rows))
                v["packed_v"].store(self.at["packed_v"] + (g * self.width + column) * KEYS, zipped)
                sums.store(0, self.isa.add_groups(sums.load(0, CHUNK), zipped))

            whole = bind(T.truncdiv(v["length"], T.int32(KEYS)))
            with T.serial(0, whole) as g:
                group(g, True)
            with T.If(whole < self.key_groups), T.Then():
                group(whole, False)
            v["v_terms"].store(self.at["v_terms"] + column, sums.load(0, CHUNK) * splat(128, "int32", CHUNK))

    def _native(self, x: Expr) -> Expr:
        dtype = self.plan.native
        return x if str(x.ty).startswith(dtype) else flip(x, dtype)

    def _keep_keys(self) -> None:
        """For each group of keys four bytes: -1 where the key exists and is not masked, 0 elsewhere."""
        v = self.v
        if self.plan.mask == "full":
            return
        with T.serial(0, self.key_groups) as g:
            at = bind(g * KEYS)
            none, all_ = splat(0, "int8", KEYS), splat(-1, "int8", KEYS)
            bits = select(lane_numbers(KEYS) < bind(splat(v["length"] - at, "int32", KEYS)), all_, none)
            if self.plan.mask:
                bits = select(v["mask"].load(self.start["mask"] + at, KEYS) != none, bits, none)
            v["keep"].store(self.at["keep"] + g, reinterpret(bits, "int32", 1))

    def _sum_keys(self) -> None:
        """What q's zero point takes from the scores of each key, KEYS at a time; the last begin early."""
        v, words = self.v, CHUNK // 4
        with T.serial(0, self.key_groups) as g:
            key = bind(T.max(T.min(g * KEYS, v["length"] - KEYS), T.int32(0)))
            sums = [local(words, "int32") for _ in range(KEYS)]
            for total in sums:
                total.store(0, splat(0, "int32", words))
            with T.serial(0, ceil_div(v["d"], CHUNK)) as c:
                at = bind(c * CHUNK)
                exists = lane_numbers(CHUNK) < bind(splat(v["d"] - at, "int32", CHUNK))
                for i, total in enumerate(sums):
                    x = v["k"].load(self.start["k"] + (key + i) * v["d"] + at, CHUNK)
                    x = bind(select(exists, x, splat(0, self.plan.native, CHUNK)))
                    total.store(0, self.isa.add_groups(total.load(0, words), x))
            parts = bind(interleave([total.load(0, words) for total in sums]))
            whole = _tree(add, [extract(parts, at, KEYS) for at in range(0, words * KEYS, KEYS)])
            v["k_terms"].store(self.at["k_terms"] + key, whole * splat(0 - v["q_zero_point"], "int32", KEYS))

    def _pack_queries(self, first: Expr) -> None:
        """[groups of bytes][queries][4] of a block of queries, signed, zeros past the end of a row."""
        v, n = self.v, self.plan.queries
        words, part = CHUNK // 4, min(CHUNK, n)
        with T.serial(0, ceil_div(v["d"], CHUNK)) as c, T.serial(0, n // part) as p:
            at = bind(c * CHUNK)
            exists = lane_numbers(CHUNK) < bind(splat(v["d"] - at, "int32", CHUNK))
            rows = []
            for i in range(part):
                row = v["q"].load(self.start["q"] + (first + p * part + i) * v["d"] + at, CHUNK)
                row = row if self.plan.dtypes[0] == "int8" else flip(row, "int8")
                row = select(exists, bind(row), splat(0, "int8", CHUNK))
                rows.append(bind(reinterpret(row, "int32", words)))
            zipped = bind(interleave(rows))
            for w in range(words):
                place = self.at["packed_q"] + ((c * words + w) * n + p * part) * 4
                v["packed_q"].store(place, reinterpret(extract(zipped, w * part, part), "int8", 4 * part))

    # ---- scores
    def _scores(self, first: Expr) -> Pointer:
        """Scores [keys][queries] with the terms of q's zero point and the bias; the highest of each query."""
        v, plan, n, lanes = self.v, self.plan, self.plan.queries, self.dot.lanes
        tile, lowest = plan.scores, RANGES["int32"][0]
        tops = local(n, "int32")
        for j in range(0, n, lanes):
            tops.store(j, splat(lowest, "int32", lanes))
        with T.serial(0, ceil_div(v["length"], tile.rows)) as t:
            key = bind(T.min(t * tile.rows, v["length"] - tile.rows))
            rows = [bind(self.start["k"] + (key + i) * v["d"]) for i in range(tile.rows)]
            rows = [v["k"].pointed(r) if self.dot.row_pointers else v["k"].moved(r) for r in rows]
            acc, many = self.dot.start(tile), self.dot.unroll

            def step(g: Expr, count: int, rows: Sequence[Pointer] = rows, acc: Pointer = acc) -> None:
                panel = v["packed_q"].moved(bind(self.at["packed_q"] + g * (4 * n)))
                self.dot.step(tile, acc, [r.moved(g * 4) for r in rows], panel, count)

            whole = bind(T.truncdiv(self.byte_groups, T.int32(many)))
            with T.serial(0, whole) as s:
                step(bind(s * many), many)
            if many > 1:
                with T.serial(whole * many, self.byte_groups) as s:
                    step(s, 1)
            sums = self.dot.finish(tile, acc)
            if not plan.centred:
                terms = [bind(v["k_terms"].load(self.at["k_terms"] + key + i)) for i in range(tile.rows)]
                sums = [[s + splat(t, "int32", lanes) for s in row] for row, t in zip(sums, terms)]
            place = bind(self.at["scores"] + key * n)
            for j in range(n // lanes):
                vectors = [row[j] for row in sums]
                if plan.biased:
                    base = self.start["bias"] + first + j * lanes
                    vectors = [s + v["bias"].load(base + (key + i) * v["m"], lanes) for i, s in enumerate(vectors)]
                vectors = [bind(s) for s in vectors]
                for i, s in enumerate(vectors):
                    v["scores"].store(place + (i * n + j * lanes), s)
                if not plan.mask:
                    tops.store(j * lanes, _tree(T.max, [tops.load(j * lanes, lanes), *vectors]))
        if plan.mask:
            self._masked_tops(first, tops)
        return tops

    def _masked_tops(self, first: Expr, tops: Pointer) -> None:
        n, lanes = self.plan.queries, self.dot.lanes
        with T.serial(0, self.key_groups) as g:
            for j in range(0, n, lanes):
                keep, highest = self._kept(g, first + j, lanes), [tops.load(j, lanes)]
                for i in range(KEYS):
                    s = self.v["scores"].load(self.at["scores"] + (g * KEYS + i) * n + j, lanes)
                    kept = T.bitwise_and(keep, splat(T.int32(_signed(0xFF << 8 * i)), "int32", lanes))
                    lowest = splat(RANGES["int32"][0], "int32", lanes)
                    highest.append(select(kept != splat(0, "int32", lanes), s, lowest))
                tops.store(j, _tree(T.max, highest))

    def _kept(self, g: Expr, query: Expr, lanes: int) -> Expr:
        """Four bytes for each query: -1 where it sees the key."""
        v = self.v
        if self.plan.mask == "full":
            place = self.start["mask"] + (g * v["m"] + query) * KEYS
            return bind(reinterpret(v["mask"].load(place, KEYS * lanes), "int32", lanes))
        return bind(splat(v["keep"].load(self.at["keep"] + g), "int32", lanes))

    # ---- numerators
    def _weigh(self, first: Expr, tops: Pointer) -> tuple[Pointer, Pointer]:
        """Writes the signed numerators [groups of keys][queries][KEYS]; each query's multiplier, and v's zero point
        times its sum."""
        v, n = self.v, self.plan.queries
        part = min(CHUNK, n)
        ratios, terms = local(n, "int32"), local(n, "int32")
        for j in range(0, n, part):
            total, top = local(part, "int32"), bind(tops.load(j, part))
            total.store(0, splat(0, "int32", part))
            with T.serial(0, self.key_groups) as g:
                at = bind(self.at["scores"] + g * (KEYS * n) + j)
                distances = [self._shifted(top - v["scores"].load(at + i * n, part)) for i in range(KEYS)]
                t = pin(self.isa.scaled_groups(distances, v["score_multiplier"]))
                kept = reinterpret(self._kept(g, first + j, part), "uint8", KEYS * part)
                p = pin(T.bitwise_and(self.isa.lookup(v["table"], t), kept))
                total.store(0, self.isa.add_groups(total.load(0, part), p))
                v["weights"].store(self.at["weights"] + (g * n + j) * KEYS, flip(p, "int8"))
            if self.plan.uniform:
                self._weigh_alike(j, part, total)
            terms.store(j, total.load(0, part) * splat(0 - v["v_zero_point"], "int32", part))
            ratios.store(j, total.load(0, part))
        with T.serial(0, n) as i:
            ratios.store(i, quotient(v["numerator"], bind(ratios.load(i))))
        return ratios, terms

    def _weigh_alike(self, first: int, part: int, total: Pointer) -> None:
        """Gives the largest numerator to all keys of those queries whose numerators add up to 0."""
        v, n, zero = self.v, self.plan.queries, splat(0, "int32", part)
        none = bind(select(total.load(0, part) == zero, splat(-1, "int32", part), zero))
        with T.If(across(none, T.min) < 0), T.Then():
            largest = bind(splat(v["table"].load(0), "uint8", KEYS))
            with T.serial(0, self.key_groups) as g:
                exist = lane_numbers(KEYS) < bind(splat(v["length"] - g * KEYS, "int32", KEYS))
                word = reinterpret(bind(select(exist, largest, splat(0, "uint8", KEYS))), "int32", 1)
                place = bind(self.at["weights"] + (g * n + first) * KEYS)
                weights = reinterpret(flip(v["weights"].load(place, KEYS * part), "uint8"), "int32", part)
                weights = T.bitwise_or(weights, T.bitwise_and(none, splat(word, "int32", part)))
                v["weights"].store(place, flip(reinterpret(bind(weights), "uint8", KEYS * part), "int8"))
            every = splat(T.cast(v["table"].load(0), "int32") * v["length"], "int32", part)
            total.store(0, bind(select(none == zero, total.load(0, part), every)))

    def _shifted(self, distance: Expr) -> Expr:
        """u of the op's definition, int32, not yet limited where a saturation follows."""
        v, n = self.v, min(CHUNK, self.plan.queries)
        shift = splat(v["score_shift"], "int32", n)
        if self.plan.left:
            return bind(T.shift_left(T.min(distance, splat(v["score_limit"], "int32", n)), shift))
        return bind(T.shift_right(distance, shift))

    # ---- result
    def _values(self, ratios: Pointer, terms: Pointer) -> None:
        """Results [columns of v][queries]."""
        v, plan, n, tile = self.v, self.plan, self.plan.queries, self.plan.values
        with T.serial(0, ceil_div(v["e"], tile.rows)) as t:
            column = bind(T.min(t * tile.rows, v["e"] - tile.rows))
            acc = self.dot.start(tile)
            with T.serial(0, self.key_groups) as g:
                base = bind(self.at["packed_v"] + (g * self.width + column) * KEYS)
                rows = [v["packed_v"].moved(base + i * KEYS) for i in range(tile.rows)]
                self.dot.step(tile, acc, rows, v["weights"].moved(bind(self.at["weights"] + g * (KEYS * n))), 1)
            for i, vectors in enumerate(self.dot.finish(tile, acc)):
                term = splat(bind(v["v_terms"].load(self.at["v_terms"] + column + i)), "int32", n)
                sums = bind(concat(vectors) + terms.load(0, n) + term)
                y = self.isa.rescale(sums, ratios.load(0, n), v["shift"])
                y = self.isa.saturate(bind(y), v["zero_point"], v["qmin"], v["qmax"], plan.dtypes[3])
                v["results"].store(self.at["results"] + (column + i) * n, y)

    def _store(self, row: Expr) -> None:
        """Results [columns of v][queries] as rows of y."""
        v, n = self.v, self.plan.queries
        part = min(CHUNK, n)

        def block(column: Expr, columns: int, p: Expr) -> None:
            vectors = [
                bind(v["results"].load(self.at["results"] + (column + i) * n + p * part, part)) for i in range(columns)
            ]
            rows = bind(interleave(vectors))
            for q in range(part):
                place = (row + p * part + q) * v["e"] + column
                v["y"].store(place, extract(rows, q * columns, columns))

        done: Expr = T.int32(0)
        for columns in (CHUNK, 4, 1):
            count = bind(T.truncdiv(v["e"] - done, T.int32(columns)))
            with T.serial(0, count) as c, T.serial(0, n // part) as p:
                block(bind(done + c * columns), columns, p)
            done = bind(done + count * columns)


def _tree(operation: Callable[[Expr, Expr], Expr], values: Sequence[Expr]) -> Expr:
    values = list(values)
    while len(values) > 1:
        pairs = [bind(operation(a, b)) for a, b in zip(values[::2], values[1::2])]
        values = pairs + values[len(values) & ~1 :]
    return values[0]


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word
