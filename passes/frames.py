"""Images that convolutions read with padding are made with it: what makes them writes into a frame.

Expects fused nodes. Where all readers of a convolution's or dense layer's result are convolutions with the same pads
and zero point, a `pad` ends the node that makes it, and the readers have none. The numbers stay the same; a kernel that
stores its pixels a little further apart saves the copy that the readers would begin with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from qcompile.kernels.dialect import Type
from qcompile.kernels.program import Node, Program

NO_PADS = [0, 0, 0, 0]
Framable = Callable[[Node, dict[str, Type]], bool]


def frames(program: Program, framable: Framable) -> Program:
    """framable(node, types) says whether a target's kernels can store the node's result inside a frame."""
    types, readers = program.types(), program.readers()
    framed: dict[str, tuple[list[int], int]] = {}  # tensor -> pads and the value of its margins
    for node in program.nodes:
        if node.name in program.outputs or not framable(node, types):
            continue
        wanted = {_wanted(reader, node.name) for reader in readers.get(node.name, [])}
        if len(wanted) == 1 and (found := wanted.pop()):
            framed[node.name] = list(found[:4]), found[4]
    taken = set(types)
    nodes = []
    for node in program.nodes:
        if _head(node).inputs and _head(node).inputs[0] in framed:
            node = _without_pads(node)
        if node.name in framed:
            node = _with_frame(node, *framed[node.name], taken)
        nodes.append(node)
    return replace(program, nodes=nodes)


def _head(node: Node) -> Node:
    return node.body[0] if node.body else node


def _wanted(reader: Node, name: str) -> tuple[int, int, int, int, int] | None:
    """The pads and the zero point with which a convolution reads `name`, if it only reads it so."""
    steps = reader.body or (reader,)
    uses = sum(step.inputs.count(name) for step in steps)
    head = steps[0]
    if head.op != "conv2d" or uses != 1 or head.inputs[0] != name or not any(head.attrs["pads"]):
        return None
    if isinstance(head.attrs["x_zero_point"], list):
        return None
    return (*head.attrs["pads"], head.attrs["x_zero_point"])


def _without_pads(node: Node) -> Node:
    if node.body:
        return replace(node, body=(_without_pads(node.body[0]), *node.body[1:]))
    return replace(node, attrs={**node.attrs, "pads": NO_PADS})


def _with_frame(node: Node, pads: list[int], value: int, taken: set[str]) -> Node:
    """The node with a last step that pads; what was its result gets a name of its own."""
    inner = f"{node.name}_inner"
    while inner in taken:
        inner += "_"
    top, left, bottom, right = pads
    attrs = {"before": [0, top, left, 0], "after": [0, bottom, right, 0], "mode": "constant", "value": value}
    body = node.body or (node,)
    body = (*body[:-1], replace(body[-1], name=inner), Node(node.name, "pad", (inner,), attrs))
    return Node(node.name, "fused", node.inputs, {}, body)


__all__ = ["frames"]
