"""Instruction sets: what kernels ask of them (`base`), and how each answers (`x86`, `neon`)."""

from __future__ import annotations

from qcompile.kernels.cpu.isa.base import Isa
from qcompile.kernels.cpu.isa.neon import Neon, NeonDotprod, NeonI8mm
from qcompile.kernels.cpu.isa.x86 import Avx2, Avx512, Avx512Vbmi, AvxVnni
from qcompile.targets.target import Target

ISAS: dict[str, Isa] = {
    isa.name: isa for isa in (Avx2(), AvxVnni(), Avx512(), Avx512Vbmi(), Neon(), NeonDotprod(), NeonI8mm())
}


def get_isa(target: Target) -> Isa:
    """The instruction set that kernels for this target use."""
    return ISAS["avx512vbmi" if "avx512vbmi" in target.features else target.isa]


__all__ = ["ISAS", "Isa", "get_isa"]
