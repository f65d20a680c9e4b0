"""Weights that an ONNX file keeps in other files: read from beside or below the model, and from nowhere else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import external_data_helper
from qcompile.targets.errors import CompileError

_NO_NUMBERS = (onnx.TensorProto.UNDEFINED, onnx.TensorProto.STRING)


def read_external_data(model: onnx.ModelProto, path: Path | None) -> None:
    """Puts external data into the tensors that name it, wherever these stand in the model.

    path: of the model's file, None for a model in memory. The data lies in the file's folder or below; where the path
    is a link, as in caches of model hubs, in that of the link or of what it leads to. Raises CompileError naming the
    tensor where there is no path, where a file is missing, too short or no plain file, and where it lies outside, by
    its own path or by a link.
    """
    roots = (path.parent.resolve(), path.resolve().parent) if path else ()
    for tensor in _tensors(model):
        if not external_data_helper.uses_external_data(tensor):
            continue
        if not roots:
            raise CompileError(
                f"weight '{tensor.name}': a model in memory has its data in a file; read it by onnx.load(path), which "
                "reads that too, or give the path of the model itself"
            )
        _read(tensor, roots)


def _read(tensor: onnx.TensorProto, roots: tuple[Path, ...]) -> None:
    info = {e.key: e.value for e in tensor.external_data}
    location = info.get("location", "")
    try:
        file = (roots[0] / location).resolve()
        inside, there = any(file.is_relative_to(root) for root in roots), file.is_file()
    except (OSError, ValueError, RuntimeError) as e:  # no path: a zero byte, a name too long, a circle of links
        raise CompileError(f"weight '{tensor.name}': its external data has no path ({location!r:.80})") from e
    if not inside:
        raise CompileError(
            f"weight '{tensor.name}': its external data lies outside the model's folder ({location}); move the file "
            "beside the model"
        )
    if not there:
        raise CompileError(f"weight '{tensor.name}': external data file {location!r} is missing beside the model")
    try:
        offset, length = int(info.get("offset", 0)), info.get("length")
        size = file.stat().st_size
        wanted = int(length) if length is not None else size - offset
    except ValueError as e:
        raise CompileError(f"weight '{tensor.name}': external data offset or length is not a number") from e
    if offset < 0 or wanted < 0 or offset + wanted > size:
        raise CompileError(f"weight '{tensor.name}': external data file {file.name!r} is too short; copy it again")
    if wanted > _most_bytes(tensor):
        raise CompileError(
            f"weight '{tensor.name}': its external data has {wanted} bytes, more than its shape {list(tensor.dims)} "
            "takes; export the model again"
        )
    try:
        with file.open("rb") as f:
            f.seek(offset)
            tensor.raw_data = f.read(wanted)
    except OSError as e:
        raise CompileError(f"weight '{tensor.name}': cannot read {file.name!r} ({e.strerror or e})") from e
    tensor.data_location = onnx.TensorProto.DEFAULT
    del tensor.external_data[:]


def _most_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor of this shape: a file without end would fill the memory otherwise. 16 an element where the type
    is unknown, which is refused later."""
    known = tensor.data_type in onnx.TensorProto.DataType.values() and tensor.data_type not in _NO_NUMBERS
    width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize if known else 16
    return width * math.prod(max(n, 0) for n in tensor.dims)


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of the model: also those of functions, of branches and loops, and the parts of sparse ones."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_attributes(function.attribute_proto)
        for node in function.node:
            yield from _of_attributes(node.attribute)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _of_attributes(node.attribute)


def _of_attributes(attributes) -> Iterator[onnx.TensorProto]:
    for a in attributes:
        yield from a.tensors
        if a.HasField("t"):
            yield a.t
        for sparse in (*a.sparse_tensors, *([a.sparse_tensor] if a.HasField("sparse_tensor") else [])):
            yield from (sparse.values, sparse.indices)
        for graph in (*a.graphs, *([a.g] if a.HasField("g") else [])):
            yield from _of_graph(graph)
