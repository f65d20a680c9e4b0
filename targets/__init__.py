"""Facts about machines: a table of CPUs, one line to add one (`x86.py`, `arm.py`)."""

import re
from dataclasses import replace

from qcompile.targets import arm, x86
from qcompile.targets.aarch64 import AARCH64
from qcompile.targets.architecture import Architecture
from qcompile.targets.errors import CompileError, Defect
from qcompile.targets.host import best_entry, supports
from qcompile.targets.target import CpuTarget, Target
from qcompile.targets.x86_64 import X86_64

TARGETS: dict[str, CpuTarget] = {target.name: target for target in (*x86.TARGETS, *arm.TARGETS)}
ARCHITECTURES: dict[str, Architecture] = {architecture.name: architecture for architecture in (X86_64, AARCH64)}

__all__ = [
    "ARCHITECTURES",
    "TARGETS",
    "Architecture",
    "CompileError",
    "CpuTarget",
    "Defect",
    "Target",
    "get_target",
    "supports",
    "target_names",
]


def target_names() -> list[str]:
    """Names that `get_target` takes, aliases aside."""
    return [*TARGETS, "host"]


def get_target(name: str) -> CpuTarget:
    """The CPU called ``name``; ``host`` is this machine, and ``cortex-a76`` or ``arm-cortex-a76`` mean ``arm-a76``.

    Raises CompileError for a name not in the table, and for ``host`` on a machine that is none of them.
    """
    key = re.sub(r"^(arm-)?cortex-", "arm-", str(name).strip().lower().replace("_", "-"))
    if key == "host":
        entry = best_entry(TARGETS.values())
        if entry is None:
            raise CompileError(
                "this machine is none of the CPUs that qcompile knows (x86 needs AVX2, ARM needs 64-bit Linux); "
                f"name one with --target: {', '.join(TARGETS)}"
            )
        return replace(entry, name="host", cpu=entry.name)
    if key not in TARGETS:
        raise CompileError(f"unknown target {name!r}; known targets are {', '.join(target_names())}")
    return TARGETS[key]
