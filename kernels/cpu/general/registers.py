"""Elements rearranged in registers: several vectors in, as many out."""

from __future__ import annotations

from collections.abc import Sequence

from qcompile.kernels.cpu.builder import Expr, bind, lanes_of, shuffle
from qcompile.kernels.cpu.isa import Isa
from qcompile.kernels.cpu.isa.taps import QUARTER


def permuted_lanes(isa: Isa, itemsize: int) -> int:
    """Elements of the vectors that any permutation rearranges in few instructions: a whole register of AVX-512, where
    it has a permutation of such elements; else 16 bytes."""
    whole = isa.lanes == 16 and (itemsize > 1 or isa.table_width > 1)
    return (4 * isa.lanes if whole else QUARTER) // itemsize


def interleave(rows: Sequence[Expr]) -> list[Expr]:
    """Vectors that hold, one after the other, the first element of each row, then the second of each, ..."""
    n, lanes = len(rows), lanes_of(rows[0])
    if n & (n - 1):
        order = [r * lanes + i for i in range(lanes) for r in range(n)]
        return [_select(rows, order[at : at + lanes]) for at in range(0, n * lanes, lanes)]
    return interleave_blocks(rows, lanes)


def separate(parts: Sequence[Expr]) -> list[Expr]:
    """The reverse of `interleave`: vector r holds elements r, r + n, r + 2n, ... of the n parts one after the other."""
    n, lanes = len(parts), lanes_of(parts[0])
    if n & (n - 1):
        return [_select(parts, [i * n + r for i in range(lanes)]) for r in range(n)]
    parts = list(parts)
    for _ in range(n.bit_length() - 1):
        parts = [
            _select(parts[2 * i : 2 * i + 2], [2 * k + odd for k in range(lanes)])
            for odd in (0, 1)
            for i in range(n // 2)
        ]
    return parts


def _select(parts: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    return bind(shuffle(list(parts), list(lanes)))


def interleave_blocks(rows: Sequence[Expr], size: int) -> list[Expr]:
    """A power of two of vectors, each block of `size` elements interleaved with those of the other vectors at its place
    alone: with `size` vectors every such square of elements is transposed."""
    n, whole = len(rows), lanes_of(rows[0])
    pairs = [s * whole + i for i in range(size) for s in (0, 1)]
    halves = [[at + e for at in range(0, whole, size) for e in half] for half in (pairs[:size], pairs[size:])]
    rows = list(rows)
    for _ in range(n.bit_length() - 1):  # each round makes the highest bit of a row's number the lowest of its place
        rows = [_select([rows[i], rows[i + n // 2]], half) for i in range(n // 2) for half in halves]
    return rows


__all__ = ["QUARTER", "interleave", "interleave_blocks", "permuted_lanes", "separate"]
