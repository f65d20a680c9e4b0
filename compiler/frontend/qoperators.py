"""QOperator models: every operator on integer tensors becomes its float operator between DequantizeLinear and
QuantizeLinear, by a table of what each input means.

QLinearConv and QLinearMatMul are ONNX's, the others ONNX Runtime's (com.microsoft, docs/ContribOperators.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute, label
from qcompile.frontend.opset import flatten_softmax
from qcompile.targets.errors import CompileError


@dataclass(frozen=True)
class Form:
    """What the inputs of an operator are.

    op: the float operator. operands: (codes, scale, zero point) of each input, in the float operator's order. result:
    (scale, zero point) of the output. bias: the int32 bias, on the product of the operands' scales. plain: other inputs
    that go first, as they are. drop: attributes that the float operator lacks; defaults: those whose default differs.
    """

    op: str
    operands: tuple[tuple[int, int, int], ...] = ((0, 1, 2),)
    result: tuple[int, int] = (3, 4)
    bias: int | None = None
    plain: tuple[int, ...] = ()
    drop: tuple[str, ...] = ("channels_last",)
    defaults: dict[str, float] = field(default_factory=dict)


TWO = ((0, 1, 2), (3, 4, 5))
FORMS = {
    "QLinearConv": Form("Conv", TWO, (6, 7), bias=8),
    "QLinearMatMul": Form("MatMul", TWO, (6, 7)),
    "QGemm": Form("Gemm", TWO, (7, 8), bias=6),
    "QLinearAdd": Form("Add", TWO, (6, 7)),
    "QLinearMul": Form("Mul", TWO, (6, 7)),
    "QLinearSigmoid": Form("Sigmoid"),
    "QLinearLeakyRelu": Form("LeakyRelu", defaults={"alpha": 0.01}),
    "QLinearSoftmax": Form("Softmax", drop=("opset",)),
    "QLinearAveragePool": Form("AveragePool"),
    "QLinearGlobalAveragePool": Form("GlobalAveragePool"),
    "QLinearReduceMean": Form("ReduceMean", drop=("axes",)),
    "QLinearWhere": Form("Where", ((1, 2, 3), (4, 5, 6)), (7, 8), plain=(0,)),
}
MOVES_CODES = {"NhwcMaxPool": "MaxPool"}  # on codes as they are, channels last
IN_PLACE = {"QuantizeLinear", "DequantizeLinear"}  # com.microsoft's are ONNX's


def expand_qoperators(graph: Graph) -> None:
    """Apply the table. Raises CompileError for computed scales."""
    for node in list(graph.nodes):
        if node.domain == "com.microsoft" and node.op_type in IN_PLACE:
            node.domain = ""
        elif node.op_type in MOVES_CODES and node.domain == "com.microsoft":
            _channels_first(graph, node, MOVES_CODES[node.op_type])
        elif node.op_type == "QLinearConcat":
            count = (len(node.input) - 2) // 3
            operands = tuple((2 + 3 * i, 3 + 3 * i, 4 + 3 * i) for i in range(count))
            _expand(graph, node, Form("Concat", operands, (0, 1)))
        elif node.op_type in FORMS:
            _expand(graph, node, FORMS[node.op_type])
    graph.update()


def optional_input(node: NodeProto, i: int) -> str:
    """The input `i`, "" where the node has none."""
    return node.input[i] if i < len(node.input) else ""


def _axes(form: Form, node: NodeProto, rank: int | None) -> list[int]:
    """The axis along which each operand's scale lies, where it has several."""
    if form.op == "Conv":
        return [1, 0]
    if form.op == "Gemm":
        return [1, 0 if attribute(node, "transB", 0) else 1]
    return [-2, (rank or 1) - 1]


def _expand(graph: Graph, node: NodeProto, form: Form) -> None:
    y, last = node.output[0], bool(attribute(node, "channels_last", 0))
    inputs = [optional_input(node, i) for i in form.plain]
    axes = _axes(form, node, graph.rank(optional_input(node, form.operands[-1][0])))
    scales = [constant_scale(graph, node, s) for _, s, _ in form.operands]
    for k, (codes, _, zero) in enumerate(form.operands):
        axis = axes[k] if k < len(axes) else 1
        name = dequantize(
            graph, optional_input(node, codes), scales[k], optional_input(node, zero), f"{y}_operand{k}", axis
        )
        first = (
            last
            and graph.shape(optional_input(node, codes)) is not None
            and not graph.is_constant(optional_input(node, codes))
        )
        inputs.append(_transposed(graph, name, graph.rank(optional_input(node, codes)) or 4, True) if first else name)
    attrs = {a.name: attribute(node, a.name) for a in node.attribute if a.name not in form.drop}
    if form.bias is not None and optional_input(node, form.bias):
        product = np.float32(attribute(node, "alpha", 1.0)) * scales[0].reshape(-1) * scales[1].reshape(-1)
        size = graph.constants[optional_input(node, form.bias)].size
        product = np.broadcast_to(product, (size,)) if form.op == "Conv" else product
        inputs.append(
            dequantize(graph, optional_input(node, form.bias), product.astype(np.float32), "", f"{y}_bias", -1)
        )
    if form.op == "ReduceMean" and attribute(node, "axes") is not None:
        inputs.append(graph.constant(f"{y}_axes", np.array(attribute(node, "axes"), np.int64)))
    result = graph.add(form.op, inputs, f"{y}_real", **(form.defaults | attrs))
    if node.op_type == "QLinearSoftmax" and attribute(node, "opset", 13) < 13:
        made = graph.nodes[-1]
        graph.shapes[made.input[0]] = graph.shape(node.input[0]) or ()
        flatten_softmax(graph, made)
    if last:
        result = _transposed(graph, result, graph.rank(node.input[0]) or 4, False)
    result_scale, result_zero = (optional_input(node, i) for i in form.result)
    if not result_scale:  # QGemm without a scale returns floats
        graph.replace(node, "Identity", [result])
        return
    graph.replace(node, "QuantizeLinear", [result, *(_scalar(graph, p) for p in (result_scale, result_zero) if p)])


def constant_scale(graph: Graph, node: NodeProto, i: int) -> np.ndarray:
    """The scale that a node reads as input `i`; CompileError where it is computed."""
    value = graph.constants.get(optional_input(node, i))
    if value is None:
        raise CompileError(
            f"node {label(node)}: the scale '{optional_input(node, i)}' is computed (dynamic quantization); "
            "quantize the model statically"
        )
    return value


def _scalar(graph: Graph, name: str) -> str:
    """A parameter of one element without axes."""
    value = graph.constants.get(name)
    return name if value is None or value.ndim == 0 or value.size != 1 else graph.constant(name, value.reshape(()))


def dequantize(graph: Graph, codes: str, scale: np.ndarray, zero: str, base: str, axis: int) -> str:
    """DequantizeLinear; `axis` counts where the scale has several elements."""
    value = graph.constants.get(codes)
    if scale.size == 1:
        inputs = [codes, graph.constant(f"{base}_scale", scale.reshape(()).astype(np.float32))]
        inputs += [_scalar(graph, zero)] if zero else []
        return graph.add("DequantizeLinear", inputs, f"{base}_real")
    rank = value.ndim if value is not None else graph.rank(codes)
    inputs = [codes, graph.constant(f"{base}_scale", scale.reshape(-1).astype(np.float32))]
    if zero and graph.constants[zero].any():
        spread = np.broadcast_to(graph.constants[zero].reshape(-1), (scale.size,))
        inputs.append(graph.constant(f"{base}_zero_point", spread))
    return graph.add("DequantizeLinear", inputs, f"{base}_real", axis=axis % (rank or 1))


def _transposed(graph: Graph, name: str, rank: int, first: bool) -> str:
    """Channels moved from last to second place, or back."""
    middle = list(range(1, rank - 1))
    perm = [0, rank - 1, *middle] if first else [0, *(i + 1 for i in middle), 1]
    return graph.add("Transpose", [name], f"{name}_{'nchw' if first else 'nhwc'}", perm=perm)


def _channels_first(graph: Graph, node: NodeProto, op: str) -> None:
    rank = graph.rank(node.input[0]) or 4
    attrs = {a.name: attribute(node, a.name) for a in node.attribute}
    made = graph.add(op, [_transposed(graph, node.input[0], rank, True)], f"{node.output[0]}_nchw", **attrs)
    middle = list(range(1, rank - 1))
    graph.replace(node, "Transpose", [made], perm=[0, *(i + 1 for i in middle), 1])
