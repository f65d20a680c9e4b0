"""Names of a model must be text: protobuf hands over what is no UTF-8 as bytes, which nothing else expects."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import AttributeProto, GraphProto, NodeProto
from qcompile.targets.errors import CompileError


def check_text(model: onnx.ModelProto) -> None:
    """Raises CompileError where a name, a type, or the text of an attribute is no UTF-8."""
    for where, text in _texts(model):
        try:
            _ = text.decode() if isinstance(text, bytes) else text.encode()
        except UnicodeError as e:
            raise CompileError(f"{where}: {text!r} is no UTF-8 text; the file is damaged, export it again") from e


def _texts(model: onnx.ModelProto) -> Iterator[tuple[str, str | bytes]]:
    """(what the text is, the text) of all that the compiler reads as such."""
    for opset in model.opset_import:
        yield "a domain of the model", opset.domain
    for entry in model.metadata_props:
        yield "the model's metadata", entry.key
        yield "the model's metadata", entry.value
    yield from _graph_texts(model.graph)
    for function in model.functions:
        for text in (function.name, function.domain, *function.input, *function.output, *function.attribute):
            yield "a function of the model", text
        for opset in function.opset_import:
            yield "a function of the model", opset.domain
        yield from _node_texts(function.node)


def _graph_texts(graph: GraphProto) -> Iterator[tuple[str, str | bytes]]:
    yield "the graph's name", graph.name
    for tensor in graph.initializer:
        yield "the name of a weight", tensor.name
        for entry in tensor.external_data:
            yield f"weight {tensor.name!r}", entry.key
            yield f"weight {tensor.name!r}", entry.value
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield "the name of a tensor", value.name
        for size in value.type.tensor_type.shape.dim:
            yield f"a size of tensor {value.name!r}", size.dim_param
    yield from _node_texts(graph.node)


def _node_texts(nodes: list[NodeProto]) -> Iterator[tuple[str, str | bytes]]:
    for number, node in enumerate(nodes):
        where = f"node {number}"
        for text in (node.name, node.op_type, node.domain, *node.input, *node.output):
            yield where, text
        for entry in node.metadata_props:
            yield where, entry.key
            yield where, entry.value
        for a in node.attribute:
            yield where, a.name
            yield where, a.ref_attr_name
            if a.type in (AttributeProto.STRING, AttributeProto.STRINGS):
                for text in (a.s, *a.strings):
                    yield f"{where}, attribute {a.name!r}", text
            elif a.type == AttributeProto.GRAPH:
                yield from _graph_texts(a.g)
