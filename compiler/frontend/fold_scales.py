"""Folds affine maps with constants into neighbouring linear layers.

BatchNormalization (inference) is an affine map per channel, y = x * g + h; exporters also write it as Mul and Add with
constants, and LayerScale is a Mul. After Conv, ConvTranspose, Gemm or MatMul with constant weights, both fold into
weights and bias. Where no layer precedes, BatchNormalization in front of a Conv without padding folds forward; what
remains is written as Mul and Add. A scalar factor on an operand of a MatMul of two activations moves behind it.
"""

from __future__ import annotations

import numpy as np
from onnx import NodeProto
from qcompile.frontend.blocks import dequantized
from qcompile.frontend.graph import Graph, attribute

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def batch_norm_to_affine(graph: Graph) -> None:
    """BatchNormalization with statistics that are constants, dequantized too, becomes Mul and Add by [C, 1, ...]."""
    for node in list(graph.nodes):
        if node.op_type != "BatchNormalization":
            continue
        known = [_known(graph, i) for i in node.input[1:5]]
        given = [v.astype(np.float64) for v in known if v is not None]
        if len(given) < 4:
            continue
        rank = graph.rank(node.input[0])
        if rank is None or attribute(node, "training_mode", 0):
            continue
        gamma, beta, mean, var = given
        factor = gamma / np.sqrt(var + attribute(node, "epsilon", 1e-5))
        shape = (-1,) + (1,) * max(rank - 2, 0)
        y = node.output[0]
        graph.statistics[y] = beta.astype(np.float32), np.abs(gamma).astype(np.float32)
        if graph.producer(node.input[0], *LINEAR) is None:  # it stays where the node folds forward
            graph.statistics[node.input[0]] = mean.astype(np.float32), np.sqrt(var).astype(np.float32)
        scaled = graph.add("Mul", [node.input[0], graph.constant(f"{y}_factor", _f32(factor, shape))], f"{y}_scaled")
        tables: tuple[dict, ...] = (graph.shapes, graph.dtypes)
        for table in tables:
            if y in table:
                table[scaled] = table[y]
        graph.replace(node, "Add", [scaled, graph.constant(f"{y}_shift", _f32(beta - mean * factor, shape))])
        graph.update(node)


def _known(graph: Graph, name: str) -> np.ndarray | None:
    """The value of a constant, or of what a DequantizeLinear makes of constants."""
    node = graph.producer(name, "DequantizeLinear")
    if node is not None and all(i in graph.constants for i in node.input if i):
        return dequantized(node, graph.constants)
    return graph.constants.get(name)


def _f32(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return value.reshape(shape).astype(np.float32)


def per_channel(graph: Graph, value: np.ndarray, tensor: str, axis: int) -> np.ndarray | None:
    """`value` as a vector over `axis` of `tensor` (or a scalar repeated), None where it varies along other axes."""
    shape = graph.shape(tensor)
    if shape is None or value.ndim > len(shape):
        return None
    full = value.reshape((1,) * (len(shape) - value.ndim) + value.shape)
    if any(s != 1 for i, s in enumerate(full.shape) if i != axis % len(shape)):
        return None
    return np.broadcast_to(full.reshape(-1), (shape[axis],)).astype(np.float64)


def fold_into_linear(graph: Graph) -> None:
    """Mul, Div, Add or Sub by a per-channel constant after a linear layer folds into its weights and bias."""
    for node in list(graph.nodes):
        if node.op_type not in ("Mul", "Div", "Add", "Sub") or len(node.input) != 2:
            continue
        k = next((i for i in (0, 1) if node.input[i] in graph.constants), None)
        if k is None or (k == 0 and node.op_type in ("Div", "Sub")):
            continue
        x = node.input[1 - k]
        layer = graph.producer(x, *LINEAR)
        bias_add = None
        if layer is None and node.op_type in ("Mul", "Div", "Add", "Sub"):
            bias_add, layer = _matmul_bias(graph, x)
        if layer is None or graph.only_consumer(x) is not node or graph.shape(node.output[0]) != graph.shape(x):
            continue
        channel = 1 if layer.op_type in ("Conv", "ConvTranspose") else -1
        vector = per_channel(graph, graph.constants[node.input[k]], x, channel)
        if vector is None or not graph.is_float(node.input[k]):
            continue
        if node.op_type in ("Mul", "Div"):
            factor = vector if node.op_type == "Mul" else 1.0 / vector
            done = np.isfinite(factor).all() and _scale(graph, layer, bias_add, factor)
        else:
            done = _shift(graph, layer, bias_add, vector if node.op_type == "Add" else -vector)
        if done:
            _affine_statistics(graph, node, x, vector)
            graph.bypass(node, x)


def _affine_statistics(graph: Graph, node: NodeProto, x: str, vector: np.ndarray) -> None:
    """The statistics of what `node` makes of `x` by a constant per channel, before `x` takes its place."""
    if x in graph.statistics:
        mean, std = graph.statistics.pop(x)
        if node.output[0] not in graph.statistics and vector.shape == mean.shape:
            if node.op_type in ("Mul", "Div"):
                factor = vector if node.op_type == "Mul" else 1.0 / vector
                mean, std = mean * factor, std * np.abs(factor)
            else:
                mean = mean + (vector if node.op_type == "Add" else -vector)
            graph.statistics[node.output[0]] = mean.astype(np.float32), std.astype(np.float32)


def _matmul_bias(graph: Graph, name: str) -> tuple[NodeProto | None, NodeProto | None]:
    """(Add, MatMul) where `name` is MatMul(x, constant) + constant vector, else (None, None)."""
    add = graph.producer(name, "Add")
    if add is None:
        return None, None
    for i in (0, 1):
        layer = graph.producer(add.input[i], "MatMul")
        if (
            layer is not None
            and graph.only_consumer(add.input[i]) is add
            and layer.input[1] in graph.constants
            and add.input[1 - i] in graph.constants
            and graph.constants[add.input[1 - i]].ndim <= 1
        ):
            return add, layer
    return None, None


def _scale(graph: Graph, layer: NodeProto, bias_add: NodeProto | None, factor: np.ndarray) -> bool:
    weight = graph.constants.get(layer.input[1])
    if weight is None or (layer.op_type == "Gemm" and attribute(layer, "beta", 1.0) != 1.0):
        return False
    if layer.op_type == "Conv":
        shaped = factor.reshape(-1, *(1,) * (weight.ndim - 1))
    elif layer.op_type == "ConvTranspose":
        if attribute(layer, "group", 1) != 1:
            return False
        shaped = factor.reshape(1, -1, *(1,) * (weight.ndim - 2))
    else:
        shaped = factor.reshape(-1, 1) if attribute(layer, "transB", 0) else factor
    bias_node, i = (
        (bias_add, next(i for i in (0, 1) if bias_add.input[i] in graph.constants))
        if bias_add is not None
        else (layer, 2 if len(layer.input) > 2 and layer.input[2] else None)
    )
    if i is not None and bias_node.input[i] not in graph.constants:
        return False
    layer.input[1] = graph.constant(f"{layer.input[1]}_folded", (weight * shaped).astype(weight.dtype))
    if i is not None:
        bias = graph.constants[bias_node.input[i]]
        bias_node.input[i] = graph.constant(f"{bias_node.input[i]}_folded", (bias * factor).astype(bias.dtype))
    graph.update(layer, bias_node)
    return True


def _shift(graph: Graph, layer: NodeProto, bias_add: NodeProto | None, shift: np.ndarray) -> bool:
    if bias_add is not None:
        node, i = bias_add, next(i for i in (0, 1) if bias_add.input[i] in graph.constants)
    elif layer.op_type == "MatMul" or layer.input[1] not in graph.constants:
        return False  # MatMul + Add(constant) is the form we keep
    else:
        node, i = layer, 2
    if len(node.input) > i and node.input[i]:
        bias = graph.constants.get(node.input[i])
        if bias is None or bias.ndim > 1 or attribute(layer, "beta", 1.0) != 1.0:
            return False
        node.input[i] = graph.constant(f"{node.input[i]}_folded", (bias + shift).astype(np.float32))
    else:
        del node.input[2:]
        node.input.append(graph.constant(f"{layer.output[0]}_bias", shift.astype(np.float32)))
    graph.update(node)
    return True


def fold_before_conv(graph: Graph) -> None:
    """Mul or Add by a per-channel constant before Conv folds forward: Mul always, Add only without padding."""
    for node in list(graph.nodes):
        if node.op_type not in ("Mul", "Add") or graph.producer(node.output[0]) is not node:
            continue
        k = next((i for i in (0, 1) if node.input[i] in graph.constants), None)
        conv = graph.only_consumer(node.output[0], "Conv")
        if k is None or conv is None or conv.input[1] not in graph.constants or conv.input[0] != node.output[0]:
            continue
        if len(conv.input) > 2 and conv.input[2] and conv.input[2] not in graph.constants:
            continue
        vector = per_channel(graph, graph.constants[node.input[k]], node.output[0], 1)
        padded = any(attribute(conv, "pads") or []) or attribute(conv, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        if (
            vector is None
            or (node.op_type == "Add" and padded)
            or graph.shape(node.input[1 - k]) != graph.shape(node.output[0])
        ):
            continue
        weight = graph.constants[conv.input[1]]
        groups = attribute(conv, "group", 1)
        inputs = (
            vector.reshape(groups, 1, weight.shape[1]).repeat(weight.shape[0] // groups, 1).reshape(weight.shape[:2])
        )
        inputs = inputs.reshape(*inputs.shape, *(1,) * (weight.ndim - 2))
        if node.op_type == "Mul":
            conv.input[1] = graph.constant(f"{conv.input[1]}_folded", (weight * inputs).astype(np.float32))
            graph.update(conv)
        else:
            shift = (weight * inputs).reshape(weight.shape[0], -1).sum(1)
            _shift(graph, conv, None, shift)
        graph.statistics.pop(node.output[0], None)  # they are of what is now folded into the convolution
        graph.bypass(node, node.input[1 - k])


def hoist_matmul_factors(graph: Graph) -> None:
    """MatMul(a * s, b) of two activations becomes MatMul(a, b) * s, also through Transpose and Reshape; s scalar."""
    for node in list(graph.nodes):
        if node.op_type != "MatMul" or any(i in graph.constants for i in node.input):
            continue
        for i in (0, 1):
            path, name = [], node.input[i]
            while (mover := graph.producer(name, "Transpose", "Reshape")) is not None and graph.only_consumer(name):
                path.append(mover)
                name = mover.input[0]
            scale = graph.producer(name, "Mul", "Div")
            if scale is None or graph.only_consumer(name) is None:
                continue
            k = next((j for j in (0, 1) if graph.scalar(scale.input[j]) is not None), None)
            if k is None or (scale.op_type == "Div" and k == 0) or not graph.is_float(scale.input[k]):
                continue
            if graph.shape(scale.input[1 - k]) != graph.shape(name):
                continue
            factor = np.float32(graph.scalar(scale.input[k]))
            reader = path[-1] if path else node
            reader.input[0 if path else i] = scale.input[1 - k]
            y = node.output[0]
            product = graph.add("MatMul", node.input, f"{y}_unscaled")
            tables: tuple[dict, ...] = (graph.shapes, graph.dtypes)
            for known in tables:
                if y in known:
                    known[product] = known[y]
            graph.replace(node, scale.op_type, [product, graph.constant(f"{y}_factor", np.array(factor))])
            graph.update(node, reader)
            break


def merge_scalar_factors(graph: Graph) -> None:
    """(x * a) * b, with Div as the inverse, becomes x * (a*b) for scalar constants a, b."""
    for node in list(graph.nodes):
        outer = _scalar_factor(graph, node)
        inner_node = graph.producer(outer[0], "Mul", "Div") if outer else None
        inner = _scalar_factor(graph, inner_node) if inner_node is not None else None
        if not outer or not inner:
            continue
        if graph.only_consumer(outer[0]) is node and graph.shape(inner[0]) == graph.shape(node.output[0]):
            factor = graph.constant(f"{node.output[0]}_factor", np.array(inner[1] * outer[1], np.float32))
            graph.replace(node, "Mul", [inner[0], factor])
            graph.update(node)


def _scalar_factor(graph: Graph, node: NodeProto) -> tuple[str, float] | None:
    if node.op_type not in ("Mul", "Div"):
        return None
    for k in (1, 0):
        value = graph.scalar(node.input[k])
        if value is not None and graph.is_float(node.input[k]) and not graph.is_constant(node.input[1 - k]):
            if node.op_type == "Mul":
                return node.input[1 - k], value
            return (node.input[0], 1.0 / value) if k == 1 and value else None
    return None
