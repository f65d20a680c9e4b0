"""Recognises normalisations that exporters write as several nodes, whatever algebra they use.

A product of one tensor, one reciprocal root and constants, in any order and grouping, is a normalisation where the root
is that of a moment of the tensor (see `moments`): x - mean(x) over the deviation is LayerNormalization, or over the
spatial axes of an NCHW tensor InstanceNormalization; x over the root of its mean square is RMSNormalization, which
raises the model's opset to 23. Constants become gamma, a constant added behind becomes beta; so do those of
x * a + (beta - mean(x) * a), as TensorFlow writes it. Other axes than the last are moved there and back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph
from qcompile.frontend.moments import Root, deviation_of, mean_of, plain, reciprocal_root, same_tensor

RMS_OPSET = 23
MOST_FACTORS = 8


@dataclass
class Product:
    """Factors of a product: tensors, constants, reciprocal roots with the tensor that each is."""

    tensors: list[str] = field(default_factory=list)
    constants: list[np.ndarray] = field(default_factory=list)
    roots: list[tuple[Root, str]] = field(default_factory=list)


def fuse_norms(graph: Graph) -> None:
    """Replace decomposed layer, instance and RMS normalisations by the ONNX operator."""
    for node in reversed(list(graph.nodes)):  # the whole product before parts of it
        if graph.producer(node.output[0]) is not node:
            continue
        if node.op_type in ("Add", "Sub") and _replace_affine(graph, node):
            continue
        if node.op_type in ("Div", "Mul"):
            _replace_product(graph, node)


def _factors(graph: Graph, name: str, top: NodeProto, found: Product) -> None:
    """Adds the factors of `name` to `found`; products that others read too are factors themselves, except `top`."""
    if name in graph.constants:
        found.constants.append(graph.constants[name])
        return
    source = plain(graph, name)
    root = reciprocal_root(graph, source)
    if root is not None:
        found.roots.append((root, source))
        return
    node = graph.producer(source, "Mul", "Div")
    whole = node is top or (node is not None and _is_factor(graph, node))
    if node is None or not whole or len(found.tensors) > MOST_FACTORS:
        found.tensors.append(source)
        return
    _factors(graph, node.input[0], top, found)
    if node.op_type == "Mul":
        _factors(graph, node.input[1], top, found)
    elif node.input[1] in graph.constants:
        found.constants.append(1.0 / graph.constants[node.input[1]].astype(np.float64))
    else:
        root = reciprocal_root(graph, plain(graph, node.input[1]), inverted=True)
        if root is None:
            found.tensors += [source, source]  # no normalisation
        else:
            found.roots.append((root, plain(graph, node.input[1])))


def _is_factor(graph: Graph, node: NodeProto, depth: int = 0) -> bool:
    """Whether a product is only a step on the way: some factor of it is a constant or a reciprocal root."""
    for k, name in enumerate(node.input):
        source = plain(graph, name)
        if name in graph.constants or reciprocal_root(graph, source, node.op_type == "Div" and k == 1) is not None:
            return True
        inner = graph.producer(source, "Mul", "Div") if depth < MOST_FACTORS else None
        if inner is not None and _is_factor(graph, inner, depth + 1):
            return True
    return False


def _product(graph: Graph, name: str, node: NodeProto) -> tuple[Product, Root] | None:
    """The factors of a product of one tensor and one reciprocal root whose shape is that of a moment of it."""
    found = Product()
    _factors(graph, name, node, found)
    if len(found.tensors) != 1 or len(found.roots) != 1:
        return None
    root, tensor = found.roots[0]
    shape = graph.shape(root.source)
    if shape is None or graph.shape(tensor) != tuple(1 if i in root.axes else n for i, n in enumerate(shape)):
        return None
    return found, root


def _replace_product(graph: Graph, node: NodeProto) -> bool:
    got = _product(graph, node.output[0], node)
    if got is None:
        return False
    found, root = got
    x, axes = root.source, root.axes
    if root.centred:
        centred = deviation_of(graph, found.tensors[0])
        if centred is None or not same_tensor(graph, centred[0], x) or centred[1] != axes:
            return False
    elif not same_tensor(graph, found.tensors[0], x):
        return False
    gamma = _gamma(found.constants, root)
    final, beta = node, None
    if not root.centred:
        return _emit(graph, node, root, gamma, None)
    add = _reader(graph, node)
    if add is not None and add.op_type in ("Add", "Sub"):
        k = next((i for i in (0, 1) if add.input[i] in graph.constants), None)
        if k is not None and (add.op_type == "Add" or k == 1):
            value = graph.constants[add.input[k]].astype(np.float64)
            final, beta = add, value if add.op_type == "Add" else -value
    gain = _reader(graph, final) if beta is None else None
    if gain is not None and gain.op_type == "Mul" and any(i in graph.constants for i in gain.input):
        return False  # the product is matched from its end
    return _emit(graph, final, root, gamma, beta) or (final is not node and _emit(graph, node, root, gamma, None))


def _reader(graph: Graph, node: NodeProto) -> NodeProto | None:
    """What alone reads the node's result, behind Casts between floats."""
    user = graph.only_consumer(node.output[0])
    while user is not None and user.op_type == "Cast" and graph.is_float(user.output[0]):
        user = graph.only_consumer(user.output[0])
    return user


def _replace_affine(graph: Graph, node: NodeProto) -> bool:
    """x * a + (beta - mean(x) * a), or x * a - mean(x) * a, with a = gamma / deviation(x)."""
    orders = [(0, 1)] if node.op_type == "Sub" else [(0, 1), (1, 0)]
    for i, k in orders:
        first = graph.producer(plain(graph, node.input[i]), "Mul", "Div")
        other, beta = plain(graph, node.input[k]), None
        if node.op_type == "Add":
            sub = graph.producer(other, "Sub")
            if sub is None or sub.input[0] not in graph.constants:
                continue
            beta, other = graph.constants[sub.input[0]], plain(graph, sub.input[1])
        second = graph.producer(other, "Mul", "Div")
        if first is None or second is None:
            continue
        a, b = _product(graph, first.output[0], first), _product(graph, second.output[0], second)
        if a is None or b is None or not a[1].centred or a[0].roots[0][1] != b[0].roots[0][1]:
            continue
        (found, root), mean = a, mean_of(graph, b[0].tensors[0])
        if mean is None or mean.axes != root.axes or not same_tensor(graph, mean.source, root.source):
            continue
        gamma, same = _gamma(found.constants, root), _gamma(b[0].constants, root) * mean.factor
        if not same_tensor(graph, found.tensors[0], root.source):
            continue
        if gamma.size == same.size and np.allclose(gamma.ravel(), same.ravel(), rtol=1e-5):
            return _emit(graph, node, root, gamma, beta)
    return False


def _gamma(constants: list[np.ndarray], root: Root) -> np.ndarray:
    gamma = np.array(root.gain, np.float64)
    for c in constants:
        gamma = np.asarray(gamma * c.astype(np.float64))
    return gamma


def _emit(graph: Graph, node: NodeProto, root: Root, gamma: np.ndarray, beta: np.ndarray | None) -> bool:
    """`node` becomes the normalisation; whether gamma and beta lie along the normalised axes, or along channels."""
    x, axes, shape = root.source, root.axes, graph.shape(root.source)
    if shape is None or graph.shape(node.output[0]) not in (shape, None):
        return False
    spatial = list(range(2, len(shape)))
    ranked = [_ranked(np.asarray(0.0) if v is None else v, len(shape)) for v in (gamma, beta)]
    full = [f for f in ranked if f is not None]
    if len(full) < len(ranked):
        return False
    per_channel = len(shape) > 2 and all(_only_along(f, [1]) for f in full)
    if root.centred and axes == spatial and per_channel and (len(shape) > 3 or any(f.size > 1 for f in full)):
        parameters = [np.broadcast_to(f.reshape(-1), (shape[1],)).astype(np.float32) for f in full]
        names = [graph.constant(f"{node.output[0]}_{n}", p) for n, p in zip(("gamma", "beta"), parameters)]
        graph.replace(node, "InstanceNormalization", [x, *names], epsilon=root.epsilon)
        graph.update(node)
        return True
    if not all(_only_along(f, axes) for f in full):
        return False
    extent = tuple(shape[i] for i in axes)
    order = [i for i in range(len(shape)) if i not in axes] + axes
    vectors = [
        np.broadcast_to(f.transpose(order).reshape(f.transpose(order).shape[-len(axes) :]), extent).astype(np.float32)
        for f in full
    ]
    name = node.output[0]
    inputs = [x, graph.constant(f"{name}_gamma", vectors[0])]
    if root.centred:
        inputs.append(graph.constant(f"{name}_beta", vectors[1]))
    else:
        graph.opsets[""] = max(graph.opsets[""], RMS_OPSET)
    kind = "LayerNormalization" if root.centred else "RMSNormalization"
    along: dict[str, Any] = {"axis": -len(axes), "epsilon": root.epsilon}
    if order == list(range(len(shape))):
        graph.replace(node, kind, inputs, **along)
    else:
        moved = tuple(shape[i] for i in order)
        inputs[0] = graph.add("Transpose", [x], f"{name}_last", perm=order)
        made = graph.add(kind, inputs, f"{name}_normalised", **along)
        for t in (inputs[0], made):
            graph.shapes[t], graph.dtypes[t] = moved, graph.dtypes[name]
        graph.replace(node, "Transpose", [made], perm=[int(i) for i in np.argsort(order)])
    graph.update(node)
    return True


def _ranked(value: np.ndarray, rank: int) -> np.ndarray | None:
    """A constant with `rank` axes."""
    if value.ndim > rank:
        return value.reshape(value.shape[-rank:]) if all(n == 1 for n in value.shape[: value.ndim - rank]) else None
    return value.reshape((1,) * (rank - value.ndim) + value.shape)


def _only_along(value: np.ndarray, axes: list[int]) -> bool:
    return all(n == 1 or i in axes for i, n in enumerate(value.shape))
