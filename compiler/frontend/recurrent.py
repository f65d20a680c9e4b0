"""Brings LSTM, GRU and RNN into one form: one direction a node, time first, constant weights, no idle inputs.

- layout 1 (batch first): Transposes around layout 0.
- bidirectional: a forward and a reverse node, their results concatenated.
- sequence_lens that are all steps, initial states and peepholes of zeros: left out.
Refused by name: peepholes, coupled input and forget gates, weights that are computed.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute, label, set_attribute
from qcompile.frontend.shapes import infer_shapes
from qcompile.targets.errors import CompileError

RECURRENT = {"LSTM": 4, "GRU": 3, "RNN": 1}  # gates
FUNCTIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
WEIGHTS = (1, 2, 3)  # W, R, B
LENGTHS, HIDDEN, CELL, PEEPHOLES = 4, 5, 6, 7
PARAMETERS = {"HardSigmoid": (0.2, 0.5), "LeakyRelu": (0.01,), "ScaledTanh": (1.0, 1.0)}  # with alpha, beta


def plain_recurrent(graph: Graph) -> None:
    """Rewrite every recurrent node that is not plain yet. Raises CompileError naming one that has no integer form."""
    rewritten = False
    for node in [n for n in graph.nodes if n.op_type in RECURRENT and n.domain in ("", "ai.onnx")]:
        _check(graph, node)
        _drop_idle(graph, node)
        if attribute(node, "layout", 0):
            _time_first(graph, node)
            rewritten = True
        if attribute(node, "direction", "forward") == "bidirectional":
            _split_directions(graph, node)
            rewritten = True
    if rewritten:
        infer_shapes(graph)


def fold_zeros(graph: Graph) -> None:
    """Products with a constant of zeros, as the first step of an unrolled cell makes them, become zeros."""
    for node in [n for n in graph.nodes if n.op_type == "Mul" and n.domain in ("", "ai.onnx")]:
        zeros = [v for v in map(graph.constants.get, node.input) if v is not None and v.size and not v.any()]
        shape = graph.shape(node.output[0])
        if zeros and shape is not None and node.output[0] not in graph.output_names:
            graph.constants[node.output[0]] = np.zeros(shape, zeros[0].dtype)
            graph.nodes = [n for n in graph.nodes if n is not node]
            graph.changed = True
    graph.update() if graph.changed else None


def _check(graph: Graph, node: NodeProto) -> None:
    where = f"node {label(node)}"
    if len(node.input) > PEEPHOLES and node.input[PEEPHOLES]:
        value = graph.constants.get(node.input[PEEPHOLES])
        if value is None or value.any():
            raise CompileError(f"{where}: peephole connections (input P) are not supported; export it without them")
        _truncate(node, PEEPHOLES)
        graph.changed = True
    if attribute(node, "input_forget", 0):
        raise CompileError(f"{where}: input_forget=1 (coupled gates) is not supported; export it with separate gates")
    for i in WEIGHTS:
        if i < len(node.input) and node.input[i] and _codes(graph, node.input[i]) is None:
            raise CompileError(
                f"{where}: its weights '{node.input[i]}' are computed at run time; they must be constants"
            )


def _codes(graph: Graph, name: str) -> str | None:
    """The constant behind a weight: itself, or what a DequantizeLinear of constants reads."""
    if name in graph.constants:
        return name
    node = graph.producer(name, "DequantizeLinear")
    return node.input[0] if node is not None and all(i in graph.constants for i in node.input if i) else None


def _truncate(node: NodeProto, count: int) -> None:
    """Leave `count` inputs, and none at the end that are not given."""
    del node.input[count:]
    while node.input and not node.input[-1]:
        del node.input[-1]


def _drop_idle(graph: Graph, node: NodeProto) -> None:
    shape, axis = graph.shape(node.input[0]), 1 if attribute(node, "layout", 0) else 0
    steps = -1 if shape is None else shape[axis]  # a later round knows the shape
    idle = {LENGTHS: lambda v: bool((v == steps).all()), HIDDEN: lambda v: not v.any(), CELL: lambda v: not v.any()}
    for i, test in idle.items():
        value = graph.constants.get(node.input[i]) if i < len(node.input) else None
        if value is not None and test(value):
            node.input[i] = ""
            graph.changed = True
    _truncate(node, len(node.input))


def _time_first(graph: Graph, node: NodeProto) -> None:
    """X [N, T, I], states [N, D, H], Y [N, T, D, H] around a node of layout 0."""
    for i in (0, HIDDEN, CELL):
        if i < len(node.input) and node.input[i]:
            node.input[i] = graph.add("Transpose", [node.input[i]], f"{node.input[i]}_time_first", perm=[1, 0, 2])
    for i, name in enumerate(node.output):
        if name:
            node.output[i] = graph.fresh(f"{name}_time_first")
            graph.add("Transpose", [node.output[i]], [name], perm=[2, 0, 1, 3] if i == 0 else [1, 0, 2])
    set_attribute(node, "layout", None)
    graph.update()


def _split_directions(graph: Graph, node: NodeProto) -> None:
    names = [a for a in attribute(node, "activations") or []]
    names = [a.decode() if isinstance(a, bytes) else a for a in names]
    halves: list[list[str]] = []
    for d, direction in enumerate(("forward", "reverse")):
        inputs = [_direction(graph, name, i, d) if name else "" for i, name in enumerate(node.input)]
        outputs = [graph.fresh(f"{name}_{direction}") if name else "" for name in node.output]
        attrs = {k: attribute(node, k) for k in ("hidden_size", "clip", "linear_before_reset")}
        per_direction = len(names) // 2
        attrs["activations"] = names[d * per_direction : (d + 1) * per_direction] or None
        for k, first in (("activation_alpha", 0), ("activation_beta", 1)):
            values = attribute(node, k)
            if values:
                counts = [sum(len(PARAMETERS.get(a, ())) > first for a in part) for part in
                          (names[:per_direction], names[per_direction:])]  # fmt: skip
                start = counts[0] * d
                attrs[k] = list(values[start : start + counts[d]]) or None
        made = {k: v for k, v in attrs.items() if v is not None}
        graph.add(node.op_type, inputs, outputs, direction=direction, **made)
        graph.nodes[-1].name = f"{node.name or node.output[0]}_{direction}"
        halves.append(outputs)
    for i, name in enumerate(node.output):
        if name:
            graph.add("Concat", [h[i] for h in halves], [name], axis=1 if i == 0 else 0)
    graph.nodes = [n for n in graph.nodes if n is not node]
    graph.update()


def _direction(graph: Graph, name: str, index: int, d: int) -> str:
    """The part of an input that belongs to direction d."""
    if index in (0, LENGTHS):
        return name
    if name in graph.constants:
        return graph.constant(f"{name}_{d}", graph.constants[name][d : d + 1])
    if index in WEIGHTS:
        node = graph.producer(name, "DequantizeLinear")
        if node is None:
            raise CompileError(f"tensor {name}: weights of a recurrent layer must be constant, not computed")
        parts = []
        for k, i in enumerate(node.input):
            value = graph.constants[i] if i else np.zeros(())
            along = k == 0 or value.ndim == graph.rank(name) or _axis(node, name, graph) == 0
            cut = value.ndim > 0 and value.shape[0] == 2 and along
            parts.append(graph.constant(f"{i}_{d}", value[d : d + 1]) if cut else i)
        attrs = {k: attribute(node, k) for k in ("axis", "block_size", "output_dtype")}
        return graph.add("DequantizeLinear", parts, f"{name}_{d}", **{k: v for k, v in attrs.items() if v is not None})
    bounds = [graph.constant(f"{name}_{n}", np.array([v], np.int64)) for n, v in
              (("start", d), ("end", d + 1), ("axis", 0))]  # fmt: skip
    return graph.add("Slice", [name, *bounds], f"{name}_{d}")


def _axis(node: NodeProto, name: str, graph: Graph) -> int:
    axis = attribute(node, "axis", 1)
    return axis + (graph.rank(name) or 0) if axis < 0 else axis
