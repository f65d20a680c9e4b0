"""Further outputs of LayerNormalization, Dropout and BatchNormalization that something reads, as nodes of their own."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute, label
from qcompile.frontend.shapes import infer_shapes
from qcompile.targets.errors import CompileError


def expand_extra_outputs(graph: Graph) -> None:
    """Each node keeps its first output; Mean, InvStdDev, mask and running statistics are computed beside it.

    Raises CompileError for a Dropout that drops: it is random.
    """
    for node in list(graph.nodes):
        if node.op_type == "Dropout":
            _check_dropout(graph, node)
        expand = EXTRA.get(node.op_type)
        if expand is None or not (_is_read(graph, node, slice(1, None)) or _trains(graph, node)):
            continue
        if graph.shape(node.input[0]) is None:
            infer_shapes(graph)
        shape = graph.shape(node.input[0])
        if shape is not None:
            expand(graph, node, shape)
    graph.update()


def _is_read(graph: Graph, node: NodeProto, which: slice) -> bool:
    return any(o and (graph.consumers(o) or o in graph.output_names) for o in list(node.output)[which])


def _trains(graph: Graph, node: NodeProto) -> bool:
    return node.op_type == "BatchNormalization" and bool(attribute(node, "training_mode", 0))


def _own_outputs(node: NodeProto) -> list[str]:
    """Takes the further outputs from a node; "" for those that it did not have."""
    names = [*node.output[1:], "", "", ""]
    del node.output[1:]
    return names


def _ints(graph: Graph, base: str, values: list[int]) -> str:
    return graph.constant(base, np.array(values, np.int64))


def _moments(graph: Graph, x: str, axes: list[int], y: str) -> tuple[str, str, str]:
    """(mean, x - mean, mean of its square) with the reduced axes kept."""
    mean = graph.add("ReduceMean", [x, _ints(graph, f"{y}_axes", axes)], f"{y}_mean", keepdims=1)
    centred = graph.add("Sub", [x, mean], f"{y}_centred")
    square = graph.add("Mul", [centred, centred], f"{y}_square")
    variance = graph.add("ReduceMean", [square, _ints(graph, f"{y}_axes", axes)], f"{y}_variance", keepdims=1)
    return mean, centred, variance


def _layer_norm(graph: Graph, node: NodeProto, shape: tuple[int, ...]) -> None:
    """Mean, and 1 / sqrt(variance + epsilon)."""
    y, axes = node.output[0], list(range(attribute(node, "axis", -1) % len(shape), len(shape)))
    mean_name, root_name, *_ = _own_outputs(node)
    mean, _, variance = _moments(graph, node.input[0], axes, y)
    if mean_name:
        graph.add("Identity", [mean], [mean_name])
    if root_name:
        epsilon = graph.constant(f"{y}_epsilon", np.float32(attribute(node, "epsilon", 1e-5)))
        root = graph.add("Sqrt", [graph.add("Add", [variance, epsilon], f"{y}_padded")], f"{y}_deviation")
        graph.add("Reciprocal", [root], [root_name])


def _rms_norm(graph: Graph, node: NodeProto, shape: tuple[int, ...]) -> None:
    raise CompileError(
        f"node {label(node)}: its output '{node.output[1]}' is not supported; remove it from the model's outputs"
    )


def _check_dropout(graph: Graph, node: NodeProto) -> None:
    """In training mode elements are dropped at random, except at ratio 0."""
    ratio, mode = ([*node.input[1:], "", ""])[:2]
    if not mode or (mode in graph.constants and not graph.constants[mode].any()):
        return
    if (graph.scalar(ratio) if ratio else 0.5) != 0:
        raise CompileError(
            f"node {label(node)}: it drops elements at random (training_mode); export the model for inference"
        )


def _dropout(graph: Graph, node: NodeProto, shape: tuple[int, ...]) -> None:
    """The mask of what is kept: everything."""
    (mask, *_) = _own_outputs(node)
    graph.constants[mask] = np.ones(shape, bool)


def _batch_norm(graph: Graph, node: NodeProto, shape: tuple[int, ...]) -> None:
    """training_mode: normalised by the batch's own moments; running = momentum * given + (1 - momentum) * batch."""
    x, scale, bias, *given = node.input
    y, momentum = node.output[0], float(attribute(node, "momentum", 0.9))
    axes = [i for i in range(len(shape)) if i != 1]
    along = _ints(graph, f"{y}_along", [1, -1] + [1] * (len(shape) - 2))
    running = _own_outputs(node)
    mean, centred, variance = _moments(graph, x, axes, y)
    for name, old, batch in zip(running, given, (mean, variance)):
        if not name:
            continue
        flat = graph.add("Reshape", [batch, _ints(graph, f"{name}_shape", [-1])], f"{name}_batch")
        parts = [
            graph.add("Mul", [v, graph.constant(f"{name}_share", np.float32(share))], f"{name}_part")
            for v, share in ((old, momentum), (flat, 1 - momentum))
        ]
        graph.add("Add", parts, [name])
    epsilon = graph.constant(f"{y}_epsilon", np.float32(attribute(node, "epsilon", 1e-5)))
    root = graph.add("Sqrt", [graph.add("Add", [variance, epsilon], f"{y}_padded")], f"{y}_deviation")
    factors = [graph.add("Reshape", [v, along], f"{y}_along") for v in (scale, bias)]
    unit = graph.add("Div", [centred, root], f"{y}_unit")
    graph.replace(node, "Add", [graph.add("Mul", [unit, factors[0]], f"{y}_scaled"), factors[1]])


EXTRA = {
    "BatchNormalization": _batch_norm,
    "Dropout": _dropout,
    "LayerNormalization": _layer_norm,
    "RMSNormalization": _rms_norm,
}


def plain_outputs(graph: Graph, notes: list[str]) -> None:
    """An output that is an input by name gets a name of its own, since the artifact's two ends are two buffers."""
    inputs = {v.name for v in graph.inputs}
    for output in graph.outputs:
        if output.name in inputs:
            own = graph.fresh(f"{output.name}_output")
            notes.append(f"output '{output.name}' is the input of that name handed through: it is called '{own}'")
            graph.add("Identity", [output.name], [own])
            output.name = own
    graph.update()


def constant_outputs(graph: Graph) -> None:
    """An output that is a constant is copied from it by an Identity.

    Raises CompileError where there is nothing but constants.
    """
    for name in [o.name for o in graph.outputs if o.name in graph.constants]:
        if not graph.inputs:
            raise CompileError(f"output '{name}' is a constant, and the model has no inputs; export it with an input")
        source = graph.constant(f"{name}_constant", graph.constants.pop(name))
        for node in graph.consumers(name):
            node.input[:] = [source if i == name else i for i in node.input]
        graph.add("Identity", [source], [name])
        graph.update()
