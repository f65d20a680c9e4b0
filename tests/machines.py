"""What this machine can run: the one place that tests ask, so that what is not there is skipped by its name."""

import pytest
from qcompile.runtime.qemu_engine import qemu_program
from qcompile.targets import Target, supports

NO_QEMU = "qemu-aarch64 is not installed"
needs_qemu = pytest.mark.skipif(qemu_program() is None, reason=NO_QEMU)


def need(target: Target, backend: str = "auto") -> None:
    """Skips the test where code for the target does not run here: x86 natively, ARM by unicorn, which lacks i8mm, or by
    qemu."""
    if target.arch == "x86_64" and not supports(target):
        pytest.skip(f"this machine is no {target.name}")
    if (backend == "qemu" or "i8mm" in target.features) and qemu_program() is None:
        pytest.skip(NO_QEMU)
