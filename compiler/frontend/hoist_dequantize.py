"""DequantizeLinear of codes that are taken from a constant table comes before the taking.

ONNX Runtime's quantize_dynamic writes an embedding as Gather of an int8 table, then DequantizeLinear. The other way
round it is the embedding of any other model, with the codes of its table.
"""

from __future__ import annotations

from onnx import NodeProto
from qcompile.frontend.graph import Graph

# what moves elements of its first input about and takes the types of all
MOVES = ("Gather", "Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Expand", "Tile")


def hoist_dequantize(graph: Graph) -> None:
    """Moves every DequantizeLinear with one scale in front of the data movement between it and constant codes."""
    for node in list(graph.nodes):
        if node.op_type != "DequantizeLinear" or graph.scalar(node.input[1]) is None:
            continue
        moves = _moves(graph, node.input[0])
        if not moves:
            continue
        name = graph.add("DequantizeLinear", [moves[0].input[0], *node.input[1:]], f"{moves[0].input[0]}_real")
        for move in moves:
            copied = NodeProto.FromString(move.SerializeToString())
            made = node.output[0] if move is moves[-1] else graph.fresh(f"{move.output[0]}_real")
            copied.input[0], copied.output[0] = name, made
            copied.name = f"{move.name or move.output[0]}_real"
            if move is moves[-1]:
                node.CopyFrom(copied)
            else:
                graph.nodes.append(copied)
            name = made
    graph.update()


def _moves(graph: Graph, name: str) -> list[NodeProto]:
    """The data movement that makes a tensor from a constant, first to last; none where it is made otherwise."""
    moves: list[NodeProto] = []
    while name not in graph.constants:
        node = graph.producer(name, *MOVES)
        if node is None or len(node.output) != 1:
            return []
        moves, name = [node, *moves], node.input[0]
    return moves
