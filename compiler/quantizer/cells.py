"""Recurrent cells that an exporter has spelled out: which of their nodes need more than 8 bits.

A cell blends its state through gates, s' = gate * s + gate * n or gate * (s - n) + n, where a gate is a sigmoid or one
minus it. The state runs through many such sums, and 8-bit arguments would move the gates by several steps of their own:
sums and products of a cell are 16 bits wide, and so are the arguments of its functions.
"""

from __future__ import annotations

from onnx import NodeProto
from qcompile.frontend.graph import Graph

GATES = ("Sigmoid", "HardSigmoid")
FUNCTIONS = (*GATES, "Tanh", "Softsign")


def spelled_cells(graph: Graph) -> tuple[set[int], set[int]]:
    """(ids of sums and products, ids of functions) of cells; empty where no state is blended."""

    def gate(name: str) -> list[NodeProto]:
        """The nodes of a gate, none if `name` is no gate."""
        node = graph.producer(name, *GATES, "Sub")
        if node is None or node.op_type != "Sub":
            return [node] if node is not None else []
        inner = graph.producer(node.input[1], *GATES)
        return [node, inner] if graph.scalar(node.input[0]) == 1.0 and inner is not None else []

    products: dict[str, list[NodeProto]] = {}  # result of gate * x -> the nodes of product and gate
    for node in graph.nodes:
        if node.op_type == "Mul" and len(node.input) == 2:
            gates = [g for g, other in (node.input, reversed(node.input)) if gate(g) and gate(g)[0].input[0] != other]
            if gates:
                products[node.output[0]] = [node, *(n for g in gates for n in gate(g))]
    blends, differences = [], []
    for node in graph.nodes:
        if node.op_type != "Add":
            continue
        steps = [d for i, other in (node.input, reversed(node.input)) for d in _towards(graph, products.get(i), other)]
        if steps or all(i in products for i in node.input):
            blends.append(node)
            differences += steps
    if not blends:
        return set(), set()
    members = [*blends, *differences, *(n for nodes in products.values() for n in nodes)]
    sums = {id(n) for n in members if n.op_type not in FUNCTIONS}
    functions = {id(n) for n in members if n.op_type in FUNCTIONS}
    for name in products:
        for i in products[name][0].input:
            if (maker := graph.producer(i, *FUNCTIONS)) is not None:
                functions.add(id(maker))
    for node in (*differences, *blends):
        functions |= {id(m) for i in node.input if (m := graph.producer(i, *FUNCTIONS)) is not None}
    return sums, functions


def _towards(graph: Graph, product: list[NodeProto] | None, end: str) -> list[NodeProto]:
    """The difference s - end in a product gate * (s - end)."""
    found = [graph.producer(i, "Sub") for i in product[0].input] if product else []
    return [n for n in found if n is not None and n.input[1] == end]
