"""The integer program as a Relax module of `qc.*` ops, and back.

The ops are registered with their type rules, so Relax checks every call, TVMScript prints it, and any Relax tool can
read it. A fused node is one call of `qc.fused` whose body is an attribute.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import tvm
from qcompile.kernels.dialect import OPS, Type
from qcompile.kernels.program import Node, Program, infer_node
from tvm import relax
from tvm.ir import Op, register_op_attr
from tvm.ir.expr import GenericConst


def _type(expr: Any) -> Type:
    return Type(tuple(int(i) for i in expr.ty.shape), str(expr.ty.dtype))


def _tensor_type(t: Type) -> Any:
    return relax.TensorType(t.shape, t.dtype)


@cache
def register_ops() -> None:
    """Makes `qc.<name>` of every op of the dialect, and `qc.fused`, known to Relax; done once a process."""
    for name in [*OPS, "fused"]:

        def infer(call: Any, _builder: Any) -> Any:
            node, inputs = _node("result", call, [f"i{k}" for k in range(len(call.args))])
            return _tensor_type(infer_node(node, dict(zip(inputs, map(_type, call.args)))))

        register_op_attr(f"qc.{name}", "FInferType", infer)
        register_op_attr(f"qc.{name}", "FPurity", True)


def _python(value: Any) -> Any:
    """An attribute as the dialect has it: str, bool, int, or a list of these."""
    if isinstance(value, str | bool):
        return value
    return [_python(v) for v in value] if hasattr(value, "__len__") else int(value)


def _node(name: str, call: Any, inputs: list[str]) -> tuple[Node, list[str]]:
    """(the node that a call stands for, the names under which its body knows the inputs)."""
    op, attrs = call.op.name.removeprefix("qc."), {k: call.attrs[k] for k in call.attrs.keys()}  # noqa: SIM118
    if op != "fused":
        return Node(name, op, tuple(inputs), {k: _python(v) for k, v in attrs.items()}), inputs
    body = tuple(Node.from_json(n) for n in json.loads(str(attrs["body"])))
    wanted = [str(i) for i in attrs["inputs"]]
    return Node(name, op, tuple(wanted), {}, body), wanted


def to_relax(program: Program) -> Any:
    """An IRModule with one function "main"."""
    register_ops()
    builder = relax.BlockBuilder()
    values: dict[str, Any] = {n: relax.Var(n, _tensor_type(t)) for n, t in program.inputs.items()}
    values |= {n: relax.const(np.ascontiguousarray(a)) for n, a in program.constants.items()}
    with builder.function("main", list(values[n] for n in program.inputs)):
        with builder.dataflow():
            for node in program.nodes:
                given = (
                    {"inputs": list(node.inputs), "body": json.dumps([n.to_json() for n in node.body])}
                    if node.body
                    else node.attrs
                )
                attrs = tvm.ir.make_node("ir.DictAttrs", **given)
                values[node.name] = builder.emit(
                    relax.Call(Op.get(f"qc.{node.op}"), [values[i] for i in node.inputs], attrs), node.name
                )
            result = builder.emit_output(relax.Tuple([values[o] for o in program.outputs]))
        builder.emit_func_output(result)
    return builder.get()


def from_relax(module: Any, info: dict[str, Any] | None = None) -> Program:
    """The program of a module that `to_relax` made, or that a Relax pass made of it. Constants get fresh names."""
    function = module["main"]
    program = Program({}, [], {}, [], dict(info or {}))
    names: dict[Any, str] = {}
    for param in function.params:
        names[param] = param.name
        program.inputs[param.name] = _type(param)

    def name_of(expr: Any) -> str:
        if isinstance(expr, GenericConst):
            name = f"const_{len(program.constants)}"
            program.constants[name] = expr.value.numpy()
            return name
        return names[expr]

    for block in function.body.blocks:
        for binding in block.bindings:
            value = binding.value
            if isinstance(value, relax.Tuple):
                program.outputs = [name_of(f) for f in value.fields]
            elif isinstance(value, relax.Call):
                inputs = [name_of(a) for a in value.args]
                node, inner = _node(binding.var.name, value, inputs)
                if node.body:
                    renamed = dict(zip(inner, inputs))
                    body = tuple(
                        Node(s.name, s.op, tuple(renamed.get(i, i) for i in s.inputs), s.attrs) for s in node.body
                    )
                    node = Node(node.name, node.op, tuple(inputs), node.attrs, body)
                names[binding.var] = node.name
                program.nodes.append(node)
            else:
                names[binding.var] = name_of(value)
    return program
