"""Libraries that break a promise are refused, with the instruction or symbol named."""

import io
from dataclasses import replace

import pytest
from elftools.elf.elffile import ELFFile
from qcompile.artifact import build_artifact, prove
from qcompile.artifact.linker import exported_symbols, link_library
from qcompile.runtime.toolchain import compile_c, link
from qcompile.targets import CompileError, get_target
from sample_artifacts import MULTIPLY, build_multiply, multiply_spec

HEAD = (
    "#include <stdint.h>\nint32_t qc_main(const void *const *in, void *const *out, uint8_t *arena, "
    "const uint8_t *weights);\nint32_t qc_main(const void *const *in, void *const *out, uint8_t *arena, "
    "const uint8_t *weights) { (void)in, (void)out, (void)arena, (void)weights; "
)


def asm_model(instruction: str) -> str:
    return HEAD + f'__asm__ volatile("{instruction}"); return 0; }}\n'


@pytest.mark.parametrize(
    ("target", "instruction"),
    [
        ("x86-avx2", "addps %xmm0, %xmm1"),
        ("x86-avx2", "vcvtdq2ps %ymm0, %ymm1"),
        ("x86-avx2", "ucomisd %xmm0, %xmm1"),
        ("x86-avx2", "vfmadd231ps %ymm0, %ymm1, %ymm2"),
        ("x86-avx2", "fldpi"),
        ("x86-avx2", "cvttss2si %xmm0, %eax"),
        ("x86-avx2", "vroundps $0, %ymm0, %ymm1"),
        ("x86-avx512vnni", "vcmpltps %zmm0, %zmm1, %k1"),
        ("x86-avx512vnni", "vrndscaleps $0, %zmm0, %zmm1"),
        ("x86-avx2", "vmaxps %ymm0, %ymm1, %ymm2"),
        ("arm-a53", "fadd v0.4s, v1.4s, v2.4s"),
        ("arm-a53", "scvtf s0, w1"),
        ("arm-a53", "fcvtzs w0, s1"),
        ("arm-a53", "fcmp d0, d1"),
        ("arm-a53", "fmla v0.4s, v1.4s, v2.s[1]"),
        ("arm-a53", "frintn s0, s1"),
    ],
)
def test_float_instruction_is_refused_by_name(tmp_path, target, instruction):
    flags = ("-mavx512f", "-mfma") if target.startswith("x86") else ()
    with pytest.raises(CompileError, match=rf"'{instruction.split()[0]} .* in qc_main"):
        build_multiply(tmp_path, target, asm_model(instruction), flags)
    assert not (tmp_path / "build").exists(), "nothing is left behind"


@pytest.mark.parametrize(
    ("target", "instruction"),
    [
        ("x86-avx2", "vmovaps %ymm0, %ymm1"),
        ("x86-avx2", "vbroadcastss %xmm0, %ymm1"),
        ("x86-avx2", "vxorps %xmm0, %xmm0, %xmm0"),
        ("x86-avx2", "vinsertf128 $1, %xmm0, %ymm1, %ymm2"),
        ("x86-avx2", "vshufps $0, %ymm0, %ymm1, %ymm2"),
        ("arm-a53", "fmov x0, d1"),
        ("arm-a53", "fmov v0.4s, #2.0"),
    ],
)
def test_moves_of_bits_are_allowed_and_counted(tmp_path, target, instruction):
    flags = ("-mavx2",) if target.startswith("x86") else ()
    before = build_multiply(tmp_path / "none", target, asm_model("nop"), flags).proof
    proof = build_multiply(tmp_path / "one", target, asm_model(instruction), flags).proof
    assert proof.data_moves == before.data_moves + 1
    assert proof.float_instructions == 0 and proof.instructions == before.instructions


@pytest.mark.parametrize("target", ["x86-avx2", "arm-a76"])
def test_undefined_symbol_is_refused_by_name(tmp_path, target):
    source = "int tanhf_table(int);\n" + HEAD + "return tanhf_table(3); }\n"
    with pytest.raises(CompileError, match="undefined symbols: tanhf_table"):
        build_multiply(tmp_path, target, source)


def test_code_without_main_or_for_another_cpu_is_refused(tmp_path):
    with pytest.raises(CompileError, match="does not define qc_main"):
        build_multiply(tmp_path, "host", "int other(void);\nint other(void) { return 1; }\n")
    spec = multiply_spec(tmp_path / "arm", "arm-a76")
    with pytest.raises(CompileError, match="object file 0 is for aarch64"):
        build_artifact(replace(spec, target=get_target("x86-avx2")), tmp_path)
    with pytest.raises(CompileError, match="object file 0 is not an ELF file"):
        build_artifact(replace(spec, objects=[b"junk" * 99]), tmp_path)


@pytest.mark.parametrize(
    ("source", "flags", "fault"),
    [
        (MULTIPLY, ("-z", "max-page-size=4096"), "16 KiB"),
        ("int *slot; int extra(void);\nint extra(void) { return *slot; }\n" + MULTIPLY, (), "exports"),
        (
            "static __thread int local; int tls(void);\nint tls(void) { return local++; }\n" + MULTIPLY,
            (),
            "thread-local",
        ),
        (
            "extern int outside; int use(void);\nint use(void) { return outside; }\n" + MULTIPLY,
            ("--allow-shlib-undefined", "-z", "undefs"),
            "undefined symbols: outside",
        ),
    ],
)
def test_library_that_does_not_stand_alone_is_refused(tmp_path, source, flags, fault):
    tmp_path.joinpath("m.c").write_text(source.replace("int extra", '__attribute__((visibility("default"))) int extra'))
    compile_c(tmp_path, "m.c", "m.o", "aarch64-linux-gnu", ("-fvisibility=default", "-ftls-model=local-dynamic"))
    page = () if "-z" in flags and "max-page-size=4096" in flags else ("-z", "max-page-size=16384")
    link(tmp_path, "-shared", "-nostdlib", *page, *flags, "-o", "m.so", "m.o")
    with pytest.raises(CompileError, match=fault):
        prove((tmp_path / "m.so").read_bytes(), "aarch64", [])


@pytest.mark.parametrize("target", ["host", "arm-a53", "arm-a710", "x86-avxvnni"])
def test_sound_library_passes(tmp_path, target):
    spec = multiply_spec(tmp_path, target)
    library, _ = link_library(spec)
    proof = prove(library, spec.target.arch, exported_symbols("multiply"))
    assert 30 < proof.instructions < 1000 and proof.code_bytes > 100
    rodata = ELFFile(io.BytesIO(library)).get_section_by_name(".rodata")
    assert rodata["sh_addralign"] % 64 == 0 and spec.weights in rodata.data()
