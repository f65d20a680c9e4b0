"""Integer C code, as LLVM compiles it for every CPU, holds no float instruction and nothing that cannot be decoded.

Guards the tables of instructions against what LLVM really selects: moves and constants that go by float names.
"""

import io
from collections import Counter

import pytest
from elftools.elf.elffile import ELFFile
from qcompile.artifact.proof import disassemble
from qcompile.targets import ARCHITECTURES, TARGETS, get_target
from qcompile.targets.architecture import Kind
from sample_artifacts import c_object

LOOPS = [  # element type of a and b, of c, and c[i] of x = a[i] and y = b[i]
    ("int8_t", "int32_t", "x * y + c[i]"),
    ("int32_t", "int64_t", "(x * y + (1ll << 40)) >> 41"),
    ("int8_t", "int8_t", "x > y ? x : y"),
    ("int32_t", "int32_t", "x << (y & 31)"),
    ("int64_t", "int64_t", "x * y"),
    ("int32_t", "int32_t", "x / (y | 1)"),
    ("uint8_t", "uint8_t", "(x + y + 1) >> 1"),
    ("int8_t", "int8_t", "x == n ? y : x"),
    ("int32_t", "int32_t", "__builtin_popcount(x) - __builtin_clz(y | 1)"),
    ("int32_t", "int32_t", "(x ^ 0x40000000) + (y | 0x3f800000)"),  # the bit patterns of 2.0 and 1.0
    ("int32_t", "int32_t", "x > y ? 0x3f800000 : 0x40400000"),
    ("int64_t", "int64_t", "x < 0 ? -x : y >> 7"),
    ("uint32_t", "uint64_t", "x * y >> 32"),
    ("int16_t", "int32_t", "x * y > 32767 ? 32767 : x * y"),
]
SHAPES = """
int dot(const uint8_t *a, const int8_t *b, int n) { int s = 0; for (int i = 0; i < n; i++) s += a[i] * b[i]; return s; }
int dots(const int8_t *a, const int8_t *b, int n) { int s = 0; for (int i = 0; i < n; i++) s += a[i] * b[i]; return s; }
void turn(const int32_t *restrict a, int32_t *restrict b) {
    for (int i = 0; i < 16; i++) for (int j = 0; j < 16; j++) b[j * 16 + i] = a[i * 16 + j];
}
void table(const uint8_t *restrict a, const int8_t *t, int8_t *restrict b, int n) {
    for (int i = 0; i < n; i++) b[i] = t[a[i]];
}
void stride(const int32_t *restrict a, int32_t *restrict b, int n) {
    for (int i = 0; i < n; i++) b[i] = a[3 * i] + a[3 * i + 1] - a[3 * i + 2];
}
"""


def loop(index: int, source: str, result: str, value: str) -> str:
    parameters = f"const {source} *restrict a, const {source} *restrict b, {result} *restrict c, int n"
    return (
        f"void loop{index}({parameters}) {{\n"
        f"    for (int i = 0; i < n; i++) {{ {result} x = a[i], y = b[i]; c[i] = {value}; }}\n}}\n"
    )


@pytest.mark.parametrize("name", TARGETS)
def test_integer_loops_stay_integer(tmp_path, name):
    target = get_target(name)
    code = "#include <stdint.h>\n" + SHAPES + "".join(loop(i, *facts) for i, facts in enumerate(LOOPS))
    flags = target.clang + (["-mprefer-vector-width=512"] if target.arch == "x86_64" else [])
    elf = ELFFile(io.BytesIO(c_object(code, tmp_path, name, (*flags, "-Wno-sign-compare", "-O3"))))
    kinds = Counter({kind: 0 for kind in Kind})
    for section in elf.iter_sections():
        if section.name.startswith(".text"):
            for _, mnemonic, operands in disassemble(section.data(), 0, target.arch):
                kinds[kind := ARCHITECTURES[target.arch].classify(mnemonic)] += 1
                assert kind is not Kind.FLOAT, f"{mnemonic} {operands}"
    assert kinds[Kind.INTEGER] > 500 and kinds[Kind.MOVE] < 0.05 * kinds[Kind.INTEGER]
