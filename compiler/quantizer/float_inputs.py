"""Grids for the float inputs of a model whose inner tensors are quantized already.

Tools that quantize only the operands of linear layers (NNCF, PT2E, neural-compressor, Brevitas) leave the stream of a
transformer in float. The ranges of what is computed follow from the grids that are there; that of an input does not.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto
from qcompile.frontend.graph import Graph
from qcompile.quantizer.calibration import Source, load_calibration
from qcompile.quantizer.operators import mover_inputs

LARGEST = 32767


def float_inputs(graph: Graph) -> list[str]:
    """The float inputs that some operator reads before a QuantizeLinear does, or that are outputs when moved about."""
    return [v.name for v in graph.inputs if graph.is_float(v.name) and _read_as_float(graph, v.name)]


def _read_as_float(graph: Graph, name: str) -> bool:
    if name in graph.output_names:
        return True
    for node in graph.consumers(name):
        if mover_inputs(node):
            if any(_read_as_float(graph, y) for y in node.output):
                return True
        elif node.op_type != "QuantizeLinear":
            return True
    return False


def quantize_inputs(graph: Graph, calibration: Source, notes: list[str]) -> bool:
    """Put a symmetric 16-bit Q/DQ pair behind each of `float_inputs`, with the range seen in the samples; whether there
    is any. Without samples the graph stays as it is. Raises CompileError for samples that do not fit."""
    names = float_inputs(graph)
    if not names or calibration is None:
        return False
    samples = load_calibration(calibration, graph).samples
    for name in names:
        peak = max(float(np.abs(s[name]).max(initial=0)) for s in samples)
        _put_pair(graph, name, peak)
        notes.append(f"input '{name}' has no QuantizeLinear: it gets 16 bits, up to the {peak:.4g} seen in the samples")
    return True


def join_input_grids(graph: Graph, notes: list[str]) -> None:
    """Put a symmetric 16-bit pair behind each float input that QuantizeLinears of unlike grids read: a caller gives it
    on one grid, which must hold what all of them take."""
    for name in [v.name for v in graph.inputs if graph.is_float(v.name)]:
        grids = _grids(graph, name)
        if len(grids) > 1:
            peak = max(abs(end) for grid in grids for end in grid)
            _put_pair(graph, name, peak)
            notes.append(f"input '{name}' is quantized on {len(grids)} grids: it gets 16 bits, up to {peak:.4g}")


def _grids(graph: Graph, name: str) -> set[tuple[float, float]]:
    """The least and largest number of each grid that a tensor is quantized on, directly or when moved about."""
    found: set[tuple[float, float]] = set()
    for node in graph.consumers(name):
        if mover_inputs(node):
            found = found.union(*(_grids(graph, y) for y in node.output))
        elif node.op_type == "QuantizeLinear":
            scale, zero = (graph.constants.get(i) for i in (*node.input[1:3], "")[:2])
            if scale is not None and scale.size == 1:
                info = np.iinfo(np.uint8 if zero is None else zero.dtype)
                point = 0 if zero is None else int(zero.flat[0])
                found.add(tuple(float(scale.flat[0]) * (end - point) for end in (int(info.min), int(info.max))))  # type: ignore[arg-type]
    return found


def _put_pair(graph: Graph, name: str, peak: float) -> None:
    """A symmetric 16-bit pair up to `peak` between an input and its readers."""
    grid = [
        graph.constant(f"{name}_scale", np.float32(peak / LARGEST if peak > 0 else 1 / LARGEST)),
        graph.constant(f"{name}_zero_point", np.int16(0)),
    ]
    readers = list(graph.consumers(name))
    codes = graph.add("QuantizeLinear", [name, *grid], f"{name}_codes")
    real = graph.add("DequantizeLinear", [codes, *grid], f"{name}_quantized")
    graph.shapes[codes] = graph.shapes[real] = graph.shapes[name]
    graph.dtypes[codes], graph.dtypes[real] = TensorProto.INT16, graph.dtypes[name]
    graph.replace_uses(name, real, readers)
    graph.update()
