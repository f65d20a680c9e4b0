"""Which dot products an instruction set offers, best first."""

from __future__ import annotations

from qcompile.kernels.cpu.isa.dot import Dot
from qcompile.kernels.cpu.isa.dot_neon import Sdot, SdotDigits, Smmla, SmmlaDigits, Smull, SmullAny
from qcompile.kernels.cpu.isa.dot_x86 import VNNI_256, VNNI_256_DIGITS, VNNI_512, VNNI_512_DIGITS, Madd, MaddDigits

DOTS: dict[str, tuple[Dot, ...]] = {
    "avx512vnni": (VNNI_512,),
    "avx512vbmi": (VNNI_512,),
    "avxvnni": (VNNI_256,),
    "avx2": (Madd(),),
    "neon": (Smull(),),
    "neon_dotprod": (Sdot(),),
    "neon_i8mm": (Smmla(), Sdot()),
}
# both operands may be -128 anywhere
ACTIVATION_DOTS: dict[str, tuple[Dot, ...]] = DOTS | {"neon": (SmullAny(),)}
# weights are signed digits of 4 bits
DIGIT_DOTS: dict[str, tuple[Dot, ...]] = {
    "avx512vnni": (VNNI_512_DIGITS,),
    "avx512vbmi": (VNNI_512_DIGITS,),
    "avxvnni": (VNNI_256_DIGITS,),
    "avx2": (MaddDigits(),),
    "neon": (),
    "neon_dotprod": (SdotDigits(),),
    "neon_i8mm": (SmmlaDigits(), SdotDigits()),
}
