"""Recognises normalisations that exporters write as several nodes.

Accepts, over the last axes, with operands in any order, Pow(d, 2) or Mul(d, d), Div by Sqrt, Mul by Reciprocal(Sqrt)
or by Pow(-0.5), and Casts between floats anywhere:
- d = x - ReduceMean(x); d / sqrt(ReduceMean(d^2) + eps) [* gamma [+ beta]] -> LayerNormalization
- the same over the spatial axes of an NCHW tensor -> InstanceNormalization
- x / sqrt(ReduceMean(x^2) + eps) [* gamma] -> RMSNormalization, which raises the model's opset to 23
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute

RMS_OPSET = 23


def fuse_norms(graph: Graph) -> None:
    """Replace decomposed layer, instance and RMS normalisations by the ONNX operator."""
    for node in list(graph.nodes):
        if node.op_type not in ("Div", "Mul") or graph.producer(node.output[0]) is not node:
            continue
        for centred, root in _normalised(graph, node):
            if _replace(graph, node, centred, root):
                break


def _skip_casts(graph: Graph, name: str) -> str:
    while (cast := graph.producer(name, "Cast")) is not None and graph.is_float(cast.input[0]) and graph.is_float(name):
        name = cast.input[0]
    return name


def _normalised(graph: Graph, node: NodeProto):
    """(d, v) for every reading of `node` as d / sqrt(v)."""
    pairs = [tuple(node.input)] if node.op_type == "Div" else [tuple(node.input), tuple(reversed(node.input))]
    for d, r in pairs:
        r = _skip_casts(graph, r)
        if node.op_type == "Mul":
            inverse = graph.producer(r, "Reciprocal", "Div", "Pow")
            if inverse is None:
                continue
            if inverse.op_type == "Pow" and graph.scalar(inverse.input[1]) == -0.5:
                yield _skip_casts(graph, d), _skip_casts(graph, inverse.input[0])
                continue
            if inverse.op_type == "Div" and graph.scalar(inverse.input[0]) != 1.0:
                continue
            r = _skip_casts(graph, inverse.input[-1])
        root = graph.producer(r, "Sqrt", "Pow")
        if root is not None and (root.op_type == "Sqrt" or graph.scalar(root.input[1]) == 0.5):
            yield _skip_casts(graph, d), _skip_casts(graph, root.input[0])


def _axes(graph: Graph, mean: NodeProto) -> list[int] | None:
    axes = graph.constants.get(mean.input[1]) if len(mean.input) > 1 else None
    rank = graph.rank(mean.input[0])
    return (
        None
        if axes is None or rank is None or not attribute(mean, "keepdims", 1)
        else sorted(int(a) % rank for a in axes)
    )


def _mean_of_square(graph: Graph, name: str) -> tuple[str, float, list[int]] | None:
    """(d, eps, axes) where `name` is ReduceMean(d^2) + eps."""
    add = graph.producer(name, "Add")
    if add is None:
        return None
    for k in (0, 1):
        eps, mean = graph.scalar(add.input[k]), graph.producer(_skip_casts(graph, add.input[1 - k]), "ReduceMean")
        square = graph.producer(_skip_casts(graph, mean.input[0]), "Pow", "Mul") if mean is not None else None
        if eps is None or square is None or (axes := _axes(graph, mean)) is None:
            continue
        if (square.op_type == "Mul" and square.input[0] == square.input[1]) or (
            square.op_type == "Pow" and graph.scalar(square.input[1]) == 2.0
        ):
            return _skip_casts(graph, square.input[0]), eps, axes
    return None


def _replace(graph: Graph, node: NodeProto, d: str, variance: str) -> bool:
    found = _mean_of_square(graph, variance)
    if found is None or (found[0] != d and not _same_difference(graph, found[0], d)):
        return False
    _, eps, axes = found
    source = _centred(graph, d, axes)
    x = source or d
    shape = graph.shape(x)
    if shape is None:
        return False
    last = axes == list(range(axes[0], len(shape)))
    if source and last and axes[0] == 2 and len(shape) > 3 and not _affine_over(graph, node, shape[2:]):
        ones = graph.constant(f"{node.output[0]}_one", np.ones(shape[1], np.float32))
        zeros = graph.constant(f"{node.output[0]}_zero", np.zeros(shape[1], np.float32))
        graph.replace(node, "InstanceNormalization", [x, ones, zeros], epsilon=eps)
        graph.update(node)
        _fold_instance_affine(graph, node)
        return True
    if not last:
        return False
    extent = shape[axes[0] :]
    gamma, target = _constant_after(graph, node, "Mul", extent)
    beta, final = _constant_after(graph, target, "Add", extent) if source else (None, target)
    name = final.output[0]
    full = lambda v, fill: np.broadcast_to(fill if v is None else v, extent).astype(np.float32)  # noqa: E731
    inputs = [x, graph.constant(f"{name}_gamma", full(gamma, 1.0))]
    if source:
        inputs.append(graph.constant(f"{name}_beta", full(beta, 0.0)))
    else:
        graph.opsets[""] = max(graph.opsets[""], RMS_OPSET)
    graph.replace(
        final, "LayerNormalization" if source else "RMSNormalization", inputs, axis=axes[0] - len(shape), epsilon=eps
    )
    graph.update(final)
    return True


def _centred(graph: Graph, d: str, axes: list[int]) -> str | None:
    """x where d = x - ReduceMean(x) over `axes`."""
    sub = graph.producer(d, "Sub")
    mean = graph.producer(_skip_casts(graph, sub.input[1]), "ReduceMean") if sub is not None else None
    x = _skip_casts(graph, sub.input[0]) if sub is not None else ""
    return x if mean is not None and _skip_casts(graph, mean.input[0]) == x and _axes(graph, mean) == axes else None


def _same_difference(graph: Graph, a: str, b: str) -> bool:
    """Exporters compute x - mean twice; equal where both subtract the same tensors."""
    first, second = graph.producer(a, "Sub"), graph.producer(b, "Sub")
    return (
        first is not None
        and second is not None
        and [_skip_casts(graph, i) for i in first.input] == [_skip_casts(graph, i) for i in second.input]
    )


def _constant_after(graph: Graph, node: NodeProto, op_type: str, extent: tuple[int, ...]):
    """(constant, node) where `node` is only read by `op_type` with a constant over `extent`, else (None, node)."""
    name = node.output[0]
    user = graph.only_consumer(name)
    while user is not None and user.op_type == "Cast" and graph.is_float(user.output[0]):
        name, user = user.output[0], graph.only_consumer(user.output[0])
    if user is None or user.op_type != op_type:
        return None, node
    value = next((graph.constants[i] for i in user.input if i in graph.constants), None)
    if value is None or (value.ndim > len(extent) and any(s != 1 for s in value.shape[: value.ndim - len(extent)])):
        return None, node
    value = value.reshape(value.shape[-len(extent) :]) if value.ndim > len(extent) else value
    if any(s not in (1, e) for s, e in zip(value.shape[::-1], extent[::-1])):
        return None, node
    return value, user


def _affine_over(graph: Graph, node: NodeProto, extent: tuple[int, ...]) -> bool:
    value, user = _constant_after(graph, node, "Mul", extent)
    return user is not node and value is not None and value.size > 1


def _fold_instance_affine(graph: Graph, norm: NodeProto) -> None:
    """Mul then Add by per-channel constants after an InstanceNormalization become its scale and bias."""
    for op_type, slot in (("Mul", 1), ("Add", 2)):
        user = graph.only_consumer(norm.output[0], op_type)
        k = next((i for i in (0, 1) if user.input[i] in graph.constants), None) if user is not None else None
        channels = graph.shape(norm.input[0])[1]
        if (
            k is None
            or graph.constants[user.input[k]].size != channels
            or graph.constants[user.input[k]].shape[-(graph.rank(norm.input[0]) - 1) :][:1] != (channels,)
        ):
            return
        inputs = list(norm.input)
        inputs[slot] = graph.constant(f"{user.output[0]}_affine", graph.constants[user.input[k]].reshape(-1))
        graph.replace(user, "InstanceNormalization", inputs, epsilon=attribute(norm, "epsilon", 1e-5))
        norm = user
        graph.update(user)
