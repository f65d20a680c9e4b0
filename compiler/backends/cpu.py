"""CPUs: kernels in TIR, compiled by LLVM, linked into a freestanding shared library.

What is done to a program here, before its kernels are chosen:

    unsigned_activations   targets with unsigned dot products only: int8 activations become uint8, same numbers
    merge_groups           grouped convolutions with few channels a group become ones of fewer groups
    fold_pixels            convolutions to few channels compute neighbouring pixels as channels
    fuse                   an op and the elementwise ops after it become one node
    frames                 images that are read with padding are made with it
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from qcompile.artifact.linker import exported_symbols, link_library
from qcompile.artifact.proof import Proof, prove
from qcompile.artifact.spec import ArtifactSpec
from qcompile.backends import Timed
from qcompile.backends.cpu_timed import timed
from qcompile.codegen import ExecutionPlan, Generated, emit, plan_execution
from qcompile.kernels.cpu import lower_node
from qcompile.kernels.cpu.border import copy
from qcompile.kernels.cpu.chain import fusable
from qcompile.kernels.cpu.linear.conv import framable
from qcompile.kernels.cpu.linear.cost import layer_cycles
from qcompile.kernels.lowering import KernelCall, NodeContext, Operand
from qcompile.kernels.program import Program
from qcompile.passes.fold_pixels import fold_pixels
from qcompile.passes.frames import frames
from qcompile.passes.fuse import fuse
from qcompile.passes.merge_groups import merge_groups
from qcompile.passes.storage import unsigned_activations
from qcompile.quantizer.bits import Layer, LayerBits
from qcompile.runtime import load
from qcompile.runtime.manifest import CpuManifest
from qcompile.runtime.native import NativeEngine
from qcompile.targets import CpuTarget, supports

PASSES: list[tuple[str, Callable[[Program, CpuTarget], Program]]] = [
    ("unsigned_activations", lambda p, t: unsigned_activations(p) if t.unsigned_activations else p),
    ("merge_groups", merge_groups),
    ("fold_pixels", fold_pixels),
    ("fuse", lambda p, t: fuse(p, fusable)),
    ("frames", lambda p, t: frames(p, framable)),
]


class Backend:
    """For one CPU (see `backends.Backend`)."""

    def __init__(self, target: CpuTarget) -> None:
        self.target = target

    @property
    def passes(self) -> list[tuple[str, Callable[[Program], Program]]]:
        return [(name, self._for_target(run)) for name, run in PASSES]

    def _for_target(self, run: Callable[[Program, CpuTarget], Program]) -> Callable[[Program], Program]:
        return lambda program: run(program, self.target)

    def lower(self, ctx: NodeContext[CpuTarget]) -> list[KernelCall]:
        return lower_node(ctx)

    def copy(self, source: Operand, destination: Operand, nbytes: int) -> KernelCall:
        return copy(source, destination, nbytes)

    def emit(self, plan: ExecutionPlan) -> Generated:
        return emit(plan, self.target)

    def facts(self, spec: ArtifactSpec) -> dict[str, object]:
        t = self.target
        return {"arch": t.arch, "cpu_flags": list(t.cpuinfo_flags), "emulation": t.emulation}

    def link(self, spec: ArtifactSpec, content_hash: str) -> tuple[bytes, str, Proof]:
        library, header = link_library(spec, content_hash)
        return library, header, prove(library, self.target.arch, exported_symbols(spec.name))

    def cycles(self, layer: Layer, bits: LayerBits) -> float:
        k = layer.count // layer.channels
        shape = (layer.rows, layer.channels, k)
        return float(layer_cycles(self.target, *shape, bits.weights, bits.group, layer.depthwise))

    def repeated(self, artifact: Path) -> Callable[[], object]:
        model = load(artifact, backend="native")
        model.run({t.name: np.zeros(t.shape, np.float32) for t in model.inputs})
        engine = model.engine
        assert isinstance(engine, NativeEngine)
        return lambda: engine.function(*engine.arguments)  # holds the engine, which holds the library

    def timed(self, program: Program, manifest: CpuManifest, threads: int) -> Timed:
        return timed(self.emit(plan_execution(program, self)), self.target, manifest, threads)

    def why_not_here(self) -> str:
        return "" if supports(self.target) else f"this machine cannot run {self.target.name}"
