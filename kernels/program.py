"""A compiled net as plain data: tensors and a list of op calls. It is what kernels are chosen for, and what numpy runs.

A Program is what the last Relax module says, without TVM: it is stored in the artifact's folder, so that the reference
needs numpy only. `Program.run` is the definition of what every artifact computes.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import qcompile.kernels.ops  # noqa: F401  (registers the ops)
from qcompile.kernels.dialect import OPS, Type

INTEGERS = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
MOST_BYTES = 1 << 40  # of a tensor


@dataclass(frozen=True)
class Node:
    """One op call: result `name` = op(inputs, attrs). inputs name graph inputs, constants or earlier nodes.

    `body` is not empty for op "fused" only: the steps of a group that one kernel runs, whose inputs name this node's
    inputs or earlier steps; the last step is the result.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    attrs: dict[str, Any]
    body: tuple[Node, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "op": self.op,
            "inputs": list(self.inputs),
            "attrs": self.attrs,
            **({"body": [n.to_json() for n in self.body]} if self.body else {}),
        }

    @staticmethod
    def from_json(d: dict[str, Any]) -> Node:
        return Node(
            d["name"], d["op"], tuple(d["inputs"]), d["attrs"], tuple(Node.from_json(n) for n in d.get("body", ()))
        )


def evaluate_node(node: Node, values: dict[str, np.ndarray]) -> np.ndarray:
    """The node's result from the values of its inputs (numpy meaning)."""
    if node.op != "fused":
        return OPS[node.op].run([values[i] for i in node.inputs], node.attrs)
    inner = {i: values[i] for i in node.inputs}
    for step in node.body:
        inner[step.name] = evaluate_node(step, inner)
    return inner[node.body[-1].name]


def infer_node(node: Node, types: dict[str, Type]) -> Type:
    if node.op != "fused":
        return OPS[node.op].infer_type([types[i] for i in node.inputs], node.attrs)
    inner = {i: types[i] for i in node.inputs}
    for step in node.body:
        inner[step.name] = infer_node(step, inner)
    return inner[node.body[-1].name]


@dataclass
class Program:
    """inputs, outputs: name -> Type, in order; outputs name nodes (or inputs); constants: name -> array; nodes in
    execution order."""

    inputs: dict[str, Type]
    outputs: list[str]
    constants: dict[str, np.ndarray]
    nodes: list[Node]
    info: dict[str, Any] = field(default_factory=dict)

    def types(self) -> dict[str, Type]:
        """Type of every tensor by name; raises KeyError where a node reads a name not defined before it."""
        known = dict(self.inputs)
        known |= {n: Type(a.shape, str(a.dtype)) for n, a in self.constants.items()}
        for node in self.nodes:
            known[node.name] = infer_node(node, known)
        return known

    def readers(self) -> dict[str, list[Node]]:
        """The nodes that read each tensor, in order."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in set(node.inputs):
                found.setdefault(name, []).append(node)
        return found

    def run(self, inputs: dict[str, np.ndarray], keep: bool = False) -> dict[str, np.ndarray]:
        """Integers in, integers out; keep=True returns every intermediate tensor as well."""
        values: dict[str, np.ndarray] = dict(self.constants)
        for name, type_ in self.inputs.items():
            values[name] = np.asarray(inputs[name], type_.dtype).reshape(type_.shape)
        last_use = {i: k for k, node in enumerate(self.nodes) for i in node.inputs}
        for k, node in enumerate(self.nodes):
            values[node.name] = evaluate_node(node, values)
            if not keep:
                for i in node.inputs:
                    if last_use[i] == k and i not in self.outputs:
                        values.pop(i, None)
        return values if keep else {o: values[o] for o in self.outputs}

    def to_bytes(self) -> bytes:
        """A deterministic .npz: the structure as JSON and each constant as an array."""
        text = json.dumps(
            {
                "inputs": {n: [list(t.shape), t.dtype] for n, t in self.inputs.items()},
                "outputs": self.outputs,
                "constants": list(self.constants),
                "nodes": [n.to_json() for n in self.nodes],
                "info": self.info,
            }
        )
        out = io.BytesIO()
        arrays = {f"c{i}": a for i, a in enumerate(self.constants.values())}
        np.savez(out, **{"program": np.frombuffer(text.encode(), np.uint8)}, **arrays)  # type: ignore[arg-type]
        return out.getvalue()

    @staticmethod
    def load(source: str | Path | bytes) -> Program:
        """Reads what to_bytes wrote; raises ValueError on anything else, and on a program whose types do not fit."""
        try:
            arrays = _read_arrays(source if isinstance(source, bytes) else Path(source).read_bytes())
            d = json.loads(bytes(arrays["program"]))
            program = Program(
                {n: Type(tuple(s), t) for n, (s, t) in d["inputs"].items()},
                list(d["outputs"]),
                {name: arrays[f"c{i}"] for i, name in enumerate(d["constants"])},
                [Node.from_json(n) for n in d["nodes"]],
                dict(d["info"]),
            )
            _check_program(program)
        except Exception as e:  # a damaged file can make any of its readers fail
            raise ValueError(f"not a stored program: {type(e).__name__}: {e}") from e
        return program


def _read_arrays(data: bytes) -> dict[str, np.ndarray]:
    """The arrays of an .npz as to_bytes writes it: not compressed, so that no entry is larger than the file says."""
    arrays = {}
    with zipfile.ZipFile(io.BytesIO(data)) as z:
        for entry in z.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{entry.filename} is compressed")
            file = io.BytesIO(z.read(entry))
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            left = len(file.getbuffer()) - file.tell()
            if dtype.kind not in "iub" or math.prod(shape) * dtype.itemsize != left:
                raise ValueError(f"{entry.filename}: {left} bytes are no {dtype}{list(shape)}")
            file.seek(0)
            arrays[entry.filename.removesuffix(".npy")] = np.lib.format.read_array(file, allow_pickle=False)
    return arrays


def _check_program(program: Program) -> None:
    """Raises where a name is missing or twice there, or a type cannot be."""
    known = program.types()
    if len(known) != len(program.inputs) + len(program.constants) + len(program.nodes):
        raise ValueError("two tensors have one name")
    for name, type_ in known.items():
        if type_.dtype not in INTEGERS or not all(type(n) is int and n >= 0 for n in type_.shape):
            raise ValueError(f"{name} is {type_}")
        if type_.nbytes > MOST_BYTES:
            raise ValueError(f"{name} takes {type_.nbytes} bytes")
    for name in program.outputs:
        if name not in known:
            raise ValueError(f"no tensor is called {name}")
