"""Collects the integer program while the float graph is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from qcompile.kernels.dialect import OPS, Type
from qcompile.kernels.program import Node, Program


class Builder:
    """Emits ops of the integer dialect; equal constants and equal calls are shared.

    reserved: names of inputs; nothing else has them, or names that passes could lengthen to them. where: how messages
    call what is being read; `origins` has that for each node.
    """

    def __init__(self, reserved: Iterable[str] = (), where: Callable[[], str] = str) -> None:
        self._reserved, self._where = frozenset(reserved), where
        self.origins: dict[str, str] = {}
        self.program = Program({}, [], {}, [])
        self.types: dict[str, Type] = {}
        self.intervals: dict[str, tuple[int, int]] = {}  # of integers, where they are known to be narrower than a type
        self._constants: dict[tuple, str] = {}
        self._calls: dict[tuple, str] = {}

    def input(self, name: str, type_: Type) -> str:
        self.program.inputs[name] = self.types[name] = type_
        return name

    def constant(self, array: np.ndarray, hint: str = "const") -> str:
        array = np.ascontiguousarray(array)
        key = (array.shape, str(array.dtype), array.tobytes())
        if key not in self._constants:
            name = self._fresh(hint)
            self._constants[key] = name
            self.program.constants[name] = array
            self.types[name] = Type(array.shape, str(array.dtype))
        return self._constants[key]

    def emit(self, op: str, inputs: list[str], **attrs: Any) -> str:
        """The name of the result; the same call twice gives the same name."""
        attrs = {k: _plain(v) for k, v in attrs.items()}
        key = (op, tuple(inputs), repr(sorted(attrs.items())))
        if key not in self._calls:
            name = self._fresh(op)
            self.types[name] = OPS[op].infer_type([self.types[i] for i in inputs], attrs)
            self.program.nodes.append(Node(name, op, tuple(inputs), attrs))
            self._calls[key] = name
            self.origins[name] = self._where()
        return self._calls[key]

    def _fresh(self, hint: str) -> str:
        name = f"{hint}_{len(self.types)}"
        while name in self.types or any(taken.startswith(name) for taken in self._reserved):
            name += "_"
        return name


def _plain(v: Any) -> Any:
    """Attributes as plain integers, strings and lists, as JSON and Relax hold them."""
    if isinstance(v, list | tuple | np.ndarray):
        return [_plain(i) for i in v]
    if isinstance(v, bool | str):
        return v
    return int(v)
