"""The lowering, from the float graph with Q/DQ pairs to nodes that kernels run. Read it top to bottom.

    integerize             Relax with quantize/dequantize -> integer program; every rounding is decided here
    tidy                   reshapes out of the way of fusion, dead nodes dropped
    unsigned_activations   targets with unsigned dot products only: int8 activations become uint8, same numbers
    merge_groups           grouped convolutions with few channels a group become ones of fewer groups
    fold_pixels            convolutions to few channels compute neighbouring pixels as channels
    fuse                   an op and the elementwise ops after it become one node
    frames                 images that are read with padding are made with it

After `tidy` the program is what the artifact means on every target (`Model.reference` runs it); the later passes
choose how.
"""

from __future__ import annotations

from collections.abc import Callable

from qcompile.kernels.cpu.chain import fusable
from qcompile.kernels.cpu.linear.conv import framable
from qcompile.kernels.program import Program
from qcompile.passes.fold_pixels import fold_pixels
from qcompile.passes.frames import frames
from qcompile.passes.fuse import fuse
from qcompile.passes.merge_groups import merge_groups
from qcompile.passes.storage import unsigned_activations
from qcompile.passes.tidy import tidy
from qcompile.targets import Target

Pass = Callable[[Program, Target], Program]

CPU_PASSES: list[tuple[str, Pass]] = [
    ("unsigned_activations", lambda p, t: unsigned_activations(p) if t.unsigned_activations else p),
    ("merge_groups", merge_groups),
    ("fold_pixels", fold_pixels),
    ("fuse", lambda p, t: fuse(p, fusable)),
    ("frames", lambda p, t: frames(p, framable)),
]

__all__ = ["CPU_PASSES", "Pass", "tidy"]
