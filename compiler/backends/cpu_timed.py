"""An artifact's program, generated anew with a time stamp around every kernel call, in this process."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from qcompile.artifact.linker import link_library
from qcompile.artifact.spec import ArtifactSpec, TensorInfo
from qcompile.backends import Timed
from qcompile.codegen import Generated
from qcompile.codegen.timed import timed_objects
from qcompile.runtime import Tensor
from qcompile.runtime.manifest import CpuManifest
from qcompile.runtime.native import NativeEngine
from qcompile.targets import CpuTarget


def timed(code: Generated, target: CpuTarget, manifest: CpuManifest, threads: int) -> Timed:
    """`code`, of the program of the artifact that `manifest` is of, on `threads`."""
    stamps = Tensor("time stamps", "uint64", (len(code.listing) + 1,), None, 0)
    ins, outs = (
        [TensorInfo(t.name, t.dtype, t.shape, t.scale, t.zero_point, t.axis) for t in tensors]
        for tensors in (manifest.inputs, manifest.outputs)
    )
    plain = ArtifactSpec(manifest.name, target, code.objects, code.weights, code.arena_bytes, ins, outs)
    same = link_library(plain, manifest.content_hash)[0] == manifest.library.read_bytes()
    spec = replace(
        plain,
        objects=timed_objects(code, len(outs), target),
        outputs=[*outs, TensorInfo(stamps.name, stamps.dtype, stamps.shape)],
    )
    with tempfile.TemporaryDirectory(prefix="qcompile-") as folder:
        library = Path(folder) / "timed.so"
        library.write_bytes(link_library(spec, manifest.content_hash)[0])
        stamped = replace(manifest, library=library, library_sha256="", outputs=(*manifest.outputs, stamps))
        engine = NativeEngine(stamped, threads)

    def run() -> np.ndarray:
        engine.function(*engine.arguments)
        return engine.outputs[-1]

    return Timed([(c.node, c.kernel) for c in code.listing], same, engine.inputs, run)
