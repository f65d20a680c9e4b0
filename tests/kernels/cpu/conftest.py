"""The targets that a kernel is tested on, as a fixture."""

import shutil

import pytest
from qcompile.targets import TARGETS, Target, supports

# one of each instruction set; unicorn lacks i8mm, so that one runs where qemu is installed
NAMES = ("x86-avx512vbmi", "x86-avx512vnni", "x86-avxvnni", "x86-avx2", "arm-a76", "arm-a72", "arm-a53", "arm-a710")


@pytest.fixture(params=NAMES)
def target(request: pytest.FixtureRequest) -> Target:
    """Each in turn; skipped where it cannot run."""
    chosen = TARGETS[request.param]
    if chosen.arch == "x86_64" and not supports(chosen):
        pytest.skip(f"this machine is no {chosen.name}")
    if "i8mm" in chosen.features and not shutil.which("qemu-aarch64"):
        pytest.skip("qemu-aarch64 is not installed")
    return chosen
