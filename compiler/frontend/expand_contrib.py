"""ONNX Runtime's fused operators in parts that everything else knows.

Definitions: docs/ContribOperators.md of ONNX Runtime (domain com.microsoft). Attention is in `expand_attention`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import NodeProto
from qcompile.frontend.expand_attention import expand_attention, expand_multi_head, expand_rotary
from qcompile.frontend.fuse_norms import RMS_OPSET
from qcompile.frontend.graph import Graph, attribute, label
from qcompile.frontend.shapes import infer_shapes
from qcompile.targets.errors import CompileError

LAYER_EPSILON, RMS_EPSILON = 1e-12, 1e-5


def expand_contrib(graph: Graph) -> None:
    """Expand every node that TABLE knows, in order, so that shapes are known. Raises CompileError for the others."""
    for node in list(graph.nodes):
        rewrite = TABLE.get(node.op_type)
        if node.domain != "com.microsoft" or rewrite is None:
            continue
        infer_shapes(graph)
        rewrite(graph, node)
        graph.update()


def _input(node: NodeProto, i: int) -> str:
    return node.input[i] if i < len(node.input) else ""


def _output(node: NodeProto, i: int) -> str:
    return node.output[i] if i < len(node.output) else ""


def _refuse_outputs(graph: Graph, node: NodeProto, *indices: int) -> None:
    """Outputs that exist for training only."""
    for i in indices:
        name = _output(node, i)
        if name and (graph.consumers(name) or name in graph.output_names):
            raise CompileError(f"node {label(node)}: its output '{name}' is for training and has no integer form")


def _gelu(graph: Graph, node: NodeProto, approximate: str) -> None:
    x = node.input[0]
    if _input(node, 1):
        x = graph.add("Add", [x, node.input[1]], f"{node.output[0]}_biased")
    graph.replace(node, "Gelu", [x], approximate=approximate)


def _quick_gelu(graph: Graph, node: NodeProto) -> None:
    x, y, alpha = node.input[0], node.output[0], attribute(node, "alpha", 1.702)
    inner = graph.add("Mul", [x, graph.constant(f"{y}_alpha", np.float32(alpha))], f"{y}_scaled") if alpha != 1 else x
    graph.replace(node, "Mul", [x, graph.add("Sigmoid", [inner], f"{y}_gate")])


def _skip_layer_norm(graph: Graph, node: NodeProto) -> None:
    """input, skip, gamma, beta, bias; output 3 is the sum."""
    simplified = node.op_type == "SkipSimplifiedLayerNormalization"
    gamma, bias = _input(node, 2), _input(node, 3 if simplified else 4)
    _refuse_outputs(graph, node, 1, 2)
    y = node.output[0]
    total = graph.add("Add", list(node.input[:2]), f"{y}_sum")
    if bias:
        total = graph.add("Add", [total, bias], f"{y}_biased")
    if _output(node, 3):
        graph.add("Identity", [total], [node.output[3]])
    _norm(graph, node, total, gamma, "" if simplified else _input(node, 3), simplified)


def _norm(graph: Graph, node: NodeProto, x: str, gamma: str, beta: str, rms: bool) -> None:
    epsilon = attribute(node, "epsilon", RMS_EPSILON if rms else LAYER_EPSILON)
    axis = attribute(node, "axis", -1)
    if rms:
        graph.opsets[""] = max(graph.opsets[""], RMS_OPSET)
        graph.replace(node, "RMSNormalization", [x, gamma], axis=axis, epsilon=epsilon)
    else:
        graph.replace(node, "LayerNormalization", [x, gamma, *([beta] if beta else [])], axis=axis, epsilon=epsilon)


def _simplified_layer_norm(graph: Graph, node: NodeProto) -> None:
    _refuse_outputs(graph, node, 1)
    _norm(graph, node, node.input[0], node.input[1], "", True)


def _embed_layer_norm(graph: Graph, node: NodeProto) -> None:
    """input ids, segment ids, word, position and segment tables, gamma, beta, mask, position ids."""
    ids, segments, word, position, segment, gamma, beta, mask, positions = (_input(node, i) for i in range(9))
    y, shape = node.output[0], graph.shape(ids)
    if shape is None:
        raise CompileError(f"node {label(node)}: its sequence length is unknown; give it with --shapes {ids}:1x128")
    if not positions:
        positions = graph.constant(f"{y}_positions", np.arange(shape[1], dtype=np.int64)[None])
    parts = [graph.add("Gather", [word, ids], f"{y}_words"), graph.add("Gather", [position, positions], f"{y}_places")]
    if segment:
        segments = segments or graph.constant(f"{y}_segments", np.zeros(shape, np.int64))
        parts.append(graph.add("Gather", [segment, segments], f"{y}_kinds"))
    total = parts[0]
    for k, part in enumerate(parts[1:]):
        total = graph.add("Add", [total, part], f"{y}_sum{k}")
    if _output(node, 1):
        count = graph.constant(f"{y}_zeros", np.zeros(shape[0], np.int32))
        if mask:
            axes = graph.constant(f"{y}_axes", np.array([1], np.int64))
            count = graph.add("ReduceSum", [mask, axes], f"{y}_count", keepdims=0)
        graph.add("Identity", [count], [node.output[1]])
    if _output(node, 2):
        graph.add("Identity", [total], [node.output[2]])
    _norm(graph, node, total, gamma, beta, False)


def _fused_matmul(graph: Graph, node: NodeProto) -> None:
    inputs, y = list(node.input[:2]), node.output[0]
    if attribute(node, "transBatchA", 0) or attribute(node, "transBatchB", 0):
        raise CompileError(f"node {label(node)}: transBatchA and transBatchB are not supported; use Transpose")
    for i, name in enumerate(("transA", "transB")):
        rank = graph.rank(inputs[i])
        if attribute(node, name, 0):
            if rank is None:
                raise CompileError(f"node {label(node)}: the rank of '{inputs[i]}' is unknown")
            perm = [*range(rank - 2), rank - 1, rank - 2]
            inputs[i] = graph.add("Transpose", [inputs[i]], f"{y}_{name}", perm=perm)
    alpha = attribute(node, "alpha", 1.0)
    if alpha == 1.0:
        graph.replace(node, "MatMul", inputs)
    else:
        product = graph.add("MatMul", inputs, f"{y}_product")
        graph.replace(node, "Mul", [product, graph.constant(f"{y}_alpha", np.float32(alpha))])


ACTIVATIONS: dict[str, tuple[str, ...]] = {  # names of activation_params
    "Relu": (),
    "Tanh": (),
    "Sigmoid": (),
    "LeakyRelu": ("alpha",),
    "HardSigmoid": ("alpha", "beta"),
}


def _fused_linear(graph: Graph, node: NodeProto) -> None:
    """FusedConv and FusedGemm: an activation after it; FusedConv's fourth input is added before that."""
    op, y = node.op_type.removeprefix("Fused"), node.output[0]
    activation = attribute(node, "activation", "")
    params = attribute(node, "activation_params", []) or [
        attribute(node, f"activation_{n}") for n in ("alpha", "beta") if attribute(node, f"activation_{n}") is not None
    ]
    attrs = {a.name: attribute(node, a.name) for a in node.attribute if not a.name.startswith("activation")}
    name = graph.add(op, list(node.input[:3]), f"{y}_linear", **attrs)
    if _input(node, 3):
        name = graph.add("Add", [name, node.input[3]], f"{y}_sum")
    if activation == "Clip":
        ends = [graph.constant(f"{y}_limit{k}", np.float32(v)) for k, v in enumerate(params)]
        graph.replace(node, "Clip", [name, *ends])
    elif not activation:
        graph.replace(node, "Identity", [name])
    elif activation in ACTIVATIONS:
        graph.replace(node, activation, [name], **dict(zip(ACTIVATIONS[activation], params)))
    else:
        raise CompileError(f"node {label(node)}: its activation {activation} is not supported; use a node of its own")


def _same_operator(graph: Graph, node: NodeProto) -> None:
    node.domain = ""


TABLE: dict[str, Callable[[Graph, NodeProto], None]] = {
    "Gelu": lambda g, n: _gelu(g, n, "none"),
    "BiasGelu": lambda g, n: _gelu(g, n, "none"),
    "FastGelu": lambda g, n: _gelu(g, n, "tanh"),
    "QuickGelu": _quick_gelu,
    "SkipLayerNormalization": _skip_layer_norm,
    "SkipSimplifiedLayerNormalization": _skip_layer_norm,
    "SimplifiedLayerNormalization": _simplified_layer_norm,
    "EmbedLayerNormalization": _embed_layer_norm,
    "FusedMatMul": _fused_matmul,
    "FusedConv": _fused_linear,
    "FusedGemm": _fused_linear,
    "LayerNormalization": _same_operator,
    "Attention": expand_attention,
    "QAttention": expand_attention,
    "MultiHeadAttention": expand_multi_head,
    "RotaryEmbedding": expand_rotary,
}
