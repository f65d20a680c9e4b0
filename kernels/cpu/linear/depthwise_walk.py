"""How depthwise kernels walk over an image: which axis is zipped, and how many outputs a pass computes.

Input positions along one axis, the zip axis, are zipped by channel, a group (of four, or of two) at a time. An output
that begins inside a group uses it with its weights moved by as many taps, zeros where it has none, so all outputs of a
pass share the groups. For 3x3 with stride 1 a group of four rows serves two output rows and three output columns. Which
axis and how many outputs: `choose_walk`, by counting.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from qcompile.kernels.cpu.isa.taps import TapDot

STAGED_TAPS = 16
UNROLLED_DOTS = 640
MOST_DOTS = 1536  # that a kernel writes out: more take LLVM many seconds
STAGE_BYTES = 1 << 15
MOST_FOLDED = 8
EPILOGUE_COST = 18.0  # instructions of the vector units to rescale an output, as many as dot products


@dataclass(frozen=True)
class Axis:
    """One axis of the window; `outputs` of a pass lie next to each other along it."""

    kernel: int
    stride: int
    dilation: int
    outputs: int = 1

    @property
    def positions(self) -> list[int]:
        """Input positions that the outputs of a pass read."""
        return sorted({o * self.stride + t * self.dilation for o in range(self.outputs) for t in range(self.kernel)})

    def reads(self, output: int) -> list[int]:
        return [output * self.stride + t * self.dilation for t in range(self.kernel)]

    @property
    def span(self) -> int:
        """Positions, `dilation` apart, that cover the outputs of a pass."""
        return (self.outputs - 1) * self.stride // self.dilation + self.kernel

    def groups(self, size: int) -> int:
        """Aligned groups of `size` positions that cover the outputs of a pass."""
        return -(-self.span // size)

    def moved(self, output: int) -> int:
        """The position, `dilation` apart, where an output begins."""
        return output * self.stride // self.dilation

    def used(self, output: int, size: int) -> list[int]:
        """The groups that one output reads."""
        first = self.moved(output)
        return list(range(first // size, (first + self.kernel - 1) // size + 1))


@dataclass(frozen=True)
class Walk:
    """What the code depends on: both axes, whether rows or columns are zipped, channels of a block that exist.

    fold: neighbouring pixels of a row that are seen as one with so many times the channels, which fill the blocks; its
    taps then lie less than a pixel apart. arranged: constants lie as accumulators do. stage: bytes on the stack for a
    block's part of a line, 0: it is read where it is. Taps of a long line that lie a large power of two apart would
    push each other out of the cache. whole: a pass is a whole line of outputs.
    """

    zipped: Axis
    other: Axis
    rows: bool  # the zip axis runs down the rows
    valid: int
    fold: int = 1
    arranged: bool = False
    stage: int = 0
    whole: bool = False
    parallel: bool = False

    @property
    def lines(self) -> Axis:
        return self.zipped if self.rows else self.other

    @property
    def columns(self) -> Axis:
        return self.other if self.rows else self.zipped

    @property
    def pieces(self) -> int:
        """Loads for a block: those of folded pixels that are no neighbours are put together."""
        return self.fold if self.columns.stride > self.fold else 1

    def dots(self, dot: TapDot) -> int:
        """Dot products of a pass."""
        used = sum(len(self.zipped.used(o, dot.group)) for o in range(self.zipped.outputs))
        return dot.units * used * self.other.outputs * self.other.kernel

    def loops(self, dot: TapDot) -> bool:
        """The taps along the other axis are a loop."""
        return self.other.outputs == 1 and self.dots(dot) > UNROLLED_DOTS

    def written(self, dot: TapDot) -> int:
        """Dot products that the code writes out."""
        return self.dots(dot) // self.other.kernel if self.loops(dot) else self.dots(dot)

    def panels(self, dot: TapDot) -> tuple[dict[tuple[int, int], int], int]:
        """Where the weights of (output along the zip axis, group) lie, and the bytes of all, for one tap of the other
        axis. Outputs that begin at the same place of a group share them."""
        z, at = self.zipped, dict[int, int]()
        found = {}
        for j in range(z.outputs):
            for g in z.used(j, dot.group):
                found[j, g] = at.setdefault(z.moved(j) - g * dot.group, len(at) * dot.group * dot.block)
        return found, len(at) * dot.group * dot.block

    def gathers(self, dot: TapDot) -> bool:
        """All groups that an output column needs stay in registers until its last one is there."""
        kept = self.other.kernel * self.zipped.groups(dot.group) * dot.group
        return kept + dot.units * self.zipped.outputs <= dot.registers

    def cost(self, dot: TapDot, sizes: tuple[int, int]) -> float:
        """Vector instructions per useful output of an image with sizes = outputs along (zip axis, other axis)."""
        passes = -(-sizes[0] // self.zipped.outputs) * -(-sizes[1] // self.other.outputs)
        zips = (dot.zips + dot.group * (self.pieces - 1)) * self.zipped.groups(dot.group) * len(self.other.positions)
        outputs = self.zipped.outputs * self.other.outputs
        return passes * (zips + self.dots(dot) + EPILOGUE_COST * dot.units / 4 * outputs) / (sizes[0] * sizes[1])

    def fits(self, dot: TapDot) -> bool:
        z, o = self.zipped, self.other
        if z.outputs > 1 and z.stride % z.dilation:
            return False
        if self.gathers(dot):
            return z.outputs * o.outputs <= 2 * dot.widest
        return dot.units * z.outputs * o.outputs <= dot.registers - dot.group


def choose_walk(
    dot: TapDot,
    kernel: tuple[int, int],
    strides: tuple[int, int],
    dilations: tuple[int, int],
    out: tuple[int, int],
    channels: int,
    folds: bool = False,
) -> Walk:
    """The walk of least cost among those whose code stays short; kernel ... out: (rows, columns); folds: whether pixels
    may be folded."""
    best: tuple[tuple[int, float], Walk] | None = None
    for fold in _folds(dot, channels, out[1]) if folds else [1]:
        lanes, share = channels * fold, _share(dot, channels * fold)
        if fold > 1 and strides[1] > 1 and lanes != dot.block:
            continue
        steps = strides[0], strides[1] * fold
        for z in (0, 1):
            whole = out[0], out[1] // fold
            sizes = whole[z], whole[1 - z]
            for p in range(1, min(dot.longest, sizes[0]) + 1):
                for c in range(1, min(dot.widest, sizes[1]) + 1):
                    zipped, other = (Axis(kernel[a], steps[a], dilations[a], n) for a, n in ((z, p), (1 - z, c)))
                    walk = Walk(zipped, other, rows=z == 0, valid=min(lanes, dot.block), fold=fold)
                    if walk.fits(dot) or p == c == 1:
                        cost = max(walk.written(dot), MOST_DOTS), share * walk.cost(dot, sizes)
                        if best is None or cost < best[0]:
                            best = cost, walk
    assert best
    return best[1]


def _folds(dot: TapDot, channels: int, width: int) -> list[int]:
    """Pixels that may be folded: each number that leaves fewer lanes unused than those before it."""
    found, best = list[int](), 2.0 * dot.block
    for fold in range(1, min(width, MOST_FOLDED) + 1):
        share = _share(dot, channels * fold)
        if share < best:
            found, best = [*found, fold], share
    return found


def _share(dot: TapDot, channels: int) -> float:
    """Lanes that are computed for each that counts. Whole accumulators that nobody stores are not computed."""
    step = dot.lanes if channels < dot.block and dot.order is None else dot.block
    return -(-channels // step) * step / channels


def stage_bytes(walk: Walk, dot: TapDot, width: int) -> int:
    """`Walk.stage` for lines of `width` pixels; powers of two, so that layers share kernels."""
    size = 1 << (width * dot.block - 1).bit_length()
    long = not walk.rows and walk.fold == walk.other.kernel == 1 and walk.zipped.kernel >= STAGED_TAPS
    return size if dot.stages and long and size <= STAGE_BYTES else 0


def first_channels(channels: int, block: int) -> list[int]:
    """Where each block of channels begins: the last one early, rather than being short."""
    return [max(0, min(b, channels - block)) for b in range(0, channels, block)]


def block_channels(channels: int, walk: Walk, dot: TapDot) -> np.ndarray:
    """int [blocks, block]: the channel in each lane of each block."""
    firsts = first_channels(channels * walk.fold, dot.block)
    return (np.array(firsts)[:, None] + np.arange(dot.block)) % channels


def pack_taps(taps: np.ndarray, walk: Walk, dot: TapDot) -> np.ndarray:
    """int8 [C, KZ, KO] -> for each block and tap along the other axis, the weights of `Walk.panels`."""
    z, (panels, total), parts = walk.zipped, walk.panels(dot), []
    for lanes in block_channels(len(taps), walk, dot):
        block = taps[lanes]
        for t in range(walk.other.kernel):
            part = np.zeros(total, np.int8)
            for (o, g), at in panels.items():
                moved = np.zeros((dot.block, z.groups(dot.group) * dot.group), np.int8)
                moved[:, z.moved(o) : z.moved(o) + z.kernel] = block[:, :, t]
                packed = dot.pack(moved[:, g * dot.group : (g + 1) * dot.group]).ravel()
                part[at : at + packed.size] = packed
            parts.append(part)
    return np.concatenate(parts)
