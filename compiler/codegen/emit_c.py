"""Prints an execution plan as C, `qc_main`: calls with constant addresses; compiles it with its kernels for a CPU."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from qcompile.codegen.kernel_table import KernelTable
from qcompile.codegen.plan import Address, ExecutionPlan
from qcompile.kernels.cpu.compile import compile_module
from qcompile.runtime.toolchain import ToolError, compile_c
from qcompile.targets import CompileError, CpuTarget


@dataclass(frozen=True)
class Generated:
    """objects: relocatable ELF files, of the kernels and last of qc_main; source: qc_main in C, which declares the
    kernels by `declarations` and makes the calls of `listing` in order."""

    plan: ExecutionPlan
    objects: list[bytes]
    source: str
    declarations: list[str]
    listing: list[ListedCall]

    @property
    def weights(self) -> bytes:
        return self.plan.weights

    @property
    def arena_bytes(self) -> int:
        return self.plan.arena_bytes


@dataclass(frozen=True)
class ListedCall:
    """One call that qc_main makes: for which node of the program, of which kernel, and the call in C."""

    node: str
    kernel: str
    code: str


def emit(plan: ExecutionPlan, target: CpuTarget) -> Generated:
    """The plan as object code. CompileError names the node whose kernel cannot be built."""
    kernels = KernelTable(target)
    declarations: list[str] = []
    listing: list[ListedCall] = []
    for call in plan.calls:
        name = call.kernel.name
        if kernels.add(call.kernel, call.node):
            kinds = ", ".join("int32_t" if isinstance(o, int) else "const void *" for o in call.operands)
            declarations.append(f"int32_t {name}({kinds});")
        listing.append(ListedCall(call.node, name, f"{name}({', '.join(map(c_operand, call.operands))});"))
    source = main_source(declarations, [f"{c.code} /* {c_comment(c.node)} */" for c in listing])
    # one object of all kernels, so that LLVM's constants and the parallel slot exist once
    objects = [compile_module(kernels.functions(), target), compile_main(source, target)]
    return Generated(plan, objects, source, declarations, listing)


def c_operand(operand: Address | int) -> str:
    """An argument of a kernel."""
    if isinstance(operand, int):
        return str(operand)
    if operand.space not in ("inputs", "outputs"):
        return f"{operand.space} + {operand.offset}"
    return f"(const uint8_t *){operand.space}[{operand.index}] + {operand.offset}"


def c_comment(text: str) -> str:
    """The text as it may stand in a comment."""
    return re.sub(r"[^ -~]|[*]/|/[*]|[?]{2}", "_", text)


def main_source(declarations: list[str], statements: list[str]) -> str:
    """qc_main in C."""
    calls = "\n".join(f"    {s}" for s in statements)
    return _MAIN.format(declarations="\n".join(declarations), calls=calls)


_MAIN = """#include <stdint.h>
{declarations}

int32_t qc_main(const void *const *inputs, void *const *outputs, uint8_t *arena, const uint8_t *weights);
int32_t qc_main(const void *const *inputs, void *const *outputs, uint8_t *arena, const uint8_t *weights) {{
    (void)inputs, (void)outputs, (void)arena, (void)weights;
{calls}
    return 0;
}}
"""


def compile_main(source: str, target: CpuTarget) -> bytes:
    """Object code of qc_main."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "main.c").write_text(source)
        try:
            compile_c(Path(folder), "main.c", "main.o", target.triple, target.clang)
        except ToolError as error:
            raise CompileError(f"the program's calls do not compile: {error}") from error
        return (Path(folder) / "main.o").read_bytes()
