"""Which machine instructions are floating-point: tables of mnemonics, per architecture, first match wins.

Three classes.  INTEGER: works on integers, addresses, flags.  MOVE: carries a floating-point name (`vmovaps`,
`fmov d0, d1`) but copies, shuffles, broadcasts or combines bits without looking at them as numbers; LLVM picks these
for integer vectors since they are shorter or run on a free port.  FLOAT: does floating-point arithmetic, comparison,
rounding or conversion, or sets its modes.

The lists are complete because the disassembler's own list is finite: what it cannot decode is refused, never skipped
(`proof.py`), and a test walks over every mnemonic it knows.
"""

import re
from enum import Enum


class Kind(Enum):
    """The class of an instruction."""

    INTEGER = "integer"
    MOVE = "data move"
    FLOAT = "floating-point"


def _words(*patterns: str) -> re.Pattern[str]:
    return re.compile("|".join(patterns))


_X86 = (
    (Kind.MOVE, _words(
        r"v?mov([aulh]|nt|hl|lh|msk)p[sd]", r"v?mov(ss|sd|ddup|s[hl]dup)", r"v?(and|andn|or|xor)p[sd]",
        r"v?(shuf|unpck[lh]|blend|blendv)p[sd]", r"vblendmp[sd]", r"v?(insert|extract)ps", r"vbroadcasts[sd]",
        r"v(broadcast|insert|extract)f\d+(x\d)?", r"vshuff(32x4|64x2)", r"vperm(il2?|i2|t2)?p[sd]", r"vperm2f128",
        r"vmaskmovp[sd]", r"v(compress|expand)p[sd]", r"v(gather|scatter)[dq]p[sd]",
        r"vtestp[sd]")),  # looks at sign bits only
    (Kind.FLOAT, _words(r"pf(?!.*etch).*", r"pi2f[dw]")),  # 3DNow!
    (Kind.INTEGER, _words(
        r"v?p.*",  # every SIMD integer instruction begins so, and push, pop, popcnt, pdep, pext, prefetch
        r"clflush", r"(lod|sto|sca|in|out)sd", r"lss", r"(inc|rd|wr|wru)ss[pd]?[dq]?")),  # names that end like floats
    (Kind.FLOAT, _words(
        r"f.*", r"wait", r"emms",  # x87 and what serves it
        r".*cvt.*", r".*([sp][sdh]|bf16)[xyz]?", r"vcmp", r"v?(ld|st)mxcsr")),
    (Kind.INTEGER, _words(r".*")),
)

_AARCH64 = (
    (Kind.MOVE, _words(r"fmov", r"fcsel", r"fdup", r"fcpy")),  # fmov of an immediate fills lanes with a bit pattern
    (Kind.FLOAT, _words(r"f.*", r"[su]cvtf", r"bf(?!(i|m|c|xil)$).*")),  # bfi, bfm, bfc, bfxil are bit fields
    (Kind.INTEGER, _words(r".*")),
)

TABLES = {"x86_64": _X86, "aarch64": _AARCH64}


def classify(arch: str, mnemonic: str) -> Kind:
    """The class of ``mnemonic`` (capstone's spelling, prefixes allowed) on 'x86_64' or 'aarch64'."""
    word = mnemonic.split()[-1].split(".")[0]
    return next(kind for kind, pattern in TABLES[arch] if pattern.fullmatch(word))
