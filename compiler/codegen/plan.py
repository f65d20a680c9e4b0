"""What a program does on a machine, as data: calls of kernels in order, each operand with its address, and memory.

A backend prints it: as one C function that makes the calls (`emit_c`), or as a list of launches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from qcompile.codegen.arena import Lifetime, align, largest_live_set, place
from qcompile.kernels.lowering import (
    SLACK_BYTES,
    Buffer,
    CallersBuffer,
    Constant,
    Kernel,
    KernelCall,
    NodeContext,
    Operand,
    Workspace,
)
from qcompile.kernels.program import Program


@dataclass(frozen=True)
class Address:
    """`offset` bytes into the arena, into the weights, or into the caller's buffer inputs[index] or outputs[index]."""

    space: str  # "arena", "weights", "inputs" or "outputs"
    offset: int
    index: int = 0

    def __str__(self) -> str:
        caller = f"[{self.index}]" if self.space in ("inputs", "outputs") else ""
        return f"{self.space}{caller}+{self.offset}"


@dataclass(frozen=True)
class PlannedCall:
    """One call of a kernel, for a node of the program (or "input NAME", "output NUMBER"), of which `step` is the number
    in order; operands in the order of the kernel's parameters."""

    step: int
    node: str
    kernel: Kernel
    operands: tuple[Address | int, ...]


@dataclass(frozen=True)
class Placed:
    """A buffer of the arena: it holds what it does from step `first` to step `last`, both included."""

    lifetime: Lifetime
    offset: int


@dataclass(frozen=True)
class ExecutionPlan:
    """calls: in order; weights: read-only bytes; arena_bytes: of all that is computed, what kernels may read past the
    end included; live_bytes: what is alive at the busiest step, the least that an arena can be; buffers: of the arena.
    """

    calls: list[PlannedCall]
    weights: bytes
    arena_bytes: int
    live_bytes: int
    buffers: list[Placed]

    @property
    def kernels(self) -> dict[str, Kernel]:
        """By name, in order of their first call."""
        return {call.kernel.name: call.kernel for call in self.calls}

    def table(self) -> str:
        """For people: a line for each call, then for each buffer of the arena, then for each kernel."""
        calls = [[str(c.step), c.node, c.kernel.name, ", ".join(map(str, c.operands))] for c in self.calls]
        buffers = [
            [f"+{b.offset}", str(b.lifetime.nbytes), f"{b.lifetime.first}..{b.lifetime.last}", b.lifetime.name]
            for b in sorted(self.buffers, key=lambda b: (b.lifetime.first, b.offset))
        ]
        kernels = [[name, repr(kernel.spec)] for name, kernel in self.kernels.items()]
        sizes = f"weights {len(self.weights)} bytes, arena {self.arena_bytes} bytes ({self.live_bytes} at the busiest)"
        parts = (
            _aligned(["step", "node", "kernel", "operands"], calls),
            _aligned(["arena", "bytes", "steps", "buffer"], buffers),
            _aligned(["kernel", "what its code depends on"], kernels),
        )
        return "\n\n".join([sizes, *parts]) + "\n"


class Lowerer(Protocol):
    """What a plan asks of a backend."""

    @property
    def target(self) -> Any: ...

    def lower(self, ctx: NodeContext[Any]) -> list[KernelCall]:
        """The calls that compute a node. CompileError names it if its op has no kernel."""

    def copy(self, source: Operand, destination: Operand, nbytes: int) -> KernelCall:
        """destination[:nbytes] = source[:nbytes], to the byte."""


@dataclass(frozen=True)
class _Step:
    node: str
    calls: list[KernelCall]

    def operands(self) -> Iterator[Operand]:
        return (operand for call in self.calls for operand in call.operands)


def plan_execution(program: Program, backend: Lowerer) -> ExecutionPlan:
    """The plan of a program whose nodes the backend's kernels know; reshapes cost nothing."""
    storage = _Storage(program)
    steps = [
        _Step(f"input {n}", [backend.copy(CallersBuffer("inputs", i), Buffer(n), t.nbytes)])
        for i, (n, t) in enumerate(program.inputs.items())
    ]
    for node in program.nodes:
        if node.op != "reshape":
            read = {i: storage.types[i] for i in node.inputs}
            constants = {i: storage.constants[i] for i in node.inputs if i in storage.constants}
            context = NodeContext(node, read, constants, storage.types[node.name], backend.target)
            steps.append(_Step(node.name, backend.lower(context)))
    copied = storage.make_outputs_directly(program, steps)
    for index, name in copied.items():
        end = CallersBuffer("outputs", index)
        steps.append(_Step(f"output {index}", [backend.copy(Buffer(name), end, storage.types[name].nbytes)]))
    return _with_addresses(steps, storage)


class _Storage:
    """Where tensors lie: which share memory, which are constant, which are made in the caller's buffers."""

    def __init__(self, program: Program) -> None:
        self.types = program.types()
        self.constants = dict(program.constants)
        self.direct: dict[str, int] = {}  # tensors made straight in the caller's output buffer
        self._root: dict[str, str] = {}  # a reshaped tensor is its source, seen differently
        for node in program.nodes:
            if node.op == "reshape" and node.inputs[0] in self.constants:
                self.constants[node.name] = self.constants[node.inputs[0]].reshape(node.attrs["shape"])
            elif node.op == "reshape":
                self._root[node.name] = node.inputs[0]

    def of(self, name: str) -> str:
        """The tensor whose memory `name` is."""
        while name in self._root:
            name = self._root[name]
        return name

    def make_outputs_directly(self, program: Program, steps: list[_Step]) -> dict[int, str]:
        """Decides which outputs are made in the caller's buffers: those that are computed once and read by nobody.
        Returns the others, which must be copied: {number: tensor}."""
        produced = {step.node for step in steps}
        read = {
            self.of(o.name) for step in steps for o in step.operands() if isinstance(o, Buffer) and o.name != step.node
        }
        copied: dict[int, str] = {}
        for index, name in enumerate(program.outputs):
            made = self.of(name)
            if made in produced and made not in self.direct and made not in read:
                self.direct[made] = index
            else:
                copied[index] = name
        return copied


def _with_addresses(steps: list[_Step], storage: _Storage) -> ExecutionPlan:
    lifetimes: dict[str, Lifetime] = {}

    def live(name: str, nbytes: int, at: int) -> None:
        old = lifetimes.get(name)
        lifetimes[name] = Lifetime(name, max(nbytes, old.nbytes if old else 0), old.first if old else at, at)

    weights = _Weights()
    for at, step in enumerate(steps):
        for operand in step.operands():
            if isinstance(operand, Workspace):
                live(f"{step.node}/{operand.key}", operand.nbytes, at)
            elif isinstance(operand, Constant):
                weights.add(operand.array)
            elif isinstance(operand, Buffer):
                made = storage.of(operand.name)
                if made in storage.constants:
                    weights.add(storage.constants[made])
                elif made not in storage.direct:
                    live(made, storage.types[made].nbytes, at)
    offsets, used = place(list(lifetimes.values()))

    def address(step: _Step, operand: Operand) -> Address | int:
        if isinstance(operand, Workspace):
            return Address("arena", offsets[f"{step.node}/{operand.key}"])
        if isinstance(operand, Constant):
            return Address("weights", weights.add(operand.array))
        if isinstance(operand, CallersBuffer):
            return Address(operand.side, 0, operand.index)
        if isinstance(operand, Buffer):
            made = storage.of(operand.name)
            if made in storage.constants:
                return Address("weights", weights.add(storage.constants[made]) + operand.offset)
            if made in storage.direct:
                return Address("outputs", operand.offset, storage.direct[made])
            return Address("arena", offsets[made] + operand.offset)
        return int(operand)

    calls = [
        PlannedCall(at, step.node, call.kernel, tuple(address(step, o) for o in call.operands))
        for at, step in enumerate(steps)
        for call in step.calls
    ]
    buffers = [Placed(lifetime, offsets[name]) for name, lifetime in lifetimes.items()]
    live_bytes = largest_live_set(list(lifetimes.values()))
    return ExecutionPlan(calls, weights.data(), align(used) + SLACK_BYTES, live_bytes, buffers)


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


def _aligned(head: list[str], rows: list[list[str]]) -> str:
    """Columns of text."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        for row in [head, *rows]
    )
