"""Operators that ONNX itself defines by simpler ones become those: the function bodies of its schemas.

Used where the compiler has no form of its own; what the bodies compute from shapes and types folds away afterwards.
"""

from __future__ import annotations

from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, TypeProto, helper
from qcompile.frontend.fold_constants import fold_constants
from qcompile.frontend.graph import Graph
from qcompile.frontend.shapes import infer_shapes

EXPANDED = {
    "AffineGrid",
    "Attention",
    "CastLike",
    "CausalConvWithState",
    "Celu",
    "CenterCropPad",
    "FlexAttention",
    "LinearAttention",
    "MeanVarianceNormalization",
    "NegativeLogLikelihoodLoss",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceSumSquare",
    "RotaryEmbedding",
    "Shrink",
    "SoftmaxCrossEntropyLoss",
    "SwiGLU",
    "Swish",
    "ThresholdedRelu",
}
DOMAINS = ("", "ai.onnx", "ai.onnx.preview")
ROUNDS = 8  # bodies may use functions


def expand_functions(graph: Graph) -> None:
    """Replace every node of EXPANDED whose schema has a body."""
    for _ in range(ROUNDS):
        found = [n for n in graph.nodes if n.op_type in EXPANDED and n.domain in DOMAINS]
        if not found:
            return
        fold_constants(graph)  # types and constant inputs choose the body
        for node in [n for n in found if any(n is m for m in graph.nodes)]:
            body = _body(graph, node)
            if body is not None:
                inline(graph, node, body)
        infer_shapes(graph)
        if all(any(n is m for m in graph.nodes) for n in found):
            return


def _domain(node: NodeProto) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def _body(graph: Graph, node: NodeProto) -> FunctionProto | None:
    """The function that a node stands for, at the newest version that the graph's opset may use."""
    domain = _domain(node)
    version = graph.opsets[domain]
    try:
        schema: Any = onnx.defs.get_schema(node.op_type, version, domain)  # its type stubs lack the functions
    except onnx.defs.SchemaError:
        return None
    # bodies are written for some version of ONNX: the newest not above the graph's
    if schema.has_context_dependent_function:
        known = [v for v in schema.context_dependent_function_opset_versions if v <= version]
        types = [_type(graph, i) for i in node.input]
        if not known or any(t is None for t in types):
            return None
        data = schema.get_context_dependent_function_with_opset_version(
            max(known), node.SerializeToString(), [t.SerializeToString() for t in types if t is not None]
        )
        return FunctionProto.FromString(data) if data else None
    known = [v for v in schema.function_opset_versions if v <= version]
    if not known:
        return None
    data = schema.get_function_with_opset_version(max(known))
    return FunctionProto.FromString(data.SerializeToString() if hasattr(data, "SerializeToString") else data)


def _type(graph: Graph, name: str) -> TypeProto | None:
    if not name:
        return TypeProto()
    if name in graph.constants:
        value = graph.constants[name]
        return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
    if name in graph.dtypes:
        return helper.make_tensor_type_proto(graph.dtypes[name], graph.shapes.get(name))
    return None


def inline(graph: Graph, node: NodeProto, body: FunctionProto) -> None:
    """The nodes of `body` in place of `node`, with its inputs, outputs and attributes."""
    names = {"": ""} | dict(zip(body.input, [*node.input, *[""] * len(body.input)]))
    names |= {inner: outer for inner, outer in zip(body.output, node.output) if outer}
    given = {a.name: a for a in node.attribute}
    given |= {a.name: a for a in body.attribute_proto if a.name not in given}
    domain = _domain(node)
    schema = onnx.defs.get_schema(node.op_type, graph.opsets[domain], domain) if node.domain in DOMAINS else None
    for name, spec in schema.attributes.items() if schema is not None else ():
        if name not in given and spec.default_value.name:
            given[name] = spec.default_value
    graph.nodes = [n for n in graph.nodes if n is not node]
    for inner in body.node:
        copy = NodeProto.FromString(inner.SerializeToString())
        _rename(graph, copy, names, given, node.output[0] or node.name)
        graph.nodes.append(copy)
    graph.update()


def _rename(graph: Graph, node: NodeProto, names: dict[str, str], given: dict[str, AttributeProto], base: str) -> None:
    for i, name in enumerate(node.input):
        node.input[i] = names[name]
    for i, name in enumerate(node.output):
        names.setdefault(name, graph.fresh(f"{base}_{name}"))
        node.output[i] = names[name]
    node.name = node.output[0] if node.output else ""
    kept = []
    for a in node.attribute:
        if a.ref_attr_name:
            if a.ref_attr_name not in given:
                continue
            copy = AttributeProto.FromString(given[a.ref_attr_name].SerializeToString())
            copy.name = a.name
            kept.append(copy)
        else:
            kept.append(a)
            if a.type == AttributeProto.GRAPH:
                _rename_graph(graph, a.g, dict(names), given, base)
    copies = [AttributeProto.FromString(a.SerializeToString()) for a in kept]
    del node.attribute[:]
    node.attribute.extend(copies)


def _rename_graph(graph: Graph, g: onnx.GraphProto, names: dict, given: dict, base: str) -> None:
    for value in [*g.input, *g.output]:
        value.name = (
            names.setdefault(value.name, graph.fresh(f"{base}_{value.name}")) if value in g.input else value.name
        )
    for node in g.node:
        _rename(graph, node, names, given, base)
    for value in g.output:
        value.name = names.get(value.name, value.name)
