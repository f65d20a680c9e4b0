"""Floats between the Q/DQ pairs of a quantized model get grids from samples.

Tools that quantize only the operands of linear layers leave norms, residual streams, softmax and activations in float.
The ranges that follow from the grids around them are far wider than what occurs: a stream of 12 residual sums would
keep a few of its 16 bits. With samples, the placement rules of our own quantizer put pairs of 16 bits there; what the
model has quantized keeps its grids, and weights that it has in integers their codes.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping

from onnx import NodeProto, TensorProto, helper
from qcompile.frontend.blocks import dequantized
from qcompile.frontend.fold_constants import constant_nodes, evaluate
from qcompile.frontend.graph import Graph, label
from qcompile.frontend.shapes import infer_shapes
from qcompile.quantizer.calibration import Calibration
from qcompile.quantizer.emit import Emitter
from qcompile.quantizer.facts import Facts
from qcompile.quantizer.histogram import Quantization
from qcompile.quantizer.integer_inputs import find_numbers
from qcompile.quantizer.operators import LINEAR
from qcompile.quantizer.options import QuantizeOptions
from qcompile.quantizer.placement import Placement, Placer
from qcompile.quantizer.quantize import choose_quantizations, gather_statistics, placed_keys
from qcompile.quantizer.recurrent import note_ranges

SIXTEEN = {TensorProto.INT16, TensorProto.UINT16}
BITS: dict[int, int] = {**dict.fromkeys((TensorProto.INT8, TensorProto.UINT8), 8), **dict.fromkeys(SIXTEEN, 16)}
OFFSETS: dict[int, int] = {TensorProto.UINT8: 128, TensorProto.UINT16: 32768}
Grids = dict[tuple[str, str], Quantization]


def islands(graph: Graph) -> list[str]:
    """The float tensors of a quantized graph that our own quantizer would give a grid and the model does not."""
    view, given = _with_float_weights(graph)
    placement = _everywhere(Facts(view)).place()
    _take_given(view, given, placement)
    return [name for name in placement.kinds if _grid(view, given, name, "i16") is None]


def quantize_islands(graph: Graph, data: Calibration, options: QuantizeOptions, notes: list[str]) -> list[str]:
    """Put pairs at the `islands` of `graph`, in place, with ranges from the samples; their names.

    Raises CompileError for samples that do not fit the model.
    """
    samples = data.spaced(options.max_samples)
    view, given = _with_float_weights(graph)
    find_numbers(view, data, samples, set(Facts(view).score_inputs()))
    note_ranges(view, samples)
    placer = _everywhere(Facts(view))
    placement = placer.place()
    grids = _take_given(view, given, placement)
    if placement.kinds:
        _note_narrowed(view, placement, notes)
        histograms, moments = gather_statistics(view, placement, samples)
        grids = choose_quantizations(view, placement, histograms, options, data.synthetic) | grids
        kept = [n for n in view.nodes if n.op_type in LINEAR and any(i in given for i in n.input[:2])]
        Emitter(view, placer, placement, grids, moments, options, later=kept).run()
    nodes = {id(n): n for n in given.values()}
    graph.nodes = [*nodes.values(), *view.nodes]
    read = {i: graph.constants[i] for n in nodes.values() for i in n.input if i in graph.constants}
    graph.constants = {k: v for k, v in view.constants.items() if k not in given} | read
    graph.numbers = view.numbers
    graph.update()
    infer_shapes(graph)
    return list(placement.kinds)


def _everywhere(facts: Facts) -> Placer:
    """All that can have 16 bits does, whatever the network is."""
    return Placer(facts, widened={t for n in facts.graph.nodes for t in (*n.input, *n.output)})


def _with_float_weights(graph: Graph) -> tuple[Graph, dict[str, NodeProto]]:
    """(the graph with floats for what it makes of dequantized constants, which shares its other nodes; the nodes that
    make these, by their results)."""
    view = copy.copy(graph)
    view.constants, view.shapes, view.dtypes = dict(graph.constants), dict(graph.shapes), dict(graph.dtypes)
    made = [n for n in graph.nodes if n.op_type == "DequantizeLinear" and all(i in graph.constants for i in n.input)]
    view.constants |= {n.output[0]: dequantized(n, graph.constants) for n in made}
    _take_away(view, made)
    moved = constant_nodes(view)
    if moved:
        view.constants |= evaluate(view, moved)
        _take_away(view, moved)
    return view, {o: n for n in (*made, *moved) for o in n.output}


def _take_away(graph: Graph, nodes: list[NodeProto]) -> None:
    gone = {id(n) for n in nodes}
    graph.nodes = [n for n in graph.nodes if id(n) not in gone]
    graph.update()


def _take_given(graph: Graph, given: Mapping[str, NodeProto], placement: Placement) -> Grids:
    """The grids that tensors have in the model, by group; what has one gets no pair, and constants stay as they are."""
    groups: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)
    for key in [*placed_keys(placement), *placement.carrier.values()]:
        groups[placement.group(key)].add(key)
    grids: Grids = {}
    for group, members in groups.items():
        found = {_grid(graph, given, *key) for key in members}
        if len(found) == 1 and None not in found:
            grids[group] = found.pop()
    placement.kinds = {
        name: kinds
        for name, asked in placement.kinds.items()
        if (kinds := [k for k in asked if placement.of(name, k) not in grids])
    }
    index = {(id(n), i): name for n in graph.nodes for i, name in enumerate(n.input)}
    placement.reads = {k: v for k, v in placement.reads.items() if index[k] not in given}
    return grids


def _grid(graph: Graph, given: Mapping[str, NodeProto], name: str, kind: str) -> Quantization | None:
    """The grid of a dequantized tensor, if its codes serve a reader of `kind`."""
    node = given.get(name) or graph.producer(name)
    if node is None or node.op_type != "DequantizeLinear":
        return None
    scale, zero = graph.constants.get(node.input[1]), graph.constants.get(node.input[2] if len(node.input) > 2 else "")
    codes = graph.constants.get(node.input[0])
    dtype = graph.dtypes.get(node.input[0]) if codes is None else helper.np_dtype_to_tensor_dtype(codes.dtype)
    if dtype not in BITS or (kind == "i8" and dtype in SIXTEEN) or scale is None:
        return None
    if (scale != scale.flat[0]).any() or (zero is not None and (zero != zero.flat[0]).any()):
        return None
    bits, offset = BITS[dtype], OFFSETS.get(dtype, 0)
    point = 0 if zero is None else int(zero.flat[0])
    return Quantization(float(scale.flat[0]), point - offset, bits, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _note_narrowed(graph: Graph, placement: Placement, notes: list[str]) -> None:
    """A word on 16-bit activations that products read."""
    for name, kinds in placement.kinds.items():
        if "i8" not in kinds or _grid(graph, {}, name, "i16") is None:
            continue
        readers = [n for n in graph.consumers(name) if n.op_type in LINEAR]
        where = f"node {label(readers[0])}: " if readers else ""
        notes.append(f"{where}its 16-bit input '{name}' is rounded to 8 bits, which is what products take")
