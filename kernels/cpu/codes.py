"""Codes of a few bits for weights: how an int8 constant is stored in half its bytes or less, found from its values.

A weight is w = multiplier * (u - zero), u of `bits` bits; multiplier and zero are shared by `group` neighbours along K,
or are 1 and the middle of the range for all. So the numpy meaning of a layer stays that of int8 weights, and any model
whose weights have this form, whatever wrote it, is stored this way.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WIDTHS = (2, 3, 4)
GROUPS = (128, 64, 32)
MULTIPLIER_LIMIT = 18  # 7 * 18 is the largest int8 of digits
TABLE_LIMIT = 255  # where products are of 16 bits
SAMPLE = 64  # groups that are looked at before all are
PLANES = (4, 2, 1)  # widths that pieces of u are stored in
UNIT = 8  # vectors that are decoded together: whole bytes of each plane


@dataclass(frozen=True)
class Code:
    """u has `bits` bits; group: elements of K with their own multiplier, 0: all have 1; zeros: and their own zero;
    digits: 4 bits with |u - zero| < 8, which may be kept as signed digits."""

    bits: int
    group: int = 0
    zeros: bool = False
    digits: bool = False

    @property
    def middle(self) -> int:
        """The zero of codes that have none of their own. With it u * multiplier is a byte: 14 * 18 = 252."""
        return (1 << (self.bits - 1)) - (self.digits and self.group > 0)

    @property
    def planes(self) -> list[int]:
        """Widths whose sum is `bits`."""
        return [p for p in PLANES if self.bits & p]


@dataclass(frozen=True)
class Coded:
    """values uint8 [..., run]: u; multipliers and zeros uint8 [..., run / group], None without groups."""

    code: Code
    values: np.ndarray
    multipliers: np.ndarray | None = None
    zeros: np.ndarray | None = None

    def part(self, index: int | slice) -> Coded:
        """Of the first axis."""
        rest = (None if a is None else a[index] for a in (self.multipliers, self.zeros))
        return Coded(self.code, self.values[index], *rest)

    def decoded(self) -> np.ndarray:
        """The integers that are stored, int16."""
        if not self.code.group:
            return self.values.astype(np.int16) - self.code.middle
        shape = (*self.values.shape[:-1], -1, self.code.group)
        zeros = self.code.middle if self.zeros is None else self.zeros.astype(np.int16)[..., None]
        multipliers = self.multipliers.astype(np.int16)[..., None]  # type: ignore[union-attr]
        w = multipliers * (self.values.reshape(shape).astype(np.int16) - zeros)
        return w.reshape(self.values.shape)


def find_code(weights: np.ndarray) -> Coded | None:
    """The shortest code of int8 weights [..., run], None where they need all their bits."""
    if not weights.size:
        return None
    low, high = int(weights.min()), int(weights.max())
    for bits in WIDTHS:
        middle = 1 << (bits - 1)
        if -middle <= low and high < middle:
            code = Code(bits, digits=bits == 4 and -middle < low)
            return Coded(code, (weights.astype(np.int16) + middle).astype(np.uint8))
    for group in GROUPS:
        found = factor(weights, group, MULTIPLIER_LIMIT)
        if found:
            return found
    return None


def common_factor(weights: np.ndarray) -> int:
    """The greatest common divisor of int8 weights where a code of 4 bits holds their quotients, but none holds them;
    else 1.

    Weights of few bits on a finer grid, so that their bias is not rounded to a coarse one.
    """
    sizes = np.abs(weights.astype(np.int16)).reshape(-1)
    if not sizes.size or sizes.max() <= 7 or np.gcd.reduce(sizes[: 32 * SAMPLE]) == 1:
        return 1
    factor = max(int(np.gcd.reduce(sizes)), 1)
    return factor if weights.min() >= -8 * factor and weights.max() <= 7 * factor else 1


def find_table_code(table: np.ndarray) -> Coded | None:
    """The code of a table [rows, size] of int8 or int16, in groups along its rows with multipliers of a byte."""
    found = (factor(table, group, TABLE_LIMIT) for group in GROUPS)
    return next((f for f in found if f and not f.code.zeros), None)


def factor(weights: np.ndarray, group: int, limit: int) -> Coded | None:
    """[..., run] in groups of so many neighbours as 4-bit codes with multipliers up to `limit`; None if one cannot."""
    run = weights.shape[-1]
    if run % group or not weights.size:
        return None
    blocks = weights.reshape(-1, group)
    if _factor(blocks[:SAMPLE], limit) is None:
        return None
    found = _factor(blocks, limit)
    if found is None:
        return None
    values, multipliers, zeros, least = found
    own = least is None
    shape = (*weights.shape[:-1], run // group)
    return Coded(
        Code(4, group, own, digits=least == -7),
        values.reshape(weights.shape),
        multipliers.reshape(shape),
        zeros.reshape(shape) if own else None,
    )


def _factor(blocks: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int | None] | None:
    """Rows of integers as (u, multiplier, zero) of 4 bits each, and the least u - zero where one zero serves all rows;
    None if a row has no such form."""
    low, high = (f(blocks, 1).astype(np.int32) for f in (np.min, np.max))
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    common = np.gcd.reduce(np.abs(blocks.astype(np.int32)), 1)
    # the largest divisor of what all have in common that is a multiplier: no other can fit where it does not
    multiplier = np.zeros(len(blocks), np.int32)
    multiplier[common == 0] = 1
    for part in range(1, 16):
        fits = (common % part == 0) & (common // part <= limit) & (multiplier == 0)
        multiplier[fits] = common[fits] // part
    if not multiplier.all():
        return None
    for least in (-7, -8, None):  # None: a zero for each row
        fits = (low >= least * multiplier) & (high <= 7 * multiplier) if least else high - low <= 15 * multiplier
        if least == -8 and limit == MULTIPLIER_LIMIT:
            fits &= multiplier <= 16  # 15 * 18 is no byte
        if fits.all():
            zeros = np.full(len(blocks), -least, np.int32) if least else -low // multiplier
            values = blocks // multiplier[:, None] + zeros[:, None]
            return values.astype(np.uint8), multiplier.astype(np.uint8), zeros.astype(np.uint8), least
    return None


def encode(panel: np.ndarray, code: Code, vector: int) -> np.ndarray:
    """The bytes of a panel of u (uint8, as the tiles want them), for vectors of so many bytes.

    Eight vectors at a time, the last ones filled up: each plane in turn, lowest bits first, of which every vector holds
    8 / width neighbouring ones, the first in the lowest bits.
    """
    whole = np.full(-(-panel.size // (UNIT * vector)) * UNIT * vector, code.middle, np.uint8)
    whole[: panel.size] = panel
    units = whole.reshape(-1, UNIT, vector)
    parts, shift = [], 0
    for width in code.planes:
        piece = (units >> shift) & ((1 << width) - 1)
        shared = piece.reshape(len(units), UNIT * width // 8, 8 // width, vector)
        places = (np.arange(8 // width, dtype=np.uint8) * width)[:, None]
        parts.append(np.bitwise_or.reduce(shared << places, 2))
        shift += width
    return np.concatenate(parts, 1).reshape(-1)


def encode_digits(panel: np.ndarray, vector: int) -> np.ndarray:
    """A panel of int8 in [-7, 7] as signed digits: byte = 16 * (odd vector) + even vector."""
    pairs = panel.reshape(-1, 2, vector).astype(np.int16)
    return (16 * pairs[:, 1] + pairs[:, 0]).astype(np.int8).reshape(-1)
