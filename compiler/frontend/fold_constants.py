"""Evaluates what depends on constants and static shapes only.

Accepts: any node whose inputs are all constant, Shape, Size and EyeLike of statically shaped tensors, Constant nodes.
Leaves: DequantizeLinear of integer constants (the quantized structure of weights must survive) and random ops.
QuantizeLinear of a constant is folded, so that a Q, DQ pair on a weight becomes an integer constant and DQ.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from qcompile.frontend.graph import Graph, attribute, dense, label, name_nodes
from qcompile.frontend.shapes import infer_shapes
from qcompile.targets.errors import CompileError

KEPT = {
    "DequantizeLinear",
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
    "If",
    "Loop",
    "Scan",
}
OF_SHAPES = ("Shape", "Size", "EyeLike")  # their results follow from the shape of what they read
LIMIT = 1 << 26  # elements; a fold that would grow a constant beyond this stays a node


def fold_constants(graph: Graph) -> None:
    """Fold until nothing changes; each round infers shapes, so chains of Shape, Gather, Concat, Reshape resolve."""
    while True:
        infer_shapes(graph)
        folded = _fold_shapes(graph) | fold_constant_nodes(graph)
        ready = constant_nodes(graph)
        if ready:
            graph.constants.update(evaluate(graph, ready))
        if not (folded or ready):
            return
        made = {id(n) for n in ready}
        graph.nodes = [n for n in graph.nodes if id(n) not in made]
        graph.update()


def fold_constant_nodes(graph: Graph) -> bool:
    """Constant nodes become initializers; whether there were any."""
    found = [n for n in graph.nodes if n.op_type == "Constant"]
    for node in found:
        a = node.attribute[0]
        if a.name == "value":
            graph.constants[node.output[0]] = numpy_helper.to_array(a.t)
        elif a.name in ("value_float", "value_floats"):
            graph.constants[node.output[0]] = np.array(helper.get_attribute_value(a), np.float32)
        elif a.name in ("value_int", "value_ints"):
            graph.constants[node.output[0]] = np.array(helper.get_attribute_value(a), np.int64)
        elif a.name == "sparse_value":
            graph.constants[node.output[0]] = dense(a.sparse_tensor)
        else:
            raise CompileError(f"node {label(node)}: constants of kind {a.name} (strings) cannot be compiled")
    graph.nodes = [n for n in graph.nodes if n.op_type != "Constant"]
    return bool(found)


def _fold_shapes(graph: Graph) -> bool:
    found = []
    for node in graph.nodes:
        shape = graph.shape(node.input[0]) if node.op_type in OF_SHAPES else None
        if shape is None:
            continue
        found.append(node)
        if node.op_type == "EyeLike":
            value = _eye(graph, node, shape)
        elif node.op_type == "Size":
            value = np.array(np.prod(shape, dtype=np.int64))
        else:
            value = np.array(shape[attribute(node, "start", 0) : attribute(node, "end", None)], np.int64)
        graph.constants[node.output[0]] = value
    ids = {id(n) for n in found}
    graph.nodes = [n for n in graph.nodes if id(n) not in ids]
    return bool(found)


def _eye(graph: Graph, node: onnx.NodeProto, shape: tuple[int, ...]) -> np.ndarray:
    given = graph.constants.get(node.input[0])
    own = helper.np_dtype_to_tensor_dtype(given.dtype) if given is not None else graph.dtypes.get(node.input[0], 1)
    dtype = helper.tensor_dtype_to_np_dtype(attribute(node, "dtype", own))
    rows, columns = shape
    return np.eye(rows, columns, attribute(node, "k", 0), dtype)


def constant_nodes(graph: Graph) -> list[onnx.NodeProto]:
    """The nodes that depend on constants only, in order; those that stay nodes all the same are not among them."""
    known, ready = set(graph.constants), []
    for node in graph.nodes:
        small = all(np.prod(graph.shapes.get(o, ()), dtype=np.int64) <= LIMIT for o in node.output)
        if node.op_type not in KEPT and small and all(not i or i in known for i in node.input):
            ready.append(node)
            known.update(node.output)
    return ready


def evaluate(graph: Graph, nodes: list[onnx.NodeProto]) -> dict[str, np.ndarray]:
    """Run constant nodes: all at once in ONNX Runtime, or one by one in the reference where it lacks a type."""
    inside = {id(n) for n in nodes}
    outputs = [
        o
        for n in nodes
        for o in n.output
        if o and (o in graph.output_names or any(id(c) not in inside for c in graph.consumers(o)))
    ]
    reads = dict.fromkeys(i for n in nodes for i in n.input if i in graph.constants)
    inits = [
        numpy_helper.from_array(np.ascontiguousarray(graph.constants[i]).reshape(graph.constants[i].shape), i)
        for i in reads
    ]
    values = [onnx.ValueInfoProto(name=o) for o in outputs]
    model = helper.make_model(
        helper.make_graph(nodes, "fold", [], values, inits),
        ir_version=10,
        opset_imports=[helper.make_opsetid(d, v) for d, v in graph.opsets.items()],
    )
    name_nodes(model.graph.node)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip(outputs, session.run(None, {})))
    except Exception:  # ONNX Runtime raises its own types per failure; the reference decides
        values_by_name = {i: graph.constants[i] for i in reads}
        for node in nodes:
            try:
                feed = {i: values_by_name[i] for i in node.input if i}
                result = ReferenceEvaluator(node, opsets=graph.opsets).run(None, feed)
            except Exception as e:
                raise CompileError(f"node {label(node)}: cannot be evaluated on its constant inputs: {e}") from e
            values_by_name |= {name: np.asarray(value) for name, value in zip(node.output, result)}
        return {o: values_by_name[o] for o in outputs}
