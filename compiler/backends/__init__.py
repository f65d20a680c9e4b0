"""What compiles for a kind of machine: found by the target, asked by all that knows no machine.

A backend is made for one target. The pipeline hands it the program that is the same for all machines and gets an
artifact's files back; the planner of mixed precision asks it what layers cost. To add a kind of machine: a subclass of
`Target` with its `kind`, a module here with a class `Backend`, a line in BACKENDS, and what opens its artifacts in
`runtime`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from qcompile.kernels.program import Program
    from qcompile.quantizer.bits import Layer, LayerBits
    from qcompile.targets import Target

BACKENDS = {"cpu": "qcompile.backends.cpu"}  # kind of target -> module


class Backend(Protocol):
    """Compiles for one target."""

    @property
    def target(self) -> Target: ...

    @property
    def passes(self) -> list[tuple[str, Callable[[Program], Program]]]:
        """What is done to a program before its kernels are chosen, in order, by name; none changes its meaning."""

    def cycles(self, layer: Layer, bits: LayerBits) -> float:
        """What a layer of a float network costs with weights and data of `bits`, by the target's cost model."""

    def repeated(self, artifact: Path) -> Callable[[], object]:
        """What runs an artifact once more on the same input, for those who measure; this machine must be able to."""

    def why_not_here(self) -> str:
        """Why this machine cannot run code for the target; empty where it can."""


def backend_for(target: Target) -> Backend:
    """The backend of the target's kind."""
    backend: Backend = import_module(BACKENDS[target.kind]).Backend(target)
    return backend
