"""How 8-bit activations are stored on targets whose dot products want one unsigned side (x86): u8 = s8 + 128.

Every int8 activation becomes uint8 with zero points, limits and tables moved by 128, which changes no result: the
meaning of each op holds for both. Graph inputs and outputs keep their int8; so do masks, numbers of elements, and the
integers of arithmetic that has no zero point.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from qcompile.kernels.dialect import OPS, RESULT
from qcompile.kernels.program import Node, Program

OFFSET = 128


def plain_arguments(node: Node) -> tuple[str, ...]:
    """The arguments of `node`, and "result", that mean themselves rather than a distance from a zero point."""
    return OPS[node.op].plain(node.attrs)


def unsigned_activations(program: Program) -> Program:
    """Expects unfused nodes. Adds casts where a tensor is needed in both forms."""
    types = program.types()
    constants = dict(program.constants)
    nodes: list[Node] = []
    shifted: dict[str, str] = {}  # int8 tensor -> its uint8 form
    plain: dict[str, str] = {}  # int8 tensor whose node now gives uint8 -> its int8 form

    def fresh(name: str) -> str:
        while name in types or name in constants:  # inputs are called as in the model
            name += "_"
        return name

    def as_unsigned(name: str) -> str:
        if name not in shifted:
            if name in constants:
                shifted[name] = fresh(f"{name}_u8")
                constants[shifted[name]] = (constants[name].astype(np.int16) + OFFSET).astype(np.uint8)
            else:
                shifted[name] = fresh(f"{name}_u8")
                nodes.append(Node(shifted[name], "cast", (name,), {"offset": OFFSET, "dtype": "uint8"}))
        return shifted[name]

    def as_signed(name: str) -> str:
        if name in constants or name not in shifted or name in plain.values() or name not in flipped:
            return name
        if name not in plain:
            plain[name] = fresh(f"{name}_s8")
            nodes.append(Node(plain[name], "cast", (shifted[name],), {"offset": -OFFSET, "dtype": "int8"}))
        return plain[name]

    flipped: set[str] = set()
    for node in program.nodes:
        op = OPS[node.op]
        attrs: dict[str, Any] = dict(node.attrs)
        inputs = []
        for position, name in enumerate(node.inputs):
            argument = op.argument(position)
            if types[name].dtype != "int8" or (argument in op.parameters and argument != "table"):
                inputs.append(name)
            elif argument in plain_arguments(node):
                inputs.append(as_signed(name))
            elif argument == "table":
                inputs.append(as_unsigned(name))
            else:
                inputs.append(as_unsigned(name))
                for key in (f"{argument}_zero_point", "first", "value"):
                    if key in attrs:
                        old = attrs[key]
                        attrs[key] = [z + OFFSET for z in old] if isinstance(old, list) else old + OFFSET
                if node.op == "cast":
                    attrs["offset"] -= OFFSET
        if types[node.name].dtype == "int8" and RESULT not in plain_arguments(node):
            for key in ("zero_point", "qmin", "qmax"):
                if key in attrs:
                    attrs[key] += OFFSET
            if "dtype" in attrs:
                attrs["dtype"] = "uint8"
            if node.op == "cast":
                attrs["offset"] += OFFSET
            if node.op == "cast" and attrs["offset"] == 0 and types[node.inputs[0]].dtype == "uint8":
                shifted[node.name] = node.inputs[0]  # the bytes of an input without sign, as they came
                flipped.add(node.name)
                continue
            new = replace(node, name=f"{node.name}_u8", inputs=tuple(inputs), attrs=attrs)
            shifted[node.name] = new.name
            flipped.add(node.name)
        else:
            new = replace(node, inputs=tuple(inputs), attrs=attrs)
        nodes.append(new)
    outputs = []
    for name in program.outputs:
        outputs.append(as_signed(name) if types[name].dtype == "int8" else name)
    result = replace(program, nodes=nodes, constants=constants, outputs=outputs)
    known = result.types()
    for before, after in zip(program.outputs, outputs):
        assert known[after] == types[before], f"{before} changed its type"
    return result
