"""Rules for what picks elements by number, takes slices step by step, or has a scale for each of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import NodeProto
from qcompile.frontend.attribute_facts import Fault, outside
from qcompile.frontend.graph import Graph, attribute


def numbers_of_elements(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    """Constant numbers of elements along an axis lie within it."""
    axis, shape, numbers = attribute(node, "axis", 0), graph.shape(node.input[0]), graph.constants.get(node.input[1])
    if shape is None or numbers is None or not numbers.size or outside([axis], len(shape)):
        return
    size = shape[axis]
    if int(numbers.min()) < -size or int(numbers.max()) >= size:
        wrong = int(numbers.min()) if int(numbers.min()) < -size else int(numbers.max())
        yield f"input '{node.input[1]}'", f"has the index {wrong}, where axis {axis} has {size} elements"
    elif node.op_type != "Gather" and numbers.ndim != len(shape):
        yield f"input '{node.input[1]}'", f"has rank {numbers.ndim}, the data {len(shape)}"


def numbers_of_parts(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    """GatherND, ScatterND: batch_dims, and constant numbers along the first axes behind them."""
    batch, shape, numbers = attribute(node, "batch_dims", 0), graph.shape(node.input[0]), graph.shape(node.input[1])
    ranks = [len(s) for s in (shape, numbers) if s is not None]
    if batch < 0 or any(batch >= rank for rank in ranks):
        yield "attribute 'batch_dims'", f"is {batch} for inputs of shapes {shape} and {numbers}"
        return
    known = graph.constants.get(node.input[1])
    if shape is None or numbers is None or not numbers:
        return
    if numbers[-1] > len(shape) - batch:
        yield f"input '{node.input[1]}'", f"numbers {numbers[-1]} axes, its data has {len(shape) - batch}"
    elif numbers[:batch] != shape[:batch]:
        yield "attribute 'batch_dims'", f"is {batch}, where the shapes {list(shape)} and {list(numbers)} differ"
    elif known is not None and known.size:
        sizes = np.array(shape[batch : batch + numbers[-1]], np.int64)
        if (known < -sizes).any() or (known >= sizes).any():
            yield f"input '{node.input[1]}'", f"has an index outside of axes of sizes {sizes.tolist()}"


def scan(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    count = attribute(node, "num_scan_inputs", 0)
    if not 0 < count <= len(node.input):
        yield "attribute 'num_scan_inputs'", f"is {count} for {len(node.input)} inputs"
        return
    results = len(node.output) - (len(node.input) - count)
    for name, wanted in (("scan_input_axes", count), ("scan_input_directions", count), ("scan_output_axes", results),
                         ("scan_output_directions", results)):  # fmt: skip
        given = attribute(node, name)
        if given is not None and len(given) != wanted:
            yield f"attribute '{name}'", f"is {list(given)}, where {wanted} are needed"
    axes = attribute(node, "scan_input_axes") or [0] * count
    for name, axis in zip(node.input[len(node.input) - count :], axes):
        rank = graph.rank(name)
        if rank is not None and outside([axis], rank):
            yield "attribute 'scan_input_axes'", f"has {axis}, its input '{name}' has rank {rank}"


def quantized_axis(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    """Scales per index of an axis, or in blocks along it."""
    axis, shape = attribute(node, "axis", 1), graph.shape(node.input[0])
    scale, block = graph.shape(node.input[1]), attribute(node, "block_size", 0)
    if shape is None or not scale or max(scale) == 1:
        return
    if outside([axis], max(len(shape), 1)):
        yield "attribute 'axis'", f"is {axis}, its input has rank {len(shape)}"
    elif len(scale) == 1 and not block and shape and scale[0] != shape[axis]:
        yield f"scale '{node.input[1]}'", f"has {scale[0]} elements, axis {axis} of its input {shape[axis]}"
    elif len(scale) > 1 and (len(scale) != len(shape) or block < 1):
        yield f"scale '{node.input[1]}'", f"has shape {list(scale)} with block_size {block}, its input {list(shape)}"
