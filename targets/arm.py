"""64-bit ARM CPUs: one line each.  SVE is never used, since phones switch it off; NEON is the same everywhere."""

from qcompile.targets.target import CpuTarget

KB, MB = 1024, 1024 * 1024

FLAGS = {"neon": "asimd", "dotprod": "asimddp", "i8mm": "i8mm"}  # features as /proc/cpuinfo calls them
NEON = frozenset({"neon"})
DOTPROD = NEON | {"dotprod"}
I8MM = DOTPROD | {"i8mm"}


def _arm(
    name: str,
    features: frozenset[str],
    mcpu: str,
    l1: int,
    l2: int,
    l3: int,
    parts: tuple[str, ...] = (),
    mattr: tuple[str, ...] = (),
    emulation: str = "max",
) -> CpuTarget:
    flags = tuple(flag for feature, flag in FLAGS.items() if feature in features)
    return CpuTarget(name, "aarch64", mcpu, l1, l2, l3, mattr, features, flags, cpu_parts=parts, emulation=emulation)


# Best first: `host` takes the entry of the machine's own part number, else the first entry that it can run.
TARGETS = (
    _arm("arm-a710", I8MM, "cortex-a710", 64 * KB, 512 * KB, 8 * MB, ("0x41:0xd47",), ("-sve", "-sve2")),
    _arm("arm-x1", DOTPROD, "cortex-x1", 64 * KB, 1 * MB, 8 * MB, ("0x41:0xd44",)),
    # an ELF library like the others (Linux on Apple hardware); Mach-O is not written
    _arm("apple-m1", DOTPROD, "apple-m1", 128 * KB, 12 * MB, 8 * MB, ("0x61:0x022", "0x61:0x023")),
    _arm("arm-a78", DOTPROD, "cortex-a78", 64 * KB, 512 * KB, 4 * MB, ("0x41:0xd41",)),
    _arm(
        "arm-a76",
        DOTPROD,
        "cortex-a76",
        64 * KB,
        512 * KB,
        2 * MB,
        ("0x41:0xd0b", "0x41:0xd0c"),
        emulation="cortex-a76",
    ),
    _arm("arm-a55", DOTPROD, "cortex-a55", 32 * KB, 128 * KB, 1 * MB, ("0x41:0xd05",), emulation="cortex-a55"),
    _arm("arm-a72", NEON, "cortex-a72", 32 * KB, 1 * MB, 0, ("0x41:0xd08",), emulation="cortex-a72"),
    _arm("arm-a53", NEON, "cortex-a53", 32 * KB, 512 * KB, 0, ("0x41:0xd03",), emulation="cortex-a53"),
)
