"""The lowering, from the float graph with Q/DQ pairs to nodes that kernels run. Read it top to bottom.

    integerize             Relax with quantize/dequantize -> integer program; every rounding is decided here
    tidy                   reshapes out of the way of fusion, dead nodes dropped

After `tidy` the program is what the artifact means on every target (`Model.reference` runs it). What follows is for a
kind of machine, chooses how, and is listed by its backend (`compiler/backends`): passes of this folder, one a file.
"""

from qcompile.passes.tidy import tidy

__all__ = ["tidy"]
