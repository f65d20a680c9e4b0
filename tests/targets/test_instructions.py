"""The tables of instructions, walked over every mnemonic that the disassembler knows."""

import re

import capstone
import pytest
from qcompile.artifact.proof import disassemble
from qcompile.targets import ARCHITECTURES, CompileError
from qcompile.targets.architecture import Kind

ENGINES = {a.name: capstone.Cs(*(getattr(capstone, n) for n in a.disassembler)) for a in ARCHITECTURES.values()}
# Every operation on floating-point numbers that either instruction set names
ARITHMETIC = {
    "x86_64": re.compile(
        r"v?(add|sub|mul|div|sqrt|rsqrt|rcp|min|max|round|hadd|hsub|addsub|dp|u?comi|cmp)(14|28)?[ps][sdh]|"
        r"v?fn?m(add|sub).*|v?cvt.*|v(fixup|getexp|getmant|range|reduce|rndscale|scalef|fpclass).*"
    ),
    "aarch64": re.compile(
        r"f(add|sub|mul|div|abs|neg|sqrt|cmp|cvt|madd|mla|mls|max|min|rint|recp|rsqrt).*|[us]cvtf|bf(dot|mmla|cvt|mlal).*"
    ),
}
INTEGER = {
    "x86_64": "mov movzx movsx lea add sub imul mul div shl sar shrx bextr pdep popcnt jmp jne call ret push pop nop "
    "cmovge setg vpdpbusd vpmaddwd vpmaddubsw vpmovsxbw pmulhrsw vpabsd vpmaxsd vpminsd vpermb vpermt2d "
    "vpternlogd vpsrlvd vzeroupper vmovdqu64 vinserti128 kmovq kunpckwd lodsd clflush prefetcht0 endbr64 "
    "vpcmpltub vpblendvb vgf2p8affineqb rep stosd",
    "aarch64": "add sub mul madd sdiv ldr str ldp stp b.ne cbz bfi bfxil bfm csel sdot udot usdot smmla ummla sqdmulh "
    "sqrdmulh sqrshrn sqxtn saddlp sadalp smull2 tbl zip1 dup mov movi mvni umov smov cnt addv urecpe "
    "ret bti",
}


def all_mnemonics(arch: str) -> list[str]:
    return [name for name in (ENGINES[arch].insn_name(i) for i in range(1, 4096)) if name]


@pytest.mark.parametrize("arch", ENGINES)
def test_every_float_operation_is_float(arch):
    names = [name for name in all_mnemonics(arch) if ARITHMETIC[arch].fullmatch(name)]
    assert len(names) > 60
    assert [name for name in names if ARCHITECTURES[arch].classify(name) is not Kind.FLOAT] == []


@pytest.mark.parametrize("arch", ENGINES)
def test_moves_and_integers_are_not_float(arch):
    assert [name for name in INTEGER[arch].split() if ARCHITECTURES[arch].classify(name) is not Kind.INTEGER] == []
    moves = {name for name in all_mnemonics(arch) if ARCHITECTURES[arch].classify(name) is Kind.MOVE}
    assert moves and not {name for name in moves if ARITHMETIC[arch].fullmatch(name)}


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("c4e26d50d9", 1),  # vpdpbusd ymm3, ymm2, ymm1
        ("c4421d51eb", 1),  # vpdpbusds ymm13, ymm12, ymm11
        ("c4e26d501c88", 1),  # vpdpbusd ymm3, ymm2, [rax + 4*rcx]
        ("c4e26d505c2440c4e26d50d9", 2),  # [rsp + 64], then another
        ("c4e26d501d00010000c3", 2),  # [rip + 256]; ret
        ("c4e26d509800100000c3", 2),  # [rax + 4096]; ret
        ("c4e26d501c250000000090", 2),
    ],
)  # [absolute]; nop
def test_avx_vnni_is_stepped_over_exactly(code, count):
    found = list(disassemble(bytes.fromhex(code), 0x1000, "x86_64"))
    assert len(found) == count
    assert all(ARCHITECTURES["x86_64"].classify(mnemonic) is Kind.INTEGER for _, mnemonic, _ in found)


@pytest.mark.parametrize(
    ("arch", "code"),
    [
        ("x86_64", "90c4e26d4dd9"),
        ("x86_64", "06"),
        ("x86_64", "c4e26d50"),
        ("aarch64", "ffffffff"),
        ("aarch64", "1f2003d500"),
    ],
)
def test_what_cannot_be_decoded_is_refused(arch, code):
    with pytest.raises(CompileError, match="no instruction that the disassembler knows"):
        list(disassemble(bytes.fromhex(code), 0, arch))
