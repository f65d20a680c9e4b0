"""x86-64 CPUs: one line each.  8-bit activations are u8, since ``vpdpbusd`` multiplies u8 by s8."""

from qcompile.targets.target import CpuTarget

KB, MB = 1024, 1024 * 1024

AVX2 = frozenset({"avx2"})
AVX_VNNI = AVX2 | {"avxvnni"}
AVX512_VNNI = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"}
AVX512_VBMI = AVX512_VNNI | {"avx512vbmi"}

# what x86-64-v3 and x86-64-v4 promise to LLVM, so the machine must have it whether the kernels use it or not
V3_FLAGS = ("avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe")
V4_FLAGS = (*V3_FLAGS, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


def _x86(
    name: str,
    mcpu: str,
    mattr: tuple[str, ...],
    features: frozenset[str],
    flags: tuple[str, ...],
    l1: int,
    l2: int,
    l3: int,
) -> CpuTarget:
    return CpuTarget(name, "x86_64", mcpu, l1, l2, l3, mattr, features, flags, unsigned_activations=True)


# Best first: `host` takes the first entry that the machine can run.
TARGETS = (
    # Ice Lake, Zen 4 and later: byte permutes across the register
    _x86(
        "x86-avx512vbmi",
        "x86-64-v4",
        ("+avx512vnni", "+avx512vbmi"),
        AVX512_VBMI,
        (*V4_FLAGS, "avx512_vnni", "avx512vbmi"),
        32 * KB,
        1 * MB,
        32 * MB,
    ),
    # Cascade Lake and later
    _x86(
        "x86-avx512vnni",
        "x86-64-v4",
        ("+avx512vnni",),
        AVX512_VNNI,
        (*V4_FLAGS, "avx512_vnni"),
        32 * KB,
        1 * MB,
        32 * MB,
    ),
    # Alder Lake, Zen 5 without AVX-512
    _x86("x86-avxvnni", "x86-64-v3", ("+avxvnni",), AVX_VNNI, (*V3_FLAGS, "avx_vnni"), 48 * KB, 1280 * KB, 24 * MB),
    # Haswell, Zen 1 and later: vpmovsxbw + vpmaddwd
    _x86("x86-avx2", "x86-64-v3", (), AVX2, V3_FLAGS, 32 * KB, 256 * KB, 8 * MB),
)
