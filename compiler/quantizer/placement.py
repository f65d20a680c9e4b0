"""Decides which tensors are quantized, and how wide: the placement rules of our QDQ models.

Every node demands a kind of its float inputs: "i8", "i16", "table" (16-bit with at most 4096 codes, for the table of an
activation) or nothing. One walk from the outputs to the inputs carries demands through data movement up to the
tensors that are computed; there the Q/DQ pair is placed. What gets no pair, and why:
- between a linear layer, its bias Add and the following Relu or Clip: one rounding;
- between the layer of a residual branch and the residual Add that alone reads it: one rounding for the sum;
- attention scores up to Softmax, and the mask branch;
- tensors computed from integers alone (masks, counts);
- the gate of x * sigmoid(x): the whole function of x is one table.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from onnx import NodeProto
from qcompile.frontend.recurrent import RECURRENT
from qcompile.frontend.states import states
from qcompile.quantizer.facts import Facts
from qcompile.quantizer.operators import (
    CLAMPS,
    COMPARING,
    DECIDING,
    ELEMENTWISE,
    GATES,
    LINEAR,
    NORMS,
    RECURRENT_KINDS,
    REDUCING,
    SMOOTH,
    STEEP,
    STEPS,
    STREAM_NORMS,
    TAKES_HIGHEST,
    WIDE_TABLE_FLOOR,
    mover_inputs,
)
from qcompile.quantizer.wide import wide_nodes


@dataclass
class Placement:
    """Where pairs go: `kinds` {tensor: kinds placed on it}, `reads` {(id of node, input index): kind}, `parent` joins
    the (tensor, kind) that must share one quantization, `carrier` {(moved tensor, kind): the pair it repeats}."""

    kinds: dict[str, list[str]] = field(default_factory=dict)
    reads: dict[tuple[int, int], str] = field(default_factory=dict)
    carrier: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    parent: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)

    def group(self, key: tuple[str, str]) -> tuple[str, str]:
        while self.parent.get(key, key) != key:
            key = self.parent[key]
        return key

    def join(self, a: tuple[str, str], b: tuple[str, str]) -> None:
        a, b = self.group(a), self.group(b)
        if a != b:
            self.parent[b] = a

    def of(self, tensor: str, kind: str) -> tuple[str, str]:
        """The (tensor, kind) whose quantization `tensor` carries when read as `kind`."""
        return self.group(self.carrier.get((tensor, kind), (tensor, kind)))


class Placer:
    """Applies the rules to the graph of `facts`."""

    def __init__(
        self,
        facts: Facts,
        wide_streams: bool = True,
        parts: Collection[str] = (),
        widened: Collection[str] = (),
        split: Collection[str] = (),
    ):
        """`parts` of outputs that are put together later have 16 bits, and so has the arithmetic that makes them;
        widened: tensors that have 16 bits wherever they are read but by layers, and 12 in front of smooth tables;
        split: tensors whose high and low part are made of 16 bits."""
        self.graph, self.facts = facts.graph, facts
        self.inputs, self.split = {v.name for v in self.graph.inputs}, split
        self.parts, self.widened, self.wide_streams = set(parts), {*widened, *split}, wide_streams
        self.states = {target: source for source, target in states(self.graph).items()}
        self.wide, self.functions = wide_nodes(facts, wide_streams, parts)
        self.transformer = wide_streams and any(n.op_type in STREAM_NORMS for n in self.graph.nodes)

    # --- demands ----------------------------------------------------------------------------------------------------
    def demand(self, node: NodeProto, i: int) -> str | None:
        """The kind node `node` (no data movement) wants its float, non-constant input `i` to have."""
        op, name, facts = node.op_type, node.input[i], self.facts
        if op in RECURRENT:
            return RECURRENT_KINDS.get(i)
        if id(node) in facts.scores and op != "Softmax" and name in self.inputs and name not in facts.exact:
            return "i16"  # a bias or mask that is given as floats
        if op == "QuantizeLinear" and name in self.split:
            return "i16"
        if op == "QuantizeLinear" or id(node) in facts.scores | facts.biases or (id(node), i) in facts.raw:
            return None
        if op in LINEAR:
            return "i8" if i < 2 else None
        if op in NORMS:
            return ("i16" if self.wide_streams or name in self.widened else "i8") if i == 0 else None
        if id(node) in facts.gated:
            return None if i == facts.gate(node) else self._activation_kind("Mul", name)
        if op in GATES and (user := self.graph.only_consumer(node.output[0])) is not None and id(user) in facts.gated:
            return self._activation_kind("Mul", name)
        if (op in CLAMPS and self._fused_clamp(node)) or (op in ELEMENTWISE and self._scaled_activation(node)):
            return None
        if name in facts.exact:
            return None
        many = id(node) in self.wide or name in self.graph.numbers
        if op in ELEMENTWISE | REDUCING | CLAMPS:
            if op == "Div" and i == 1 and not many:
                return "table"
            return "i16" if many or name in self.widened else "i8"
        if i in DECIDING.get(op, ()):
            return None if self.graph.is_constant(name) else "i16"
        if op in COMPARING:
            return "i16"
        if id(node) in self.functions or name in self.graph.numbers or op in STEEP | STEPS:
            return "table"
        return "i16" if name in self.widened and op not in SMOOTH else self._activation_kind(op, name)

    def _activation_kind(self, op: str, name: str) -> str:
        return "table" if name in self.widened or (self.transformer and op in WIDE_TABLE_FLOOR) else "i8"

    def _scaled_activation(self, node: NodeProto) -> bool:
        """Whether `node` multiplies an activation's result, which it alone reads, by a constant (equalisation)."""
        if node.op_type != "Mul" or not any(i in self.graph.constants for i in node.input):
            return False
        maker = next((m for i in node.input if (m := self.graph.producer(i)) is not None), None)
        return (
            maker is not None
            and (maker.op_type in SMOOTH or id(maker) in self.facts.gated)
            and self.graph.only_consumer(maker.output[0]) is node
        )

    def _fused_clamp(self, node: NodeProto) -> bool:
        """Whether a Relu or Clip directly follows arithmetic that it alone reads, or limits what is quantized next."""
        readers = self.graph.consumers(node.output[0])
        final = node.output[0] in self.graph.output_names
        if readers and not final and all(r.op_type == "QuantizeLinear" for r in readers):
            return True
        maker = self.graph.producer(node.input[0])
        return (
            maker is not None
            and maker.op_type in LINEAR | ELEMENTWISE | NORMS | REDUCING
            and self.graph.only_consumer(node.input[0]) is node
        )

    def output_kind(self, name: str) -> str:
        """Graph outputs are 8-bit, but 16-bit where they come from a normalisation or a wide stream, or are final
        states of recurrent nodes; an output that is fed back has the kind that its input is read with."""
        if name in self.parts or name in self.widened:
            return "i16"
        if name in self.states:
            return "i16" if "i16" in self._demanded(self.states[name]) else "i8"
        while (node := self.graph.producer(name)) is not None and mover_inputs(node):
            name = node.input[mover_inputs(node)[0]]
        wide = node is not None and ((node.op_type in STREAM_NORMS and self.wide_streams) or id(node) in self.wide)
        wide = wide or name in self.graph.numbers or name in self.widened
        wide = wide or (node is not None and node.op_type in RECURRENT and name != node.output[0])
        return "i16" if wide else "i8"

    def _demanded(self, name: str) -> set[str]:
        """The kinds that the readers of a tensor want, through data movement."""
        kinds: set[str] = set()
        for node in self.graph.consumers(name):
            movers = mover_inputs(node)
            for i, read in enumerate(node.input):
                if read == name and i in movers:
                    kinds = kinds.union(*(self._demanded(o) for o in node.output))
                elif read == name and (kind := self.demand(node, i)):
                    kinds.add(kind)
        return kinds

    def _is_read(self, name: str) -> bool:
        return bool(self.graph.consumers(name)) or name in self.graph.output_names

    def _moved(self, node: NodeProto) -> list[int]:
        """The inputs that `node` passes on with their codes; none where it puts numbers of its own in their place
        (Where of a number that is not 0, or of two): its result is then quantized like any other."""
        movers = mover_inputs(node) if id(node) not in self.facts.scores else []
        numbers = [self.graph.scalar(node.input[i]) for i in movers]
        if node.op_type == "Where" and any(numbers) and not self._only_masks(node.output[0]):
            return []
        return movers if any(n is None for n in numbers) else []

    def _only_masks(self, name: str) -> bool:
        """Whether some reader of a tensor takes its lowest numbers for nothing, however low they are."""
        for node in self.graph.consumers(name):
            if node.op_type in TAKES_HIGHEST or (mover_inputs(node) and any(map(self._only_masks, node.output))):
                return True
        return False

    def place(self) -> Placement:
        """The walk from outputs to inputs, then the carrying of quantizations from inputs to outputs."""
        graph, result = self.graph, Placement()
        want: dict[str, set[str]] = {}
        for o in graph.outputs:
            if graph.is_float(o.name) and (o.name not in self.facts.exact or o.name in self.parts):
                want.setdefault(o.name, set()).add(self.output_kind(o.name))
        for node in reversed(graph.nodes):
            movers = self._moved(node)
            wanted = set().union(*(want.get(o, set()) for o in node.output))
            if movers:
                if node.op_type == "TopK" and self._is_read(node.output[1]):
                    wanted.add("i16")
                kind = "i16" if len(wanted) > 1 else next(iter(wanted), None)
                if len(wanted) > 1:
                    for o in node.output:
                        result.kinds[o] = sorted(want.get(o, set()) - {"i16"})
                demands = {i: kind for i in movers}
            else:
                for o in node.output:
                    if want.get(o):
                        result.kinds[o] = sorted(want[o])
                demands = {i: self.demand(node, i) for i in range(len(node.input)) if node.input[i]}
                if node.op_type == "Where" and "i16" in wanted:
                    demands = dict.fromkeys(mover_inputs(node), "i16")
            for i, kind in demands.items():
                name = node.input[i]
                if kind and name and graph.is_float(name):
                    result.reads[id(node), i] = kind
                    if name not in graph.constants:
                        want.setdefault(name, set()).add(kind)
        for v in graph.inputs:
            if want.get(v.name):
                result.kinds[v.name] = sorted(want[v.name])
        result.kinds = {k: v for k, v in result.kinds.items() if v}
        self._carry(result, want)
        for target, source in self.states.items():
            kind = self.output_kind(target)
            if kind in want.get(source, ()):
                result.join(result.of(source, kind), result.of(target, kind))
        return result

    def _carry(self, result: Placement, want: dict[str, set[str]]) -> None:
        for node in self.graph.nodes:
            movers = self._moved(node)
            keys = [
                result.of(node.input[i], result.reads[id(node), i])
                for i in movers
                if (id(node), i) in result.reads and self.graph.scalar(node.input[i]) is None
            ]
            if not keys:
                continue
            for key in keys[1:]:
                result.join(keys[0], key)
            kind = keys[0][1]
            for o in node.output:
                if kind in want.get(o, ()):
                    result.carrier[o, kind] = keys[0]
