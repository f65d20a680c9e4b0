"""The targets that a kernel is tested on, as a fixture."""

import pytest
from machines import need
from qcompile.targets import TARGETS, Target

# one of each instruction set, and a second core without dot products
NAMES = ("x86-avx512vbmi", "x86-avx512vnni", "x86-avxvnni", "x86-avx2", "arm-a76", "arm-a72", "arm-a53", "arm-a710")


@pytest.fixture(params=NAMES)
def target(request: pytest.FixtureRequest) -> Target:
    """Each in turn; skipped where it cannot run."""
    need(TARGETS[request.param])
    return TARGETS[request.param]
