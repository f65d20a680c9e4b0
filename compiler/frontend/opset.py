"""Rewrites the default domain to opset 21 by a table of what changed between versions.

Each entry says: below this opset version, a node of this type is rewritten by this function. Operators whose later
versions only added element types need no entry. Opset 22 and later is relabelled 21 unless the model uses an operator
that 21 lacks (RMSNormalization, Attention, Swish, ...); then the version stays.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute, label, set_attribute
from qcompile.targets.errors import CompileError

TARGET = 21
OLDEST = 7
KEPT_ATTRIBUTES = {"output_dtype", "mode"}  # other passes deal with them
FLOAT_ATTRIBUTES = {"precision", "round_mode", "saturate"}  # of computations in narrow floats, which integers replace


def upgrade_opset(graph: Graph) -> None:
    """Bring `graph` to opset 21. Raises CompileError below opset 7 or where an old form has no modern equal."""
    version = graph.opsets.get("", TARGET)
    used = {n.domain for n in graph.nodes} | {""}
    graph.opsets = {d: v for d, v in graph.opsets.items() if d in used}
    if version < TARGET:
        for node in list(graph.nodes):
            for below, rewrite in REWRITES.get(node.op_type, ()) if node.domain in ("", "ai.onnx") else ():
                if version < below:
                    rewrite(graph, node)
        graph.update()
    lacking = [n for n in graph.nodes if n.domain in ("", "ai.onnx") and not _known(n.op_type)]
    graph.opsets[""] = version if version > TARGET and lacking else TARGET
    for node in graph.nodes if version > TARGET else ():
        _drop_new_attributes(node, version)


def _drop_new_attributes(node: NodeProto, version: int) -> None:
    """Attributes that opset 21 lacks, where they say what it does anyway. Raises CompileError for other values."""
    if node.domain not in ("", "ai.onnx") or not _known(node.op_type):
        return
    old = onnx.defs.get_schema(node.op_type, TARGET, "").attributes
    try:
        new = onnx.defs.get_schema(node.op_type, version, "").attributes
    except onnx.defs.SchemaError:
        return
    for name in [a.name for a in node.attribute if a.name not in old]:
        if name in KEPT_ATTRIBUTES:
            continue
        if name in FLOAT_ATTRIBUTES:
            set_attribute(node, name, None)
            continue
        default = new[name].default_value if name in new else None
        given = next(a for a in node.attribute if a.name == name)
        if default is None or onnx.helper.get_attribute_value(given) != onnx.helper.get_attribute_value(default):
            raise CompileError(
                f"node {label(node)}: its attribute '{name}' of opset {version} is not supported; "
                f"export the model with opset {TARGET}"
            )
        set_attribute(node, name, None)


def _known(op_type: str) -> bool:
    try:
        onnx.defs.get_schema(op_type, TARGET, "")
    except onnx.defs.SchemaError:
        return False
    return True


def _ints(graph: Graph, node: NodeProto, name: str, values) -> str:
    return graph.constant(f"{node.output[0]}_{name}", np.array(values, np.int64))


def attribute_to_input(name: str, index: int) -> Callable[[Graph, NodeProto], None]:
    """An int list attribute became input `index` (axes, split, ...)."""

    def rewrite(graph: Graph, node: NodeProto) -> None:
        value = attribute(node, name)
        if value is not None:
            while len(node.input) < index:
                node.input.append("")
            node.input.append(_ints(graph, node, name, value))
            set_attribute(node, name, None)

    return rewrite


def _slice(graph: Graph, node: NodeProto) -> None:
    starts, ends = attribute(node, "starts"), attribute(node, "ends")
    axes = attribute(node, "axes") or list(range(len(starts)))
    x = node.input[0]
    graph.replace(
        node, "Slice", [x, *(_ints(graph, node, n, v) for n, v in (("starts", starts), ("ends", ends), ("axes", axes)))]
    )


def _clip(graph: Graph, node: NodeProto) -> None:
    low, high = attribute(node, "min", -3.4028235e38), attribute(node, "max", 3.4028235e38)
    dtype = np.float16 if graph.dtypes.get(node.input[0]) == onnx.TensorProto.FLOAT16 else np.float32
    bounds = [
        graph.constant(f"{node.output[0]}_{n}", np.array(np.clip(v, np.finfo(dtype).min, np.finfo(dtype).max), dtype))
        for n, v in (("min", low), ("max", high))
    ]
    graph.replace(node, "Clip", [node.input[0], *bounds])


def _pad(graph: Graph, node: NodeProto) -> None:
    pads, value = attribute(node, "pads"), attribute(node, "value", 0.0)
    graph.replace(
        node,
        "Pad",
        [
            node.input[0],
            _ints(graph, node, "pads", pads),
            graph.constant(f"{node.output[0]}_value", np.array(value, np.float32)),
        ],
        mode=attribute(node, "mode", "constant"),
    )


def _grid_sample(graph: Graph, node: NodeProto) -> None:
    mode = attribute(node, "mode", "bilinear")
    set_attribute(node, "mode", {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode))


def flatten_softmax(graph: Graph, node: NodeProto) -> None:
    """Before opset 13 softmax ran over all axes from `axis` on; equal where the axes after it have size 1."""
    axis, shape = attribute(node, "axis", 1), graph.shape(node.input[0])
    if axis == -1:
        return
    if shape is None:
        raise CompileError(f"node {label(node)}: its input has no known rank; export the model with opset 13 or later")
    axis %= len(shape)
    if all(s == 1 for s in shape[axis + 1 :]):
        set_attribute(node, "axis", axis)
        return
    if not all(shape[axis:]):
        raise CompileError(f"node {label(node)}: a softmax over several axes needs a static shape; give --shapes")
    rows, columns = int(np.prod(shape[:axis])), int(np.prod(shape[axis:]))
    flat = graph.add("Reshape", [node.input[0], _ints(graph, node, "rows", [rows, columns])], f"{node.output[0]}_rows")
    result = graph.add(node.op_type, [flat], f"{node.output[0]}_flat", axis=1)
    graph.replace(node, "Reshape", [result, _ints(graph, node, "shape", shape)])


def _upsample(graph: Graph, node: NodeProto) -> None:
    scales = attribute(node, "scales")
    name = graph.constant(f"{node.output[0]}_scales", np.array(scales, np.float32)) if scales else node.input[1]
    graph.replace(
        node,
        "Resize",
        [node.input[0], "", name],
        mode=attribute(node, "mode", "nearest"),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _resize(graph: Graph, node: NodeProto) -> None:
    graph.replace(
        node,
        "Resize",
        [node.input[0], "", node.input[1]],
        mode=attribute(node, "mode", "nearest"),
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    )


def _batch_norm(graph: Graph, node: NodeProto) -> None:
    for name in ("spatial", "is_test", "consumed_inputs"):
        set_attribute(node, name, None)
    del node.output[1:]  # old training outputs; nobody reads them at inference


def _dropout(graph: Graph, node: NodeProto) -> None:
    graph.replace(node, "Identity", [node.input[0]])


def _split(graph: Graph, node: NodeProto) -> None:
    if len(node.input) < 2 and attribute(node, "num_outputs") is None:
        set_attribute(node, "num_outputs", len(node.output))


def _roi_align(graph: Graph, node: NodeProto) -> None:
    set_attribute(node, "coordinate_transformation_mode", "output_half_pixel")


REWRITES: dict[str, list[tuple[int, Callable[[Graph, NodeProto], None]]]] = {
    "Slice": [(10, _slice)],
    "Clip": [(11, _clip)],
    "Pad": [(11, _pad)],
    "Upsample": [(10, _upsample)],
    "Resize": [(11, _resize)],
    "GridSample": [(20, _grid_sample)],
    "RoiAlign": [(16, _roi_align)],
    "Softmax": [(13, flatten_softmax)],
    "LogSoftmax": [(13, flatten_softmax)],
    "BatchNormalization": [(14, _batch_norm)],
    "Dropout": [(12, _dropout)],
    "Squeeze": [(13, attribute_to_input("axes", 1))],
    "Unsqueeze": [(13, attribute_to_input("axes", 1))],
    "ReduceSum": [(13, attribute_to_input("axes", 1))],
    "Split": [(13, attribute_to_input("split", 1)), (18, _split)],
    **{
        f"Reduce{kind}": [(18, attribute_to_input("axes", 1))]
        for kind in ("Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
    },
}
