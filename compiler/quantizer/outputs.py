"""Outputs whose parts have grids of their own: boxes in pixels beside scores in 0..1.

What joins the parts of an output and moves them about (Concat, Transpose, Reshape, ...) is taken off the float graph,
so that each part is an output with its own range, and put behind their codes when those exist: integers are joined
whatever they stand for, and one DequantizeLinear with a scale for each index along an axis says what they are.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, TensorProto, ValueInfoProto, helper
from qcompile.frontend.graph import Graph
from qcompile.quantizer.calibration import Feed
from qcompile.quantizer.collect import observe, open_session
from qcompile.quantizer.distribute import data_index, hoist, is_pointwise
from qcompile.quantizer.histogram import Histogram, Quantization, choose_16bit
from qcompile.quantizer.operators import mover_inputs

SAMPLES = 8  # that ranges of parts are compared on
APART = 4.0  # times that ranges differ when parts get grids of their own: two bits of eight
UNEVEN = 16.0  # times that ranges of channels of one output differ: 8 bits leave 16 steps for the smaller
MOST_COLUMNS, FEWEST_ROWS = 1024, 16  # of an axis that counts channels; of values that each of them has
BOUNDED = ("Softmax", "Sigmoid", "HardSigmoid")
TAIL = {  # data movement that integers go through as they are: indices of the data inputs, None for all
    **dict.fromkeys(
        ("Transpose", "Reshape", "Slice", "Squeeze", "Unsqueeze", "Flatten", "Gather", "Split", "Expand", "Tile"), (0,)
    ),
    "Identity": (0,),
    "Concat": None,
}


@dataclass
class Cut:
    """An output without what joins its parts.

    tail: those nodes, in order, with their `constants`; parts: the tensors that they join, constants too; groups: parts
    that share a grid, since they meet at one index; members: the number of the group for each index along `axis`.
    """

    output: ValueInfoProto
    tail: list[NodeProto]
    parts: list[str]
    groups: list[list[str]]
    axis: int
    members: list[int]
    constants: dict[str, np.ndarray] = field(default_factory=dict)


def cut_outputs(graph: Graph, samples: list[Feed]) -> list[Cut]:
    """Replaces outputs by their parts where the parts' ranges differ much; what has been cut, for `join_outputs`."""
    _separate(graph, samples)
    found = {o.name: _tail(graph, o.name) for o in graph.outputs if graph.is_float(o.name)}
    found = {name: (tail, parts) for name, (tail, parts) in found.items() if len(parts) > 1}
    if not found:
        return []
    peaks = _peaks(graph, {p for _, parts in found.values() for p in parts}, samples)
    cuts = []
    for output in graph.outputs:
        tail, parts = found.get(output.name, ([], []))
        axis, groups, members = _grouped(graph, output.name, tail, parts, peaks) if parts else (0, [], [])
        if len(groups) > 1:
            cuts.append(Cut(output, tail, parts, groups, axis, members))
    _declare_parts(graph, cuts)
    return cuts


def uneven_outputs(graph: Graph, samples: list[Feed]) -> list[str]:
    """The outputs of which some channel or column is UNEVEN times smaller than another: 8 bits for both would leave it
    few of its codes, or none, as the scores beside the boxes of a head that one layer makes. Probabilities share their
    range by nature."""
    names = [o.name for o in graph.outputs if graph.is_float(o.name) and (graph.rank(o.name) or 0) > 1]
    names = [n for n in names if (maker := _source(graph, n)) is not None and maker.op_type not in BOUNDED]
    peaks: dict[tuple[str, int], np.ndarray] = {}

    def observer(name: str, value: np.ndarray) -> None:
        for axis in {1, value.ndim - 1}:
            if value.shape[axis] <= MOST_COLUMNS and value.size >= FEWEST_ROWS * value.shape[0] * value.shape[axis]:
                peak = np.abs(value).max(tuple(i for i in range(value.ndim) if i != axis), initial=0)
                peaks[name, axis] = np.maximum(peaks.get((name, axis), 0.0), peak)

    if names:
        observe(graph, names, samples[:: -(-len(samples) // SAMPLES)], observer, "outputs")
    return [
        n
        for n in names
        if any(p.max() > UNEVEN * p[p > 0].min(initial=np.inf) for (m, _), p in peaks.items() if m == n)
    ]


def _source(graph: Graph, name: str) -> NodeProto | None:
    """What computes a tensor, in front of data movement."""
    while (node := graph.producer(name)) is not None and mover_inputs(node):
        name = node.input[mover_inputs(node)[0]]
    return node


def _separate(graph: Graph, samples: list[Feed]) -> None:
    """Lets what is computed from constants behind a Concat of different ranges, on the way to an output, be computed
    from its parts."""
    above: dict[str, list[NodeProto]] = {}  # Concat's result: pointwise nodes between it and an output, nearest first
    stack = [(o.name, []) for o in graph.outputs if graph.is_float(o.name)]
    while stack:
        name, path = stack.pop()
        node = graph.producer(name)
        if node is None or (path and graph.only_consumer(name) is None):
            continue
        if is_pointwise(graph, node):
            stack.append((node.input[data_index(graph, node)], [node, *path]))
        elif _moves(graph, node):
            if node.op_type == "Concat" and path:
                above[name] = path
            stack += [(i, path) for i in node.input if i and graph.is_float(i)]
    parts = {c: list(graph.producer(c).input) for c in above}
    peaks = _peaks(graph, {p for inputs in parts.values() for p in inputs}, samples) if parts else {}
    for concat, nodes in above.items():
        levels = [peaks[p] for p in parts[concat]]
        if max(levels) <= APART * max(min(levels), 1e-30):
            continue
        for node in nodes:
            pending: list[NodeProto] = [node]
            while pending:
                pending += hoist(graph, pending.pop()) or []


def _tail(graph: Graph, output: str) -> tuple[list[NodeProto], list[str]]:
    """(the nodes that only move data on the way to `output`, in order; what they move)."""
    moving: set[int] = set()
    parts: dict[str, None] = {}
    stack = [output]
    while stack:
        name = stack.pop()
        node = graph.producer(name)
        if node is None or not _moves(graph, node):
            parts[name] = None
        elif id(node) not in moving:
            moving.add(id(node))
            data = TAIL[node.op_type]
            stack += [i for k, i in enumerate(node.input) if i and (data is None or k in data)]
    return [n for n in graph.nodes if id(n) in moving], list(parts)


def _moves(graph: Graph, node: NodeProto) -> bool:
    data = TAIL.get(node.op_type, ())
    return data is None or (bool(data) and all(i in graph.constants for i in node.input[1:] if i))


def _peaks(graph: Graph, tensors: set[str], samples: list[Feed]) -> dict[str, float]:
    peaks = {t: float(np.abs(graph.constants[t]).max(initial=0)) for t in tensors if t in graph.constants}

    def observer(name: str, value: np.ndarray) -> None:
        peaks[name] = max(peaks.get(name, 0.0), float(np.abs(value).max(initial=0)))

    observe(graph, sorted(tensors - set(graph.constants)), samples[:: -(-len(samples) // SAMPLES)], observer, "outputs")
    return peaks


def _grouped(
    graph: Graph, output: str, tail: list[NodeProto], parts: list[str], peaks: dict[str, float]
) -> tuple[int, list[list[str]], list[int]]:
    """(axis, groups, group of each index) along the axis that tells parts of different ranges best apart."""
    owner = _owners(graph, output, tail, parts)
    best: tuple[float, int, list[list[str]], list[int]] = (0.0, 0, [], [])
    for axis in range(owner.ndim):
        rows = [np.unique(row) for row in np.moveaxis(owner, axis, 0).reshape(owner.shape[axis], -1)]
        group = list(range(len(parts)))
        for row in rows:  # parts that meet at one index share a grid
            merged = {group[i] for i in row}
            group = [min(merged) if g in merged else g for g in group]
        levels = {g: max(peaks[p] for p, k in zip(parts, group) if k == g) for g in dict.fromkeys(group)}
        order = sorted(levels, key=lambda g: levels[g])
        gain, joined = 1.0, {order[0]: order[0]}
        first = order[0]
        for g in order[1:]:  # groups of like ranges are one
            if levels[g] > APART * max(levels[first], 1e-30):
                gain, first = gain * levels[g] / max(levels[first], 1e-30), g
            joined[g] = first
        names = list(dict.fromkeys(joined.values()))
        groups = [[p for p, g in zip(parts, group) if joined[g] == n] for n in names]
        if len(groups) > 1 and gain > best[0]:
            best = gain, axis, groups, [names.index(joined[group[row[0]]]) for row in rows]
    return best[1:]


def _owners(graph: Graph, output: str, tail: list[NodeProto], parts: list[str]) -> np.ndarray:
    """The number of the part that each element of the output comes from."""
    moved = copy.copy(graph)
    moved.nodes = [NodeProto.FromString(n.SerializeToString()) for n in tail]
    read = {i for n in tail for i in n.input}
    moved.constants = {k: v for k, v in graph.constants.items() if k in read and k not in parts}
    moved.inputs = [helper.make_tensor_value_info(p, TensorProto.FLOAT, graph.shape(p)) for p in parts]
    session = open_session(moved, [output])
    (owner,) = session.run([output], {p: np.full(graph.shape(p), i, np.float32) for i, p in enumerate(parts)})
    return owner.astype(np.int64)


def _declare_parts(graph: Graph, cuts: list[Cut]) -> None:
    """The parts become outputs; graph inputs, and what is an output already, by an Identity."""
    gone = {c.output.name for c in cuts}
    outputs = [o for o in graph.outputs if o.name not in gone]
    taken = {o.name for o in graph.outputs} | {v.name for v in graph.inputs}
    for cut in cuts:
        renamed = {}
        for part in cut.parts:
            if part in graph.constants:
                continue
            name = part
            if part in taken:
                name = graph.add("Identity", [part], f"{part}_part")
                graph.shapes[name], graph.dtypes[name] = graph.shapes[part], graph.dtypes[part]
            renamed[part] = name
            taken.add(name)
            outputs.append(helper.make_tensor_value_info(name, graph.dtypes[name], graph.shapes[name]))
        cut.tail = [NodeProto.FromString(n.SerializeToString()) for n in cut.tail]
        for node in cut.tail:
            node.input[:] = [renamed.get(i, i) for i in node.input]
        cut.groups = [[renamed.get(p, p) for p in group] for group in cut.groups]
        cut.parts = [renamed.get(p, p) for p in cut.parts]
        cut.constants = {i: graph.constants[i] for n in cut.tail for i in n.input if i in graph.constants}
    if cuts:
        graph.outputs = outputs
        graph.update()


def join_outputs(graph: Graph, cuts: list[Cut], outputs: list[ValueInfoProto]) -> None:
    """Puts the `outputs` of the model together again, behind the codes of their parts."""
    for cut in cuts:
        _join(graph, cut)
    if cuts:
        graph.outputs = outputs
        graph.update()


def _join(graph: Graph, cut: Cut) -> None:
    codes, grids = {}, []
    for group in cut.groups:
        made = {p: n for p in group if (n := graph.producer(p, "DequantizeLinear")) is not None}
        q = _grid_of(graph, made, [cut.constants[p] for p in group if p in cut.constants])
        grids.append(q)
        for part in group:
            codes[part] = (
                made[part].input[0] if part in made else graph.constant(f"{part}_q", q.quantize(cut.constants[part]))
            )
    renamed = dict(codes)
    for node in cut.tail:
        for i in node.input:
            if i in cut.constants and i not in renamed:
                renamed[i] = graph.constant(i, cut.constants[i])
        for o in node.output:
            renamed[o] = graph.fresh(f"{o}_q")
            graph.shapes[renamed[o]], graph.dtypes[renamed[o]] = graph.shapes[o], TensorProto.INT16
        moved = NodeProto.FromString(node.SerializeToString())
        moved.name = renamed[node.output[0]]
        moved.input[:] = [renamed.get(i, i) for i in node.input]
        moved.output[:] = [renamed[o] for o in node.output]
        graph.nodes.append(moved)
    name = cut.output.name
    scale = graph.constant(f"{name}_scale", np.array([grids[k].scale for k in cut.members], np.float32))
    zero = graph.constant(f"{name}_zero_point", np.zeros(len(cut.members), np.int16))
    graph.add("DequantizeLinear", [renamed[name], scale, zero], [name], axis=cut.axis)


def _grid_of(graph: Graph, made: dict[str, NodeProto], constants: list[np.ndarray]) -> Quantization:
    """The grid of a group: that of its computed parts, which share one."""
    for node in made.values():
        return Quantization(float(graph.constants[node.input[1]]), 0, 16, -32768, 32767)
    h = Histogram()
    for value in constants:
        h.add(value)
    return choose_16bit(h)
