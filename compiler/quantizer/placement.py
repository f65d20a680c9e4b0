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
from qcompile.frontend.graph import Graph, attribute
from qcompile.frontend.recurrent import CELL, HIDDEN, RECURRENT
from qcompile.frontend.states import states
from qcompile.quantizer.cells import spelled_cells

LINEAR = {"Conv", "ConvTranspose", "Gemm", "MatMul"}
STREAM_NORMS = {"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization"}
NORMS = STREAM_NORMS | {"InstanceNormalization", "GroupNormalization", "LpNormalization"}
SOFTMAX = {"Softmax", "LogSoftmax"}
TAKES_HIGHEST = SOFTMAX | {"ReduceMax", "MaxPool", "GlobalMaxPool", "TopK", "ArgMax", "Max", "ReduceLogSumExp"}
ELEMENTWISE = {"Add", "Sub", "Mul", "Div", "Sum", "Mean", "Min", "Max"}
REDUCING = {"ReduceMean", "ReduceSum", "AveragePool", "GlobalAveragePool"}
CLAMPS = {"Relu", "Clip"}
SUMS_OF_SQUARES = ("Add", "Sub", "Mul", "ReduceMean", "AveragePool")
SMOOTH = {"Gelu", "Mish", "Sigmoid", "Tanh", "Erf", "HardSwish"}
RECURRENT_KINDS = {0: "i8", HIDDEN: "i16", CELL: "i16"}  # of the inputs of LSTM, GRU and RNN
GATES = {"Sigmoid", "HardSigmoid", "Tanh", "Erf"}
STEEP = {"Reciprocal", "Exp", "Log", "Pow", "Tan", "Sinh", "Cosh", "Atanh", "Acosh"}  # 8 bits say little of an end
STEPS = {"Round", "Floor", "Ceil", "Sign"}  # functions that jump: noise before them is decided upon
COMPARING = {"Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal", "ArgMax", "ArgMin", "Hardmax", "Cast"}
MOVERS = {  # op type: indices of the data inputs; None means all
    **dict.fromkeys(
        (
            "Reshape",
            "Transpose",
            "Squeeze",
            "Unsqueeze",
            "Flatten",
            "Slice",
            "Split",
            "Gather",
            "Expand",
            "Tile",
            "DepthToSpace",
            "SpaceToDepth",
            "MaxPool",
            "GlobalMaxPool",
            "Identity",
            "Pad",
            "GatherND",
            "GatherElements",
            "ReduceMax",
            "ReduceMin",
            "Trilu",
            "ReverseSequence",
            "TopK",
        ),
        (0,),
    ),
    "Concat": None,
    "Where": (1, 2),
    "ScatterElements": (0, 2),
    "ScatterND": (0, 2),
}
WIDE_TABLE_FLOOR = {"Gelu": -6.0, "Mul": -12.0, "Mish": -12.0}  # below, the activation is zero to 16 bits


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


def mover_inputs(node: NodeProto) -> list[int]:
    """Indices of the inputs a data movement op passes on; empty for other ops."""
    if node.op_type == "Resize" and attribute(node, "mode", "nearest") == "nearest":
        return [0]
    if node.op_type not in MOVERS or attribute(node, "reduction", "none") != "none":
        return []
    return list(range(len(node.input)) if MOVERS[node.op_type] is None else MOVERS[node.op_type])


def is_bias_add(graph: Graph, node: NodeProto) -> bool:
    """Add of a constant vector to a MatMul by a constant that nothing else reads."""
    if node.op_type != "Add":
        return False
    for i in (0, 1):
        layer = graph.producer(node.input[i], "MatMul")
        vector = graph.constants.get(node.input[1 - i])
        if (
            layer is not None
            and vector is not None
            and layer.input[1] in graph.constants
            and graph.only_consumer(node.input[i]) is node
            and vector.shape[-1:] == (vector.size,) == graph.shape(node.output[0])[-1:]
        ):
            return True
    return False


class Placer:
    """Applies the rules to one graph."""

    def __init__(
        self, graph: Graph, wide_streams: bool = True, parts: Collection[str] = (), everywhere: bool = False
    ):
        """`parts` of outputs that are put together later have 16 bits, and so has the arithmetic that makes them;
        everywhere: all that can have 16 bits does, whatever the network is."""
        self.graph = graph
        self.everywhere, self.outputs = everywhere, graph.output_names
        self.parts = set(parts)
        self.wide_streams = wide_streams
        self.states = {target: source for source, target in states(graph).items()}
        self.exact = self._integer_valued()
        self.scores = self._score_nodes()
        self.biases = {id(n) for n in graph.nodes if is_bias_add(graph, n)}
        self.gated = {id(n) for n in graph.nodes if n.op_type == "Mul" and self._gate(n) is not None}
        cells, self.cell_functions = spelled_cells(graph)
        self.wide = (self._wide_nodes() if wide_streams else set()) | cells | self._behind_parts()
        self.wide |= self._behind_numbers()
        moments, roots = self._steep_roots()
        self.wide, self.cell_functions = self.wide | moments, self.cell_functions | roots
        self.raw = self._raw_operands()
        self.transformer = wide_streams and any(n.op_type in STREAM_NORMS for n in graph.nodes)

    # --- facts about the graph ------------------------------------------------------------------------------------
    def _integer_valued(self) -> set[str]:
        """Float tensors that depend on integer inputs and constants only; embedding rows are data, not these."""
        exact = {v.name for v in self.graph.inputs if not self.graph.is_float(v.name)}
        for node in self.graph.nodes:
            data = [i for i in node.input if i and i not in self.graph.constants]
            table = node.op_type == "Gather" and self.graph.is_float(node.input[0])
            numbers = node.op_type in LINEAR | {"DequantizeLinear"}
            if data and all(i in exact for i in data) and not table and not numbers:
                exact.update(o for o in node.output if o not in self.graph.numbers)
        return exact

    def _score_nodes(self) -> set[int]:
        """Nodes between the score MatMul and Softmax: scale, mask."""
        found: set[int] = set()
        for softmax in self.graph.nodes:
            if softmax.op_type != "Softmax":
                continue
            path, name = [], softmax.input[0]
            while True:
                node = self.graph.producer(name, "Mul", "Div", "Add", "Sub", "Where", "Reshape", "Min", "Max", "Clip")
                if node is None or self.graph.only_consumer(name) is None:
                    break
                path.append(node)
                name = self._score_operand(node)
            maker = self.graph.producer(name, "MatMul")
            if maker is not None and not any(i in self.graph.constants for i in maker.input):
                found |= {id(n) for n in path} | {id(softmax)}
        return found

    def masks(self) -> list[str]:
        """The integer inputs [batch, tokens] that are masks of attention scores, directly or through arithmetic."""
        return [name for name in self.score_inputs() if self.graph.rank(name) == 2]

    def score_inputs(self) -> list[str]:
        """The integer inputs of any rank that are masks of attention scores."""
        inputs = {v.name: v for v in self.graph.inputs if v.name in self.exact}
        frontier = [i for n in self.graph.nodes if id(n) in self.scores for i in n.input if i in self.exact]
        found: set[str] = set()
        while frontier:
            name = frontier.pop()
            if name not in found:
                found.add(name)
                node = self.graph.producer(name)
                frontier += [i for i in node.input if i in self.exact] if node is not None else []
        return [name for name in inputs if name in found]

    def _score_operand(self, node: NodeProto) -> str:
        """The input of a score node that leads to the MatMul of two activations."""
        data = [
            i
            for i in node.input
            if i and i not in self.graph.constants and i not in self.exact and self.graph.is_float(i)
        ]
        for name in data:
            if self._leads_to_scores(name):
                return name
        return data[0] if data else ""

    def _leads_to_scores(self, name: str) -> bool:
        while (node := self.graph.producer(name)) is not None and node.op_type != "MatMul":
            if node.op_type not in ("Mul", "Div", "Add", "Sub", "Where", "Reshape", "Min", "Max", "Clip"):
                return False
            data = [
                i
                for i in node.input
                if i and i not in self.graph.constants and i not in self.exact and self.graph.is_float(i)
            ]
            if len(data) > 1:
                return any(self._leads_to_scores(i) for i in data)
            if not data:
                return False
            name = data[0]
        return node is not None and not any(i in self.graph.constants for i in node.input)

    def _gate(self, node: NodeProto) -> int | None:
        """Index of the operand g(x) in x * g(x), where nothing else reads g(x)."""
        if len(node.input) != 2:
            return None
        for i in (0, 1):
            gate = self.graph.producer(node.input[i], *GATES)
            if (
                gate is not None
                and gate.input[0] == node.input[1 - i]
                and self.graph.only_consumer(node.input[i]) is node
            ):
                return i
        return None

    def _wide_nodes(self) -> set[int]:
        """Elementwise and reducing nodes connected to a normalisation through each other and data movement."""
        graph, wide = self.graph, set()
        plain = (
            {id(n) for n in graph.nodes if n.op_type in ELEMENTWISE | REDUCING} - self.scores - self.biases - self.gated
        )

        def transparent(node: NodeProto) -> bool:
            return bool(mover_inputs(node)) or id(node) in self.biases or node.op_type in CLAMPS

        for order, neighbours in ((reversed(graph.nodes), self._readers), (graph.nodes, self._makers)):
            reach: set[int] = set()
            for node in order:
                near = [n for n in neighbours(node)]
                if any(n.op_type in STREAM_NORMS or id(n) in wide or id(n) in reach for n in near):
                    if id(node) in plain:
                        wide.add(id(node))
                    elif mover_inputs(node) and transparent(node):
                        reach.add(id(node))
        return wide

    def _behind_parts(self) -> set[int]:
        """The elementwise and reducing nodes that `parts` are made by, back to layers and activations."""
        found: set[int] = set()
        seen, stack = set(self.parts), list(self.parts)
        while stack:
            node = self.graph.producer(stack.pop(), *ELEMENTWISE, *REDUCING, *CLAMPS, *MOVERS, "Resize")
            if node is None or id(node) in self.scores | self.biases | self.gated:
                continue
            if node.op_type in ELEMENTWISE | REDUCING:
                found.add(id(node))
            new = [i for i in node.input if i and i not in seen and self.graph.is_float(i)]
            seen.update(new)
            stack += new
        return found

    def _behind_numbers(self) -> set[int]:
        """The elementwise nodes that compute with integers that mean numbers: 8 bits would keep few of their digits."""
        reached, found = set(self.graph.numbers), set[int]()
        for node in self.graph.nodes:
            plain = node.op_type in ELEMENTWISE and id(node) not in self.scores | self.biases | self.gated
            if (plain or mover_inputs(node)) and any(i in reached for i in node.input):
                reached.update(node.output)
                found |= {id(node)} if plain else set()
        return found

    def _steep_roots(self) -> tuple[set[int], set[int]]:
        """(sums and squares, roots) of 1 / sqrt(variance + epsilon) and of LpPool, which are steep at small sums."""
        moments, roots = set[int](), set[int]()
        for node in self.graph.nodes:
            root = self.graph.producer(node.input[0], "Sqrt") if node.op_type == "Reciprocal" else node
            if root is None or root.op_type != "Sqrt":
                continue
            path, name = [], root.input[0]
            while (maker := self.graph.producer(name, *SUMS_OF_SQUARES)) is not None:
                path.append(maker)
                name = next((i for i in maker.input if i not in self.graph.constants), "")
            if any(n.op_type == ("ReduceMean" if node is not root else "AveragePool") for n in path):
                moments |= {id(n) for n in path}
                roots |= {id(node), id(root)}
        return moments, roots

    def _readers(self, node: NodeProto) -> list[NodeProto]:
        return [c for o in node.output for c in self.graph.consumers(o)]

    def _makers(self, node: NodeProto) -> list[NodeProto]:
        return [m for i in node.input if (m := self.graph.producer(i)) is not None]

    def _raw_operands(self) -> set[tuple[int, int]]:
        """(id of Add, input index) of one operand per residual Add that arrives unrounded from its layer."""
        raw, rank = set(), {id(n): k for k, n in enumerate(self.graph.nodes)}
        for node in self.graph.nodes:
            if node.op_type not in ("Add", "Sub") or id(node) in self.biases | self.scores:
                continue
            best = None
            for i, name in enumerate(node.input):
                maker = self.graph.producer(name)
                if maker is None or not (maker.op_type in LINEAR or id(maker) in self.biases):
                    continue
                if self.graph.only_consumer(name) is node and self.graph.shape(name) == self.graph.shape(
                    node.output[0]
                ):
                    best = max(best or (-1, 0), (rank[id(maker)], i))
            if best:
                raw.add((id(node), best[1]))
        return raw

    # --- demands ----------------------------------------------------------------------------------------------------
    def demand(self, node: NodeProto, i: int) -> str | None:
        """The kind node `node` (no data movement) wants its float, non-constant input `i` to have."""
        op, name = node.op_type, node.input[i]
        if op in RECURRENT:
            return RECURRENT_KINDS.get(i)
        if op == "QuantizeLinear":
            return None
        if op in LINEAR:
            return "i8" if i < 2 else None
        if op in NORMS:
            return ("i16" if self.wide_streams else "i8") if i == 0 else None
        if id(node) in self.scores or id(node) in self.biases or (id(node), i) in self.raw:
            return None
        if id(node) in self.gated:
            return None if i == self._gate(node) else self._activation_kind("Mul")
        if op in GATES and (user := self.graph.only_consumer(node.output[0])) is not None and id(user) in self.gated:
            return self._activation_kind("Mul")
        if op in CLAMPS:
            if self._fused_clamp(node):
                return None
            if name in self.exact:
                return None
        if op in ELEMENTWISE | REDUCING | CLAMPS:
            if self._scaled_activation(node):
                return None
            wide = id(node) in self.wide or name in self.graph.numbers
            if op == "Div" and i == 1 and not wide and name not in self.exact:
                return "table"
            return None if name in self.exact else "i16" if wide or self.everywhere else "i8"
        if name in self.exact:
            return None
        if op in COMPARING:
            return "i16"
        few_codes = id(node) in self.cell_functions or name in self.graph.numbers or op in STEEP | STEPS
        if self.everywhere and not few_codes and op not in SMOOTH:
            return "i16"
        return "table" if few_codes else self._activation_kind(op)

    def _activation_kind(self, op: str) -> str:
        return "table" if self.everywhere or (self.transformer and op in WIDE_TABLE_FLOOR) else "i8"

    def _scaled_activation(self, node: NodeProto) -> bool:
        """Whether `node` multiplies an activation's result, which it alone reads, by a constant (equalisation)."""
        if node.op_type != "Mul" or not any(i in self.graph.constants for i in node.input):
            return False
        maker = next((m for i in node.input if (m := self.graph.producer(i)) is not None), None)
        return (
            maker is not None
            and (maker.op_type in SMOOTH or id(maker) in self.gated)
            and self.graph.only_consumer(maker.output[0]) is node
        )

    def _fused_clamp(self, node: NodeProto) -> bool:
        """Whether a Relu or Clip directly follows arithmetic that it alone reads, or limits what is quantized next."""
        readers = self.graph.consumers(node.output[0])
        if readers and all(r.op_type == "QuantizeLinear" for r in readers) and node.output[0] not in self.outputs:
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
        if name in self.parts:
            return "i16"
        if name in self.states:
            return "i16" if "i16" in self._demanded(self.states[name]) else "i8"
        while (node := self.graph.producer(name)) is not None and mover_inputs(node):
            name = node.input[mover_inputs(node)[0]]
        wide = node is not None and ((node.op_type in STREAM_NORMS and self.wide_streams) or id(node) in self.wide)
        wide = wide or name in self.graph.numbers or self.everywhere
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
        movers = mover_inputs(node) if id(node) not in self.scores else []
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
            if graph.is_float(o.name) and (o.name not in self.exact or o.name in self.parts):
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
