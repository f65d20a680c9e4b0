"""Fourier transforms of constant lengths as products with constant matrices: DFT a MatMul, STFT a strided Conv."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute


def _basis(length: int, bins: int, taken: int, inverse: bool) -> np.ndarray:
    """exp(-+2 pi i k t / length) as complex [taken, bins]; divided by the length where it is inverse."""
    angles = 2 * np.pi * np.outer(np.arange(taken), np.arange(bins)) / length
    return np.exp(1j * angles) / length if inverse else np.exp(-1j * angles)


def _real_matrix(basis: np.ndarray, parts_in: int, parts_out: int) -> np.ndarray:
    """The complex [n, m] as real numbers [n, parts_in, m, parts_out] from (re, im) to (re, im)."""
    rows = [[basis.real, basis.imag], [-basis.imag, basis.real]]
    full = np.array(rows).transpose(2, 0, 3, 1)
    return full[:, :parts_in, :, :parts_out].astype(np.float32)


def _scalar(graph: Graph, node: NodeProto, i: int) -> int | None:
    value = graph.scalar(node.input[i]) if len(node.input) > i and node.input[i] else None
    return None if value is None else int(value)


def expand_dft(graph: Graph, node: NodeProto) -> None:
    """Lengths and axis constant; onesided and inverse: from half a spectrum to real numbers."""
    shape, y = graph.shape(node.input[0]), node.output[0]
    if shape is None or any(i and i not in graph.constants for i in node.input[1:]):
        return
    given = _scalar(graph, node, 2)
    axis = (attribute(node, "axis", 1 if graph.opsets[""] < 20 else -2) if given is None else given) % len(shape)
    inverse, onesided = bool(attribute(node, "inverse", 0)), bool(attribute(node, "onesided", 0))
    n, parts = shape[axis], shape[-1]
    half = inverse and onesided
    length = _scalar(graph, node, 1) or (2 * (n - 1) if half else n)
    bins = length // 2 + 1 if onesided and not inverse else length
    taken = min(n, length // 2 + 1 if half else length)
    basis = _basis(length, bins, taken, inverse)
    if half:  # the other half are conjugates
        twice = np.array([1 if k == 0 or 2 * k == length else 2 for k in range(taken)])
        basis = basis * twice[:, None]
    parts_out = 1 if half else 2
    matrix = np.zeros((n, parts, bins, parts_out), np.float32)
    matrix[:taken] = _real_matrix(basis, parts, parts_out)
    rank = len(shape)
    perm = [i for i in range(rank - 1) if i != axis] + [axis, rank - 1]
    lead = [shape[i] for i in perm[:-2]]
    x = node.input[0]
    x = graph.add("Transpose", [x], f"{y}_last", perm=perm) if perm != sorted(perm) else x
    x = graph.add("Reshape", [x, graph.constant(f"{y}_flat", np.array([*lead, n * parts]))], f"{y}_rows")
    weights = graph.constant(f"{y}_basis", matrix.reshape(n * parts, bins * parts_out))
    product = graph.add("MatMul", [x, weights], f"{y}_product")
    out = graph.constant(f"{y}_shape", np.array([*lead, bins, parts_out]))
    if perm == sorted(perm):
        graph.replace(node, "Reshape", [product, out])
    else:
        spectrum = graph.add("Reshape", [product, out], f"{y}_spectrum")
        graph.replace(node, "Transpose", [spectrum], perm=[int(i) for i in np.argsort(perm)])


def expand_stft(graph: Graph, node: NodeProto) -> None:
    """Signal [batch, n, 1 or 2] and a constant window: each bin is a channel of a convolution."""
    shape, y = graph.shape(node.input[0]), node.output[0]
    if shape is None or len(shape) != 3 or any(i and i not in graph.constants for i in node.input[1:]):
        return
    window = graph.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else None
    length = _scalar(graph, node, 3) or (None if window is None else window.size)
    step = _scalar(graph, node, 1)
    if length is None or step is None:
        return
    bins = length // 2 + 1 if attribute(node, "onesided", 1) else length
    basis = _basis(length, bins, length, False) * (1 if window is None else window.astype(np.float64)[:, None])
    weights = _real_matrix(basis, shape[2], 2).transpose(2, 3, 1, 0).reshape(2 * bins, shape[2], length)
    x = graph.add("Transpose", [node.input[0]], f"{y}_signal", perm=[0, 2, 1])
    frames = graph.add("Conv", [x, graph.constant(f"{y}_basis", weights)], f"{y}_frames", strides=[step])
    last = graph.add("Transpose", [frames], f"{y}_bins", perm=[0, 2, 1])
    count = (shape[1] - length) // step + 1
    graph.replace(node, "Reshape", [last, graph.constant(f"{y}_shape", np.array([shape[0], count, bins, 2]))])
