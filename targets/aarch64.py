"""The architecture of 64-bit ARM."""

from qcompile.targets.architecture import Architecture, Kind, words

_INSTRUCTIONS = (
    (Kind.MOVE, words(r"fmov", r"fcsel", r"fdup", r"fcpy")),  # fmov of an immediate fills lanes with a bit pattern
    (Kind.FLOAT, words(r"f.*", r"[su]cvtf", r"bf(?!(i|m|c|xil)$).*")),  # bfi, bfm, bfc, bfxil are bit fields
    (Kind.INTEGER, words(r".*")),
)

AARCH64 = Architecture("aarch64", "EM_AARCH64", ("CS_ARCH_ARM64", "CS_MODE_ARM"), _INSTRUCTIONS, 5.0)
