"""Sums that are moved about before they are rounded are rounded first: step(move(x), ...) becomes move(step(x, ...)),
so that the step joins the kernel that makes x, and 8-bit codes are moved in place of 32-bit sums."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from qcompile.kernels.dialect import OPS, Type
from qcompile.kernels.program import Node, Program, infer_node


def sink_moves(program: Program) -> Program:
    """Done where elements keep their channel, though there may be more of these before the move: a channel of the
    result is the number of one of x modulo the channels. The step's other operands must be constants of one element or
    one for each channel; they are repeated."""
    types, readers = program.types(), program.readers()
    alone = {name for name, nodes in readers.items() if len(nodes) == 1 and name not in program.outputs}
    constants, makers, sunk = dict(program.constants), dict[str, Node](), set[str]()
    nodes: list[Node] = []
    for node in program.nodes:
        source = node.inputs[0] if node.inputs else ""
        path = _moves(source, makers, types, alone) if OPS[node.op].elementwise else []
        if path and (types[source].dtype == "int32" or source in sunk):
            inputs = _repeated(node, path[-1].inputs[0], types, constants)
            made_of, makes = types[source], types[node.name]
            if inputs and makes.shape == made_of.shape and _bytes(makes) <= _bytes(made_of):
                step = Node(f"{node.name}_sums", node.op, inputs, node.attrs)
                made = [step]
                for k, move in enumerate(reversed(path)):
                    last = move is path[0]
                    name = node.name if last else f"{node.name}_{k}"
                    made.append(replace(move, name=name, inputs=(made[-1].name,)))
                for new in made:
                    types[new.name] = infer_node(new, types)
                    makers[new.name] = new
                alone.update(new.name for new in made[:-1])
                sunk.add(node.name)
                nodes += made
                continue
        nodes.append(node)
        makers[node.name] = node
    return replace(program, nodes=nodes, constants=constants)


def _moves(name: str, makers: dict[str, Node], types: dict[str, Type], alone: set[str]) -> list[Node]:
    """The moves that make `name` and that nothing else reads, the last first, down to sums or codes of an op."""
    path: list[Node] = []
    channels = types[name].shape[-1:] if name in types else ()
    while name in alone and name in makers and _keeps_channels(makers[name], types, channels):
        path.append(makers[name])
        name = path[-1].inputs[0]
    # reshapes that keep the last axis are for `sink_reshapes`, which keeps more operands
    kept = all(m.op == "reshape" and types[m.inputs[0]].shape[-1:] == types[m.name].shape[-1:] for m in path)
    return path if name in makers and not kept else []


def _keeps_channels(node: Node, types: dict[str, Type], channels: tuple[int, ...]) -> bool:
    if node.op not in ("reshape", "transpose", "slice") or not channels or not channels[0]:
        return False
    before, after = types[node.inputs[0]].shape, types[node.name].shape
    if not before or before[-1] % channels[0] or after[-1] % channels[0]:
        return False
    if node.op == "transpose":
        return node.attrs["axes"][-1] == len(before) - 1
    return node.op == "reshape" or (before[-1] == after[-1] and node.attrs["step"][-1] == 1)


def _repeated(
    node: Node, source: str, types: dict[str, Type], constants: dict[str, np.ndarray]
) -> tuple[str, ...] | None:
    """The inputs of the step on `source`; None where one cannot be repeated."""
    channels, wanted = types[node.name].shape[-1], types[source].shape[-1]
    inputs = [source]
    for argument, name in zip(OPS[node.op].arguments[1:], node.inputs[1:]):
        size = types[name].size
        if argument == "table" or size == 1 or (size == channels == wanted and name in constants):
            inputs.append(name)
        elif name in constants and size == channels == types[name].shape[-1]:
            inputs.append(f"{name}_{wanted}")
            constants[inputs[-1]] = np.tile(constants[name].reshape(-1), wanted // channels)
            types[inputs[-1]] = Type((wanted,), types[name].dtype)
        else:
            return None
    return tuple(inputs)


def _bytes(type_: Type) -> int:
    """Of an element."""
    return np.dtype(type_.dtype).itemsize


__all__ = ["sink_moves"]
