"""Limits: those that limit nothing (Clip, Max and Min with infinities, as exporters write a limit on one side) are
dropped, and a Clip to computed limits becomes Max and Min."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph

FREE = {"Max": -np.inf, "Min": np.inf}  # operands that change nothing


def limits(nodes: Iterable[NodeProto]) -> set[str]:
    """The tensors that nodes read as nothing but limits, which may be infinite."""
    found, others = set[str](), set[str]()
    for node in nodes:
        first = {"Clip": 1, "Max": 0, "Min": 0}.get(node.op_type, len(node.input))
        others.update(node.input[:first])
        found.update(node.input[first:])
    return found - others


def plain_limits(graph: Graph) -> None:
    for node in list(graph.nodes):
        if node.op_type == "Clip":
            for i, free in ((1, -np.inf), (2, np.inf)):
                if len(node.input) > i and _all(graph, node.input[i], free):
                    node.input[i] = ""
                    graph.update(node)
            _computed_limits(graph, node)
        elif node.op_type in FREE and len(node.input) > 1:
            kept = [i for i in node.input if not _all(graph, i, FREE[node.op_type])]
            same = [i for i in kept if graph.shape(i) is not None and graph.shape(i) == graph.shape(node.output[0])]
            if same and len(kept) < len(node.input):  # else the others say what shape the result has
                graph.replace(node, *((node.op_type, kept) if len(kept) > 1 else ("Identity", kept)))
                graph.update(node)


def _computed_limits(graph: Graph, node: NodeProto) -> None:
    given = {op: name for op, name in zip(("Max", "Min"), node.input[1:]) if name}
    if all(name in graph.constants for name in given.values()):
        return
    *before, last = given.items()
    x = node.input[0]
    for op, name in before:
        x = graph.add(op, [x, name], f"{node.output[0]}_{op.lower()}")
    graph.replace(node, last[0], [x, last[1]])
    graph.update(node)


def _all(graph: Graph, name: str, value: float) -> bool:
    constant = graph.constants.get(name)
    return constant is not None and constant.dtype.kind == "f" and constant.size > 0 and bool((constant == value).all())
