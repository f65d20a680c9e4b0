"""The architecture x86-64."""

from qcompile.targets.architecture import Architecture, Kind, words

_INSTRUCTIONS = (
    (
        Kind.MOVE,
        words(
            r"v?mov([aulh]|nt|hl|lh|msk)p[sd]",
            r"v?mov(ss|sd|ddup|s[hl]dup)",
            r"v?(and|andn|or|xor)p[sd]",
            r"v?(shuf|unpck[lh]|blend|blendv)p[sd]",
            r"vblendmp[sd]",
            r"v?(insert|extract)ps",
            r"vbroadcasts[sd]",
            r"v(broadcast|insert|extract)f\d+(x\d)?",
            r"vshuff(32x4|64x2)",
            r"vperm(il2?|i2|t2)?p[sd]",
            r"vperm2f128",
            r"vmaskmovp[sd]",
            r"v(compress|expand)p[sd]",
            r"v(gather|scatter)[dq]p[sd]",
            r"vtestp[sd]",
        ),
    ),  # looks at sign bits only
    (Kind.FLOAT, words(r"pf(?!.*etch).*", r"pi2f[dw]")),  # 3DNow!
    (
        Kind.INTEGER,
        words(
            r"v?p.*",  # every SIMD integer instruction begins so, and push, pop, popcnt, pdep, pext, prefetch
            r"clflush",
            r"(lod|sto|sca|in|out)sd",
            r"lss",
            r"(inc|rd|wr|wru)ss[pd]?[dq]?",
        ),
    ),  # names that end like floats
    (
        Kind.FLOAT,
        words(
            r"f.*",
            r"wait",
            r"emms",  # x87 and what serves it
            r".*cvt.*",
            r".*([sp][sdh]|bf16)[xyz]?",
            r"vcmp",
            r"v?(ld|st)mxcsr",
        ),
    ),
    (Kind.INTEGER, words(r".*")),
)


def _avx_vnni_length(code: bytes) -> int:
    """Bytes of a VEX-coded vpdpbusd, vpdpbusds, vpdpwssd or vpdpwssds at the start of ``code``, else 0.

    Capstone 5 knows only their EVEX forms.  VEX.66.0F38.W0 50..53 /r: Intel SDM volume 2, VPDPBUSD.
    """
    if len(code) < 5 or code[0] != 0xC4 or code[1] & 0x1F != 2 or code[2] & 0x83 != 1 or not 0x50 <= code[3] <= 0x53:
        return 0
    mod, rm = code[4] >> 6, code[4] & 7
    has_sib = mod != 3 and rm == 4
    if has_sib and len(code) < 6:
        return 0
    no_base = mod == 0 and (code[5] & 7 if has_sib else rm) == 5
    return 5 + has_sib + (4 if no_base else {0: 0, 1: 1, 2: 4, 3: 0}[mod])


X86_64 = Architecture("x86_64", "EM_X86_64", ("CS_ARCH_X86", "CS_MODE_64"), _INSTRUCTIONS, 14.0, _avx_vnni_length)
