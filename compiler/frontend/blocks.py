"""Weights that are quantized in blocks along one axis (ONNX opset 21: block_size).

A blocked DequantizeLinear of constants is written as one whose rows are the blocks, each with its own scale, and
Reshape, Slice and Transpose back. So the step of every weight stays in the graph without an operator of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute, label
from qcompile.passes.integerize.linear import LARGEST_CODE, LEAST_MULTIPLIER
from qcompile.passes.integerize.multipliers import Blocks, exact_multipliers, nearest_multipliers
from qcompile.targets.errors import CompileError


def dequantized(node: NodeProto, constants: dict[str, np.ndarray]) -> np.ndarray:
    """The float32 values of a DequantizeLinear of `constants`: per tensor, per axis or in blocks, any code type.

    Shapes: codes [..., K, ...], scale and zero point [], [K] or [..., ceil(K / block), ...]. ONNX DequantizeLinear-21.
    """
    codes, scale = constants[node.input[0]], constants[node.input[1]].astype(np.float32)
    zero = constants[node.input[2]] if len(node.input) > 2 and node.input[2] else None
    value = codes.astype(np.float32)
    if zero is not None and zero.any():
        value -= spread(zero.astype(np.float32), node, codes.shape)
    value *= spread(scale, node, codes.shape)
    return value


def spread(parameter: np.ndarray, node: NodeProto, shape: tuple[int, ...]) -> np.ndarray:
    """A scale or zero point of a Q or DQ node in a form that broadcasts to `shape`."""
    if parameter.size == 1:
        return parameter.reshape(())
    axis, block = attribute(node, "axis", 1) % len(shape), attribute(node, "block_size", 0)
    if not block:
        return parameter.reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.repeat(parameter, block, axis)[tuple(slice(n) for n in shape)]


def fold_blocked_quantize(graph: Graph) -> None:
    """A blocked QuantizeLinear of a constant becomes its codes; that of an activation is refused."""
    for node in list(graph.nodes):
        if node.op_type != "QuantizeLinear" or not attribute(node, "block_size", 0):
            continue
        if any(i and i not in graph.constants for i in node.input):
            raise CompileError(
                f"node {label(node)}: activations quantized in blocks are not supported; use one scale per tensor"
            )
        x, scale, zero = (graph.constants[i] for i in node.input[:3])
        _check_shapes(node, x, scale)
        info = np.iinfo(zero.dtype)
        codes = np.rint(x / spread(scale, node, x.shape)) + spread(zero.astype(np.float32), node, x.shape)
        graph.constants[node.output[0]] = np.clip(codes, info.min, info.max).astype(zero.dtype)
        graph.nodes = [n for n in graph.nodes if n is not node]
        graph.update()


def float_blocks(graph: Graph, notes: list[str]) -> None:
    """In a model without quantized activations: blocked constants as floats, for the quantizer; their scales stay in
    `graph.blocks`. `notes` receives a word where these are no multiples of one scale a channel."""
    for node in list(graph.nodes):
        if node.op_type != "DequantizeLinear" or not attribute(node, "block_size", 0):
            continue
        if any(i and i not in graph.constants for i in node.input):
            continue
        codes, scale = graph.constants[node.input[0]], graph.constants[node.input[1]]
        _check_shapes(node, codes, scale)
        axis, y = attribute(node, "axis", 1) % codes.ndim, node.output[0]
        graph.constants[y] = dequantized(node, graph.constants)
        graph.blocks[y] = (np.abs(scale).astype(np.float32), axis, attribute(node, "block_size"))
        found = _multipliers(graph, y)
        if found is not None and not found[3]:
            notes.append(f"node {label(node)}: its block scales come to the nearest integer multiples of one a channel")
        graph.nodes = [n for n in graph.nodes if n is not node]
        graph.update()


def stored_codes(graph: Graph, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int] | None:
    """(codes int8, scale [N] float32, integer multipliers, block size, axis) of a float constant [K, N] that
    `float_blocks` made, so that codes * scale * multipliers is its value or, where the scales of the blocks are no
    multiples, nearly so; multipliers [K / block, N]. None for other constants, and where the value has changed."""
    found = _multipliers(graph, name)
    return None if found is None else (found[0], found[1], found[2], graph.blocks[name][2], graph.blocks[name][1])


def _multipliers(graph: Graph, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, bool] | None:
    """(codes, scale, multipliers, whether they are exact) as `stored_codes` has them."""
    if name not in graph.blocks or graph.constants[name].ndim != 2:
        return None
    steps, axis, block = graph.blocks[name]
    value = graph.constants[name]
    if axis != 0 or len(value) % block or value.shape[1] != steps.shape[1]:
        return None
    codes = np.rint(value / np.repeat(steps, block, 0))
    if not np.allclose(codes * np.repeat(steps, block, 0), value, rtol=1e-4, atol=1e-4 * float(steps.min())):
        return None
    blocks = Blocks.of(codes.T, np.repeat(steps, block, 0).T, block)
    if blocks.largest.max() * LEAST_MULTIPLIER > LARGEST_CODE:
        return None
    scale, multipliers, found = exact_multipliers(blocks, LARGEST_CODE)
    nearest, near, _ = nearest_multipliers(blocks, LARGEST_CODE)
    scale, multipliers = np.where(found, scale, nearest), np.where(found[:, None], multipliers, near)
    return codes.astype(np.int8), scale.astype(np.float32), multipliers.T.astype(np.int64), bool(found.all())


def expand_blocks(graph: Graph) -> None:
    """DequantizeLinear of constants in blocks: rows of one block each, dequantized per row, and moved back."""
    for node in list(graph.nodes):
        block = attribute(node, "block_size", 0) if node.op_type == "DequantizeLinear" else 0
        if not block:
            continue
        if any(i and i not in graph.constants for i in node.input):
            raise CompileError(
                f"node {label(node)}: activations quantized in blocks are not supported; use one scale per tensor"
            )
        codes, scale = graph.constants[node.input[0]], graph.constants[node.input[1]]
        zero = graph.constants[node.input[2]] if len(node.input) > 2 and node.input[2] else None
        _check_shapes(node, codes, scale)
        axis = attribute(node, "axis", 1) % codes.ndim
        count, length = scale.shape[axis], codes.shape[axis]
        last = np.moveaxis(codes, axis, -1)
        missing = count * block - length
        if missing:
            last = np.pad(last, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
        y, lead = node.output[0], last.shape[:-1]
        rows = [graph.constant(f"{y}_codes", last.reshape(-1, block))]
        rows.append(graph.constant(f"{y}_scales", np.moveaxis(scale, axis, -1).reshape(-1).astype(np.float32)))
        if zero is not None and zero.any():
            rows.append(graph.constant(f"{y}_zero_points", np.moveaxis(zero, axis, -1).reshape(-1)))
        whole = np.array([*lead, count * block], np.int64)
        steps: list[tuple[str, list[np.ndarray], dict[str, Any]]] = [("Reshape", [whole], {})]
        if missing:
            ends = [np.array([v], np.int64) for v in (0, length, codes.ndim - 1)]
            steps.append(("Slice", ends, {}))
        if axis != codes.ndim - 1:
            order = list(range(codes.ndim - 1))
            steps.append(("Transpose", [], {"perm": [*order[:axis], codes.ndim - 1, *order[axis:]]}))
        name = graph.add("DequantizeLinear", rows, f"{y}_rows", axis=0)
        for i, (op, operands, attrs) in enumerate(steps):
            inputs = [name, *(graph.constant(f"{y}_{op.lower()}", v) for v in operands)]
            if i == len(steps) - 1:
                graph.replace(node, op, inputs, **attrs)
            else:
                name = graph.add(op, inputs, f"{y}_{op.lower()}d", **attrs)
        graph.update()


def _check_shapes(node: NodeProto, codes: np.ndarray, scale: np.ndarray) -> None:
    block, axis = attribute(node, "block_size", 0), attribute(node, "axis", 1) % max(codes.ndim, 1)
    want = tuple(-(-n // block) if i == axis else n for i, n in enumerate(codes.shape))
    if scale.shape != want:
        raise CompileError(
            f"node {label(node)}: scales of shape {scale.shape} do not fit codes {codes.shape} "
            f"in blocks of {block} along axis {axis}; they must have shape {want}"
        )
