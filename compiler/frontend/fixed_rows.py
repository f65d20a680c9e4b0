"""NonMaxSuppression with as many rows as it can ever select: a program of fixed buffers has no other.

Rows that are not selected are -1, and what is gathered by them is 0. The node becomes one of the domain `qcompile`,
which the model defines as a function, so that ONNX Runtime runs it and shape inference knows its shape.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, helper
from qcompile.frontend.fold_constants import fold_constants
from qcompile.frontend.graph import Graph, attribute, label
from qcompile.frontend.local_functions import DOMAIN
from qcompile.frontend.shapes import infer_shapes
from qcompile.targets.errors import CompileError

LOWEST = float(np.finfo(np.float32).min)
PARAMETERS = {2: "max_output_boxes_per_class", 3: "iou_threshold", 4: "score_threshold"}


def fix_rows(graph: Graph, notes: list[str]) -> None:
    """Rewrite every NonMaxSuppression of known input shapes.

    Raises CompileError where the number of boxes per class, or a threshold, is computed, and where no box is wanted.
    """
    found = [n for n in graph.nodes if n.op_type == "NonMaxSuppression" and n.domain in ("", "ai.onnx")]
    if not found:
        return
    fold_constants(graph)
    rows: dict[str, int] = {}
    for node in found:
        shape = graph.shape(node.input[1])
        if shape is None:
            infer_shapes(graph)
            shape = graph.shape(node.input[1])
        if shape is None:
            return  # refused by its name later
        rows[node.output[0]] = _fix(graph, node, shape)
        count = rows[node.output[0]]
        notes.append(
            f"{label(node)}: gives {count} rows, as many as it can select; those that it does not select are -1, and 0 "
            "where elements are gathered by them"
        )
        graph.update()
        infer_shapes(graph)
    for name, count in rows.items():
        _mask_gathered(graph, name, count)
    graph.update()
    infer_shapes(graph)


def _fix(graph: Graph, node: NodeProto, scores: tuple[int, ...]) -> int:
    """The node with all its inputs and its number of rows, which is returned."""
    values = [0, 0.0, LOWEST]  # what ONNX takes for inputs that are not there
    for index, what in PARAMETERS.items():
        name = node.input[index] if len(node.input) > index else ""
        if name and name not in graph.constants:
            raise CompileError(
                f"node {label(node)}: its {what} '{name}' is computed; a program of fixed buffers needs it constant: "
                "export it so, or fix the input that it depends on with --set"
            )
        if name:
            values[index - 2] = graph.constants[name].reshape(-1)[0]
    most = min(int(values[0]), scores[2])
    if most < 1:
        raise CompileError(f"node {label(node)}: max_output_boxes_per_class is {values[0]}; it would select no box")
    rows = scores[0] * scores[1] * most
    made: list[np.ndarray] = [
        np.array([most], np.int64),
        np.array(values[1:2], np.float32),
        np.array(values[2:], np.float32),
    ]
    names = [graph.constant(f"{node.output[0]}_{what}", v) for what, v in zip(PARAMETERS.values(), made)]
    centers = attribute(node, "center_point_box", 0)
    graph.replace(
        node, node.op_type, [*node.input[:2], *names], domain=DOMAIN, center_point_box=centers, shape=[rows, 3]
    )
    graph.opsets[DOMAIN] = 1
    return rows


# ---- what is gathered by the rows ------------------------------------------------------------------------------------
PASSING = {"Slice", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "Identity", "Cast", "Split"}
ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Mod", "Max", "Min", "Concat"}


def _mask_gathered(graph: Graph, selected: str, count: int) -> None:
    """0 for what is gathered by rows of -1, along the axis that these rows have in the numbers that gather."""
    axes = {selected: 0}
    valid = ""
    for node in list(graph.nodes):
        held = [i for i in node.input if i in axes]
        if not held or graph.shape(node.output[0]) is None:
            continue
        if node.op_type == "Gather" and node.input[0] in axes and node.input[1] in graph.constants:
            axis = _along(graph, node, axes[node.input[0]], count)
        elif node.op_type in PASSING or node.op_type in ARITHMETIC:
            axis = _along(graph, node, axes[held[0]], count)
        elif node.op_type in ("Gather", "GatherND", "GatherElements") and node.input[1] in axes:
            axis = axes[node.input[1]]
            if node.op_type == "Gather":
                axis += attribute(node, "axis", 0) % len(graph.shape(node.input[0]) or (1,))
            valid = valid or _valid(graph, selected)
            _mask(graph, node, valid, axis, count)
            continue
        else:
            continue
        if axis is not None:
            axes.update((o, axis) for o in node.output)


def _along(graph: Graph, node: NodeProto, axis: int, count: int) -> int | None:
    """The axis of a node's result along which the rows lie; None where they are not one axis any more."""
    shape, source = graph.shape(node.output[0]), next(graph.shape(i) for i in node.input if graph.shape(i))
    assert shape is not None and source is not None
    if node.op_type == "Transpose":
        perm = attribute(node, "perm") or list(range(len(shape)))[::-1]
        return list(perm).index(axis)
    if node.op_type in ARITHMETIC:
        own = axis - len(source) + len(shape)
        return own if shape[own] == count else None
    before = int(np.prod(source[:axis], dtype=np.int64))
    places = [i for i, n in enumerate(shape) if n == count and np.prod(shape[:i], dtype=np.int64) == before]
    return places[0] if places else None


def _valid(graph: Graph, selected: str) -> str:
    """Which rows are selected: bool [rows]."""

    def known(value: int | list[int]) -> str:
        return graph.constant(f"{selected}_number", np.array(value, np.int64))

    first = graph.add("Slice", [selected, known([0]), known([1]), known([1])], f"{selected}_images")
    flat = graph.add("Reshape", [first, known([-1])], f"{selected}_image")
    return graph.add("GreaterOrEqual", [flat, known(0)], f"{selected}_valid")


def _mask(graph: Graph, node: NodeProto, valid: str, axis: int, count: int) -> None:
    y, shape = node.output[0], graph.shape(node.output[0])
    assert shape is not None
    wanted = [count if i == axis else 1 for i in range(len(shape))]
    rows = graph.add("Reshape", [valid, graph.constant(f"{y}_shape", np.array(wanted, np.int64))], f"{y}_selected")
    dtype = helper.tensor_dtype_to_np_dtype(graph.dtypes[y])
    attrs = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    taken = graph.add(node.op_type, list(node.input), f"{y}_gathered", **attrs)
    graph.replace(node, "Where", [rows, taken, graph.constant(f"{y}_none", np.zeros((), dtype))])
    graph.update(node)
