"""ONNX to a Relax module, keeping the ONNX names for messages."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest import mock

import onnx
from qcompile.importer.converters import CONVERTERS
from qcompile.targets.errors import CompileError
from tvm.relax.frontend.onnx import onnx_frontend


@dataclass(frozen=True)
class Imported:
    """module["main"] in float Relax with Q/DQ; names: Relax variable -> ONNX tensor; outputs: ONNX names."""

    module: Any
    names: dict[str, str]
    outputs: list[str]


def import_onnx(model: onnx.ModelProto) -> Imported:
    """A normalised model (static shapes, one opset) as Relax. Raises CompileError naming a node that has no converter."""
    table = onnx_frontend._get_convert_map() | CONVERTERS
    for node in model.graph.node:
        if node.op_type not in table:
            where = node.name or (node.output[0] if node.output else "?")
            raise CompileError(f"node {where}: operator {node.op_type} is not supported; rewrite it with supported operators")
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    importer = onnx_frontend.ONNXGraphImporter(None, "float32", keep_params_in_input=False, sanitize=True)
    producers = {o: n for n in model.graph.node for o in n.output}
    with mock.patch.object(onnx_frontend, "_get_convert_map", lambda: table), mock.patch("builtins.print"):
        try:
            module = importer.from_onnx(model.graph, opset)
        except CompileError:
            raise
        except Exception as e:
            done = set(importer._nodes)
            node = next((n for n in model.graph.node if n.output and n.output[0] not in done), None)
            label = f"node {node.name or node.output[0]} ({node.op_type})" if node else "the model"
            raise CompileError(f"{label} cannot be imported: {str(e).strip().splitlines()[-1][:200] if str(e).strip() else type(e).__name__}") from e
    names: dict[str, str] = {}
    for tensor, expr in importer._nodes.items():
        label = getattr(expr, "name", None) or getattr(expr, "name_hint", None)
        if label:
            node = producers.get(tensor)
            names.setdefault(str(label), f"node {node.name or tensor} ({node.op_type})" if node else tensor)
    for given, param in zip((i.name for i in model.graph.input), module["main"].params):
        names[param.name] = given
    return Imported(module, names, [o.name for o in model.graph.output])
