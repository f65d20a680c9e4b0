"""Float ONNX in, QDQ ONNX out: the steps of the quantizer in order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute
from qcompile.frontend.shapes import infer_shapes
from qcompile.quantizer.bits import LayerBits, check_bits, find_layers, layer_nodes
from qcompile.quantizer.calibration import Feed, Source, load_calibration
from qcompile.quantizer.collect import observe
from qcompile.quantizer.columns import Columns
from qcompile.quantizer.emit import Emitter
from qcompile.quantizer.equalise import equalise
from qcompile.quantizer.facts import Facts
from qcompile.quantizer.histogram import (
    TABLE_CODES,
    Histogram,
    Quantization,
    affine,
    choose_8bit,
    choose_16bit,
    choose_narrow,
    choose_table,
    choose_whole,
)
from qcompile.quantizer.integer_inputs import find_numbers
from qcompile.quantizer.learn import Narrow, learn_weights
from qcompile.quantizer.operators import GATES, LINEAR, SOFTMAX, WIDE_TABLE_FLOOR, is_bias_add, mover_inputs
from qcompile.quantizer.options import QuantizeOptions
from qcompile.quantizer.outputs import Cut, cut_outputs, join_outputs, uneven_outputs
from qcompile.quantizer.pixels import fold_pixels, given_quantization
from qcompile.quantizer.placement import Placement, Placer
from qcompile.quantizer.planes import Planes, split_inputs
from qcompile.quantizer.prepare import prepare
from qcompile.quantizer.recurrent import choose_state, quantize_recurrent, state_steps
from qcompile.quantizer.weights import QMAX, TABLE_LIMIT, QuantizedWeight, quantize_table
from qcompile.quantizer.widths import Widened, choose_widths
from qcompile.targets.errors import CompileError

SOFTMAX_CODES = Quantization(1.0 / 255, -128)


def quantize(
    model: onnx.ModelProto,
    calibration: Source = None,
    options: QuantizeOptions | None = None,
    notes: list[str] | None = None,
) -> onnx.ModelProto:
    """The QDQ form of a normalised float `model`.

    `calibration` is what `load_calibration` accepts; `notes` receives remarks for the user. Weights are int8 per output
    channel, activations int8 or int16 per tensor as `placement` says, biases int32 with scale s_x * s_w. Raises
    CompileError for options or calibration data that do not fit.
    """
    graph = Graph(model)
    quantize_graph(graph, calibration, options, notes)
    return graph.to_model()


def quantize_graph(
    graph: Graph,
    calibration: Source = None,
    options: QuantizeOptions | None = None,
    notes: list[str] | None = None,
) -> None:
    """`quantize` in place, which frees each float weight that is not needed any more."""
    options, notes = options or QuantizeOptions(), [] if notes is None else notes
    if options.ranges not in ("auto", "minmax", "percentile", "mse"):
        raise CompileError(f"ranges '{options.ranges}' are unknown; choose auto, minmax, percentile or mse")
    data = load_calibration(calibration, graph)
    notes.extend(data.notes)
    samples = data.spaced(options.max_samples)
    prepare(graph)
    fold_pixels(graph, samples)
    find_numbers(graph, data, samples, set(Facts(graph).score_inputs()))
    layers = find_layers(graph)
    bits = options.bits or {}
    check_bits(bits, layers)
    quantize_recurrent(graph, samples, options)
    if options.equalise:
        equalise(graph, Facts(graph), samples, bits)
    outputs, cuts = list(graph.outputs), cut_outputs(graph, samples)
    parts = [*(p for c in cuts for p in c.parts), *uneven_outputs(graph, samples)]
    facts = Facts(graph)
    nodes = layer_nodes(graph)
    chosen = {id(node): bits.get(name, LayerBits()) for name, node in nodes.items()}
    plan = _plan(facts, cuts, parts, samples, options, data.synthetic, chosen)
    few = [name for name, node in nodes.items() if chosen[id(node)].weights < 8]
    wide = Widened()
    if options.widening:
        wide = choose_widths(graph, plan.placement, plan.grids, plan.moments, samples, few, notes)
    if wide:
        dear = [nodes[name] for name in wide.layers]
        planes = split_inputs(graph, dear, plan.peaks(dear))
        facts = Facts(graph)
        plan = _plan(facts, cuts, parts, samples, options, data.synthetic, chosen, wide.tensors, planes)
    narrow = {name: n for name, n in nodes.items() if n.op_type in LINEAR and _narrows(n, graph, chosen[id(n)])}
    emitter = Emitter(
        graph,
        plan.placer,
        plan.placement,
        plan.grids,
        plan.moments,
        options,
        plan.tables,
        narrow.values(),
        plan.planes.parts,
    )
    if not narrow:
        emitter.run()
    else:
        exact, masks = graph.twin(), facts.masks()
        later = [_later(emitter, graph, name, n, chosen[id(n)]) for name, n in narrow.items()]
        emitter.run()
        for layer in later:
            layer.data = layer.node.input[0]
        macs = sum(layer.macs for layer in layers)
        learn_weights(
            later,
            exact,
            graph,
            samples,
            macs,
            options,
            emitter.values,
            masks,
            lambda x, w, shift: emitter.finish(x.node, w, shift),
        )
    join_outputs(graph, cuts, outputs)
    infer_shapes(graph)


@dataclass
class _Plan:
    """What is decided before a graph is rewritten: where pairs go, the grids of their groups by samples, the moments of
    the layers' inputs, and embedding tables of few bits."""

    placer: Placer
    placement: Placement
    grids: dict[tuple[str, str], Quantization]
    moments: dict[str, tuple[np.ndarray, np.ndarray]]
    tables: dict[str, QuantizedWeight]
    histograms: Mapping[str, Histogram]
    planes: Planes

    def peaks(self, layers: Collection[NodeProto]) -> dict[str, float]:
        """The largest magnitude of each layer's input."""
        found = {}
        for name in {node.input[0] for node in layers}:
            seen = self.histograms[self.placement.carrier.get((name, "i8"), (name, "i8"))[0]]
            found[name] = max(-seen.low, seen.high)
        return found


def _plan(
    facts: Facts,
    cuts: list[Cut],
    parts: list[str],
    samples: list[Feed],
    options: QuantizeOptions,
    synthetic: bool,
    chosen: Mapping[int, LayerBits],
    widened: Collection[str] = (),
    planes: Planes | None = None,
) -> _Plan:
    """The plan in which `parts` of outputs and the tensors `widened` have 16 bits, and inputs were split into
    `planes`."""
    planes = planes or Planes()
    graph = facts.graph
    placer = Placer(facts, options.wide_streams, parts, {*widened, *planes.sums}, planes.inputs)
    placement = placer.place()
    for group in (g for c in cuts for g in c.groups):
        computed = [placement.of(p, "i16") for p in group if graph.producer(p) is not None]
        for key in computed[1:]:
            placement.join(computed[0], key)
    histograms, moments = gather_statistics(graph, placement, samples)
    tables = _tables(graph, placement, chosen)
    grids = choose_quantizations(graph, placement, histograms, options, synthetic, chosen, tables)
    return _Plan(placer, placement, grids, moments, tables, histograms, planes)


def _narrows(node: NodeProto, graph: Graph, bits: LayerBits) -> bool:
    """Whether a layer gets fewer than 8 bits: grouped transposed convolutions share scales and stay."""
    return bits.weights < 8 and (node.op_type != "ConvTranspose" or attribute(node, "group", 1) == 1)


def _later(emitter: Emitter, graph: Graph, name: str, node: NodeProto, bits: LayerBits) -> Narrow:
    weight = graph.constants[node.input[1]]
    add = graph.only_consumer(node.output[0], "Add")
    biased = node.op_type in ("Conv", "Gemm") or (add is not None and is_bias_add(graph, add))
    source, least = node.input[0], emitter.least(node)
    return Narrow(name, node, Columns.of(node, weight), bits, source, source, weight, node.input[1], biased, least)


def _tables(graph: Graph, placement: Placement, chosen: Mapping[int, LayerBits]) -> dict[str, QuantizedWeight]:
    """Embedding tables of few bits; those whose codes are shared with other tensors keep theirs."""
    members: dict[tuple[str, str], set[str]] = defaultdict(set)
    for key in placed_keys(placement):
        members[placement.group(key)].add(key[0])
    result = {}
    for node in graph.nodes:
        users = [n for n in graph.consumers(node.input[0]) if id(n) in chosen] if node.op_type == "Gather" else []
        widths = {chosen[id(n)] for n in users if n.op_type == "Gather"}
        if id(node) not in chosen or len(widths) != 1 or len(users) != len(graph.consumers(node.input[0])):
            continue
        (bits,) = widths
        kinds = {placement.reads.get((id(n), 0)) for n in users}
        name = node.input[0]
        if bits.weights == 8 or name in result or not kinds <= {"i8", "i16"} or len(kinds) != 1:
            continue
        kind = kinds.pop()
        if members[placement.of(name, kind)] <= {name}:
            result[name] = quantize_table(graph.constants[name], bits, TABLE_LIMIT if kind == "i16" else QMAX)
    return result


def gather_statistics(graph: Graph, placement: Placement, samples: list):
    """Histograms by tensor, and (mean, mean square) per input channel of the data inputs of linear layers."""
    histograms: dict[str, Histogram] = defaultdict(Histogram)
    for name in {t for t, _ in [*placement.carrier.values(), *placed_keys(placement)] if t in graph.constants}:
        histograms[name].add(graph.constants[name])
    axes = {
        n.input[0]: 1 if n.op_type in ("Conv", "ConvTranspose") else -1
        for n in graph.nodes
        if n.op_type in LINEAR and n.input[1] in graph.constants and n.input[0] not in graph.constants
    }
    sums: dict[str, list] = {}
    wanted = [*placement.kinds, *axes]

    def observer(name: str, value: np.ndarray) -> None:
        if name in placement.kinds:
            histograms[name].add(value)
        if name in axes and value.ndim > 1:
            rest = tuple(i for i in range(value.ndim) if i != axes[name] % value.ndim)
            entry = sums.setdefault(name, [0.0, 0.0, 0])
            entry[0] = entry[0] + value.mean(rest, dtype=np.float64)
            entry[1] = entry[1] + np.square(value).mean(rest, dtype=np.float64)
            entry[2] += 1

    observe(graph, wanted, samples, observer, "calibrating")
    for node in graph.nodes:
        value = _padding(graph, node)
        for (moved, _), (source, _) in placement.carrier.items():
            if value is not None and moved == node.output[0]:
                histograms[source].add(np.repeat(value, len(samples)))
    return histograms, {k: (m / c, s / c) for k, (m, s, c) in sums.items()}


def _padding(graph: Graph, node: NodeProto) -> np.ndarray | None:
    """What a Pad puts beside the values that it moves; None where that is nothing new."""
    if node.op_type != "Pad" or attribute(node, "mode", "constant") != "constant" or len(node.input) < 3:
        return None
    value, sizes = graph.constants.get(node.input[2]), [graph.shape(n) for n in (node.output[0], node.input[0])]
    if value is None or None in sizes:
        return None
    count = max(int(np.prod(sizes[0])) - int(np.prod(sizes[1])), 0)
    return np.full(count, float(value.reshape(-1)[0]), np.float32)


def placed_keys(placement: Placement) -> list[tuple[str, str]]:
    """Every (tensor, kind) that has a pair or shares a grid."""
    placed = [(t, k) for t, kinds in placement.kinds.items() for k in kinds]
    return placed + list(placement.parent) + list(placement.parent.values())


def _narrow_groups(graph: Graph, placement: Placement, chosen: Mapping[int, LayerBits]) -> set[tuple[str, str]]:
    """The groups of 8-bit tensors of which every reader asks for 4 bits."""
    asked: dict[tuple[str, str], set[int]] = defaultdict(set)
    for node in graph.nodes:
        for i, name in enumerate(node.input):
            if placement.reads.get((id(node), i)) == "i8" and name not in graph.constants and not mover_inputs(node):
                wish = chosen[id(node)].activations if i == 0 and id(node) in chosen else 8
                asked[placement.of(name, "i8")].add(wish)
    for o in graph.outputs:
        asked[placement.of(o.name, "i8")].add(8)
    return {key for key, widths in asked.items() if widths == {4}}


def choose_quantizations(
    graph: Graph,
    placement: Placement,
    histograms: dict[str, Histogram],
    options: QuantizeOptions,
    synthetic: bool,
    chosen: Mapping[int, LayerBits] = MappingProxyType({}),
    tables: Mapping[str, QuantizedWeight] = MappingProxyType({}),
) -> dict[tuple[str, str], Quantization]:
    """One quantization per group of tensors that share it. synthetic: what the histograms saw was made up; chosen: the
    bits of layers by node; tables: embedding tables of few bits."""
    narrow = _narrow_groups(graph, placement, chosen)
    steps = state_steps(graph, placement)
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key in dict.fromkeys([*placed_keys(placement), *placement.carrier.values()]):
        if key[0] in histograms:
            groups[placement.group(key)].append(key[0])
    result = {}
    for key, members in groups.items():
        merged = Histogram()
        for name in members:
            merged.merge(histograms[name])
        makers = [graph.producer(n) for n in members]
        given = given_quantization(graph, members[0]) if key[1] == "i8" and len(members) == 1 else None
        if given is not None:
            result[key] = given
        elif members[0] in tables:
            bits = 16 if key[1] == "i16" else 8
            result[key] = Quantization(
                float(tables[members[0]].scale), 0, bits, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
            )
        elif key[1] != "i8" and graph.numbers.issuperset(members):
            result[key] = choose_whole(merged, TABLE_CODES if key[1] == "table" else 1 << 16)
        elif key[1] == "i16":
            result[key] = choose_state(merged, steps[key]) if key in steps else choose_16bit(merged)
        elif key[1] == "table":
            result[key] = choose_table(merged, _table_floor(graph, key[0]))
        elif len(members) == 1 and makers[0] is not None and makers[0].op_type in SOFTMAX - {"LogSoftmax"}:
            result[key] = SOFTMAX_CODES if synthetic else _softmax_codes(merged)
        elif key in narrow:
            result[key] = choose_narrow(merged, options.ranges)
        else:
            result[key] = choose_8bit(merged, options.ranges)
    return result


def _softmax_codes(seen: Histogram) -> Quantization:
    """Codes of 0 to 1; finer ones where all that was seen is small, with room for rows that are twice as sure."""
    return SOFTMAX_CODES if seen.high >= 0.5 or not seen.high else affine(0.0, 2 * seen.high)


def _table_floor(graph: Graph, tensor: str) -> float:
    """Where the activations that read `tensor` are flat from below."""
    ends = {**dict.fromkeys(GATES, -12.0), **WIDE_TABLE_FLOOR}
    return min((ends.get(n.op_type, -np.inf) for n in graph.consumers(tensor)), default=-12.0)
