"""What a program costs, counted from its ops."""

from __future__ import annotations

import numpy as np
from qcompile.kernels.dialect import Type
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
    if node.op in ("conv2d", "dense"):
        weight = types[node.inputs[1]]
        return types[node.name].size * int(np.prod(weight.shape[1:]))
    if node.op in ("lstm", "gru", "rnn"):
        x = types[node.inputs[0]]
        return x.size * types[node.name].shape[-1]
    if node.op == "matmul":
        return types[node.name].size * types[node.inputs[0]].shape[-1]
    if node.op == "attention":
        q, k, v = (types[i] for i in node.inputs[:3])
        out = types[node.name]
        return out.size // out.shape[-1] * k.shape[-2] * (q.shape[-1] + v.shape[-1])
    return 0
