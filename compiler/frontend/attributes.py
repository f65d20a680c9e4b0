"""What operators ask of their attributes and of the constants beside them, as a table of rules.

A rule gets the graph and a node and yields (name of the attribute or input, what is wrong) for each fault. Rules look
at what is known only: a shape that is not inferred yet is no fault. What ONNX's own schemas say (names and types of
attributes) comes before, from `onnx.defs`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx
from onnx import AttributeProto, NodeProto
from qcompile.frontend.graph import Graph, attribute, label
from qcompile.targets.errors import CompileError

Fault = tuple[str, str]
Rule = Callable[[Graph, NodeProto], Iterator[Fault]]
LARGEST = 2**31 - 1  # of an attribute that counts elements
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
NORMS = ("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization")


def check_attributes(graph: Graph) -> None:
    """Raise CompileError for the first node with an attribute that means nothing; it names the node, the attribute and
    what is wrong."""
    for node in graph.nodes:
        if node.domain not in ("", "ai.onnx"):
            continue
        for rule in (_schema, _finite, *RULES.get(node.op_type, ())):
            for name, fault in rule(graph, node):
                raise CompileError(f"node {label(node)}: its {name} {fault}; correct the model, or export it again")


# --- what is known ------------------------------------------------------------------------------------------------
def _ints(graph: Graph, node: NodeProto, name: str, index: int | None = None) -> list[int] | None:
    """Whole numbers that are an attribute or, since some opset, the constant input `index`; None where unknown."""
    value = attribute(node, name)
    if value is not None:
        return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]
    constant = graph.constants.get(node.input[index]) if index is not None and len(node.input) > index else None
    if constant is None or constant.dtype.kind not in "iu":
        return None
    return [int(v) for v in constant.reshape(-1)]


def _rank(graph: Graph, node: NodeProto, index: int = 0) -> int | None:
    return graph.rank(node.input[index]) if len(node.input) > index else None


def _outside(axes: Sequence[int], rank: int) -> list[int]:
    return [a for a in axes if not -rank <= a < rank]


# --- rules ----------------------------------------------------------------------------------------------------------
def _schema(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    """Attributes that the operator does not have, or of another type."""
    try:
        schema = onnx.defs.get_schema(node.op_type, graph.opsets.get("", 1), "")
    except onnx.defs.SchemaError:
        return
    for a in node.attribute:
        known: Any = schema.attributes.get(a.name)  # its type stubs lack what the type is
        if known is not None and a.type and int(known.type.value) != a.type:
            given = AttributeProto.AttributeType.Name(a.type)
            yield f"attribute '{a.name}'", f"has type {given}, not {known.type.name}"


def _finite(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    """Numbers that are none. Clip's bounds may be infinite, and constants are checked where they are read."""
    if node.op_type in ("Constant", "Clip", "ConstantOfShape", "Pad"):
        return
    for a in node.attribute:
        for number in (a.f, *a.floats) if a.type in (AttributeProto.FLOAT, AttributeProto.FLOATS) else ():
            if not math.isfinite(number):
                yield f"attribute '{a.name}'", f"is {number}"


def _window(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    """Convolution and pooling: one number of each kind for each axis, none of them senseless."""
    rank = _rank(graph, node)
    pool = "Pool" in node.op_type
    weight = None if pool or len(node.input) < 2 else graph.shape(node.input[1])
    if rank is not None and rank < 3:
        yield "input", f"has rank {rank}; images have batch, channels, and one axis or more"
        return
    axes = None if rank is None else rank - 2
    if weight is not None:
        if axes is not None and len(weight) != axes + 2:
            yield f"weight '{node.input[1]}'", f"has rank {len(weight)}, its input {axes + 2}"
            return
        axes = len(weight) - 2
    given = {n: attribute(node, n) for n in ("kernel_shape", "strides", "dilations", "pads", "output_padding")}
    least = {"kernel_shape": 1, "strides": 1, "dilations": 1, "pads": 0, "output_padding": 0}
    for name, values in given.items():
        if values is None:
            continue
        wanted = None if axes is None else axes * (2 if name == "pads" else 1)
        if wanted is not None and len(values) != wanted:
            yield f"attribute '{name}'", f"has {len(values)} numbers, {list(values)}, where {wanted} are needed"
            return
        if any(not least[name] <= v <= LARGEST for v in values):
            yield f"attribute '{name}'", f"is {list(values)}; its numbers lie in [{least[name]}, {LARGEST}]"
            return
    if weight is not None and given["kernel_shape"] is not None and list(given["kernel_shape"]) != list(weight[2:]):
        yield "attribute 'kernel_shape'", f"is {list(given['kernel_shape'])}, but its weight has {list(weight[2:])}"
    kernel = list(weight[2:]) if weight is not None else list(given["kernel_shape"] or [])
    if kernel and axes is not None:
        yield from _reach(graph, node, kernel, axes, given, pool)


def _reach(
    graph: Graph, node: NodeProto, kernel: list[int], axes: int, given: dict[str, Sequence[int] | None], pool: bool
) -> Iterator[Fault]:
    """How far the window lies beyond the image, and the image inside the window."""
    dilations, pads = list(given["dilations"] or [1] * axes), list(given["pads"] or [0] * (2 * axes))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode not in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"):
        yield "attribute 'auto_pad'", f"is '{mode}'; it is NOTSET, VALID, SAME_UPPER or SAME_LOWER"
    elif mode != "NOTSET" and any(pads):
        yield "attribute 'auto_pad'", f"is {mode}, but there are pads {pads} too; leave out one of them"
    if pool and any(p >= r for p, r in zip(pads, reach * 2)):
        yield "attribute 'pads'", f"is {pads}, as large as its window of {reach}, which would see nothing but padding"
    shape = graph.shape(node.input[0])
    if shape is None or mode.startswith("SAME"):
        return
    strides = list(given["strides"] or [1] * axes)
    for axis, size in enumerate(shape[2:]):
        whole = pads[axis] + pads[axis + axes]
        if node.op_type == "ConvTranspose":
            extra = list(given["output_padding"] or [0] * axes)[axis]
            if extra >= max(strides[axis], dilations[axis]):
                yield "attribute 'output_padding'", f"is {extra} along axis {axis + 2}, not below its stride"
            if attribute(node, "output_shape") is None and (size - 1) * strides[axis] + reach[axis] + extra <= whole:
                yield "attribute 'pads'", f"is {pads}, which leaves nothing of its result along axis {axis + 2}"
        elif size + whole < reach[axis]:
            yield "attribute 'dilations'" if dilations[axis] > 1 else "kernel", (
                f"reaches over {reach[axis]} pixels along axis {axis + 2}; its input has {size + whole} with padding"
            )


def _groups(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    group, shape = attribute(node, "group", 1), graph.shape(node.input[0])
    weight = graph.shape(node.input[1]) if len(node.input) > 1 else None
    if group < 1:
        yield "attribute 'group'", f"is {group}; it is 1 or more"
        return
    if shape is None or weight is None or len(shape) < 2 or len(weight) < 2:
        return
    transposed = node.op_type == "ConvTranspose"
    if shape[1] % group or (not transposed and weight[0] % group):
        yield "attribute 'group'", f"is {group}, which divides not its {shape[1]} input and {weight[0]} output channels"
    elif (weight[0] != shape[1]) if transposed else (weight[1] * group != shape[1]):
        held = weight[0] if transposed else weight[1] * group
        yield f"weight '{node.input[1]}'", f"has {held} input channels (group {group}), its input {shape[1]}"


def _recurrent(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    direction, hidden = attribute(node, "direction", "forward"), attribute(node, "hidden_size")
    gates = GATES[node.op_type]
    if direction not in ("forward", "reverse", "bidirectional"):
        yield "attribute 'direction'", f"is '{direction}'; it is forward, reverse or bidirectional"
        return
    if hidden is not None and not 0 < hidden <= LARGEST:
        yield "attribute 'hidden_size'", f"is {hidden}"
        return
    count, x = (2 if direction == "bidirectional" else 1), graph.shape(node.input[0])
    w, r = (graph.shape(node.input[i]) if len(node.input) > i else None for i in (1, 2))
    if r is not None:
        size = hidden or r[-1]
        if tuple(r) != (count, gates * size, size):
            yield "attribute 'hidden_size'", f"is {hidden}, but its weight '{node.input[2]}' has shape {list(r)}"
            return
        if w is not None and len(w) == 3 and w[:2] != (count, gates * size):
            yield "attribute 'hidden_size'", f"is {hidden}, but its weight '{node.input[1]}' has shape {list(w)}"
    if w is not None and x is not None and len(x) == 3 and len(w) == 3 and x[2] != w[2]:
        yield f"weight '{node.input[1]}'", f"has {w[2]} inputs, where its data has {x[2]}"


def _axis(default: int | None = None, behind: bool = False, added: int = 0) -> Rule:
    """The attribute `axis` within the input's rank, plus `added`; `behind`: the end of the shape counts as well."""

    def rule(graph: Graph, node: NodeProto) -> Iterator[Fault]:
        axis, rank = attribute(node, "axis", default), _rank(graph, node)
        if axis is None or rank is None:
            return
        rank += added
        if _outside([axis], max(rank, 1)) and not (behind and axis == rank):
            yield "attribute 'axis'", f"is {axis}, its input has rank {rank}"

    return rule


def _axes(index: int, added: bool = False, single: bool = False) -> Rule:
    """`axes`, an attribute or input `index`: within the rank, each once; added: of the result; single: of size 1."""

    def rule(graph: Graph, node: NodeProto) -> Iterator[Fault]:
        axes, rank = _ints(graph, node, "axes", index), _rank(graph, node)
        if axes is None or rank is None:
            return
        rank += len(axes) if added else 0
        if _outside(axes, rank):
            yield "axes", f"are {axes}, {'its result' if added else 'its input'} has rank {rank}"
        elif len({a % rank for a in axes}) < len(axes):
            yield "axes", f"are {axes}: one occurs twice"
        elif single and (shape := graph.shape(node.input[0])) is not None and any(shape[a] != 1 for a in axes):
            yield "axes", f"are {axes}, not all of size 1 in its input's shape {list(shape)}"

    return rule


def _perm(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    perm, rank = attribute(node, "perm"), _rank(graph, node)
    if perm is None:
        return
    if sorted(perm) != list(range(len(perm))) or (rank is not None and len(perm) != rank):
        yield "attribute 'perm'", f"is {list(perm)}, no order of {'the' if rank is None else rank} axes"


def _split(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    parts, shape = _ints(graph, node, "split", 1), graph.shape(node.input[0])
    axis = attribute(node, "axis", 0)
    if parts is None:
        return
    if any(p < 0 for p in parts) or len(parts) != len(node.output):
        yield "split", f"is {parts} for {len(node.output)} outputs"
    elif shape is not None and not _outside([axis], len(shape)) and sum(parts) != shape[axis]:
        yield "split", f"is {parts}, in sum {sum(parts)}, where axis {axis} has {shape[axis]}"


def _reshape(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    wanted, rank = _ints(graph, node, "shape", 1), _rank(graph, node)
    if wanted is None:
        return
    zero = not attribute(node, "allowzero", 0)
    if any(n < -1 for n in wanted) or wanted.count(-1) > 1:
        yield "shape", f"is {wanted}; it has at most one -1, and no other number below 0"
    elif zero and rank is not None and any(n == 0 for n in wanted[rank:]):
        yield "shape", f"is {wanted}; a 0 stands for an axis of the input, which has {rank}"


def _slice(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    lists = [_ints(graph, node, n, i) for i, n in enumerate(("starts", "ends", "axes", "steps"), 1)]
    axes, steps = lists[2:]
    rank = _rank(graph, node)
    if len({len(v) for v in lists if v is not None}) > 1:
        yield "starts, ends, axes and steps", f"have unlike lengths: {[v for v in lists if v is not None]}"
    if steps is not None and 0 in steps:
        yield "steps", f"are {steps}; none may be 0"
    if axes is not None and rank is not None:
        if _outside(axes, rank):
            yield "axes", f"are {axes}, its input has rank {rank}"
        elif len({a % rank for a in axes}) < len(axes):
            yield "axes", f"are {axes}: one occurs twice"


def _tile(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    repeats, rank = _ints(graph, node, "repeats", 1), _rank(graph, node)
    if repeats is not None and (any(r < 0 for r in repeats) or (rank is not None and len(repeats) != rank)):
        yield "repeats", f"are {repeats} for an input of rank {rank}"


def _pad(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    pads, shape, mode = _ints(graph, node, "pads", 1), graph.shape(node.input[0]), attribute(node, "mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        yield "attribute 'mode'", f"is '{mode}'; it is constant, reflect, edge or wrap"
    if pads is None or shape is None:
        return
    axes = _ints(graph, node, "axes", 3)
    if axes is None and len(node.input) > 3 and node.input[3]:
        return
    axes = list(range(len(shape))) if axes is None else axes
    if len(pads) != 2 * len(axes) or any(abs(p) > LARGEST for p in pads):
        yield "pads", f"are {pads} for {len(axes)} axes"
        return
    if _outside(axes, len(shape)):
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


def _group_norm(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    groups, shape = attribute(node, "num_groups", 1), graph.shape(node.input[0])
    if groups < 1 or (shape is not None and len(shape) > 1 and shape[1] % groups):
        yield "attribute 'num_groups'", f"is {groups}, its input's shape {None if shape is None else list(shape)}"


KINDS = ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2", "LogSum", "LogSumExp", "SumSquare")
REDUCTIONS = [f"Reduce{kind}" for kind in KINDS]
RULES: dict[str, tuple[Rule, ...]] = {
    "Conv": (_groups, _window),
    "ConvTranspose": (_groups, _window),
    "ConvInteger": (_window,),
    "QLinearConv": (),
    **dict.fromkeys(("MaxPool", "AveragePool", "LpPool"), (_window,)),
    **dict.fromkeys(GATES, (_recurrent,)),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax", "LpNormalization"), (_axis(),)),
    **dict.fromkeys(("Concat", "Gather", "GatherElements", "ScatterElements", "ArgMax", "ArgMin", "TopK"), (_axis(),)),
    "Flatten": (_axis(1, behind=True),),
    "Split": (_axis(0), _split),
    **dict.fromkeys(NORMS, (_epsilon,)),
    "LayerNormalization": (_axis(), _epsilon),
    "RMSNormalization": (_axis(), _epsilon),
    "GroupNormalization": (_group_norm, _epsilon),
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
