"""DynamicQuantizeLSTM of ONNX Runtime's quantize_dynamic: an LSTM with float weights, to be quantized statically."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute, label
from qcompile.targets.errors import CompileError

ATTRIBUTES = ("activations", "activation_alpha", "activation_beta", "clip", "direction", "hidden_size", "input_forget")
W, R, PEEPHOLES, W_SCALE, R_SCALE = 1, 2, 7, 8, 10


def expand_dynamic_lstm(graph: Graph, notes: list[str]) -> None:
    """Rewrite DynamicQuantizeLSTM; weights int8 or uint8 [D, I, 4H], scales [D] or [D, 4H]. CompileError where they are
    no constants."""
    nodes = [n for n in graph.nodes if n.op_type == "DynamicQuantizeLSTM"]
    for node in nodes:
        given = [*node.input, *[""] * (12 - len(node.input))]
        weights = [_weight(graph, node, given[i], given[s], given[s + 1]) for i, s in ((W, W_SCALE), (R, R_SCALE))]
        inputs = [given[0], *weights, *given[3 : PEEPHOLES + 1]]
        while not inputs[-1]:
            inputs.pop()
        attrs = {k: attribute(node, k) for k in ATTRIBUTES}
        graph.add("LSTM", inputs, list(node.output), **{k: v for k, v in attrs.items() if v is not None})
        graph.nodes[-1].name = node.name
    if nodes:
        notes.append("DynamicQuantizeLSTM: its activations get static scales from calibration")
        gone = {id(n) for n in nodes}
        graph.nodes = [n for n in graph.nodes if id(n) not in gone]
        graph.opsets = {d: v for d, v in graph.opsets.items() if d in {n.domain for n in graph.nodes} | {""}}
        graph.update()


def _weight(graph: Graph, node: NodeProto, codes: str, scale: str, zero_point: str) -> str:
    """Float weights [D, 4H, I]."""
    for name in (codes, scale, zero_point):
        if name and name not in graph.constants:
            raise CompileError(
                f"node {label(node)}: its weights '{name}' are computed at run time; they must be constants"
            )
    q, s = graph.constants[codes].astype(np.float32), graph.constants[scale].astype(np.float32)
    z = graph.constants[zero_point].astype(np.float32) if zero_point else np.zeros_like(s)
    s, z = (np.broadcast_to(v.reshape(len(q), 1, -1), (len(q), 1, q.shape[2])) for v in (s, z))
    return graph.constant(f"{codes}_float", np.ascontiguousarray(((q - z) * s).transpose(0, 2, 1)))
