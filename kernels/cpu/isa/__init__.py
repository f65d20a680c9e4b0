"""Instruction sets: what kernels ask of them (`base`), and how each answers (`x86`, `neon`).

All that is true of a set stands in its class: which targets have it, how it rescales and looks up, and its dot products
(`dot_x86`, `dot_neon`, `taps_x86`, `taps_neon`).
"""

from __future__ import annotations

from qcompile.kernels.cpu.isa import neon, x86
from qcompile.kernels.cpu.isa.base import Isa
from qcompile.targets.errors import CompileError
from qcompile.targets.target import CpuTarget

ISAS: tuple[Isa, ...] = (*x86.ISAS, *neon.ISAS)


def get_isa(target: CpuTarget) -> Isa:
    """The best instruction set whose features the target has; CompileError where there is none."""
    for isa in ISAS:
        if isa.arch == target.arch and isa.features <= target.features:
            return isa
    features = ", ".join(sorted(target.features))
    raise CompileError(f"target {target.name}: no kernels for an instruction set of {target.arch} with {features}")


__all__ = ["ISAS", "Isa", "get_isa"]
