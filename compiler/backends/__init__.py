"""What compiles for a kind of machine: found by the target, asked by all that knows no machine.

A backend is made for one target. The pipeline hands it the program that is the same for all machines and gets an
artifact's files back; the planner of mixed precision asks it what layers cost. To add a kind of machine: a subclass of
`Target` with its `kind`, a module here with a class `Backend`, a line in BACKENDS, and what opens its artifacts in
`runtime`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from qcompile.artifact import ArtifactSpec, Proof
    from qcompile.codegen import ExecutionPlan, Generated
    from qcompile.kernels.lowering import KernelCall, NodeContext, Operand
    from qcompile.kernels.program import Program
    from qcompile.quantizer.bits import Layer, LayerBits
    from qcompile.targets import Target

BACKENDS = {"cpu": "qcompile.backends.cpu"}  # kind of target -> module


@dataclass(frozen=True)
class Timed:
    """An artifact's calls with a time stamp around each, on this machine.

    calls: (node, kernel); same_code: whether this compiler still makes the artifact's code; inputs: arrays to fill;
    run: does one inference and gives the stamps, uint64 [calls + 1], of a counter of any frequency.
    """

    calls: list[tuple[str, str]]
    same_code: bool
    inputs: list[np.ndarray]
    run: Callable[[], np.ndarray]


class Backend(Protocol):
    """Compiles for one target."""

    @property
    def target(self) -> Target: ...

    @property
    def passes(self) -> list[tuple[str, Callable[[Program], Program]]]:
        """What is done to a program before its kernels are chosen, in order, by name; none changes its meaning."""

    def lower(self, ctx: NodeContext[Any]) -> list[KernelCall]:
        """The calls of kernels that compute a node. CompileError names it if its op has no kernel."""

    def copy(self, source: Operand, destination: Operand, nbytes: int) -> KernelCall:
        """destination[:nbytes] = source[:nbytes], to the byte: across the artifact's border."""

    def emit(self, plan: ExecutionPlan) -> Generated:
        """A plan as code."""

    def facts(self, spec: ArtifactSpec) -> dict[str, object]:
        """What the manifest says of this kind of machine only, for the runtime's opener."""

    def link(self, spec: ArtifactSpec, content_hash: str) -> tuple[bytes, str, Proof]:
        """(library, header, what was proved of the library): the same bytes for the same spec. CompileError where it
        cannot be linked, or is not made of integer instructions alone."""

    def cycles(self, layer: Layer, bits: LayerBits) -> float:
        """What a layer of a float network costs with weights and data of `bits`, by the target's cost model."""

    def repeated(self, artifact: Path) -> Callable[[], object]:
        """What runs an artifact once more on the same input, for those who measure; this machine must be able to."""

    def timed(self, program: Program, manifest: Any, threads: int) -> Timed:
        """The program of an artifact, after the passes, with time stamps; ArtifactError where it cannot run here."""

    def why_not_here(self) -> str:
        """Why this machine cannot run code for the target; empty where it can."""


def generate(program: Program, target: Target) -> Generated:
    """Code of a program that the backend's passes have left; CompileError names a node that has no kernel."""
    from qcompile.codegen import plan_execution

    backend = backend_for(target)
    return backend.emit(plan_execution(program, backend))


def backend_for(target: Target) -> Backend:
    """The backend of the target's kind."""
    backend: Backend = import_module(BACKENDS[target.kind]).Backend(target)
    return backend
