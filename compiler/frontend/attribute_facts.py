"""What rules for attributes share: what a fault is, and what is known of a node."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute

Fault = tuple[str, str]
Rule = Callable[[Graph, NodeProto], Iterator[Fault]]
LARGEST = 2**31 - 1  # of an attribute that counts elements


def ints(graph: Graph, node: NodeProto, name: str, index: int | None = None) -> list[int] | None:
    """Whole numbers that are an attribute or, since some opset, the constant input `index`; None where unknown."""
    value = attribute(node, name)
    if value is not None:
        return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    constant = graph.constants.get(node.input[index]) if index is not None and len(node.input) > index else None
    if constant is None or constant.dtype.kind not in "iu":
        return None
    return [int(v) for v in constant.reshape(-1)]


def rank_of(graph: Graph, node: NodeProto, index: int = 0) -> int | None:
    return graph.rank(node.input[index]) if len(node.input) > index else None


def outside(axes: Sequence[int], rank: int) -> list[int]:
    return [a for a in axes if not -rank <= a < rank]
