"""Reads an ONNX model and refuses, with one clear message, what the compiler could not honour."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from qcompile.files import existing_file
from qcompile.frontend.control_flow import SEQUENCES
from qcompile.frontend.domains import with_domains
from qcompile.frontend.external_data import read_external_data
from qcompile.frontend.graph import label
from qcompile.frontend.limits import limits
from qcompile.frontend.local_functions import DOMAIN
from qcompile.frontend.opset import OLDEST, TARGET
from qcompile.frontend.text import check_text
from qcompile.targets.errors import CompileError

QUANTIZE_OPS = {"QuantizeLinear", "DequantizeLinear"}
LIGHT = 1024  # elements


def load_model(source: str | os.PathLike[str] | onnx.ModelProto) -> onnx.ModelProto:
    """Read and check a model, external weights included.

    `source` is a path or a ModelProto. Raises CompileError for a missing, truncated or foreign file, missing or
    short external data, a graph the ONNX checker refuses, control flow, NaN or infinite weights, and quantization
    scales that are not positive and finite.
    """
    if isinstance(source, onnx.ModelProto):
        model = source
        check_text(model)
        read_external_data(model, None)
    else:
        model = _read(Path(source))
    if not model.graph.node or not model.graph.output:
        raise CompileError(
            "the model has an empty graph: it is no ONNX model, or the file is truncated; export it again"
        )
    if model.functions:
        try:
            own = [(f.domain, f.name) for f in model.functions if f.domain == DOMAIN]
            model = onnx.inliner.inline_selected_functions(model, own, exclude=True)
        except Exception as e:  # recursive or ambiguous; the types of the C++ inliner are not public
            raise CompileError(f"the model's functions cannot be expanded: {e}") from e
    model = with_domains(model)
    _check_opset(model)
    _check_borders(model)
    _check_nodes(model)
    _check_constants(model)
    _check_graph(model)
    return model


def _check_opset(model: onnx.ModelProto) -> None:
    version = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), OLDEST)
    if version < OLDEST:
        raise CompileError(f"the model uses opset {version}; export it with opset {OLDEST} or later")
    if version > onnx.defs.onnx_opset_version():
        raise CompileError(f"the model uses opset {version}; export it with opset {TARGET}, or install a newer onnx")


def _check_borders(model: onnx.ModelProto) -> None:
    known = set(onnx.TensorProto.DataType.values())
    inputs = {v.name for v in model.graph.input}
    for v in (*model.graph.input, *model.graph.output):
        elem = v.type.tensor_type.elem_type
        if elem not in known or (v.name in inputs and v.type.WhichOneof("value") in (None, "tensor_type") and not elem):
            raise CompileError(f"'{v.name}' has no element type that ONNX knows ({elem}); export the model again")


def _read(path: Path) -> onnx.ModelProto:
    existing_file(path, folder_hint="give the .onnx file inside it")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError, OSError) as e:
        raise CompileError(f"{path}: not an ONNX model, or truncated ({type(e).__name__}); export it again") from e
    check_text(model)
    read_external_data(model, path)
    return model


def _check_nodes(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type in SEQUENCES:
            raise CompileError(
                f"node {label(node)}: sequences cannot be compiled to a static integer program; "
                "export the model with tensors of fixed shapes"
            )


def _check_constants(model: onnx.ModelProto) -> None:
    quantizing = [n for n in reversed(model.graph.node) if n.op_type in QUANTIZE_OPS and len(n.input) > 1]
    scales = {n.input[1]: n for n in quantizing}
    constants = [(t.name, t) for t in model.graph.initializer] + [
        (n.output[0], n.attribute[0].t)
        for n in model.graph.node
        if n.op_type == "Constant" and n.attribute and n.attribute[0].type == onnx.AttributeProto.TENSOR
    ]
    weights = {name for name, _ in constants}
    # weights may have negative scales (NNCF writes them); the grids of activations may not
    unlimited = limits(model.graph.node)
    grids = {n.input[1] for n in quantizing if n.op_type == "QuantizeLinear" or n.input[0] not in weights}
    for name, tensor in constants:
        value = _values(tensor, name)
        _check_finite(value, name, name in unlimited)
        if name in scales:
            if not value.size:
                raise CompileError(f"node {label(scales[name])}: scale '{name}' is empty; quantize the model again")
            scale = value.astype(np.float64)
            if not (np.isfinite(scale).all() and ((scale > 0) | ((scale < 0) & (name not in grids))).all()):
                raise CompileError(
                    f"node {label(scales[name])}: scale '{name}' must be positive and finite, "
                    f"it has {scale.min():g}; quantize the model again"
                )


def _values(tensor: onnx.TensorProto, name: str) -> np.ndarray:
    if tensor.data_type not in onnx.TensorProto.DataType.values():
        raise CompileError(f"weight '{name}': ONNX has no type {tensor.data_type}; the file is damaged")
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as e:
        raise CompileError(
            f"weight '{name}': its data does not fit its shape {list(tensor.dims)}; the file is damaged"
        ) from e


def _check_finite(value: np.ndarray, name: str, limit: bool) -> None:
    """NaN is refused, and infinity in anything but a mask and a limit."""
    if value.dtype not in (np.float16, np.float32, np.float64) or not value.size:
        return
    low, high = value.min(), value.max()  # NaN where one is among the values
    # -inf alone is how exporters write an attention mask; NaN and +inf are never meant
    if limit and np.isinf(value).all():
        return
    if np.isnan(low) or np.isposinf(high):
        raise CompileError(f"weight '{name}': has NaN or infinite values; train or export the model again")
    if np.isneginf(low) and not np.isin(value[~np.isneginf(value)], (0.0, 1.0)).all():
        raise CompileError(f"weight '{name}': has infinite values; train or export the model again")


def _check_graph(model: onnx.ModelProto) -> None:
    """The ONNX checker, on a copy whose large weights are declared instead of carried (it serialises its input)."""
    names = [v.name for v in model.graph.output]
    for name in names:
        if names.count(name) > 1:
            raise CompileError(f"output '{name}' occurs twice; remove one from the model")
    light = _without_weights(model)
    for v in [*light.graph.input, *light.graph.output]:
        if v.type.HasField("tensor_type") and not v.type.tensor_type.HasField("shape"):
            v.type.tensor_type.shape.SetInParent()  # the checker wants some shape; ONNX Runtime and we infer it
    try:
        onnx.checker.check_model(light)
    except onnx.checker.ValidationError as e:
        raise CompileError(f"the ONNX checker refuses the model: {' '.join(str(e).split())}") from e


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which weights of more than LIGHT elements are inputs."""
    light = onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, metadata_props=model.metadata_props
    )
    light.graph.name = model.graph.name
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    light.graph.value_info.extend(model.graph.value_info)
    light.graph.sparse_initializer.extend(model.graph.sparse_initializer)
    names = {v.name for v in model.graph.input}
    for t in model.graph.initializer:
        if math.prod(t.dims) <= LIGHT:
            light.graph.initializer.append(t)
        elif t.name not in names:
            light.graph.input.append(onnx.helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)))
    return light
