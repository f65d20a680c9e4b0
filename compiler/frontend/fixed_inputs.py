"""Inputs that the user fixes (`--set sr=16000`): they become constants before anything is folded."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import helper
from qcompile.frontend.graph import Graph
from qcompile.targets.errors import CompileError


def parse_constants(texts: tuple[str, ...]) -> dict[str, Any]:
    """("sr=16000", "sizes=[1, 2]", ...) as {"sr": 16000, "sizes": [1, 2]}; values are JSON. CompileError elsewhere."""
    constants = {}
    for text in texts:
        name, _, value = text.rpartition("=")
        if name in constants:
            raise CompileError(f"--set {name} is given twice")
        try:
            constants[name] = json.loads(value)
        except (ValueError, RecursionError) as e:
            raise CompileError(f"--set {text!r} is not of the form NAME=16000, NAME=true or NAME=[1,2]") from e
    return constants


def fix_inputs(graph: Graph, constants: Mapping[str, Any]) -> None:
    """Turn the inputs of these names into constants of their declared types; one number fills a declared shape.

    Raises CompileError for a name that is no input, and for a value that fits not its shape or type.
    """
    for name, given in constants.items():
        found = next((v for v in graph.inputs if v.name == name), None)
        if found is None:
            known = ", ".join(v.name for v in graph.inputs)
            raise CompileError(f"--set {name}: the model has no such input; its inputs are {known}")
        tensor = found.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        try:
            plain = np.asarray(given)
            value = plain.astype(dtype)
            exact = plain.dtype.kind in "biuf" and (value.dtype.kind == "f" or bool((value == plain).all()))
        except (TypeError, ValueError, OverflowError):
            exact = False
        if not exact:
            raise CompileError(f"--set {name}={given!r} is no {dtype} number or list of such")
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise CompileError(f"--set {name}={given!r}: NaN and infinity are no {dtype} numbers to compute with")
        if value.ndim == 0 and None not in dims:
            value = np.full([d or 1 for d in dims], value)
        if value.ndim != len(dims) or any(d not in (None, n) for d, n in zip(dims, value.shape)):
            wanted = ["?" if d is None else d for d in dims]
            raise CompileError(f"--set {name}: its shape is {list(value.shape)}, the model declares {wanted}")
        graph.inputs = [v for v in graph.inputs if v.name != name]
        graph.constants[name] = value
    if constants:
        graph.update()
