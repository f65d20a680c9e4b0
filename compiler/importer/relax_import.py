"""ONNX to a Relax module, keeping the ONNX names for messages."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx
from qcompile.frontend.graph import label
from qcompile.importer.operators import CONVERTERS
from qcompile.targets.errors import CompileError
from tvm import relax
from tvm.relax.frontend.onnx import onnx_frontend


@dataclass(frozen=True)
class Imported:
    """module["main"] in float Relax with Q/DQ; names: Relax variable -> ONNX tensor; outputs: ONNX names."""

    module: Any
    names: dict[str, str]
    outputs: list[str]


def import_onnx(model: onnx.ModelProto) -> Imported:
    """A normalised model (static shapes, one opset) as Relax.

    Raises CompileError that names the node, where there is no converter or where it says what it does not support. What
    else is raised is a defect: the attributes and inputs of nodes are checked before.
    """
    table = onnx_frontend._get_convert_map() | CONVERTERS
    for node in model.graph.node:
        if node.op_type not in table:
            raise CompileError(f"{describe(node)}: it is not supported; rewrite it with supported operators")
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    importer = _Importer(table)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():  # TVM prints the inputs of what fails
        warnings.simplefilter("ignore")  # inputs whose names are no identifiers
        try:
            module = importer.from_onnx(model.graph, opset)
        except Exception:
            importer.bb._end_block()  # else the block builder warns when it goes
            raise
    names = dict(importer.labels)
    names |= {param.name: given.name for given, param in zip(model.graph.input, module["main"].params)}
    return Imported(module, names, [o.name for o in model.graph.output])


def describe(node: onnx.NodeProto) -> str:
    """How messages call a node."""
    return f"node {label(node)}"


class _Importer(onnx_frontend.ONNXGraphImporter):
    """Converts by a table of its own, binds every node's result to a variable at once, and remembers which node each
    variable comes from."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        super().__init__(None, "float32", keep_params_in_input=False, sanitize=True)
        self.table = table
        self.labels: dict[str, str] = {}  # Relax variable -> ONNX node
        self._pending: Any = iter(())

    def _check_for_unsupported_ops(self, graph: Any) -> None:
        """Done before, by name."""

    def _construct_nodes(self, graph: Any) -> None:
        self._pending = iter(graph.node)
        super()._construct_nodes(graph)

    def _convert_operator(self, op_name: str, inputs: Any, attrs: dict, opset: int) -> Any:
        node = next(self._pending)
        label = describe(node)
        attrs["metadata"] = {p.key: p.value for p in node.metadata_props}
        try:
            result = self.table[op_name].get_converter(opset)(self.bb, inputs, attrs, [self._nodes, self._params])
        except CompileError as e:
            raise CompileError(f"{label}: {e}") from e
        if isinstance(result, relax.Expr):
            result = self.bb.normalize(result)
        if isinstance(result, relax.Call) and not isinstance(result.ty, relax.ShapeType):
            result = self.bb.emit(result)
        self._label(result, label)
        return result

    def _label(self, expr: Any, label: str) -> None:
        """Names every variable that came with `expr` and has no name yet."""
        if isinstance(expr, relax.Var):
            if expr.name not in self.labels and isinstance(expr, relax.DataflowVar):
                self.labels[expr.name] = label
                self._label(self.bb.lookup_binding(expr), label)
        elif isinstance(expr, relax.Call):
            for arg in expr.args:
                self._label(arg, label)
        elif isinstance(expr, relax.Tuple):
            for field in expr.fields:
                self._label(field, label)
        elif isinstance(expr, relax.TupleGetItem):
            self._label(expr.tuple_value, label)
