"""Weight-only operators of ONNX Runtime: packed weights in blocks become DequantizeLinear with block_size.

Formats: docs/ContribOperators.md of ONNX Runtime, MatMulNBits and GatherBlockQuantized.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute, label
from qcompile.targets.errors import CompileError

WIDTHS = (2, 4, 8)


def expand_weight_only(graph: Graph) -> None:
    """Apply to every node of these types. Raises CompileError for computed weights and unknown widths."""
    for node in list(graph.nodes):
        if node.domain != "com.microsoft":
            continue
        if node.op_type == "MatMulNBits":
            _matmul(graph, node)
        elif node.op_type == "GatherBlockQuantized":
            _gather(graph, node)
    graph.update()


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """uint8 [..., n] -> uint8 [..., n * 8 / bits], the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return ((packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)).reshape(*packed.shape[:-1], -1)


def _inputs(graph: Graph, node: NodeProto, *indices: int) -> list[np.ndarray | None]:
    names = [node.input[i] if i < len(node.input) else "" for i in indices]
    missing = [n for n in names if n and n not in graph.constants]
    if missing:
        raise CompileError(f"node {label(node)}: its weights '{missing[0]}' are computed; they must be constant")
    return [graph.constants[n] if n else None for n in names]


def _bits(node: NodeProto) -> int:
    bits = attribute(node, "bits", 4)
    if bits not in WIDTHS:
        raise CompileError(f"node {label(node)}: weights of {bits} bits are not supported; use 2, 4 or 8")
    return bits


def _matmul(graph: Graph, node: NodeProto) -> None:
    """MatMulNBits: A, B uint8 [N, blocks, bytes], scales [N, blocks], zero points, g_idx [K], bias [N]."""
    bits, block = _bits(node), attribute(node, "block_size")
    n, k, y = attribute(node, "N"), attribute(node, "K"), node.output[0]
    count = -(-k // block)
    packed, scales, zeros, groups, bias = _inputs(graph, node, 1, 2, 3, 4, 5)
    assert packed is not None and scales is not None
    codes = unpack(packed.reshape(n, count, -1), bits).reshape(n, -1)[:, :k].T
    scales = scales.astype(np.float32).reshape(n, count).T
    default = 1 << (bits - 1)
    if zeros is None:
        zero = np.full((count, n), default, np.float32)
    elif zeros.dtype == np.uint8 and zeros.size == n * count:  # one a byte: NNCF; the same where a byte holds one
        zero = (zeros & ((1 << bits) - 1)).reshape(n, count).T.astype(np.float32)
    elif zeros.dtype == np.uint8:
        if zeros.size != n * -(-count * bits // 8):
            raise CompileError(
                f"node {label(node)}: its zero points have shape {list(zeros.shape)}; {count} of {bits} bits a row "
                f"need [{n}, {-(-count * bits // 8)}]; export the weights again"
            )
        zero = unpack(zeros.reshape(n, -1), bits)[:, :count].T.astype(np.float32)
    else:
        zero = zeros.astype(np.float32).reshape(n, count).T
    if groups is not None and (groups[:k] == np.arange(k) // block).all():
        groups = None
    if groups is not None or (zero != np.rint(zero)).any():  # rows in another order, or zeros between the codes
        index = np.arange(k) // block if groups is None else groups[:k]
        weight = graph.constant(f"{y}_weight", ((codes - zero[index]) * scales[index]).astype(np.float32))
    else:
        inputs = [graph.constant(f"{y}_codes", codes), graph.constant(f"{y}_scales", scales)]
        inputs.append(graph.constant(f"{y}_zero_points", zero.astype(np.uint8)))
        weight = graph.add("DequantizeLinear", inputs, f"{y}_weight", axis=0, block_size=block)
    if bias is None:
        graph.replace(node, "MatMul", [node.input[0], weight])
    else:
        product = graph.add("MatMul", [node.input[0], weight], f"{y}_product")
        graph.replace(node, "Add", [product, node.input[5]])


def _gather(graph: Graph, node: NodeProto) -> None:
    """GatherBlockQuantized: data, indices, scales, zero points; 4-bit data may be packed in uint8."""
    y, block = node.output[0], attribute(node, "block_size", 128)
    data, scales, zeros = _inputs(graph, node, 0, 2, 3)
    assert data is not None and scales is not None
    axis = attribute(node, "quantize_axis", 1) % data.ndim
    bits = attribute(node, "bits", 4)
    packed = data.dtype == np.uint8 and bits < 8
    codes = unpack(data, _bits(node)) if packed else data
    inputs = [graph.constant(f"{y}_codes", codes), graph.constant(f"{y}_scales", scales)]
    if zeros is not None:
        zeros = unpack(zeros, bits)[..., : scales.shape[-1]] if packed else zeros
    elif codes.dtype == np.uint8:
        zeros = np.full(scales.shape, 1 << (bits - 1), np.uint8)
    if zeros is not None:
        inputs.append(graph.constant(f"{y}_zero_points", zeros.astype(codes.dtype)))
    table = graph.add("DequantizeLinear", inputs, f"{y}_table", axis=axis, block_size=block)
    graph.replace(node, "Gather", [table, node.input[1]], axis=attribute(node, "gather_axis", 0))
