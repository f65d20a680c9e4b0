"""Control flow whose course is known when the model is compiled: If of a constant, Loop and Scan of a fixed number of
steps. What depends on data is refused by name."""

from __future__ import annotations

import numpy as np
from onnx import AttributeProto, GraphProto, NodeProto, numpy_helper
from qcompile.frontend.graph import Graph, attribute, label
from qcompile.frontend.shapes import infer_shapes
from qcompile.targets.errors import CompileError

MOST_STEPS = 512  # an unrolled loop of more would make a program of tens of thousands of kernels
MOST_NODES = 50_000  # of all unrolled loops together
AXES_INPUT = 13  # the opset in which the axes of Unsqueeze became an input
SEQUENCES = {
    "SequenceMap",
    "Optional",
    "OptionalGetElement",
    "OptionalHasElement",
    "SequenceConstruct",
    "SequenceAt",
    "SequenceErase",
    "SequenceInsert",
    "SequenceLength",
    "SplitToSequence",
    "ConcatFromSequence",
    "SequenceEmpty",
}
CONTROL_FLOW = {"If", "Loop", "Scan"}


def unroll(graph: Graph) -> None:
    """Inline every If whose condition is constant, every Loop of constant trip count and every Scan."""
    for node in list(graph.nodes):
        if node.op_type == "If" and node.input[0] in graph.constants:
            taken = "then_branch" if graph.constants[node.input[0]].reshape(-1)[0] else "else_branch"
            _splice(graph, node, _inline(graph, attribute(node, taken), [], f"{node.output[0]}_if"))
        elif node.op_type == "Loop":
            _loop(graph, node)
        elif node.op_type == "Scan":
            _scan(graph, node)


def choose(graph: Graph) -> bool:
    """Every If whose branches give equal shapes runs both, and Where chooses; whether there was one.

    Conditions are constant or computed; branches with loops or Ifs inside follow when they are unrolled.
    """
    done = False
    for node in [n for n in graph.nodes if n.op_type == "If"]:
        base = node.output[0] or node.name
        branches = [attribute(node, f"{n}_branch") for n in ("then", "else")]
        values = [_inline(graph, body, [], f"{base}_{n}") for n, body in zip(("then", "else"), branches)]
        graph.nodes = [n for n in graph.nodes if n is not node]
        condition = node.input[0]
        if graph.rank(condition) != 0:
            single = graph.constant(f"{base}_single", np.zeros(0, np.int64))
            condition = graph.add("Reshape", [condition, single], f"{base}_if")
        for output, *pair in zip(node.output, *values):
            if output:
                graph.add("Where", [condition, *pair], [output])
        graph.update()
        infer_shapes(graph)
        shapes = [[graph.shape(v) for v in side] for side in values]
        if shapes[0] != shapes[1] or None in shapes[0]:  # Where would repeat the smaller in silence
            known = " and ".join(str([s if s is None else list(s) for s in side]) for side in shapes)
            raise CompileError(
                f"node {label(node)}: its branches give shapes {known}, and its condition depends on data; export the "
                "model with one of them, or fix the input that it depends on with --set NAME=VALUE"
            )
        done = True
    return done


def refuse_control_flow(graph: Graph) -> None:
    """Raise CompileError for the first If, Loop or Scan that is left."""
    for node in graph.nodes:
        if node.op_type in CONTROL_FLOW:
            what = "its condition" if node.op_type == "If" else "its number of steps"
            raise CompileError(
                f"node {label(node)}: control flow and sequences cannot be compiled to a static integer program where "
                f"{what} depends on data; export the model with fixed shapes and constant conditions, or fix the input "
                "that it depends on with --set NAME=VALUE"
            )


def _splice(graph: Graph, node: NodeProto, values: list[str]) -> None:
    """The outputs of `node` are `values` from now on."""
    graph.nodes = [n for n in graph.nodes if n is not node]
    for output, value in zip(node.output, values):
        if output:
            graph.add("Identity", [value], [output])
    graph.update()


def _inline(graph: Graph, body: GraphProto, inputs: list[str], base: str) -> list[str]:
    """A copy of `body` in `graph`, its inputs being `inputs`; the names of its outputs. Other names are the graph's."""
    names = dict(zip((v.name for v in body.input), inputs))
    for tensor in body.initializer:
        names[tensor.name] = graph.constant(f"{base}_{tensor.name}", numpy_helper.to_array(tensor))
    for node in body.node:
        graph.nodes.append(_renamed(graph, node, names, base))
    return [names.get(v.name, v.name) for v in body.output]


def _renamed(graph: Graph, node: NodeProto, names: dict[str, str], base: str) -> NodeProto:
    copy = NodeProto.FromString(node.SerializeToString())
    copy.input[:] = [names.get(i, i) for i in node.input]
    for i, name in enumerate(node.output):
        if name:
            names[name] = copy.output[i] = graph.fresh(f"{base}_{name}")
    copy.name = f"{base}_{node.name}" if node.name else ""
    for a in copy.attribute:
        if a.type == AttributeProto.GRAPH:
            _rename_outer(a.g, names)
    return copy


def _rename_outer(body: GraphProto, names: dict[str, str]) -> None:
    """Names of the enclosing graph inside a nested one."""
    own = {v.name for v in body.input} | {t.name for t in body.initializer} | {o for n in body.node for o in n.output}
    outer = {k: v for k, v in names.items() if k not in own}
    for node in body.node:
        node.input[:] = [outer.get(i, i) for i in node.input]
        for a in node.attribute:
            if a.type == AttributeProto.GRAPH:
                _rename_outer(a.g, outer)
    for value in body.output:
        value.name = outer.get(value.name, value.name)


def _loop(graph: Graph, node: NodeProto) -> None:
    """Loop: trip count, condition, carried values; the body takes (iteration, condition, carried) and returns
    (condition, carried, scanned)."""
    trips = graph.scalar(node.input[0]) if node.input[0] else None
    start = graph.constants.get(node.input[1]) if len(node.input) > 1 and node.input[1] else np.array(True)
    body: GraphProto = attribute(node, "body")
    if trips is None or start is None or not _goes_on(body):
        return
    count = int(trips) if start.reshape(-1)[0] else 0
    _check_count(graph, node, count)
    carried, base = list(node.input[2:]), node.output[0] or node.name
    rows: list[list[str]] = [[] for _ in body.output[1 + len(carried) :]]
    for step in range(count):
        given = [graph.constant(f"{base}_step", np.array(step, np.int64)), graph.constant(f"{base}_on", np.array(True))]
        made = _inline(graph, body, [*given, *carried], f"{base}_{step}")
        carried, scanned = made[1 : 1 + len(carried)], made[1 + len(carried) :]
        for row, value in zip(rows, scanned):
            row.append(_unsqueezed(graph, value, 0))
    if not count and rows:
        raise CompileError(f"node {label(node)}: a loop of no steps has empty results")
    _splice(graph, node, [*carried, *(_joined(graph, row, 0) for row in rows)])


def _goes_on(body: GraphProto) -> bool:
    """Whether the condition that the body returns is the one it got, or a constant true."""
    name, makers = body.output[0].name, {o: n for n in body.node for o in n.output}
    while name in makers and makers[name].op_type in ("Identity", "Cast"):
        name = makers[name].input[0]
    constants = {t.name: numpy_helper.to_array(t) for t in body.initializer}
    if name in makers and makers[name].op_type == "Constant":
        constants[name] = numpy_helper.to_array(makers[name].attribute[0].t)
    return name == body.input[1].name or bool(name in constants and constants[name].all())


def _scan(graph: Graph, node: NodeProto) -> None:
    """Scan: states, then tensors of which each step takes one slice; the body returns states, then one slice each."""
    body: GraphProto = attribute(node, "body")
    scanned = attribute(node, "num_scan_inputs")
    states, sources = list(node.input[: len(node.input) - scanned]), list(node.input[len(node.input) - scanned :])
    results = len(body.output) - len(states)
    shapes = [graph.shape(s) for s in sources]
    if any(s is None for s in shapes):
        return
    axes = attribute(node, "scan_input_axes") or [0] * scanned
    backward = attribute(node, "scan_input_directions") or [0] * scanned
    out_axes = attribute(node, "scan_output_axes") or [0] * results
    out_backward = attribute(node, "scan_output_directions") or [0] * results
    count, base = shapes[0][axes[0]] if shapes and shapes[0] else 0, node.output[0] or node.name
    _check_count(graph, node, count)
    rows: list[list[str]] = [[] for _ in range(results)]
    for step in range(count):
        slices = []
        for source, axis, turned in zip(sources, axes, backward):
            at = graph.constant(f"{base}_at", np.array(count - 1 - step if turned else step, np.int64))
            slices.append(graph.add("Gather", [source, at], f"{base}_slice", axis=axis))
        made = _inline(graph, body, [*states, *slices], f"{base}_{step}")
        states = made[: len(states)]
        for row, value, axis in zip(rows, made[len(states) :], out_axes):
            row.append(_unsqueezed(graph, value, axis))
    ordered = [row[::-1] if turned else row for row, turned in zip(rows, out_backward)]
    _splice(graph, node, [*states, *(_joined(graph, row, axis) for row, axis in zip(ordered, out_axes))])


def _check_count(graph: Graph, node: NodeProto, count: int) -> None:
    """Raise CompileError where a loop, with those inside it, is too long to be unrolled."""
    if count > MOST_STEPS:
        raise CompileError(
            f"node {label(node)}: {count} steps are too many to unroll (at most {MOST_STEPS}); "
            "export recurrent layers as LSTM, GRU or RNN"
        )
    nodes = count * _size(graph, attribute(node, "body"))
    if nodes > MOST_NODES or len(graph.nodes) + nodes > 2 * MOST_NODES:
        raise CompileError(
            f"node {label(node)}: its {count} steps, with the loops inside it, are {nodes} nodes, too many to unroll "
            f"(at most {MOST_NODES}); export recurrent layers as LSTM, GRU or RNN"
        )


def _size(graph: Graph, body: GraphProto) -> int:
    """Nodes of a body, loops of known length unrolled."""
    total = 0
    for node in body.node:
        inner = [_size(graph, a.g) for a in node.attribute if a.type == AttributeProto.GRAPH]
        trips = graph.scalar(node.input[0]) if node.op_type == "Loop" and node.input[0] else None
        total += 1 + int(trips or 1) * sum(inner)
    return total


def _unsqueezed(graph: Graph, name: str, axis: int) -> str:
    if graph.opsets.get("", AXES_INPUT) < AXES_INPUT:
        return graph.add("Unsqueeze", [name], f"{name}_row", axes=[axis])
    return graph.add("Unsqueeze", [name, graph.constant(f"{name}_axis", np.array([axis], np.int64))], f"{name}_row")


def _joined(graph: Graph, rows: list[str], axis: int) -> str:
    return rows[0] if len(rows) == 1 else graph.add("Concat", rows, f"{rows[0]}_rows", axis=axis)
