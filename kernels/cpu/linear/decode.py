"""Coded weights become bytes: whole panels on the stack, once for all the tiles that use them, or in registers, for
each tile."""

from __future__ import annotations

from collections.abc import Sequence

from qcompile.kernels.cpu.builder import Expr, Pointer, T, bind, cast, lanes_of, local, reinterpret, shuffle, splat
from qcompile.kernels.cpu.codes import UNIT, Code
from qcompile.kernels.cpu.isa.dot import Dot, Tile


def decode_panel(
    dot: Dot, code: Code, columns: int, w: Pointer, at: Expr, panel: Pointer, units: Expr, blocks: Expr
) -> None:
    """Writes the int8 weights of the panel at byte `at` of w (uint8, as `pack_codes` lays it out) to `panel`.

    units: of eight vectors, in each of `blocks` groups along K (of which there is one where the code has no groups).
    """
    size = dot.vector_bytes
    unit_bytes = UNIT * size * code.bits // 8
    if not code.group:
        middle = bind(splat(code.middle, "uint8", size))
        with T.serial(0, units) as unit:
            values = unit_vectors(code, size, w, bind(at + unit * unit_bytes))
            for i, u in enumerate(values):
                panel.store(unit * (UNIT * size) + i * size, reinterpret(u - middle, "int8", size))
        return
    vectors = columns * dot.group // size  # those of one group of the dot product have their own channels
    meta = bind(at + blocks * units * unit_bytes)
    shares = columns * (2 if code.zeros else 1)
    # products of two bytes of one channel at a time are right in 16 bits: each is a byte, and nothing is carried
    m_type = "uint8" if dot.multiplies_bytes else "uint16"
    with T.serial(0, blocks) as block:
        here = bind(meta + block * shares)
        multipliers = [bind(_shares(dot, w, here, j)) for j in range(vectors)]
        offsets = []
        for j, m in enumerate(multipliers):
            n = lanes_of(m)
            zero = bind(_shares(dot, w, here + columns, j)) if code.zeros else splat(code.middle, m_type, n)
            if m_type == "uint16":
                zero = zero * splat(257, m_type, n)
            offsets.append(bind(reinterpret(m * zero, "uint8", size)))
        with T.serial(0, units) as u:
            unit = bind(block * units + u)
            for i, value in enumerate(unit_vectors(code, size, w, bind(at + unit * unit_bytes))):
                m = multipliers[i % vectors]
                product = reinterpret(reinterpret(value, m_type, lanes_of(m)) * m, "uint8", size)
                panel.store(unit * (UNIT * size) + i * size, reinterpret(product - offsets[i % vectors], "int8", size))


def inline_sums(
    dot: Dot, code: Code, tile: Tile, w: Pointer, at: Expr, rows: Sequence[Pointer], units: Expr, blocks: Expr
) -> list[list[Expr]]:
    """The int32 sums [row][vector of channels] of a tile over the panel at byte `at`, decoded in registers.

    With u the code and z its zero, sum m (u - z) x = m (sum u x - z sum x) for each group along K. `rows` are of the
    pixels; accumulators in order; K is one run.
    """
    size, lanes = dot.vector_bytes, dot.lanes
    unit_bytes = UNIT * size * code.bits // 8
    n = tile.columns // lanes
    many = UNIT // n  # groups of the dot product in a unit
    narrow = Tile(tile.rows, lanes)
    tile = Tile(tile.rows, tile.columns, min(tile.split, many))
    ones = bind(splat(1, "int8", size))
    acc, pixel_sums = dot.start(tile), dot.start(narrow)
    total = local(tile.rows * tile.columns, "int32")

    def add_units(first: Expr) -> None:
        with T.serial(0, units) as u:
            unit = bind(first + u)
            vectors = [reinterpret(v, "int8", size) for v in unit_vectors(code, size, w, bind(at + unit * unit_bytes))]
            pixels = [row.moved(unit * (many * dot.group)) for row in rows]
            dot.step(tile, acc, pixels, vectors, many)
            dot.step(narrow, pixel_sums, pixels, [ones] * many, many)

    def sums(i: int, j: int, zero: Expr) -> Expr:
        return dot.total(tile, acc, i * n + j) - zero * dot.total(narrow, pixel_sums, i)

    middle = splat(code.middle, "int32", lanes)
    if not code.group:
        add_units(T.int32(0))
        return [[sums(i, j, middle) for j in range(n)] for i in range(tile.rows)]
    meta = bind(at + blocks * units * unit_bytes)
    shares = tile.columns * (2 if code.zeros else 1)
    cells = [(i, j) for i in range(tile.rows) for j in range(n)]
    for i, j in cells:
        total.store((i * n + j) * lanes, splat(0, "int32", lanes))
    with T.serial(0, blocks) as block:
        for sums_of in (acc, pixel_sums):
            count = tile.rows * (tile.columns * tile.split if sums_of is acc else lanes)
            for o in range(0, count, lanes):
                sums_of.store(o, splat(0, "int32", lanes))
        add_units(bind(block * units))
        here = bind(meta + block * shares)
        for j in range(n):
            m = bind(cast(w.load(here + j * lanes, lanes), "int32"))
            zero = bind(cast(w.load(here + tile.columns + j * lanes, lanes), "int32")) if code.zeros else middle
            for i in range(tile.rows):
                o = (i * n + j) * lanes
                total.store(o, total.load(o, lanes) + m * sums(i, j, zero))
    return [[total.load((i * n + j) * lanes, lanes) for j in range(n)] for i in range(tile.rows)]


def digit_sums(
    dot: Dot, code: Code, tile: Tile, w: Pointer, at: Expr, rows: Sequence[Pointer], units: Expr, blocks: Expr
) -> list[list[Expr]]:
    """The same where the codes of each group along K are signed digits, which need no zeros."""
    n, lanes = tile.columns // dot.lanes, dot.lanes
    many = min(dot.groups_a_step(tile), code.group // dot.group)
    packed = dot.packed_bytes(tile.columns)
    block_bytes = code.group // dot.group * packed
    bytes_of, meta = w.as_type("int8"), bind(at + blocks * block_bytes)
    acc, total = dot.start(tile), local(tile.rows * tile.columns, "int32")
    cells = [(i, j, (i * n + j) * lanes) for i in range(tile.rows) for j in range(n)]
    for _, _, o in cells:
        total.store(o, splat(0, "int32", lanes))
    with T.serial(0, blocks) as block:
        for o in range(0, tile.rows * tile.columns * tile.split, lanes):
            acc.store(o, splat(0, "int32", lanes))
        for step in range(0, code.group // dot.group, many):
            pixels = [row.moved(block * code.group + step * dot.group) for row in rows]
            dot.step(tile, acc, pixels, bytes_of.moved(at + block * block_bytes + step * packed), many)
        here = bind(meta + block * tile.columns)
        multipliers = [bind(cast(w.load(here + j * lanes, lanes), "int32")) for j in range(n)]
        for i, j, o in cells:
            total.store(o, total.load(o, lanes) + multipliers[j] * dot.total(tile, acc, i * n + j))
    return [[total.load((i * n + j) * lanes, lanes) for j in range(n)] for i in range(tile.rows)]


def unit_vectors(code: Code, size: int, w: Pointer, at: Expr) -> list[Expr]:
    """Eight vectors of u, as uint8."""
    values: list[Expr] = []
    shift, begin = 0, 0
    for width in code.planes:
        count = UNIT * width // 8
        stored = [bind(w.load(at + (begin + i) * size, size)) for i in range(count)]
        begin += count
        for i in range(UNIT):
            place = i % (8 // width) * width
            piece = stored[i * width // 8]
            if place:
                piece = T.shift_right(piece, splat(place, "uint8", size))
            if place + width < 8:
                piece = T.bitwise_and(piece, splat((1 << width) - 1, "uint8", size))
            if shift:
                values[i] = values[i] + T.shift_left(piece, splat(shift, "uint8", size))
            else:
                values.append(piece)
        shift += width
    return [bind(v) for v in values]


def _shares(dot: Dot, w: Pointer, at: Expr, vector: int) -> Expr:
    """Bytes of the channels in a vector, each over the lanes of its weights: of 8 bits, or of 16 where bytes cannot be
    multiplied."""
    channels = dot.vector_bytes // dot.group
    repeat = dot.group if dot.multiplies_bytes else dot.group // 2
    found = bind(w.load(at + vector * channels, channels))  # a shuffle may not give more lanes than it is given
    spread = shuffle([found] * repeat, [c for c in range(channels) for _ in range(repeat)])
    return spread if dot.multiplies_bytes else cast(spread, "uint16")
