"""Removes what the reading of the float graph leaves behind: reshapes and moves between an op and its elementwise
steps, dead nodes."""

from __future__ import annotations

from dataclasses import replace

from qcompile.kernels.dialect import OPS, Type
from qcompile.kernels.fusion import operand_kind, tensor_inputs
from qcompile.kernels.program import Node, Program
from qcompile.passes.sink_moves import sink_moves


def remove_dead(program: Program) -> Program:
    """Drops nodes and constants that no output needs."""
    needed, kept = set(program.outputs), []
    for node in reversed(program.nodes):
        if node.name in needed:
            kept.append(node)
            needed.update(node.inputs)
    constants = {k: v for k, v in program.constants.items() if k in needed}
    return replace(program, nodes=kept[::-1], constants=constants)


def merge_reshapes(program: Program) -> Program:
    """reshape(reshape(x)) becomes one; a reshape to the same shape disappears."""
    types = program.types()
    alias: dict[str, str] = {}  # a reshape without effect -> its input
    source: dict[str, str] = {}  # a reshape -> what its input is a reshape of
    nodes: list[Node] = []
    for node in program.nodes:
        node = replace(node, inputs=tuple(alias.get(i, i) for i in node.inputs))
        if node.op == "reshape":
            origin = source.get(node.inputs[0], node.inputs[0])
            if tuple(node.attrs["shape"]) == types[origin].shape and node.name not in program.outputs:
                alias[node.name] = origin
                continue
            source[node.name] = origin
            node = replace(node, inputs=(origin,))
        nodes.append(node)
    return remove_dead(replace(program, nodes=nodes))


def sink_reshapes(program: Program) -> Program:
    """step(reshape(x), ...) becomes reshape(step(x, ...)) for elementwise steps, so that the step can join x's kernel.

    Done where the reshape keeps the last axis (per-channel constants still fit) and the other operands have the same
    shape, one element, or one for each channel.
    """
    types = program.types()
    users: dict[str, int] = {}
    for node in program.nodes:
        for i in node.inputs:
            users[i] = users.get(i, 0) + 1
    by_name = {n.name: n for n in program.nodes}
    nodes: list[Node] = []
    produced: dict[str, Node] = {}
    for node in program.nodes:
        source = produced.get(node.inputs[0]) if node.inputs else None
        if (
            OPS[node.op].elementwise
            and source is not None
            and source.op == "reshape"
            and users[source.name] == 1
            and source.name not in program.outputs
            and source.inputs[0] in by_name
        ):
            inner, outer = types[source.inputs[0]], types[source.name]
            others = tensor_inputs(node)[1:]
            kinds = {o: operand_kind(outer.shape, types[o].shape) for o in others}
            if (
                inner.shape
                and outer.shape
                and inner.shape[-1] == outer.shape[-1]
                and all(kind in ("same", "scalar", "channel") for kind in kinds.values())
            ):
                views: dict[str | None, tuple[int, ...]]
                views = {"same": inner.shape, "channel": inner.shape[-1:], "scalar": (1,)}
                moved = []
                for i in node.inputs[1:]:
                    shape = views[kinds[i]] if i in kinds else types[i].shape
                    if shape != types[i].shape:
                        view = Node(f"{node.name}_{i}", "reshape", (i,), {"shape": list(shape)})
                        nodes.append(view)
                        types[view.name] = Type(shape, types[i].dtype)
                        moved.append(view.name)
                    else:
                        moved.append(i)
                step = Node(f"{node.name}_flat", node.op, (source.inputs[0], *moved), node.attrs)
                result = Node(node.name, "reshape", (step.name,), {"shape": list(types[node.name].shape)})
                types[step.name] = Type(inner.shape, types[node.name].dtype)
                users[step.name] = 1
                by_name[step.name] = step
                nodes += [step, result]
                produced[step.name], produced[result.name] = step, result
                continue
        nodes.append(node)
        produced[node.name] = node
    return merge_reshapes(replace(program, nodes=nodes))


def tidy(program: Program) -> Program:
    return sink_reshapes(remove_dead(sink_moves(merge_reshapes(remove_dead(program)))))
