"""Products of integers: dynamically quantized ones become products of floats, others products of the numbers that the
codes are.

DynamicQuantizeLinear finds its scale when the model runs; an artifact has static scales, from calibration. That says
the same as long as the sums are multiplied by that scale and the codes are read with their zero point; graphs that use
codes or sums in any other way are refused.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import NodeProto, TensorProto
from qcompile.frontend.graph import Graph, attribute, label
from qcompile.frontend.hoist_dequantize import MOVES
from qcompile.frontend.qoperators import constant_scale, dequantize, optional_input
from qcompile.targets.errors import CompileError

PRODUCTS = {"MatMulInteger": "MatMul", "ConvInteger": "Conv"}
# what reads codes: the indices of (codes, scale, zero point) among its inputs
READERS = {
    "DequantizeLinear": (0, 1, 2),
    "MatMulIntegerToFloat": (0, 2, 4),
    **dict.fromkeys(PRODUCTS, (0, None, 2)),
}
CODE_MOVES = (*MOVES, "MaxPool", "Split", "DepthToSpace", "SpaceToDepth")  # what may happen to codes on the way
Rewrite = Callable[[Graph, NodeProto], None]


def expand_dynamic(graph: Graph, notes: list[str]) -> None:
    """Dynamically quantized activations become floats again, to be quantized with static scales from calibration.

    DynamicQuantizeLinear hands its input on, with scale 1 and zero point 0; MatMulInteger and ConvInteger multiply
    floats. The Mul by the scales behind them then folds into the weights. Products of other integers stay exact.
    Raises CompileError for codes and sums whose meaning depends on the scale.
    """
    first = next((n for n in graph.nodes if n.op_type in ("DynamicQuantizeLinear", "DynamicQuantizeMatMul")), None)
    graph.dynamic = label(first) if first is not None else graph.dynamic
    sources = [n for n in graph.nodes if n.op_type == "DynamicQuantizeLinear"]
    products = {id(p) for n in sources for p in _checked_products(graph, n)}
    for node in list(graph.nodes):
        if node.op_type in PRODUCTS and id(node) not in products:
            _exact_product(graph, node)
        elif node.op_type in DYNAMIC:
            DYNAMIC[node.op_type](graph, node)
    for node in sources:
        x, (y, scale, zero) = node.input[0], [*node.output, "", ""][:3]
        graph.nodes = [n for n in graph.nodes if n is not node]
        graph.add("Identity", [x], [y])
        graph.constants[scale], graph.constants[zero] = np.array(1, np.float32), np.array(0, np.uint8)
        for user in list(graph.nodes):
            if user.op_type == "DequantizeLinear" and user.input[1] == scale:
                graph.replace(user, "Identity", [user.input[0]])
    if first is not None:
        notes.append("the model is quantized dynamically: its activations get static scales from calibration")
    graph.update()


# --- what dynamic scales must not reach -------------------------------------------------------------------------------
def _checked_products(graph: Graph, source: NodeProto) -> list[NodeProto]:
    """The integer products that read the codes of a DynamicQuantizeLinear. Raises CompileError where the codes, the
    scale, or the sums are used in a way that depends on what the scale is."""
    y, scale, zero = [*source.output, "", ""][:3]
    if graph.output_names & {y, scale, zero}:
        raise CompileError(
            f"node {label(source)}: codes of dynamic quantization are an output of the model; return floats instead"
        )
    factors, products = _factors(graph, scale), []
    for reader, index in _ends(graph, y):
        places = READERS.get(reader.op_type)
        given = [i is None or optional_input(reader, i) == want for i, want in zip((places or ())[1:], (scale, zero))]
        if places is None or index != places[0] or not all(given):
            raise _depends(source, reader)
        if reader.op_type in PRODUCTS:
            products.append(reader)
            for end, k in _ends(graph, reader.output[0], (*MOVES, "Cast")):
                if end.op_type != "Mul" or end.input[1 - k] not in factors:
                    raise _depends(source, end)
    sums = {t for p in products for t in _moved(graph, p.output[0], (*MOVES, "Cast"))}
    for factor in factors:
        for reader in graph.consumers(factor):
            scaled = reader.op_type == "Mul" and (reader.output[0] in factors or bool(sums & set(reader.input)))
            if not scaled and reader.op_type not in READERS:
                raise _depends(source, reader)
    if graph.output_names & (factors | sums):
        raise CompileError(f"node {label(source)}: its scale or sums of its codes are an output; return floats instead")
    return products


def _depends(source: NodeProto, reader: NodeProto) -> CompileError:
    return CompileError(
        f"node {label(reader)}: its result depends on the scale that node {label(source)} finds when the model runs; "
        "multiply sums by that scale first, or quantize the model statically"
    )


def _factors(graph: Graph, scale: str) -> set[str]:
    """The scale, moved about and multiplied by constants."""
    found, stack = set[str](), [scale]
    while stack:
        name = stack.pop()
        found.add(name)
        for node in graph.consumers(name):
            others = [i for i in node.input if i != name]
            constant = node.op_type == "Mul" and all(i in graph.constants for i in others)
            if (constant or (node.op_type in MOVES and node.input[0] == name)) and node.output[0] not in found:
                stack.append(node.output[0])
    return found


def _moved(graph: Graph, name: str, through: tuple[str, ...]) -> list[str]:
    """A tensor and what nodes of the types `through` make of it."""
    found = [name]
    for tensor in found:
        moves = [n for n in graph.consumers(tensor) if n.op_type in through and n.input[0] == tensor]
        found += [o for n in moves for o in n.output if o and o not in found]
    return found


def _ends(graph: Graph, name: str, through: tuple[str, ...] = CODE_MOVES) -> list[tuple[NodeProto, int]]:
    """The nodes, with the index of the input, that read a tensor behind nodes of the types `through`."""
    return [
        (node, i)
        for tensor in _moved(graph, name, through)
        for node in graph.consumers(tensor)
        for i, read in enumerate(node.input)
        if read == tensor and not (node.op_type in through and i == 0)
    ]


# --- products ---------------------------------------------------------------------------------------------------------
def _exact_product(graph: Graph, node: NodeProto) -> None:
    """The product of the numbers codes - zero point, cast to the integers that it is."""
    y, axes = node.output[0], (1, 0) if node.op_type == "ConvInteger" else (-2, -1)
    numbers = []
    for k, axis in enumerate(axes):
        codes, zero = node.input[k], optional_input(node, 2 + k)
        if zero and zero not in graph.constants:
            raise CompileError(f"node {label(node)}: its zero point '{zero}' is computed; it must be constant")
        size = graph.constants[zero].size if zero else 1
        numbers.append(dequantize(graph, codes, np.ones(size, np.float32), zero, f"{y}_operand{k}", axis))
    attrs = {a.name: attribute(node, a.name) for a in node.attribute}
    graph.replace(
        node, "Cast", [graph.add(PRODUCTS[node.op_type], numbers, f"{y}_sums", **attrs)], to=TensorProto.INT32
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
    axis = 0 if node.op_type == "ConvInteger" else -1
    weight = _float_weight(graph, node, node.input[1], optional_input(node, 3), None, axis)
    attrs = {a.name: attribute(node, a.name) for a in node.attribute}
    graph.replace(node, PRODUCTS[node.op_type], [node.input[0], weight], **attrs)
    graph.dtypes[node.output[0]] = TensorProto.FLOAT


def _product_to_float(graph: Graph, node: NodeProto) -> None:
    """MatMulIntegerToFloat: A, B, a_scale, b_scale, a_zero_point, b_zero_point, bias."""
    weight = _float_weight(graph, node, node.input[1], optional_input(node, 5), constant_scale(graph, node, 3), -1)
    x = node.input[0]
    if node.input[2] in graph.constants:
        x = dequantize(graph, x, graph.constants[node.input[2]], optional_input(node, 4), f"{node.output[0]}_a", -1)
    _product_and_bias(graph, node, x, weight, optional_input(node, 6))


def _dynamic_product(graph: Graph, node: NodeProto) -> None:
    """DynamicQuantizeMatMul: A (float), B, b_scale, b_zero_point, bias."""
    weight = _float_weight(graph, node, node.input[1], optional_input(node, 3), constant_scale(graph, node, 2), -1)
    _product_and_bias(graph, node, node.input[0], weight, optional_input(node, 4))


def _product_and_bias(graph: Graph, node: NodeProto, x: str, weight: str, bias: str) -> None:
    if not bias:
        graph.replace(node, "MatMul", [x, weight])
        return
    graph.replace(node, "Add", [graph.add("MatMul", [x, weight], f"{node.output[0]}_product"), bias])


DYNAMIC: dict[str, Rewrite] = {
    **dict.fromkeys(PRODUCTS, _integer_product),
    "MatMulIntegerToFloat": _product_to_float,
    "DynamicQuantizeMatMul": _dynamic_product,
}
