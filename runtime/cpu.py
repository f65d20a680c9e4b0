"""Opens artifacts for CPUs: on this machine's own, or on an emulated one."""

from typing import Any

from qcompile.runtime.emulation import why_not_unicorn
from qcompile.runtime.errors import ArtifactError
from qcompile.runtime.library_info import check_library
from qcompile.runtime.manifest import CpuManifest
from qcompile.runtime.native import NativeEngine, why_not_native

BACKENDS = ("auto", "native", "unicorn", "qemu")


def open_engine(manifest: CpuManifest, threads: int, backend: str, core: str | None) -> Any:
    """The engine that ``load`` is asked for, once the library is known to be what the manifest says."""
    if backend not in BACKENDS:
        raise ArtifactError(f"unknown backend {backend!r}; known are {', '.join(BACKENDS)}")
    check_library(manifest)
    if backend == "auto":
        backend = _choose(manifest)
    if backend == "native":
        return NativeEngine(manifest, threads)
    if backend == "qemu":
        from qcompile.runtime.qemu_engine import QemuEngine

        return QemuEngine(manifest, core)
    reason = why_not_unicorn(manifest)
    if reason:
        raise ArtifactError(f"{manifest.folder} cannot be emulated: {reason}")
    from qcompile.runtime.unicorn_engine import UnicornEngine

    return UnicornEngine(manifest)


def _choose(manifest: CpuManifest) -> str:
    reasons = {"native": why_not_native(manifest)}
    if reasons["native"]:
        from qcompile.runtime.qemu_engine import why_not_qemu

        reasons |= {"unicorn": why_not_unicorn(manifest), "qemu": why_not_qemu(manifest)}
    usable = [backend for backend, reason in reasons.items() if reason is None]
    if not usable:
        why = "; ".join(dict.fromkeys(map(str, reasons.values())))
        raise ArtifactError(f"{manifest.folder} cannot run here: {why}")
    return usable[0]
