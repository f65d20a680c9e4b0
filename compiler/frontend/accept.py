"""What a normalised model must not contain any more: refusals that name the node, before time is spent on it."""

from __future__ import annotations

from qcompile.frontend.control_flow import refuse_control_flow
from qcompile.frontend.graph import Graph, label
from qcompile.importer.operators import is_importable
from qcompile.targets.errors import CompileError

REFUSED = {  # forms of operators that have no integer form
    "RoiAlign": "its number of samples depends on the boxes, or it takes maxima; export it with mode avg and a "
    "sampling_ratio above 0",
    "DeformConv": "it has computed weights or other than two axes; export it with constant weights",
    "LpPool": "with p above 2, roots of small sums need more than 16 bits; use p = 1 or 2",
}

CONSTANT = {"CumSum": {1: "axis"}, "CumProd": {1: "axis"}}  # inputs that must be known

FIRST_OUTPUT = {"BatchNormalization", "Dropout", "MaxPool"}


def check_supported(graph: Graph) -> None:
    """Raise CompileError for the first operator without a converter, or of which a further output is read."""
    refuse_control_flow(graph)
    for node in graph.nodes:
        further = [o for o in node.output[1:] if o and (graph.consumers(o) or o in graph.output_names)]
        if further and node.op_type in FIRST_OUTPUT:
            raise CompileError(
                f"node {label(node)}: its output '{further[0]}' has no integer form; only the first output is supported"
            )
        if node.op_type == "Attention":  # TVM's converter of that name reads ONNX Runtime's
            raise CompileError(
                f"node {label(node)}: ONNX defines no Attention of these attributes and types; correct the model"
            )
        for index, what in CONSTANT.get(node.op_type, {}).items():
            if node.input[index] not in graph.constants:
                raise CompileError(f"node {label(node)}: its {what} '{node.input[index]}' must be constant")
        if node.op_type == "Pow" and graph.is_float(node.input[0]) != graph.is_float(node.input[1]):
            raise CompileError(
                f"node {label(node)}: its base '{node.input[0]}' and its exponent '{node.input[1]}' differ in type and "
                "the exponent is computed; cast one of them in the model"
            )
        divisor = graph.constants.get(node.input[1]) if node.op_type in ("Div", "Mod") else None
        if divisor is not None and divisor.dtype.kind in "iu" and not divisor.all():
            raise CompileError(f"node {label(node)}: its divisor '{node.input[1]}' has zeros; correct the model")
        if node.op_type in REFUSED:
            raise CompileError(f"node {label(node)}: {node.op_type} is not supported: {REFUSED[node.op_type]}")
        if not is_importable(node.op_type):
            domain = f"{node.domain}." if node.domain else ""
            version = graph.opsets.get(node.domain, graph.opsets.get("", 0))
            raise CompileError(
                f"node {label(node)}: operator {domain}{node.op_type} (opset {version}) is not supported; "
                "rewrite it with supported operators, or leave it out of the exported model"
            )


def check_parameters(graph: Graph) -> None:
    """Raise CompileError for a QuantizeLinear or DequantizeLinear whose scale or zero point is computed."""
    for node in graph.nodes:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            computed = [i for i in node.input[1:] if i and i not in graph.constants]
            if computed:
                raise CompileError(
                    f"node {label(node)}: '{computed[0]}' is computed (dynamic quantization); "
                    "quantize the model statically"
                )
