"""TIR functions to one relocatable object for a CPU, without TVM's packed calling convention.

The functions are plain C functions `int32_t name(pointers, int32 scalars)`. Parallel loops call through the slot
`__TVMBackendParallelLaunch` that the object defines and the runtime fills.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tvm
from qcompile.targets.errors import CompileError
from qcompile.targets.target import CpuTarget
from tvm import s_tir, tirx
from tvm.target.codegen import llvm_cpu_has_features
from tvm.tirx.build import codegen_build


def llvm_target(target: CpuTarget) -> Any:
    """TVM's target; CompileError where LLVM does not grant the features that kernels rely on.

    LLVM ends the whole process at an intrinsic that its CPU lacks, so this is asked before.
    """
    llvm = tvm.target.Target(target.llvm)
    missing = [f for f in sorted(target.features) if not llvm_cpu_has_features(f, llvm)]
    if missing:
        raise CompileError(
            f"LLVM's CPU {target.mcpu!r} of target {target.name} lacks {', '.join(missing)}; "
            "correct its line in the table of targets"
        )
    return llvm


def lower(functions: dict[str, Any], target: CpuTarget) -> tuple[Any, Any]:
    """(module after TIR lowering, TVM target)."""
    llvm = llvm_target(target)
    passes = [
        tirx.transform.BindTarget(llvm),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
        tirx.transform.NarrowDataType(32),
        tirx.transform.VectorizeLoop(True),
        tirx.transform.StorageRewrite(),
        tirx.transform.UnrollLoop(),
        tirx.transform.StmtSimplify(),
        tirx.transform.RemoveNoOp(),
        tirx.transform.LowerIntrin(),
    ]
    module = tvm.IRModule({name: functions[name] for name in sorted(functions)})
    return tvm.ir.transform.Sequential(passes)(module), llvm


def compile_module(functions: dict[str, Any], target: CpuTarget) -> bytes:
    """One object file with all functions (symbol -> PrimFunc); equal input gives equal bytes."""
    built = codegen_build(*lower(functions, target))
    with _scratch() as path:
        built.write_to_file(str(path), "o")
        return path.read_bytes()


@contextmanager
def _scratch() -> Iterator[Path]:
    """A file for LLVM to write to, in memory where the system has such: LLVM ends the whole process on a full disk."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("kernels.o")
        try:
            yield Path(f"/proc/self/fd/{file}")
        finally:
            os.close(file)
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / "kernels.o"


def assembly(functions: dict[str, Any], target: CpuTarget) -> str:
    """What the functions become, as text for people and tests."""
    return codegen_build(*lower(functions, target)).inspect_source("s")
