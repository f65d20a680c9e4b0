"""What a program costs, counted from its ops."""

from __future__ import annotations

from qcompile.kernels.dialect import OPS, Type
from qcompile.kernels.program import Node, Program, infer_node


def macs(program: Program) -> int:
    """Multiply-accumulates of all convolutions and products of one inference."""
    return sum(macs_by_node(program).values())


def macs_by_node(program: Program) -> dict[str, int]:
    """The same of each node. Products with zeros that a pass put between the weights of a convolution do not count:
    info["macs"] has the network's own number for such a convolution."""
    types, own, found = program.types(), program.info.get("macs", {}), {}
    for node in program.nodes:
        known = [own[step.name] for step in node.body or (node,) if step.name in own]
        found[node.name] = sum(known) or node_macs(node, types)
    return found


def node_macs(node: Node, types: dict[str, Type]) -> int:
    """Multiply-accumulates of one node; types: of the tensors that it reads and makes."""
    if node.op == "fused":
        inner = {i: types[i] for i in node.inputs}
        total = 0
        for step in node.body:
            inner[step.name] = infer_node(step, inner)
            total += node_macs(step, inner)
        return total
    return OPS[node.op].macs([types[i] for i in node.inputs], types[node.name])
