"""The domains of operators as ONNX asks for them: exporters leave out what ONNX Runtime does not need."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from qcompile.frontend import expand_contrib

DEFAULT = ("", "ai.onnx")
MICROSOFT = "com.microsoft"


def with_domains(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with an opset for every domain of its nodes (NNCF writes none), and with the operators of ONNX Runtime
    in its domain (it knows SimplifiedLayerNormalization in ONNX's own). A copy where something changes."""
    imported = {o.domain for o in model.opset_import} | set(DEFAULT)
    if not any(_is_misplaced(n) or n.domain not in imported for n in _nodes(model.graph)):
        return model
    complete = onnx.ModelProto()
    complete.CopyFrom(model)
    for node in _nodes(complete.graph):
        if _is_misplaced(node):
            node.domain = MICROSOFT
    missing = {n.domain for n in _nodes(complete.graph)} - imported
    complete.opset_import.extend(onnx.helper.make_opsetid(domain, 1) for domain in sorted(missing))
    return complete


def _is_misplaced(node: onnx.NodeProto) -> bool:
    return node.domain in DEFAULT and node.op_type in expand_contrib.TABLE and not onnx.defs.has(node.op_type)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """With those of branches and bodies."""
    for node in graph.node:
        yield node
        for a in node.attribute:
            for inner in (*a.graphs, *([a.g] if a.HasField("g") else [])):
                yield from _nodes(inner)
