"""Joins an op and the elementwise ops that follow it into one node, which one kernel runs tile by tile.

The meaning of a "fused" node is its body, run in order; nothing is rounded differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from qcompile.kernels.dialect import OPS, Type
from qcompile.kernels.program import Node, Program

LONGEST = 16  # nodes of a group: a kernel writes each of them out for every tile, and must stay small
Fusable = Callable[[Node, str, dict[str, Type]], bool]


def fuse(program: Program, fusable: Fusable) -> Program:
    """fusable(step, value name, types) says whether a target's kernels can run `step` on a value in registers."""
    types, users = program.types(), program.readers()
    taken: set[str] = set()
    groups: dict[str, list[Node]] = {}  # last node of a group -> its nodes
    makers = {n.name: n for n in program.nodes}

    def wider(value: str, than: str) -> bool:
        return np.dtype(types[value].dtype).itemsize > np.dtype(types[than].dtype).itemsize

    def joins(step: Node, value: str) -> bool:
        """The node that makes `value` can have `step` after it. Sums rather than 8-bit codes stay in registers."""
        alone = len(users.get(value, [])) == step.inputs.count(value) == 1 and value not in program.outputs
        starts = value in makers and _starts(makers[value])
        return alone and starts and fusable(step, value, types)

    for head in program.nodes:
        if head.name in taken or not _starts(head):
            continue
        body = [head]
        while len(body) < LONGEST:
            last = body[-1].name
            readers = users.get(last, [])
            if len(readers) != 1 or last in program.outputs:
                break
            step = readers[0]
            if (
                step.name in taken
                or not OPS[step.op].elementwise
                or step.inputs.count(last) != 1
                or not fusable(step, last, types)
                or any(wider(other, last) and joins(step, other) for other in set(step.inputs) - {last})
            ):
                break
            body.append(step)
        if len(body) > 1:
            taken.update(n.name for n in body)
            groups[body[-1].name] = body
    nodes = []
    for node in program.nodes:
        if node.name in groups:
            body = groups[node.name]
            inner = {n.name for n in body}
            inputs = dict.fromkeys(i for n in body for i in n.inputs if i not in inner)
            nodes.append(Node(node.name, "fused", tuple(inputs), {}, tuple(body)))
        elif node.name not in taken:
            nodes.append(node)
    return replace(program, nodes=nodes)


def _starts(node: Node) -> bool:
    """Whether a group may begin with it."""
    return OPS[node.op].heads_fusion or OPS[node.op].elementwise
