"""Rules for the attributes of layers with windows and weights: convolutions, pools, recurrent cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from onnx import NodeProto
from qcompile.frontend.attribute_facts import LARGEST, Fault, rank_of
from qcompile.frontend.graph import Graph, attribute

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def window(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    """Convolution and pooling: one number of each kind for each axis, none of them senseless."""
    rank = rank_of(graph, node)
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
            yield (
                "attribute 'dilations'" if dilations[axis] > 1 else "kernel",
                (f"reaches over {reach[axis]} pixels along axis {axis + 2}; its input has {size + whole} with padding"),
            )
        elif pool and dilations[axis] > 1:
            begins = np.arange((size + whole - reach[axis]) // strides[axis] + 1) * strides[axis] - pads[axis]
            places = begins[:, None] + np.arange(kernel[axis]) * dilations[axis]
            if not ((places >= 0) & (places < size)).any(1).all():
                yield "attribute 'dilations'", f"has a window along axis {axis + 2} that sees nothing but padding"


def groups(graph: Graph, node: NodeProto) -> Iterator[Fault]:
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


def deformed(graph: Graph, node: NodeProto) -> Iterator[Fault]:
    """The offsets and masks of DeformConv: one of each for each tap, offset group and result."""
    x, weight = graph.shape(node.input[0]), graph.shape(node.input[1])
    parts, out = attribute(node, "offset_group", 1), graph.shape(node.output[0])
    if x is None or weight is None or out is None or len(weight) < 3:
        return
    if parts < 1 or x[1] % parts:
        yield "attribute 'offset_group'", f"is {parts}, which does not divide its {x[1]} input channels"
        return
    taps = parts * int(np.prod(weight[2:]))
    for index, numbers in ((2, taps * (len(weight) - 2)), (4, taps)):
        given = graph.shape(node.input[index]) if len(node.input) > index else None
        if given is not None and tuple(given) != (x[0], numbers, *out[2:]):
            yield f"input '{node.input[index]}'", f"has shape {list(given)}, not {[x[0], numbers, *out[2:]]}"


def recurrent(graph: Graph, node: NodeProto) -> Iterator[Fault]:
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
