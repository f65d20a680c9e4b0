"""Lowers every node, gives everything an address, and writes `qc_main` (in C: calls with constant addresses)."""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from qcompile.codegen.arena import Lifetime, align, largest_live_set, place
from qcompile.codegen.kernel_table import KernelTable
from qcompile.kernels.cpu import lower_node
from qcompile.kernels.cpu.border import copy
from qcompile.kernels.cpu.compile import compile_module
from qcompile.kernels.lowering import SLACK_BYTES, Buffer, Constant, KernelCall, NodeContext, Workspace
from qcompile.kernels.program import Program
from qcompile.runtime.toolchain import ToolError, compile_c
from qcompile.targets import CompileError, CpuTarget


@dataclass(frozen=True)
class Generated:
    """objects: relocatable ELF files, of the kernels and last of qc_main; live_bytes: what is alive at the busiest
    step, the least that an arena can be; kernels: names of the native functions; source: qc_main in C, which declares
    the kernels by `declarations` and makes the calls of `listing` in order."""

    objects: list[bytes]
    weights: bytes
    arena_bytes: int
    live_bytes: int
    kernels: list[str]
    source: str
    declarations: list[str]
    listing: list[ListedCall]


@dataclass(frozen=True)
class ListedCall:
    """One call that qc_main makes: for which node of the program, of which kernel, and the call in C."""

    node: str
    kernel: str
    code: str


@dataclass(frozen=True)
class _Callers:
    """A buffer that the caller of NAME_run owns: inputs[index] or outputs[index]."""

    side: str
    index: int


@dataclass(frozen=True)
class _Step:
    node: str
    calls: list[KernelCall]


def generate(program: Program, target: CpuTarget) -> Generated:
    """Code for a program whose nodes the target's kernels know. Raises CompileError naming a node that they do not."""
    program = replace(program, constants=dict(program.constants))
    types = program.types()
    root: dict[str, str] = {}  # a reshaped tensor is its source, seen differently

    def storage(name: str) -> str:
        while name in root:
            name = root[name]
        return name

    steps = [
        _Step(f"input {n}", [copy(_Callers("inputs", i), Buffer(n), t.nbytes)])
        for i, (n, t) in enumerate(program.inputs.items())
    ]
    for node in program.nodes:
        if node.op == "reshape" and node.inputs[0] not in program.constants:
            root[node.name] = node.inputs[0]
            continue
        if node.op == "reshape":
            program.constants[node.name] = program.constants[node.inputs[0]].reshape(node.attrs["shape"])
            continue
        read = {i: types[i] for i in node.inputs}
        constants = {i: program.constants[i] for i in node.inputs if i in program.constants}
        steps.append(_Step(node.name, lower_node(NodeContext(node, read, constants, types[node.name], target))))

    produced = {s.node for s in steps}
    reads: dict[str, int] = {}
    for step in steps:
        for call in step.calls:
            for operand in call.operands:
                if isinstance(operand, Buffer) and operand.name != step.node:
                    reads[storage(operand.name)] = reads.get(storage(operand.name), 0) + 1
    direct: dict[str, int] = {}  # tensors made straight in the caller's output buffer
    for index, name in enumerate(program.outputs):
        made = storage(name)
        if made in produced and made not in direct and not reads.get(made):
            direct[made] = index
        else:
            steps.append(_Step(f"output {index}", [copy(Buffer(name), _Callers("outputs", index), types[name].nbytes)]))

    lifetimes: dict[str, Lifetime] = {}

    def live(name: str, nbytes: int, at: int) -> None:
        old = lifetimes.get(name)
        lifetimes[name] = Lifetime(name, max(nbytes, old.nbytes if old else 0), old.first if old else at, at)

    weights = _Weights()
    for at, step in enumerate(steps):
        for call in step.calls:
            for operand in call.operands:
                if isinstance(operand, Workspace):
                    live(f"{step.node}/{operand.key}", operand.nbytes, at)
                elif isinstance(operand, Constant):
                    weights.add(operand.array)
                elif isinstance(operand, Buffer):
                    made = storage(operand.name)
                    if made in program.constants:
                        weights.add(program.constants[made])
                    elif made not in direct:
                        live(made, types[made].nbytes, at)
    offsets, used = place(list(lifetimes.values()))

    def address(step: _Step, operand: object) -> str:
        if isinstance(operand, Workspace):
            return f"arena + {offsets[f'{step.node}/{operand.key}']}"
        if isinstance(operand, Constant):
            return f"weights + {weights.add(operand.array)}"
        if isinstance(operand, _Callers):
            return f"{operand.side}[{operand.index}]"
        if isinstance(operand, Buffer):
            made = storage(operand.name)
            if made in program.constants:
                return f"weights + {weights.add(program.constants[made]) + operand.offset}"
            if made in direct:
                return f"(uint8_t *)outputs[{direct[made]}] + {operand.offset}"
            return f"arena + {offsets[made] + operand.offset}"
        return str(int(operand))  # type: ignore[call-overload]

    kernels = KernelTable(target)
    declarations: list[str] = []
    listing: list[ListedCall] = []
    for step in steps:
        for call in step.calls:
            if kernels.add(call.kernel, step.node):
                kinds = ", ".join(
                    "int32_t" if isinstance(o, int | np.integer) else "const void *" for o in call.operands
                )
                declarations.append(f"int32_t {call.kernel.name}({kinds});")
            code = f"{call.kernel.name}({', '.join(address(step, o) for o in call.operands)});"
            listing.append(ListedCall(step.node, call.kernel.name, code))
    source = main_source(declarations, [f"{c.code} /* {c_comment(c.node)} */" for c in listing])
    # one object of all kernels, so that LLVM's constants and the parallel slot exist once
    objects = [compile_module(kernels.functions(), target), compile_main(source, target)]
    live_bytes = largest_live_set(list(lifetimes.values()))
    return Generated(
        objects, weights.data(), align(used) + SLACK_BYTES, live_bytes, kernels.names(), source, declarations, listing
    )


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


class _Weights:
    """Read-only data, each distinct array once, 64-byte aligned, in order of first use."""

    def __init__(self) -> None:
        self._at: dict[bytes, int] = {}
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, array: np.ndarray) -> int:
        """Offset of the array's bytes."""
        data = np.ascontiguousarray(array).tobytes()
        if data not in self._at:
            self._at[data] = self._size
            padded = align(len(data)) or align(1)
            self._parts.append(data.ljust(padded, b"\0"))
            self._size += padded
        return self._at[data]

    def data(self) -> bytes:
        return b"".join(self._parts)
