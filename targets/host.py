"""Which entry of the tables this machine is."""

import platform
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from qcompile.targets.target import CpuTarget

CPUINFO = Path("/proc/cpuinfo")
_ARCH_NAMES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


@cache
def host_arch() -> str:
    """'x86_64', 'aarch64', or what the operating system calls anything else."""
    machine = platform.machine().lower()
    return _ARCH_NAMES.get(machine, machine)


@cache
def host_flags() -> frozenset[str]:
    """CPU flags that every core of this machine has, as Linux spells them; empty where there is no /proc/cpuinfo."""
    cores = re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", _cpuinfo(), re.MULTILINE)
    return frozenset.intersection(*(frozenset(core.split()) for core in cores)) if cores else frozenset()


@cache
def host_parts() -> tuple[str, ...]:
    """'implementer:part' of each ARM core, as '0x41:0xd0b'."""
    text = _cpuinfo()
    return tuple(
        f"{implementer}:{part}"
        for implementer, part in zip(
            re.findall(r"^CPU implementer\s*:\s*(\S+)", text, re.MULTILINE),
            re.findall(r"^CPU part\s*:\s*(\S+)", text, re.MULTILINE),
            strict=False,
        )
    )


def supports(target: CpuTarget) -> bool:
    """True where this machine can run the target's code itself, without emulation."""
    return platform.system() == "Linux" and host_arch() == target.arch and host_flags().issuperset(target.cpuinfo_flags)


def best_entry(entries: Iterable[CpuTarget]) -> CpuTarget | None:
    """The entry for this machine: that of its biggest core's part number, else the first it can run."""
    runnable = [entry for entry in entries if supports(entry)]
    big_core = host_parts()[-1:]  # Linux lists the big cores last
    own = [entry for entry in runnable if set(big_core) & set(entry.cpu_parts)]
    return next(iter(own or runnable), None)


def _cpuinfo() -> str:
    try:
        return CPUINFO.read_text(errors="replace")
    except OSError:
        return ""
