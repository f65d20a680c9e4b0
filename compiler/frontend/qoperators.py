"""QOperator models: every operator on integer tensors becomes its float operator between DequantizeLinear and
QuantizeLinear, by a table of what each input means.

QLinearConv and QLinearMatMul are ONNX's, the others ONNX Runtime's (com.microsoft, docs/ContribOperators.md).
"""

from __future__ import annotations

from collections.abc import Callable
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


def _input(node: NodeProto, i: int) -> str:
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
    inputs = [_input(node, i) for i in form.plain]
    axes = _axes(form, node, graph.rank(_input(node, form.operands[-1][0])))
    scales = [_constant(graph, node, s) for _, s, _ in form.operands]
    for k, (codes, _, zero) in enumerate(form.operands):
        axis = axes[k] if k < len(axes) else 1
        name = _dequantize(graph, _input(node, codes), scales[k], _input(node, zero), f"{y}_operand{k}", axis)
        first = last and graph.shape(_input(node, codes)) is not None and not graph.is_constant(_input(node, codes))
        inputs.append(_transposed(graph, name, graph.rank(_input(node, codes)) or 4, True) if first else name)
    attrs = {a.name: attribute(node, a.name) for a in node.attribute if a.name not in form.drop}
    if form.bias is not None and _input(node, form.bias):
        product = np.float32(attribute(node, "alpha", 1.0)) * scales[0].reshape(-1) * scales[1].reshape(-1)
        size = graph.constants[_input(node, form.bias)].size
        product = np.broadcast_to(product, (size,)) if form.op == "Conv" else product
        inputs.append(_dequantize(graph, _input(node, form.bias), product.astype(np.float32), "", f"{y}_bias", -1))
    if form.op == "ReduceMean" and attribute(node, "axes") is not None:
        inputs.append(graph.constant(f"{y}_axes", np.array(attribute(node, "axes"), np.int64)))
    result = graph.add(form.op, inputs, f"{y}_real", **(form.defaults | attrs))
    if node.op_type == "QLinearSoftmax" and attribute(node, "opset", 13) < 13:
        made = graph.nodes[-1]
        graph.shapes[made.input[0]] = graph.shape(node.input[0]) or ()
        flatten_softmax(graph, made)
    if last:
        result = _transposed(graph, result, graph.rank(node.input[0]) or 4, False)
    result_scale, result_zero = (_input(node, i) for i in form.result)
    if not result_scale:  # QGemm without a scale returns floats
        graph.replace(node, "Identity", [result])
        return
    graph.replace(node, "QuantizeLinear", [result, *(_scalar(graph, p) for p in (result_scale, result_zero) if p)])


def _constant(graph: Graph, node: NodeProto, i: int) -> np.ndarray:
    value = graph.constants.get(_input(node, i))
    if value is None:
        raise CompileError(
            f"node {label(node)}: the scale '{_input(node, i)}' is computed (dynamic quantization); "
            "quantize the model statically"
        )
    return value


def _scalar(graph: Graph, name: str) -> str:
    """A parameter of one element without axes."""
    value = graph.constants.get(name)
    return name if value is None or value.ndim == 0 or value.size != 1 else graph.constant(name, value.reshape(()))


def _dequantize(graph: Graph, codes: str, scale: np.ndarray, zero: str, base: str, axis: int) -> str:
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


Rewrite = Callable[[Graph, NodeProto], None]


# --- dynamic quantization ---------------------------------------------------------------------------------------------
def expand_dynamic(graph: Graph, notes: list[str]) -> None:
    """Dynamically quantized activations become floats again, to be quantized with static scales from calibration.

    DynamicQuantizeLinear hands its input on, with scale 1 and zero point 0; MatMulInteger and ConvInteger multiply
    floats. The Mul by the scales behind them then folds into the weights.
    """
    first = next((n for n in graph.nodes if n.op_type in ("DynamicQuantizeLinear", "DynamicQuantizeMatMul")), None)
    graph.dynamic = label(first) if first is not None else graph.dynamic
    dynamic: dict[str, NodeProto] = {
        o: n for n in graph.nodes if n.op_type == "DynamicQuantizeLinear" for o in n.output
    }
    for node in list(graph.nodes):
        rewrite = DYNAMIC.get(node.op_type)
        if rewrite is not None:
            _refuse_static(graph, node, dynamic)
            rewrite(graph, node)
    for node in {id(n): n for n in dynamic.values()}.values():
        x, (y, scale, zero) = node.input[0], [*node.output, "", ""][:3]
        if graph.output_names & {y, scale, zero}:
            raise CompileError(
                f"node {label(node)}: codes of dynamic quantization are an output of the model; return floats instead"
            )
        graph.nodes = [n for n in graph.nodes if n is not node]
        graph.add("Identity", [x], [y])
        graph.constants[scale], graph.constants[zero] = np.array(1, np.float32), np.array(0, np.uint8)
        for user in list(graph.nodes):
            if user.op_type == "DequantizeLinear" and user.input[1] == scale:
                graph.replace(user, "Identity", [user.input[0]])
    if first is not None:
        notes.append("the model is quantized dynamically: its activations get static scales from calibration")
    graph.update()


def _refuse_static(graph: Graph, node: NodeProto, dynamic: dict[str, NodeProto]) -> None:
    if node.op_type in ("MatMulInteger", "ConvInteger") and node.input[0] not in dynamic:
        maker = graph.producer(node.input[0])
        moved = maker is not None and any(i in dynamic for i in maker.input)
        if not moved:
            raise CompileError(
                f"node {label(node)}: its input is no result of a DynamicQuantizeLinear, so the scale is unknown; "
                "quantize the model with Q/DQ pairs"
            )


def _float_weight(graph: Graph, node: NodeProto, codes: str, zero: str, scale: np.ndarray | None, axis: int) -> str:
    """Codes (constant) as floats; a vector of scales or zero points lies along `axis`."""
    if codes not in graph.constants:
        raise CompileError(f"node {label(node)}: its second operand is computed; only constant weights are supported")
    value = graph.constants[codes].astype(np.float32)
    shape = [1] * value.ndim
    shape[axis] = -1
    if zero:
        if zero not in graph.constants:
            raise CompileError(f"node {label(node)}: its weights have a computed zero point")
        offset = graph.constants[zero].astype(np.float32)
        value = value - (offset.reshape(shape) if offset.size > 1 and offset.ndim < 2 else offset.reshape(offset.shape))
    if scale is not None:
        value = value * (scale.reshape(shape) if scale.size > 1 else scale.reshape(()))
    return graph.constant(f"{codes}_float", value.astype(np.float32))


def _integer_product(graph: Graph, node: NodeProto) -> None:
    op, axis = ("Conv", 0) if node.op_type == "ConvInteger" else ("MatMul", -1)
    weight = _float_weight(graph, node, node.input[1], _input(node, 3), None, axis)
    attrs = {a.name: attribute(node, a.name) for a in node.attribute}
    for cast in graph.consumers(node.output[0]):
        if cast.op_type != "Cast":
            raise CompileError(f"node {label(node)}: its 32-bit sums are read as integers; only floats are supported")
    graph.replace(node, op, [node.input[0], weight], **attrs)
    graph.dtypes[node.output[0]] = 1


def _product_to_float(graph: Graph, node: NodeProto) -> None:
    """MatMulIntegerToFloat: A, B, a_scale, b_scale, a_zero_point, b_zero_point, bias."""
    weight = _float_weight(graph, node, node.input[1], _input(node, 5), _constant(graph, node, 3), -1)
    x = node.input[0]
    if node.input[2] in graph.constants:
        x = _dequantize(graph, x, graph.constants[node.input[2]], _input(node, 4), f"{node.output[0]}_a", -1)
    _product_and_bias(graph, node, x, weight, _input(node, 6))


def _dynamic_product(graph: Graph, node: NodeProto) -> None:
    """DynamicQuantizeMatMul: A (float), B, b_scale, b_zero_point, bias."""
    weight = _float_weight(graph, node, node.input[1], _input(node, 3), _constant(graph, node, 2), -1)
    _product_and_bias(graph, node, node.input[0], weight, _input(node, 4))


def _product_and_bias(graph: Graph, node: NodeProto, x: str, weight: str, bias: str) -> None:
    if not bias:
        graph.replace(node, "MatMul", [x, weight])
        return
    graph.replace(node, "Add", [graph.add("MatMul", [x, weight], f"{node.output[0]}_product"), bias])


DYNAMIC: dict[str, Rewrite] = {
    "MatMulInteger": _integer_product,
    "ConvInteger": _integer_product,
    "MatMulIntegerToFloat": _product_to_float,
    "DynamicQuantizeMatMul": _dynamic_product,
}
