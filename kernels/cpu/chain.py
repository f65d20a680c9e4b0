"""The elementwise steps that follow an op inside one kernel, on vectors of neighbouring channels.

A chain is a small graph: each step reads the incoming value, earlier steps, or tensors and constants in memory. The
code depends on the kinds of the steps only (`ChainCode`, all that emission sees); every number (shifts, zero points,
bounds) comes from one table of int32 scalars, so that layers that differ in numbers share their kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from qcompile.kernels.arithmetic import RANGES
from qcompile.kernels.cpu.builder import Argument, Expr, Pointer, T, bind, concat, lanes_of, splat
from qcompile.kernels.cpu.isa import Isa
from qcompile.kernels.cpu.steps import STEPS, Environment, widen
from qcompile.kernels.dialect import OPS, Type
from qcompile.kernels.fusion import operand_kind, tensor_inputs
from qcompile.kernels.lowering import SLACK_BYTES, Buffer, Constant, NodeContext, Workspace
from qcompile.kernels.program import Node, infer_node
from qcompile.targets.errors import CompileError

CONSTANT_PADDING = 64  # per-channel constants are this many zeros longer, since vectors read whole
DTYPES = ("int8", "uint8", "int16", "uint16", "int32")


def fusable(step: Node, value: str, types: dict[str, Type]) -> bool:
    """True where a chain can run `step` on the value called `value`: all inputs and the result lie under its shape."""
    if step.op not in STEPS or value not in step.inputs:
        return False
    shape = types[value].shape
    return infer_node(step, types).shape == shape and all(
        types[i].dtype in DTYPES and operand_kind(shape, types[i].shape) for i in tensor_inputs(step)
    )


def head_and_chain(ctx: NodeContext, isa: Isa) -> tuple[Node, Chain]:
    """The op that computes (alone, or first of a fused body) and the chain of what follows it."""
    body = ctx.node.body if ctx.node.op == "fused" else (ctx.node,)
    types = dict(ctx.types)
    types[body[0].name] = infer_node(body[0], types)
    # the fewer products an element has, the more the instructions of its epilogue matter
    weights = ctx.constants.get(body[0].inputs[1]) if len(body[0].inputs) > 1 else None
    immediate = weights is not None and weights[0].size <= isa.immediate_products
    return body[0], Chain(body[1:], body[0].name, types, ctx.constants, isa, ctx.node.name, immediate)


@dataclass(frozen=True)
class Memory:
    """An operand in memory: parameter `index` of the kernel's chain arguments, and how it lies under the value."""

    index: int
    kind: str
    dtype: str
    inner: int = 0  # index of the scalars that hold the rows of one image and its channels
    constant: bool = False  # with CONSTANT_PADDING behind it


@dataclass(frozen=True)
class Step:
    """inputs: numbers of earlier values (0: the incoming one), or memory; scalars: (name, index in the table of
    scalars); fixed: (name, number that the code knows); dtype: of the result."""

    op: str
    inputs: tuple[int | Memory, ...]
    scalars: tuple[tuple[str, int], ...]
    fixed: tuple[tuple[str, int], ...]
    dtype: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class ChainCode:
    """All that a chain's code depends on. parameters: (name, dtype*) of the kernel's extra parameters."""

    isa: Isa
    source_dtype: str
    steps: tuple[Step, ...]
    parameters: tuple[tuple[str, str], ...]

    @property
    def dtype(self) -> str:
        """Of the result."""
        return self.steps[-1].dtype if self.steps else self.source_dtype

    @property
    def width(self) -> int:
        """Channels that one call of emit should carry where it can choose."""
        return self.isa.width

    @property
    def memories(self) -> list[Memory]:
        return [i for step in self.steps for i in step.inputs if isinstance(i, Memory)]

    @property
    def widest_bytes(self) -> int:
        """Bytes of an element of the widest tensor that the chain reads."""
        return max(np.dtype(d).itemsize for d in (self.source_dtype, *(m.dtype for m in self.memories)))

    def width_for(self, channels: int, most: int) -> int:
        """The most lanes, halves of `most`, with which vectors over so many channels read no further than
        SLACK_BYTES past the end of a tensor."""
        tensors = [np.dtype(m.dtype).itemsize for m in self.memories if not m.constant]
        while (-channels % most) * max(tensors, default=0) > SLACK_BYTES:
            most //= 2
        return most

    def reads(self, *kinds: str) -> bool:
        """Whether an operand lies so under the value."""
        return any(m.kind in kinds for m in self.memories)

    def start(self, arguments: Sequence[Argument]) -> Emitter:
        """To be called inside the kernel, with its variables for `parameters`."""
        return Emitter(self, list(arguments))


class Chain:
    """steps on `source` (the name of the incoming value), for values of `types[source].shape`.

    code: what a kernel is made of; operands: the call's, in the order of its parameters; result: name of the last
    value. immediate: shifts are part of the code, for instruction sets that gain by it.
    """

    def __init__(
        self,
        steps: Sequence[Node],
        source: str,
        types: dict[str, Type],
        constants: dict[str, np.ndarray],
        isa: Isa,
        result: str = "",
        immediate: bool = False,
    ) -> None:
        self.isa = isa
        self.immediate = immediate
        self.result = result
        self.source = source
        self.shape = types[source].shape
        self.channels = self.shape[-1] if self.shape else 1
        self.operands: list[Buffer | Constant | Workspace] = []
        self._parameters: list[tuple[str, str]] = []
        self._scalars: list[int] = []
        self._numbers = {source: 0}  # of the values
        self._types, self._constants = dict(types), constants
        self._memories: dict[str, Memory] = {}
        planned = tuple(self._plan(step) for step in steps)
        if self._scalars:
            self._parameters.append(("scalars", "int32*"))
            self.operands.append(Constant(np.array(self._scalars, np.int64).astype(np.int32)))
        self.code = ChainCode(isa, types[source].dtype, planned, tuple(self._parameters))

    def arranged(self, channels: np.ndarray) -> list[Buffer | Constant | Workspace] | None:
        """Operands for a kernel that counts channels in another order: its channel i is `channels[i]`.

        None where the chain reads more of a channel than constants.
        """
        operands = list(self.operands)
        for memory in self._memories.values():
            constant = operands[memory.index]
            if memory.kind == "channel" and isinstance(constant, Constant):
                operands[memory.index] = Constant(self._constant(constant.array[channels], False, memory.dtype))
            elif memory.kind not in ("scalar", "table"):
                return None
        return operands

    def _plan(self, node: Node) -> Step:
        if node.op not in STEPS:
            raise CompileError(f"{node.name}: op {node.op} cannot follow another op in one CPU kernel")
        rule, op = STEPS[node.op], OPS[node.op]
        inputs: list[int | Memory] = []
        for position, name in enumerate(node.inputs):
            is_parameter = op.arguments[position] in op.parameters
            table = op.arguments[position] == "table"
            number = self._numbers.get(name)
            inputs.append(self._memory(node, name, is_parameter, table) if number is None else number)
        values, flags = rule.scalars(node, [self._types[i] for i in node.inputs])
        out = infer_node(node, self._types)
        fixed = self._fixed(node.op, values, out.dtype)
        scalars = {}
        for name, value in values.items():
            if name not in fixed:
                scalars[name] = len(self._scalars)
                self._scalars.append(int(value))
        if out.dtype not in DTYPES or out.shape != self.shape:
            raise CompileError(
                f"{node.name}: a fused {node.op} gives {out.dtype}{list(out.shape)}, not one of {', '.join(DTYPES)} "
                f"of shape {list(self.shape)}"
            )
        self._types[node.name] = out
        self._numbers[node.name] = len(self._numbers)
        return Step(node.op, tuple(inputs), tuple(scalars.items()), tuple(fixed.items()), out.dtype, flags)

    def _fixed(self, op: str, values: dict[str, int], dtype: str) -> dict[str, int]:
        """The numbers worth being part of the code: bounds that clamp nothing, shifts where the chain is immediate, the
        zero point that makes int8 codes uint8."""
        fixed: dict[str, int] = {n: values[n] for n in ("pre", "shift") if self.immediate and n in values}
        centre = RANGES[dtype][0] - RANGES["int8"][0]
        if STEPS[op].words and values["zero_point"] == centre:
            fixed["zero_point"] = centre
        if STEPS[op].words and self.isa.immediate_words:
            fixed |= {n: values[n] for n in ("shift", "fraction") if n in values}
        for name, limit in zip(("qmin", "qmax"), RANGES[dtype]):
            if self.isa.immediate_bounds and values.get(name) == limit:
                fixed[name] = limit
        return fixed

    def _memory(self, node: Node, name: str, is_parameter: bool, table: bool) -> Memory:
        key = f"{name}:{node.op if table else ''}"
        if key not in self._memories:
            type_ = self._types[name]
            if table:
                kind = "table"
            elif is_parameter:
                kind = "scalar" if type_.size == 1 else "channel"
            else:
                kind = operand_kind(self.shape, type_.shape) or ""
            if not kind or type_.dtype not in DTYPES:
                raise CompileError(
                    f"{node.name}: input {name} {type_.dtype}{list(type_.shape)} cannot be read under a value of "
                    f"shape {list(self.shape)} in one CPU kernel"
                )
            inner = 0
            if kind == "image":
                full = (1,) * (len(self.shape) - len(type_.shape)) + tuple(type_.shape)
                outer = next(i for i, (a, b) in enumerate(zip(full, self.shape)) if a != b)
                inner = len(self._scalars)
                self._scalars += [int(np.prod(self.shape[outer:-1])), self.shape[-1]]
            operand: Buffer | Constant = Buffer(name)
            dtype = type_.dtype
            if name in self._constants:
                array = self._constants[name]
                if node.op == "interpolate" and table:
                    array = self.isa.pieces(array)
                    dtype = str(array.dtype)
                operand = Constant(self._constant(array, table, self._types[node.inputs[0]].dtype))
            self._memories[key] = Memory(len(self._parameters), kind, dtype, inner, isinstance(operand, Constant))
            self._parameters.append((f"e{len(self._parameters)}", dtype + "*"))
            self.operands.append(operand)
        return self._memories[key]

    @staticmethod
    def _constant(array: np.ndarray, table: bool, index_dtype: str) -> np.ndarray:
        flat = np.ascontiguousarray(array).reshape(-1)
        if table:  # 8-bit codes index as unsigned bytes
            return np.roll(flat, -128) if index_dtype == "int8" else flat
        return np.concatenate([flat, np.zeros(CONSTANT_PADDING, flat.dtype)]) if flat.size > 1 else flat


@dataclass
class Emitter:
    """A chain inside a kernel: turns incoming vectors into results."""

    code: ChainCode
    arguments: list[Argument]

    def emit(self, value: Expr, row: Expr, channel: Expr, flat: Expr) -> Expr:
        """The result for lanes channel, channel+1, ... of pixel `row` (index over all axes but the last).

        value: vector of the chain's source dtype; flat: row * channels + channel.
        """
        return self.emit_pixels(value, [(row, flat)], channel)

    def emit_pixels(self, value: Expr, pixels: Sequence[tuple[Expr, Expr]], channel: Expr) -> Expr:
        """The same for several pixels side by side in one vector, each given by its row and flat."""
        if not self.code.steps:
            return value
        n = lanes_of(value)
        values = [bind(value)]
        for step in self.code.steps:
            inputs = [values[i] if isinstance(i, int) else self._load(i, n, pixels, channel) for i in step.inputs]
            environment = Environment(
                self.code.isa,
                n,
                step.dtype,
                step.flags,
                {name: self._scalar(at) for name, at in step.scalars}
                | {name: T.int32(value) for name, value in step.fixed},
            )
            values.append(bind(STEPS[step.op].emit(environment, *inputs)))
        return values[-1]

    def _scalar(self, index: int) -> Expr:
        return self.arguments[-1].load(index)

    def _load(self, memory: Memory, n: int, pixels: Sequence[tuple[Expr, Expr]], channel: Expr) -> Expr | Pointer:
        pointer: Pointer = self.arguments[memory.index]
        if memory.kind == "table":
            return pointer
        if memory.kind == "scalar":
            return splat(pointer.load(0), memory.dtype, n)
        each = n // len(pixels)
        if memory.kind == "channel":
            return bind(concat([bind(pointer.load(channel, each))] * len(pixels)))
        if memory.kind == "row":
            return bind(concat([splat(pointer.load(row), memory.dtype, each) for row, _ in pixels]))
        return bind(concat([pointer.load(self._offset(memory, row, flat, channel), each) for row, flat in pixels]))

    def _offset(self, memory: Memory, row: Expr, flat: Expr, channel: Expr) -> Expr:
        if memory.kind == "same":
            return flat
        return T.truncdiv(row, self._scalar(memory.inner)) * self._scalar(memory.inner + 1) + channel


__all__ = [
    "STEPS",
    "Chain",
    "ChainCode",
    "Emitter",
    "fusable",
    "head_and_chain",
    "widen",
]
