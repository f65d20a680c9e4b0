"""The contract between the planner and the kernels of a kind of target.

A kernel is one native function; a node of the program becomes one or more calls of kernels. The planner gives every
tensor, workspace and packed constant its address and writes one function that makes the calls in order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

import numpy as np
from qcompile.kernels.dialect import Type
from qcompile.kernels.program import Node
from qcompile.targets.target import Target

AnyTarget = TypeVar("AnyTarget", bound=Target)  # of the kind that the lowering is for
SLACK_BYTES = 64  # kernels may read (never write) this far past the end of any buffer, and from 0 bytes before it


@dataclass(frozen=True)
class Buffer:
    """An operand of a kernel call: a tensor of the program by name, at a byte offset."""

    name: str
    offset: int = 0


@dataclass(frozen=True)
class CallersBuffer:
    """A buffer that the caller of the artifact owns: inputs[index] or outputs[index]; only copies across the border
    have it, since kernels may read past the end of others."""

    side: str  # "inputs" or "outputs"
    index: int


@dataclass(frozen=True)
class Workspace:
    """Scratch memory that lives during one node only; equal `key`s within a node are the same memory."""

    key: str
    nbytes: int


@dataclass(frozen=True, eq=False)
class Constant:
    """Read-only data that the kernel wants in this form (packed weights, folded biases); equal bytes are stored
    once."""

    array: np.ndarray


Operand = Buffer | CallersBuffer | Workspace | Constant | int


@dataclass(frozen=True)
class Kernel:
    """A native function; calls of kernels with equal specs share one.

    family: what it does, as the words that its name begins with. spec: all that its code depends on, of values whose
    repr tells unequal ones apart: numbers, strings, frozen dataclasses, instruction sets.
    make(name) -> tvm.tirx.PrimFunc whose parameters are plain pointers (T.handle of the element dtype) and int32
    scalars in the order of the call's operands, returning int32 0. Parallel loops use T.parallel on an outermost axis.
    """

    family: str
    spec: tuple[Any, ...]
    make: Callable[[str], Any] = field(compare=False)

    @cached_property
    def name(self) -> str:
        """The symbol. No other place makes names of kernels."""
        return f"{self.family}_{hashlib.sha256(repr(self.spec).encode()).hexdigest()[:10]}"

    def build(self) -> Any:
        return self.make(self.name)


@dataclass(frozen=True)
class KernelCall:
    """operands: pointers, 64-byte aligned but for Buffer offsets and the caller's buffers, and int (int32 scalars)."""

    kernel: Kernel
    operands: tuple[Operand, ...]


@dataclass(frozen=True)
class NodeContext(Generic[AnyTarget]):
    """What a lowering knows of its node: types of its inputs and of its result, and the values of the constant
    inputs."""

    node: Node
    types: dict[str, Type]
    constants: dict[str, np.ndarray]
    out: Type
    target: AnyTarget


Lowering = Callable[[NodeContext], list[KernelCall]]
