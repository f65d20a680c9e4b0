"""Operators that are short compositions of others: by a table, for tensors of known shape.

Used where neither the compiler nor ONNX's own function bodies have a form that suits integers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import NodeProto, helper
from qcompile.frontend.columns_to_image import expand_col2im, expand_dilated_average
from qcompile.frontend.einsum import expand_einsum
from qcompile.frontend.fuse_norms import RMS_OPSET
from qcompile.frontend.graph import Graph, attribute, set_attribute
from qcompile.frontend.pool_pads import covering_pads
from qcompile.frontend.running import expand_running
from qcompile.frontend.sampled import expand_deform_conv, expand_roi_align
from qcompile.frontend.scatter import gather_elements, gather_nd, scatter_elements, scatter_nd
from qcompile.frontend.shapes import infer_shapes
from qcompile.frontend.spectra import expand_dft, expand_stft
from qcompile.frontend.volumes import expand_conv, expand_conv_transpose, expand_pool

WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM", "GRU", "RNN"}
LOWEST = -1e30  # for -inf: a few of them added stay finite, and exp of it is 0


def expand_operators(graph: Graph) -> None:
    """Rewrite every node of TABLE whose input shapes and parameters are known."""
    for node in list(graph.nodes):
        table = VOLUMES if graph.rank(node.input[0] if node.input else "") == 5 and node.op_type in VOLUMES else TABLE
        rewrite = table.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rewrite is None or graph.producer(node.output[0]) is not node:
            continue
        if graph.shape(node.input[0]) is None:
            infer_shapes(graph)
        if graph.shape(node.input[0]) is not None:
            before = node.SerializeToString()
            rewrite(graph, node)
            if graph.has_loose_ends or node.SerializeToString() != before:  # else every round would seem to change it
                graph.update(node)


def finite_masks(graph: Graph) -> None:
    """-inf in float constants becomes LOWEST; weights, which have none, are not looked at."""
    for name, value in graph.constants.items():
        weights = any(n.op_type in WEIGHTED for n in graph.consumers(name))
        if value.dtype == np.float32 and not weights and np.isneginf(value).any():
            graph.constants[name] = np.where(np.isneginf(value), np.float32(LOWEST), value)
            graph.changed = True


def _ints(graph: Graph, node: NodeProto, values, hint: str) -> str:
    return graph.constant(f"{node.output[0]}_{hint}", np.array(values, np.int64))


def _float(graph: Graph, node: NodeProto, values, hint: str) -> str:
    return graph.constant(f"{node.output[0]}_{hint}", np.asarray(values, np.float32))


def _axes(graph: Graph, node: NodeProto) -> list[int] | None:
    """The axes of a reduction (second input), all where none are given; None where they are computed."""
    rank = graph.rank(node.input[0])
    name = node.input[1] if len(node.input) > 1 else ""
    if rank is None or (name and name not in graph.constants):
        return None
    given = [int(a) % rank for a in graph.constants[name].reshape(-1)] if name else []
    return given or (list(range(rank)) if not attribute(node, "noop_with_empty_axes", 0) else None)


def _log_sum_exp(graph: Graph, node: NodeProto) -> None:
    """max + log(sum(exp(x - max))): every term within [0, 1]."""
    x, y, axes = node.input[0], node.output[0], _axes(graph, node)
    if axes is None:
        return
    top = graph.add("ReduceMax", [x, _ints(graph, node, axes, "axes")], f"{y}_max", keepdims=1)
    powers = graph.add("Exp", [graph.add("Sub", [x, top], f"{y}_below")], f"{y}_powers")
    total = graph.add("ReduceSum", [powers, _ints(graph, node, axes, "axes")], f"{y}_sum", keepdims=1)
    parts = [graph.add("Log", [total], f"{y}_log"), top]
    if attribute(node, "keepdims", 1):
        graph.replace(node, "Add", parts)
    else:
        whole = graph.add("Add", parts, f"{y}_whole")
        graph.replace(node, "Squeeze", [whole, _ints(graph, node, axes, "axes")])


def _log(graph: Graph, node: NodeProto) -> None:
    """Log(ReduceSum(Exp(x))): log-sum-exp."""
    total = graph.producer(node.input[0], "ReduceSum")
    power = graph.producer(total.input[0], "Exp") if total is not None else None
    if total is None or power is None or graph.only_consumer(node.input[0]) is not node:
        return
    below = graph.producer(power.input[0], "Sub")
    if below is not None and graph.producer(below.input[1], "ReduceMax") is not None:
        return  # no term is beyond 1 already
    attrs = {"keepdims": attribute(total, "keepdims", 1)}
    graph.replace(node, "ReduceLogSumExp", [power.input[0], *total.input[1:]], **attrs)
    _log_sum_exp(graph, node)


def _split(graph: Graph, node: NodeProto) -> None:
    """num_outputs becomes sizes; the last part may be smaller. One part is the whole."""
    if len(node.output) == 1:
        graph.replace(node, "Identity", [node.input[0]])
        return
    if len(node.input) > 1 and node.input[1]:
        return
    shape = graph.shape(node.input[0])
    if shape is None:
        return
    size = shape[attribute(node, "axis", 0)]
    part = -(-size // len(node.output))
    sizes = [min(part, size - part * i) for i in range(len(node.output))]
    if min(sizes) <= 0:
        return
    del node.input[1:]
    node.input.append(_ints(graph, node, sizes, "sizes"))
    set_attribute(node, "num_outputs", None)


def _space_to_depth(graph: Graph, node: NodeProto) -> None:
    """mode CRD (opset 28): the channel outermost."""
    if attribute(node, "mode", "DCR") != "CRD":
        set_attribute(node, "mode", None)
        return
    shape = graph.shape(node.input[0])
    if shape is None:
        return
    n, c, h, w = shape
    b, y = attribute(node, "blocksize"), node.output[0]
    parts = graph.add(
        "Reshape", [node.input[0], _ints(graph, node, [n, c, h // b, b, w // b, b], "tiles")], f"{y}_tiles"
    )
    turned = graph.add("Transpose", [parts], f"{y}_turned", perm=[0, 1, 3, 5, 2, 4])
    graph.replace(node, "Reshape", [turned, _ints(graph, node, [n, c * b * b, h // b, w // b], "shape")])


def _trilu(graph: Graph, node: NodeProto) -> None:
    k = graph.constants.get(node.input[1]) if len(node.input) > 1 and node.input[1] else np.array(0)
    shape = graph.shape(node.input[0])
    if k is None or shape is None or node.input[0] not in graph.dtypes:
        return
    ones, at = np.ones(shape[-2:], bool), int(k.reshape(-1)[0])
    kept = graph.constant(
        f"{node.output[0]}_kept", np.triu(ones, at) if attribute(node, "upper", 1) else np.tril(ones, at)
    )
    zero = np.zeros((), helper.tensor_dtype_to_np_dtype(graph.dtypes[node.input[0]]))
    graph.replace(node, "Where", [kept, node.input[0], graph.constant(f"{node.output[0]}_zero", zero)])


def _cum_sum(graph: Graph, node: NodeProto) -> None:
    """A product with a triangle of ones; integers step by step."""
    axis = graph.scalar(node.input[1])
    shape = graph.shape(node.input[0])
    if axis is None or not shape:
        return
    if not graph.is_float(node.input[0]):
        expand_running(graph, node)
        return
    at, y = int(axis) % len(shape), node.output[0]
    ones = np.ones((shape[at], shape[at]), np.float32)
    triangle = np.triu(ones, int(attribute(node, "exclusive", 0)))
    triangle = triangle.T if attribute(node, "reverse", 0) else triangle
    perm = [i for i in range(len(shape)) if i != at] + [at]
    x = node.input[0] if at == len(shape) - 1 else graph.add("Transpose", [node.input[0]], f"{y}_last", perm=perm)
    inputs = [x, graph.constant(f"{y}_triangle", triangle)]
    if len(shape) == 1:
        row = graph.add("Unsqueeze", [x, _ints(graph, node, [0], "axis")], f"{y}_row")
        product = graph.add("MatMul", [row, inputs[1]], f"{y}_product")
        graph.replace(node, "Squeeze", [product, _ints(graph, node, [0], "axis")])
    elif at == len(shape) - 1:
        graph.replace(node, "MatMul", inputs)
    else:
        product = graph.add("MatMul", inputs, f"{y}_product")
        graph.replace(node, "Transpose", [product], perm=[int(i) for i in np.argsort(perm)])


def _compress(graph: Graph, node: NodeProto) -> None:
    """A constant condition: the elements that it names."""
    condition, shape, y = graph.constants.get(node.input[1]), graph.shape(node.input[0]), node.output[0]
    if condition is None or shape is None:
        return
    numbers, axis, x = np.flatnonzero(condition), attribute(node, "axis"), node.input[0]
    if axis is None:
        x, axis = graph.add("Reshape", [x, _ints(graph, node, [int(np.prod(shape))], "flat")], f"{y}_flat"), 0
    graph.replace(node, "Gather", [x, graph.constant(f"{y}_numbers", numbers)], axis=axis)


def _eye_like(graph: Graph, node: NodeProto) -> None:
    shape, y = graph.shape(node.input[0]), node.output[0]
    dtype = attribute(node, "dtype") or graph.dtypes.get(node.input[0])
    if shape is None or not dtype:
        return
    rows, columns = shape
    eye = np.eye(rows, columns, attribute(node, "k", 0)).astype(helper.tensor_dtype_to_np_dtype(dtype))
    graph.replace(node, "Identity", [graph.constant(f"{y}_eye", eye)])


def _lp_pool(graph: Graph, node: NodeProto) -> None:
    """p = 1 or 2: sums of |x| or x^2 over windows as averages, and for 2 their roots."""
    p, x, y = attribute(node, "p", 2), node.input[0], node.output[0]
    if p not in (1, 2) or graph.shape(x) is None:
        return
    powers = graph.add("Abs", [x], f"{y}_powers") if p == 1 else graph.add("Mul", [x, x], f"{y}_powers")
    names = ("kernel_shape", "strides", "dilations")
    attrs = {name: attribute(node, name) for name in names if attribute(node, name) is not None}
    attrs["pads"] = covering_pads(graph, node)  # what ceil_mode reads behind the pads counts in the average
    root = graph.add("AveragePool", [powers], f"{y}_average", count_include_pad=1, **attrs)
    if p == 2:
        root = graph.add("Sqrt", [root], f"{y}_root")
    count = np.prod(attribute(node, "kernel_shape")) ** (1.0 / p)
    graph.replace(node, "Mul", [root, _float(graph, node, count, "count")])


def _lp_normalization(graph: Graph, node: NodeProto) -> None:
    """p = 2: an RMS normalisation with 1 / sqrt(n) for its scale."""
    shape = graph.shape(node.input[0])
    if attribute(node, "p", 2) != 2 or not shape:
        return
    at, y = attribute(node, "axis", -1) % len(shape), node.output[0]
    perm = [i for i in range(len(shape)) if i != at] + [at]
    x = node.input[0] if at == len(shape) - 1 else graph.add("Transpose", [node.input[0]], f"{y}_last", perm=perm)
    inputs = [x, _float(graph, node, np.full(shape[at], shape[at] ** -0.5), "scale")]
    graph.opsets[""] = max(graph.opsets[""], RMS_OPSET)
    if at == len(shape) - 1:
        graph.replace(node, "RMSNormalization", inputs, axis=-1, epsilon=1e-12)
    else:
        unit = graph.add("RMSNormalization", inputs, f"{y}_unit", axis=-1, epsilon=1e-12)
        graph.replace(node, "Transpose", [unit], perm=[int(i) for i in np.argsort(perm)])


def _lrn(graph: Graph, node: NodeProto) -> None:
    """x (bias + alpha / size * sum of the neighbouring channels' squares)^-beta; the sum is a convolution by 1s."""
    x, y, shape = node.input[0], node.output[0], graph.shape(node.input[0])
    if not shape or len(shape) != 4:
        return
    size, channels = attribute(node, "size"), shape[1]
    away = np.arange(channels)[None] - np.arange(channels)[:, None]
    near = (away >= -((size - 1) // 2)) & (away <= size // 2)
    band = near * (attribute(node, "alpha", 1e-4) / size)
    weights = _float(graph, node, band[:, :, None, None], "band")
    bias = _float(graph, node, np.full(channels, attribute(node, "bias", 1.0)), "bias")
    total = graph.add("Conv", [graph.add("Mul", [x, x], f"{y}_squares"), weights, bias], f"{y}_sums")
    power = graph.add("Pow", [total, _float(graph, node, -attribute(node, "beta", 0.75), "beta")], f"{y}_factor")
    graph.replace(node, "Mul", [x, power])


def _pow(graph: Graph, node: NodeProto) -> None:
    """A constant exponent of the base's type."""
    exponent = graph.constants.get(node.input[1])
    if exponent is not None and exponent.dtype != np.float32 and graph.is_float(node.input[0]):
        node.input[1] = _float(graph, node, exponent, "exponent")


def _last_of_equals(graph: Graph, node: NodeProto) -> None:
    """select_last_index: n - 1 - the first index of the reversed tensor."""
    if not attribute(node, "select_last_index", 0):
        return
    axis, y, shape = attribute(node, "axis", 0), node.output[0], graph.shape(node.input[0])
    if shape is None:
        return
    size = shape[axis]
    bounds = [_ints(graph, node, [v], f"cut{i}") for i, v in enumerate((-1, -(size + 1), axis, -1))]
    back = graph.add("Slice", [node.input[0], *bounds], f"{y}_reversed")
    first = graph.add(node.op_type, [back], f"{y}_first", axis=axis, keepdims=attribute(node, "keepdims", 1))
    graph.replace(node, "Sub", [_ints(graph, node, size - 1, "last"), first])


def _hardmax(graph: Graph, node: NodeProto) -> None:
    """1 where the index is that of the first maximum."""
    shape, y = graph.shape(node.input[0]), node.output[0]
    if shape is None:
        return
    axis = attribute(node, "axis", -1) % len(shape)
    first = graph.add("ArgMax", [node.input[0]], f"{y}_first", axis=axis, keepdims=1)
    places = np.expand_dims(np.arange(shape[axis]), [i for i in range(len(shape)) if i != axis])
    equal = graph.add("Equal", [first, graph.constant(f"{y}_places", places)], f"{y}_equal")
    graph.replace(node, "Cast", [equal], to=1)


def _reduce_prod(graph: Graph, node: NodeProto) -> None:
    """The product of a few elements, one by one."""
    shape, axes, y = graph.shape(node.input[0]), _axes(graph, node), node.output[0]
    if not shape or axes is None or np.prod([shape[a] for a in axes]) > FACTORS:
        return
    result = node.input[0]
    for axis in axes:
        parts = [graph.fresh(f"{y}_part") for _ in range(shape[axis])]
        graph.add("Split", [result, _ints(graph, node, [1] * shape[axis], "ones")], parts, axis=axis)
        result = parts[0]
        for part in parts[1:]:
            result = graph.add("Mul", [result, part], f"{y}_product")
    if attribute(node, "keepdims", 1):
        graph.replace(node, "Identity", [result])
    else:
        graph.replace(node, "Squeeze", [result, _ints(graph, node, axes, "axes")])


def _reverse_sequence(graph: Graph, node: NodeProto) -> None:
    """Constant lengths: one gather along the flattened batch and time axes."""
    lengths, shape, y = graph.constants.get(node.input[1]), graph.shape(node.input[0]), node.output[0]
    if lengths is None or shape is None:
        return
    batch, time = attribute(node, "batch_axis", 1), attribute(node, "time_axis", 0)
    steps = np.arange(shape[time])
    order = np.array([np.where(steps < n, n - 1 - steps, steps) + b * shape[time] for b, n in enumerate(lengths)])
    rest = [i for i in range(len(shape)) if i not in (batch, time)]
    perm = [batch, time, *rest]
    turned = graph.add("Transpose", [node.input[0]], f"{y}_rows", perm=perm)
    flat = [shape[batch] * shape[time], *(shape[i] for i in rest)]
    rows = graph.add("Reshape", [turned, _ints(graph, node, flat, "flat")], f"{y}_flat")
    moved = graph.add("Gather", [rows, _ints(graph, node, order.reshape(-1), "order")], f"{y}_moved", axis=0)
    back = graph.add("Reshape", [moved, _ints(graph, node, [shape[i] for i in perm], "shape")], f"{y}_back")
    graph.replace(node, "Transpose", [back], perm=[int(i) for i in np.argsort(perm)])


def _one_hot(graph: Graph, node: NodeProto) -> None:
    """values[0] or values[1] where the index equals the place."""
    depth, values, shape = graph.scalar(node.input[1]), graph.constants.get(node.input[2]), graph.shape(node.input[0])
    if depth is None or values is None or shape is None or graph.is_float(node.input[0]):
        return
    axis, y = attribute(node, "axis", -1) % (len(shape) + 1), node.output[0]
    column = graph.add("Unsqueeze", [node.input[0], _ints(graph, node, [axis], "axis")], f"{y}_column")
    places = np.arange(int(depth)).reshape([-1 if i == axis else 1 for i in range(len(shape) + 1)])
    found = [
        graph.add(
            "Equal",
            [column, graph.constant(f"{y}_places", (places - back).astype(_index_type(graph, node)))],
            f"{y}_is",
        )
        for back in (0, int(depth))
    ]
    hit = graph.add("Or", found, f"{y}_hit")
    graph.replace(node, "Where", [hit, *(graph.constant(f"{y}_value", values[i]) for i in (1, 0))])


def _index_type(graph: Graph, node: NodeProto) -> type:
    return np.int32 if graph.dtypes.get(node.input[0]) == 6 else np.int64


FACTORS = 64  # a product of more would lose itself in its rounding

MOST_OPERANDS = 16


def _in_parts(graph: Graph, node: NodeProto) -> None:
    """Sum, Max or Min of very many operands, which nest where they are imported: of parts, of parts of parts, ..."""
    names = list(node.input)
    if len(names) <= MOST_OPERANDS:
        return
    parts = [names[i : i + MOST_OPERANDS] for i in range(0, len(names), MOST_OPERANDS)]
    made = [graph.add(node.op_type, p, f"{node.output[0]}_part") if len(p) > 1 else p[0] for p in parts]
    graph.replace(node, node.op_type, made)
    _in_parts(graph, node)


TABLE: dict[str, Callable[[Graph, NodeProto], None]] = {
    **dict.fromkeys(("Sum", "Max", "Min"), _in_parts),
    "ArgMax": _last_of_equals,
    "ArgMin": _last_of_equals,
    "AveragePool": expand_dilated_average,
    "Col2Im": expand_col2im,
    "Compress": _compress,
    "CumProd": expand_running,
    "CumSum": _cum_sum,
    "DFT": expand_dft,
    "DeformConv": expand_deform_conv,
    "EyeLike": _eye_like,
    "Einsum": expand_einsum,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "Hardmax": _hardmax,
    "LRN": _lrn,
    "Log": _log,
    "LpPool": _lp_pool,
    "LpNormalization": _lp_normalization,
    "OneHot": _one_hot,
    "Pow": _pow,
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceProd": _reduce_prod,
    "ReverseSequence": _reverse_sequence,
    "RoiAlign": expand_roi_align,
    "STFT": expand_stft,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Trilu": _trilu,
}
VOLUMES = {  # over three axes
    "AveragePool": expand_pool,
    "Conv": expand_conv,
    "ConvTranspose": expand_conv_transpose,
    "MaxPool": expand_pool,
}
