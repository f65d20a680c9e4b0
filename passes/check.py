"""What every stage must leave: a table of rules, run between passes. A failure prints the node with its inputs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from qcompile.kernels.dialect import OPS, Type
from qcompile.kernels.program import Node, Program, infer_node

INTEGER_DTYPES = {"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"}
Types = dict[str, Type]


def _steps(node: Node) -> tuple[Node, ...]:
    return node.body if node.op == "fused" else (node,)


def _known_op(node: Node, types: Types, program: Program) -> str:
    unknown = [s.op for s in _steps(node) if s.op not in OPS]
    return f"unknown op {unknown[0]}" if unknown else ""


def _attributes(node: Node, types: Types, program: Program) -> str:
    for s in _steps(node):
        if set(s.attrs) != set(OPS[s.op].attributes):
            return f"{s.op} has attributes {sorted(s.attrs)}, not {sorted(OPS[s.op].attributes)}"
    return ""


def _integer(node: Node, types: Types, program: Program) -> str:
    wrong = [f"{n} {types[n].dtype}" for n in (*node.inputs, node.name) if types[n].dtype not in INTEGER_DTYPES]
    return f"not an integer tensor: {wrong[0]}" if wrong else ""


def _weights(node: Node, types: Types, program: Program) -> str:
    for s in _steps(node):
        if "weight" in OPS[s.op].parameters:
            weight = program.constants.get(s.inputs[OPS[s.op].arguments.index("weight")])
            if weight is None or weight.dtype != np.int8:
                return f"the weights of {s.op} must be constant int8"
    return ""


def _limits(node: Node, types: Types, program: Program) -> str:
    for s in _steps(node):
        a = s.attrs
        if "qmin" in a and not (np.iinfo(a["dtype"]).min <= a["qmin"] <= a["qmax"] <= np.iinfo(a["dtype"]).max):
            return f"limits {a['qmin']}, {a['qmax']} do not lie in {a['dtype']}"
    return ""


RULES: dict[str, Callable[[Node, Types, Program], str]] = {
    "attributes are complete": _attributes,
    "tensors are integers": _integer,
    "weights are constant": _weights,
    "limits are in range": _limits,
}


def check(program: Program, stage: str) -> None:
    """Raises TypeError, a defect of the compiler, naming stage, rule and node."""
    types: Types = dict(program.inputs) | {n: Type(a.shape, str(a.dtype)) for n, a in program.constants.items()}
    for node in program.nodes:
        missing = [i for i in node.inputs if i not in types]
        problem = f"reads {missing[0]}, which is not made before it" if missing else ""
        if not problem and node.name in types:
            problem = "is made twice"
        if not problem:
            problem = _known_op(node, types, program)  # before its type is inferred
        if not problem:
            types[node.name] = infer_node(node, types)
            problem = next(
                (f"{name}: {found}" for name, rule in RULES.items() if (found := rule(node, types, program))), ""
            )
        if problem:
            sources = "".join(f"\n    {i}: {types[i].dtype}{list(types[i].shape)}" for i in node.inputs if i in types)
            raise TypeError(f"after {stage}: {node.name} = {node.op}({', '.join(node.inputs)}) {problem}{sources}")
    lost = [o for o in program.outputs if o not in types]
    if lost:
        raise TypeError(f"after {stage}: output {lost[0]} is not made")
