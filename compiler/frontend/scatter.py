"""Gathering and scattering by constant indices: one Gather from a flat tensor, behind a Concat where values are set.

What torch exports for x[:, idx], x[a:b] = y and the like.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute

Shape = tuple[int, ...]


def _constant_index(graph: Graph, node: NodeProto, sizes: Shape) -> np.ndarray | None:
    """The second input as indices from 0 on; `sizes` of the axes that its numbers (its last axis) count."""
    value = graph.constants.get(node.input[1])
    if value is None:
        return None
    index = value.astype(np.int64)
    return np.where(index < 0, index + np.array(sizes), index)


def _places(graph: Graph, node: NodeProto, shape: Shape) -> np.ndarray | None:
    """For GatherElements and ScatterElements: the flat place in a tensor of `shape` that each index means."""
    axis = attribute(node, "axis", 0) % len(shape)
    index = _constant_index(graph, node, (shape[axis],))
    if index is None:
        return None
    grid = list(np.indices(index.shape))
    grid[axis] = index
    return np.asarray(np.ravel_multi_index(grid, shape))


def _rows(graph: Graph, node: NodeProto, shape: Shape, batch: int = 0) -> tuple[np.ndarray, int] | None:
    """For GatherND and ScatterND: (row numbers, elements of a row) in a tensor of `shape` seen as rows."""
    value = graph.constants.get(node.input[1])
    if value is None:
        return None
    depth = batch + value.shape[-1]
    index = _constant_index(graph, node, shape[batch:depth])
    assert index is not None
    lead = list(np.indices(index.shape[:-1])[:batch]) if batch else []
    numbers = np.ravel_multi_index([*lead, *np.moveaxis(index, -1, 0)], shape[:depth])
    return numbers, int(np.prod(shape[depth:], dtype=np.int64))


def _taken(graph: Graph, node: NodeProto, source: str, rows: int, size: int, numbers: np.ndarray, out: Shape) -> None:
    """`node` becomes the rows `numbers` of `source` seen as [rows, size], in shape `out`."""
    y = node.output[0]
    flat = graph.add("Reshape", [source, graph.constant(f"{y}_flat", np.array([rows, size]))], f"{y}_rows")
    index = graph.constant(f"{y}_numbers", numbers.reshape(-1).astype(np.int64))
    taken = graph.add("Gather", [flat, index], f"{y}_taken", axis=0)
    graph.replace(node, "Reshape", [taken, graph.constant(f"{y}_shape", np.array(out, np.int64))])


def gather_elements(graph: Graph, node: NodeProto) -> None:
    shape = graph.shape(node.input[0])
    places = _places(graph, node, shape) if shape else None
    if places is not None and shape is not None:
        _taken(graph, node, node.input[0], int(np.prod(shape)), 1, places, places.shape)


def gather_nd(graph: Graph, node: NodeProto) -> None:
    shape = graph.shape(node.input[0])
    found = _rows(graph, node, shape, attribute(node, "batch_dims", 0)) if shape else None
    if found is not None and shape is not None:
        numbers, size = found
        depth = attribute(node, "batch_dims", 0) + graph.constants[node.input[1]].shape[-1]
        rest = shape[depth:]
        _taken(graph, node, node.input[0], int(np.prod(shape)) // max(size, 1), size, numbers, (*numbers.shape, *rest))


def scatter_elements(graph: Graph, node: NodeProto) -> None:
    shape = graph.shape(node.input[0])
    places = _places(graph, node, shape) if shape and attribute(node, "reduction", "none") == "none" else None
    if places is not None and shape is not None:
        _written(graph, node, shape, 1, places.reshape(-1))


def scatter_nd(graph: Graph, node: NodeProto) -> None:
    shape = graph.shape(node.input[0])
    found = _rows(graph, node, shape) if shape and attribute(node, "reduction", "none") == "none" else None
    if found is not None and shape is not None:
        _written(graph, node, shape, found[1], found[0].reshape(-1))


def _written(graph: Graph, node: NodeProto, shape: Shape, size: int, numbers: np.ndarray) -> None:
    """Rows `numbers` of the data replaced by those of the updates: a Gather from both, one behind the other."""
    y, count = node.output[0], int(np.prod(shape)) // size
    parts = [
        graph.add("Reshape", [name, graph.constant(f"{y}_flat", np.array([-1, size]))], f"{y}_part")
        for name in (node.input[0], node.input[2])
    ]
    source = np.arange(count)
    source[numbers] = count + np.arange(len(numbers))  # of equal places, the last counts
    both = graph.add("Concat", parts, f"{y}_both", axis=0)
    index = graph.constant(f"{y}_numbers", source.astype(np.int64))
    taken = graph.add("Gather", [both, index], f"{y}_taken", axis=0)
    graph.replace(node, "Reshape", [taken, graph.constant(f"{y}_shape", np.array(shape, np.int64))])
