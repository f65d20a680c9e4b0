"""Every layer's weights at every width, as the quantizer would round them, on the float network's own data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph
from qcompile.mixed.probe import Rounded
from qcompile.quantizer import QuantizeOptions
from qcompile.quantizer.bits import Layer, LayerBits, layer_nodes
from qcompile.quantizer.calibration import Feed
from qcompile.quantizer.collect import counting, observe, stream
from qcompile.quantizer.columns import Columns
from qcompile.quantizer.equalise import equalise
from qcompile.quantizer.facts import Facts
from qcompile.quantizer.histogram import SHRINKS, Histogram, Quantization
from qcompile.quantizer.learn import Moments, Narrow, mean_error, solve
from qcompile.quantizer.operators import is_bias_add
from qcompile.quantizer.weights import QuantizedWeight, channel_axis, input_importance, quantize_weight

STAGE_BYTES = 1 << 29  # of second moments that are kept at the same time
TABLE_MULTIPLIERS, TABLE_CLIPS = 255, (1.0, 0.9, 0.8, 0.7)
ROWS = 1 << 15  # of a layer's data, from all samples, that its second moments are taken of


def equalised(graph: Graph, samples: list[Feed], options: QuantizeOptions, bits: Mapping[str, LayerBits]) -> Graph:
    """A twin of the prepared `graph`, equalised as the quantizer will for `bits`."""
    copy = graph.twin()
    if options.equalise:
        equalise(copy, Facts(copy), samples, bits)
    return copy


def round_weights(
    graph: Graph,
    layers: Sequence[Layer],
    widths: Sequence[Sequence[LayerBits]],
    samples: list[Feed],
    options: QuantizeOptions,
) -> dict[tuple[str, LayerBits], Rounded]:
    """{(layer name, bits): weights} for the `widths` of each layer; 4-bit data changes no weights."""
    nodes, masks = layer_nodes(graph), Facts(graph).masks()
    result: dict[tuple[str, LayerBits], Rounded] = {}
    for stage in _stages(layers, nodes, graph):
        products = [i for i in stage if not layers[i].table]
        moments = _moments(graph, [layers[i] for i in products], nodes, samples, masks)
        for i in stage:
            layer = layers[i]
            for bits in widths[i]:
                known = replace(bits, activations=8)
                if (layer.name, known) not in result:
                    result[layer.name, known] = (
                        _table(graph.constants[layer.weight], bits)
                        if layer.table
                        else _product(graph, layer, nodes[layer.name], bits, moments[layer.name], options)
                    )
                result[layer.name, bits] = result[layer.name, known]
    return result


def narrow_data(graph: Graph, layers: Iterable[Layer], bits: int, samples: list[Feed]) -> dict[str, Quantization]:
    """{layer name: quantization} of `bits` bits for the data of the layers: from zero up where it is never negative."""
    histograms = {layer.data: Histogram() for layer in layers if not layer.table}
    observe(graph, histograms, samples, lambda name, value: histograms[name].add(value), "narrow data")
    chosen = {name: _narrow(h, bits) for name, h in histograms.items()}
    return {layer.name: chosen[layer.data] for layer in layers if not layer.table}


def _narrow(h: Histogram, bits: int) -> Quantization:
    steps = 2**bits - 1
    candidates = []
    for share in SHRINKS:
        low, high = share * min(h.low, 0.0), share * max(h.high, 0.0)
        scale = max((high - low) / steps, 1e-12)
        zero = int(np.rint(-low / scale))
        candidates.append(Quantization(float(np.float32(scale)), zero, 8, 0, steps))
    return min(candidates, key=h.error)


def _stages(layers: Sequence[Layer], nodes: dict[str, NodeProto], graph: Graph) -> list[list[int]]:
    """Indices of consecutive layers whose second moments fit in memory together."""
    stages: list[list[int]] = [[]]
    used = 0
    for i, layer in enumerate(layers):
        need = 0
        if not layer.table:
            columns = Columns.of(nodes[layer.name], graph.constants[layer.weight])
            need = 8 * columns.groups * columns.depth**2
        if stages[-1] and used + need > STAGE_BYTES:
            stages.append([])
            used = 0
        stages[-1].append(i)
        used += need
    return stages


def _moments(
    graph: Graph, layers: Sequence[Layer], nodes: dict[str, NodeProto], samples: list[Feed], masks: Sequence[str]
) -> dict[str, Moments]:
    """Second moments of what each layer reads, padding left out; layers that meet the same rows share them."""
    columns = {x.name: Columns.of(nodes[x.name], graph.constants[x.weight]) for x in layers}
    keys = {x.name: (x.data, *columns[x.name].key) for x in layers}
    shared = {keys[x.name]: (x, Moments(columns[x.name])) for x in layers}
    limit = -(-ROWS // max(len(samples), 1))
    for i, values in enumerate(stream(graph, [x.data for x, _ in shared.values()], samples, "second moments")):
        tokens = counting(samples[i], masks)
        for layer, moments in shared.values():
            data = values[layer.data]
            if layer.op_type in ("MatMul", "Gemm") and data.shape[:2] in tokens:
                data = data[tokens[data.shape[:2]]]
            rows = moments.columns.rows(data, limit, np.random.default_rng(i))
            moments.add(rows, rows)
    return {name: shared[key][1] for name, key in keys.items()}


def _product(
    graph: Graph, layer: Layer, node: NodeProto, bits: LayerBits, moments: Moments, options: QuantizeOptions
) -> Rounded:
    weight = graph.constants[layer.weight]
    columns = Columns.of(node, weight)
    biased = options.bias_correction and _has_bias(graph, node)
    narrow = Narrow(layer.name, node, columns, bits, layer.data, layer.data, weight, layer.weight, biased, None)
    if bits.weights < 8:
        quantized = solve(narrow, [moments], options, False)
    else:
        square = columns.channel_means(np.einsum("gkk->gk", moments.square) / max(moments.count, 1))
        importance = input_importance(graph, node, weight, square)
        quantized = quantize_weight(weight, channel_axis(node, 1, weight), importance, options.clip_weights)
    shift = mean_error(narrow, quantized, moments) if biased else None
    return Rounded(quantized, shift)


def _has_bias(graph: Graph, node: NodeProto) -> bool:
    if node.op_type != "MatMul":
        return node.op_type != "ConvTranspose"
    add = graph.only_consumer(node.output[0], "Add")
    return add is not None and is_bias_add(graph, add)


def _table(weight: np.ndarray, bits: LayerBits) -> Rounded:
    """A table's rows in groups, each with an integer multiple of one scale, by squared error; at 8 bits one scale."""
    qmax = 2 ** (bits.weights - 1) - 1
    if bits.weights == 8:
        step = np.float32(max(float(np.abs(weight).max(initial=0)), 1e-12) / qmax)
        return Rounded(QuantizedWeight(np.rint(weight / step).astype(np.int8), step, None))
    width = weight.shape[1]
    group = bits.group if bits.group and width % bits.group == 0 else width
    w = weight.reshape(len(weight), -1, group)
    peak = np.abs(w).max(2, keepdims=True)
    scale = np.float32(max(float(peak.max(initial=0)), 1e-12) / qmax / TABLE_MULTIPLIERS)
    best = multipliers = None
    for share in TABLE_CLIPS:
        m = np.maximum(np.rint(peak * (share / qmax) / scale), 1).astype(np.float32)
        error = np.square(np.clip(np.rint(w / (m * scale)), -qmax, qmax) * (m * scale) - w).sum(2, keepdims=True)
        multipliers = m if best is None else np.where(error < best, m, multipliers)
        best = error if best is None else np.minimum(error, best)
    codes = np.clip(np.rint(w / (multipliers * scale)), -qmax, qmax).astype(np.int8).reshape(weight.shape)
    laid = np.asarray(multipliers, np.int32)[:, :, 0]
    return Rounded(QuantizedWeight(codes, scale, None, bits.weights, laid, group, 1))
