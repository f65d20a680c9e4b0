"""Which nodes compute with more than 8 bits, whatever the samples say.

Six grounds: streams between normalisations, spelled-out recurrent cells, what makes the parts of an output, positions
and boxes, integers that mean numbers, and the moments below a root.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from onnx import NodeProto
from qcompile.frontend.graph import Graph
from qcompile.quantizer.cells import spelled_cells
from qcompile.quantizer.facts import Facts
from qcompile.quantizer.operators import (
    CLAMPS,
    DECIDING,
    ELEMENTWISE,
    MOVERS,
    REDUCING,
    STREAM_NORMS,
    SUMS_OF_SQUARES,
    mover_inputs,
)


def wide_nodes(facts: Facts, streams: bool = True, parts: Collection[str] = ()) -> tuple[set[int], set[int]]:
    """(ids of sums, products and reductions of 16 bits, ids of functions whose tables have more than 8).

    streams: residual streams are wide; parts: outputs that are put together later.
    """
    graph = facts.graph
    cells, functions = spelled_cells(graph)
    moments, roots = _steep_roots(graph)
    decided = {n.input[i] for n in graph.nodes for i in DECIDING.get(n.op_type, ())}
    found = cells | moments | _behind_parts(facts, decided.union(parts)) | _behind_numbers(facts)
    return found | (_streams(facts) if streams else set()), functions | roots


def _plain(facts: Facts, node: NodeProto, kinds: Collection[str]) -> bool:
    """Whether `node` is arithmetic of `kinds` that no fusion takes its operands from."""
    return node.op_type in kinds and id(node) not in facts.scores | facts.biases | facts.gated


def _streams(facts: Facts) -> set[int]:
    """Elementwise and reducing nodes connected to a normalisation through each other and data movement."""
    graph, wide = facts.graph, set[int]()
    plain = {id(n) for n in graph.nodes if _plain(facts, n, ELEMENTWISE | REDUCING)}

    def readers(node: NodeProto) -> list[NodeProto]:
        return [c for o in node.output for c in graph.consumers(o)]

    def makers(node: NodeProto) -> list[NodeProto]:
        return [m for i in node.input if (m := graph.producer(i)) is not None]

    walks: tuple[tuple[Iterable[NodeProto], Callable], ...] = ((reversed(graph.nodes), readers), (graph.nodes, makers))
    for order, neighbours in walks:
        reach: set[int] = set()
        for node in order:
            if any(n.op_type in STREAM_NORMS or id(n) in wide or id(n) in reach for n in neighbours(node)):
                if id(node) in plain:
                    wide.add(id(node))
                elif mover_inputs(node):
                    reach.add(id(node))
    return wide


def _behind_parts(facts: Facts, parts: Collection[str]) -> set[int]:
    """The elementwise and reducing nodes that `parts` are made by, back to layers and activations."""
    graph, found = facts.graph, set[int]()
    seen, stack = set(parts), list(parts)
    while stack:
        node = graph.producer(stack.pop(), *ELEMENTWISE, *REDUCING, *CLAMPS, *MOVERS, "Resize")
        if node is None or id(node) in facts.scores | facts.biases | facts.gated:
            continue
        if node.op_type in ELEMENTWISE | REDUCING:
            found.add(id(node))
        new = [i for i in node.input if i and i not in seen and graph.is_float(i)]
        seen.update(new)
        stack += new
    return found


def _behind_numbers(facts: Facts) -> set[int]:
    """The elementwise nodes that compute with integers that mean numbers: 8 bits would keep few of their digits."""
    reached, found = set(facts.graph.numbers), set[int]()
    for node in facts.graph.nodes:
        plain = _plain(facts, node, ELEMENTWISE)
        if (plain or mover_inputs(node)) and any(i in reached for i in node.input):
            reached.update(node.output)
            found |= {id(node)} if plain else set()
    return found


def _steep_roots(graph: Graph) -> tuple[set[int], set[int]]:
    """(sums and squares, roots) of 1 / sqrt(variance + epsilon) and of LpPool, which are steep at small sums."""
    moments, roots = set[int](), set[int]()
    for node in graph.nodes:
        root = graph.producer(node.input[0], "Sqrt") if node.op_type == "Reciprocal" else node
        if root is None or root.op_type != "Sqrt":
            continue
        path, name = [], root.input[0]
        while (maker := graph.producer(name, *SUMS_OF_SQUARES)) is not None:
            path.append(maker)
            name = next((i for i in maker.input if i not in graph.constants), "")
        if any(n.op_type == ("ReduceMean" if node is not root else "AveragePool") for n in path):
            moments |= {id(n) for n in path}
            roots |= {id(node), id(root)}
    return moments, roots
