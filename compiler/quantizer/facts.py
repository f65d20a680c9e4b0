"""What the placement rules ask about a float graph: masks, attention scores, biases, gates, residual branches."""

from __future__ import annotations

from onnx import NodeProto
from qcompile.frontend.graph import Graph
from qcompile.quantizer.operators import GATES, LINEAR, is_bias_add

SCORE_PATH = ("Mul", "Div", "Add", "Sub", "Where", "Reshape", "Min", "Max", "Clip")  # from the product to Softmax


class Facts:
    """Of one graph, with nodes by their ids.

    exact: float tensors of integers alone (masks, counts); scores: nodes from the product of queries and keys to
    Softmax; biases: Adds of a layer's bias; gated: x * g(x); raw: (Add, input index) of one operand per residual Add
    that arrives unrounded from its layer.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.exact = self._integer_valued()
        self.scores = self._score_nodes()
        self.biases = {id(n) for n in graph.nodes if is_bias_add(graph, n)}
        self.gated = {id(n) for n in graph.nodes if n.op_type == "Mul" and self.gate(n) is not None}
        self.raw = self._raw_operands()

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
                node = self.graph.producer(name, *SCORE_PATH)
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
            if node.op_type not in SCORE_PATH:
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

    def gate(self, node: NodeProto) -> int | None:
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
