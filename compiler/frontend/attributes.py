"""What operators ask of their attributes and of the constants beside them, as a table of rules.

A rule gets the graph and a node and yields (name of the attribute or input, what is wrong) for each fault. Rules look
at what is known only: a shape that is not inferred yet is no fault. What ONNX's own schemas say (names and types of
attributes) comes before, from `onnx.defs`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import onnx
from onnx import AttributeProto, NodeProto
from qcompile.frontend.attribute_facts import LARGEST, Fault, Rule, ints, outside, rank_of
from qcompile.frontend.element_rules import numbers_of_elements, numbers_of_parts, quantized_axis, scan
from qcompile.frontend.graph import Graph, attribute, label
from qcompile.frontend.window_rules import GATES, deformed, groups, recurrent, window
from qcompile.targets.errors import CompileError


def check_attributes(graph: Graph) -> None:
    """Raise CompileError for the first node with an attribute that means nothing; it names the node, the attribute and
    what is wrong."""
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx"):
            continue
        for rule in (_schema, _finite, _choice, _vectors, *RULES.get(node.op_type, ())):
            for name, fault in rule(graph, node):
                raise CompileError(f"node {label(node)}: its {name} {fault}; correct the model, or export it again")


# --- rules ----------------------------------------------------------------------------------------------------------
def _schema(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    """Attributes of another type than the operator's, and inputs that are left out though it needs them."""
    try:
        schema = onnx.defs.get_schema(node.op_type, graph.opsets.get("", 1), "")
    except onnx.defs.SchemaError:
        return
    for a in node.attribute:
        known: Any = schema.attributes.get(a.name)  # its type stubs lack what the type is
        if known is not None and a.type and int(known.type.value) != a.type:
            given = AttributeProto.AttributeType.Name(a.type)
            yield f"attribute '{a.name}'", f"has type {given}, not {known.type.name}"
    optional = onnx.defs.OpSchema.FormalParameterOption.Optional
    for index, name in enumerate(node.input):
        if not name and schema.inputs and schema.inputs[min(index, len(schema.inputs) - 1)].option != optional:
            yield f"input {index}", "is left out"


def _finite(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    """Numbers that are none. Clip's bounds may be infinite, and constants are checked where they are read."""
    if node.op_type in ("Constant", "Clip", "ConstantOfShape", "Pad"):
        return
    for a in node.attribute:
        for number in (a.f, *a.floats) if a.type in (AttributeProto.FLOAT, AttributeProto.FLOATS) else ():
            if not math.isfinite(number):
                yield f"attribute '{a.name}'", f"is {number}"


def _choice(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    """Strings of which ONNX knows a few, and element types that it knows."""
    for name, known in CHOICES.get(node.op_type, {}).items():
        value = attribute(node, name)
        if value is not None and value not in known:
            yield f"attribute '{name}'", f"is '{value}'; it is {', '.join(k for k in known if k)}"
    for a in node.attribute:
        if a.name in FLAGS and a.type == AttributeProto.INT and a.i not in (0, 1):
            yield f"attribute '{a.name}'", f"is {a.i}; it is 0 or 1"
        if a.name in TYPES and a.type == AttributeProto.INT and a.i not in ELEMENT_TYPES:
            yield f"attribute '{a.name}'", f"is {a.i}, no element type of ONNX"


def _vectors(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    """Inputs that are lists of numbers."""
    for index in VECTORS.get(node.op_type, ()):
        rank = rank_of(graph, node, index)
        if rank is not None and rank > 1:
            yield f"input '{node.input[index]}'", f"has rank {rank}, where a list is needed"


def _of_channels(*indices: int) -> Rule:
    """Inputs that have one number for each channel (axis 1)."""

    def rule(graph: Graph, node: NodeProto) -> Iterator[Fault]:
        shape = graph.shape(node.input[0])
        if shape is None:
            return
        if len(shape) < 2:
            yield "input", f"has shape {list(shape)}, no channels"
            return
        for index in indices:
            given = graph.shape(node.input[index]) if len(node.input) > index and node.input[index] else None
            if given is not None and tuple(given) != (shape[1],):
                yield f"input '{node.input[index]}'", f"has shape {list(given)}; there are {shape[1]} channels"

    return rule


def _along_axes(*names: str) -> Rule:
    """Attributes that each name an axis of the input."""

    def rule(graph: Graph, node: NodeProto) -> Iterator[Fault]:
        rank = rank_of(graph, node)
        for name in names:
            axis = attribute(node, name)
            if axis is not None and rank is not None and outside([axis], rank):
                yield f"attribute '{name}'", f"is {axis}, its input has rank {rank}"

    return rule


def _small(index: int, name: str) -> Rule:
    """A constant number, such as the diagonal of Trilu, that shapes can hold."""

    def rule(graph: Graph, node: NodeProto) -> Iterator[Fault]:
        value = graph.scalar(node.input[index]) if len(node.input) > index else None
        if value is not None and abs(value) > LARGEST:
            yield f"input '{node.input[index]}'", f"({name}) is {value:g}"

    return rule


def _axis(default: int | None = None, behind: bool = False, added: int = 0) -> Rule:
    """The attribute `axis` within the input's rank, plus `added`; `behind`: the end of the shape counts as well."""

    def rule(graph: Graph, node: NodeProto) -> Iterator[Fault]:
        axis, rank = attribute(node, "axis", default), rank_of(graph, node)
        if axis is None or rank is None:
            return
        rank += added
        if outside([axis], max(rank, 1)) and not (behind and axis == rank):
            yield "attribute 'axis'", f"is {axis}, its input has rank {rank}"

    return rule


def _axes(index: int, added: bool = False, single: bool = False) -> Rule:
    """`axes`, an attribute or input `index`: within the rank, each once; added: of the result; single: of size 1."""

    def rule(graph: Graph, node: NodeProto) -> Iterator[Fault]:
        axes, rank = ints(graph, node, "axes", index), rank_of(graph, node)
        if axes is None or rank is None:
            return
        rank += len(axes) if added else 0
        if outside(axes, rank):
            yield "axes", f"are {axes}, {'its result' if added else 'its input'} has rank {rank}"
        elif len({a % rank for a in axes}) < len(axes):
            yield "axes", f"are {axes}: one occurs twice"
        elif single and (shape := graph.shape(node.input[0])) is not None and any(shape[a] != 1 for a in axes):
            yield "axes", f"are {axes}, not all of size 1 in its input's shape {list(shape)}"

    return rule


def _perm(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    perm, rank = attribute(node, "perm"), rank_of(graph, node)
    if perm is None:
        return
    if sorted(perm) != list(range(len(perm))) or (rank is not None and len(perm) != rank):
        yield "attribute 'perm'", f"is {list(perm)}, no order of {'the' if rank is None else rank} axes"


def _matrix(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    rank, k = rank_of(graph, node), attribute(node, "k", 0)
    if rank not in (None, 2):
        yield "input", f"has rank {rank}, where a matrix is needed"
    elif abs(k) > LARGEST:
        yield "attribute 'k'", f"is {k}"


def _split(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    parts, shape = ints(graph, node, "split", 1), graph.shape(node.input[0])
    axis, count = attribute(node, "axis", 0), attribute(node, "num_outputs")
    if count is not None and count != len(node.output):
        yield "attribute 'num_outputs'", f"is {count}, it has {len(node.output)} outputs"
    if parts is None:
        return
    if any(p < 0 for p in parts) or len(parts) != len(node.output):
        yield "split", f"is {parts} for {len(node.output)} outputs"
    elif shape is not None and not outside([axis], len(shape)) and sum(parts) != shape[axis]:
        yield "split", f"is {parts}, in sum {sum(parts)}, where axis {axis} has {shape[axis]}"


def _reshape(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    wanted, rank = ints(graph, node, "shape", 1), rank_of(graph, node)
    if wanted is None:
        return
    zero = not attribute(node, "allowzero", 0)
    if any(n < -1 for n in wanted) or wanted.count(-1) > 1:
        yield "shape", f"is {wanted}; it has at most one -1, and no other number below 0"
    elif zero and rank is not None and any(n == 0 for n in wanted[rank:]):
        yield "shape", f"is {wanted}; a 0 stands for an axis of the input, which has {rank}"


def _slice(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    lists = [ints(graph, node, n, i) for i, n in enumerate(("starts", "ends", "axes", "steps"), 1)]
    axes, steps = lists[2:]
    rank = rank_of(graph, node)
    if len({len(v) for v in lists if v is not None}) > 1:
        yield "starts, ends, axes and steps", f"have unlike lengths: {[v for v in lists if v is not None]}"
    if steps is not None and 0 in steps:
        yield "steps", f"are {steps}; none may be 0"
    if axes is not None and rank is not None:
        if outside(axes, rank):
            yield "axes", f"are {axes}, its input has rank {rank}"
        elif len({a % rank for a in axes}) < len(axes):
            yield "axes", f"are {axes}: one occurs twice"


def _tile(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    repeats, rank = ints(graph, node, "repeats", 1), rank_of(graph, node)
    if repeats is not None and (any(r < 0 for r in repeats) or (rank is not None and len(repeats) != rank)):
        yield "repeats", f"are {repeats} for an input of rank {rank}"


def _pad(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    pads, shape, mode = ints(graph, node, "pads", 1), graph.shape(node.input[0]), attribute(node, "mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        yield "attribute 'mode'", f"is '{mode}'; it is constant, reflect, edge or wrap"
    if pads is None or shape is None:
        return
    axes = ints(graph, node, "axes", 3)
    if axes is None and len(node.input) > 3 and node.input[3]:
        return
    axes = list(range(len(shape))) if axes is None else axes
    if len(pads) != 2 * len(axes) or any(abs(p) > LARGEST for p in pads):
        yield "pads", f"are {pads} for {len(axes)} axes"
        return
    if outside(axes, len(shape)):
        yield "axes", f"are {axes}, its input has rank {len(shape)}"
        return
    for k, axis in enumerate(axes):
        before, after = pads[k], pads[k + len(axes)]
        if shape[axis] + before + after < 0:
            yield "pads", f"are {pads}: they take more away than there is along axis {axis}"
        elif mode == "reflect" and max(before, after) >= shape[axis]:
            yield "pads", f"are {pads}: they reflect more than there is along axis {axis} of {shape[axis]}"


def _block(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    size, shape = attribute(node, "blocksize", 0), graph.shape(node.input[0])
    if not 0 < size <= 2**15:
        yield "attribute 'blocksize'", f"is {size}"
    elif shape is not None and len(shape) == 4:
        parts = [shape[1] % size**2] if node.op_type == "DepthToSpace" else [n % size for n in shape[2:]]
        if any(parts):
            yield "attribute 'blocksize'", f"is {size}, which does not divide its input's shape {list(shape)}"


def _epsilon(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    epsilon = attribute(node, "epsilon", 1e-5)
    if epsilon < 0:
        yield "attribute 'epsilon'", f"is {epsilon:g}, below 0"


def _grid_sample(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    x, grid = (graph.shape(i) for i in node.input[:2])
    if x is not None and len(x) not in (4, 5):
        yield "input", f"has rank {len(x)}; images have 4 axes, or 5"
    elif x is not None and grid is not None and (len(grid) != len(x) or grid[-1] != len(x) - 2 or grid[0] != x[0]):
        yield f"input '{node.input[1]}'", f"has shape {list(grid)}, which is no grid for images of shape {list(x)}"
    elif x is not None and len(x) == 5 and attribute(node, "mode", "linear") in ("cubic", "bicubic"):
        yield "attribute 'mode'", "is cubic, which ONNX defines over two axes"
    if attribute(node, "align_corners", 0) not in (0, 1):
        yield "attribute 'align_corners'", f"is {attribute(node, 'align_corners')}; it is 0 or 1"


def _suppression(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    boxes, scores = (graph.shape(i) for i in node.input[:2])
    if (
        boxes is not None
        and scores is not None
        and (len(boxes) != 3 or len(scores) != 3 or boxes[2] != 4 or boxes[0] != scores[0] or boxes[1] != scores[2])
    ):
        yield "input", f"boxes and scores have shapes {list(boxes)} and {list(scores)}, not [n, k, 4] and [n, c, k]"
    if attribute(node, "center_point_box", 0) not in (0, 1):
        yield "attribute 'center_point_box'", f"is {attribute(node, 'center_point_box')}; it is 0 or 1"
    overlap = graph.scalar(node.input[3]) if len(node.input) > 3 else None
    if overlap is not None and not 0 <= overlap <= 1:
        yield "'iou_threshold'", f"is {overlap:g}; it lies in [0, 1]"


def _group_norm(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    groups, shape = attribute(node, "num_groups", 1), graph.shape(node.input[0])
    if groups < 1 or (shape is not None and len(shape) > 1 and shape[1] % groups):
        yield "attribute 'num_groups'", f"is {groups}, its input's shape {None if shape is None else list(shape)}"


ELEMENT_TYPES = set(onnx.TensorProto.DataType.values()) - {onnx.TensorProto.UNDEFINED}
TYPES = ("to", "dtype", "output_dtype", "stash_type", "softmax_precision")  # attributes that are element types
FLAGS = (
    "allowzero", "antialias", "ceil_mode", "count_include_pad", "exclude_outside", "exclusive", "input_forget",
    "keepdims", "largest", "layout", "linear_before_reset", "noop_with_empty_axes", "reverse", "select_last_index",
    "transA", "transB",
)  # fmt: skip
REDUCED: dict[str, tuple[str, ...]] = {"reduction": ("none", "mean", "sum")}
SCATTERED: dict[str, tuple[str, ...]] = {"reduction": ("none", "add", "mul", "min", "max")}
CHOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "Resize": {
        "mode": ("nearest", "linear", "cubic"),
        "coordinate_transformation_mode": (
            "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
            "tf_crop_and_resize", "tf_half_pixel_for_nn",
        ),
        "nearest_mode": ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil"),
        "keep_aspect_ratio_policy": ("stretch", "not_larger", "not_smaller"),
    },
    "DepthToSpace": {"mode": ("DCR", "CRD")},
    "BitShift": {"direction": ("LEFT", "RIGHT")},
    "Gelu": {"approximate": ("none", "tanh")},
    "RoiAlign": {"mode": ("avg", "max"), "coordinate_transformation_mode": ("half_pixel", "output_half_pixel")},
    "GridSample": {
        "mode": ("linear", "nearest", "cubic", "bilinear", "bicubic"),
        "padding_mode": ("zeros", "border", "reflection"),
    },
    "CausalConvWithState": {"activation": ("none", "silu", "swish")},
    "LinearAttention": {"update_rule": ("linear", "gated", "delta", "gated_delta")},
    "NegativeLogLikelihoodLoss": REDUCED,
    "SoftmaxCrossEntropyLoss": REDUCED,
    **dict.fromkeys(("ScatterElements", "ScatterND"), SCATTERED),
}  # fmt: skip
VECTORS: dict[str, tuple[int, ...]] = {
    "Slice": (1, 2, 3, 4),
    "Pad": (1, 3),
    "Resize": (1, 2, 3),
    **dict.fromkeys(("Reshape", "Expand", "Tile", "Squeeze", "Unsqueeze", "Split", "Upsample"), (1,)),
    "ConstantOfShape": (0,),
    "CenterCropPad": (1,),
}
KINDS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
REDUCTIONS = [f"Reduce{kind}" for kind in KINDS]
VECTORS |= dict.fromkeys(REDUCTIONS, (1,))
RULES: dict[str, tuple[Rule, ...]] = {
    "Conv": (groups, window),
    "ConvTranspose": (groups, window),
    "ConvInteger": (window,),
    "DeformConv": (groups, window, deformed),
    "QLinearConv": (),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), (window,)),
    **dict.fromkeys(GATES, (recurrent,)),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), (_axis(),)),
    **dict.fromkeys(("Concat", "ArgMax", "ArgMin", "TopK"), (_axis(),)),
    **dict.fromkeys(("Gather", "GatherElements", "ScatterElements"), (_axis(), numbers_of_elements)),
    **dict.fromkeys(("GatherND", "ScatterND"), (numbers_of_parts,)),
    "ReverseSequence": (_along_axes("batch_axis", "time_axis"),),
    "OneHot": (_axis(added=1), _small(1, "depth")),
    "Trilu": (_small(1, "k"),),
    "EyeLike": (_matrix,),
    "Scan": (scan,),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), (quantized_axis,)),
    "Flatten": (_axis(1, behind=True),),
    "Split": (_axis(0), _split),
    "BatchNormalization": (_epsilon, _of_channels(1, 2, 3, 4)),
    "InstanceNormalization": (_epsilon, _of_channels(1, 2)),
    "LayerNormalization": (_axis(), _epsilon),
    "RMSNormalization": (_axis(), _epsilon),
    "GroupNormalization": (_group_norm, _epsilon),
    "GridSample": (_grid_sample,),
    "NonMaxSuppression": (_suppression,),
    "Transpose": (_perm,),
    **dict.fromkeys(REDUCTIONS, (_axes(1),)),
    "Squeeze": (_axes(1, single=True),),
    "Unsqueeze": (_axes(1, added=True),),
    "Reshape": (_reshape,),
    "Slice": (_slice,),
    "Tile": (_tile,),
    "Pad": (_pad,),
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), (_block,)),
}
