"""Float ONNX in, QDQ ONNX out: the steps of the quantizer in order."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import onnx
from qcompile.frontend.graph import Graph
from qcompile.frontend.shapes import infer_shapes
from qcompile.quantizer.bits import check_bits, find_layers
from qcompile.quantizer.calibration import Source, load_calibration
from qcompile.quantizer.collect import observe
from qcompile.quantizer.emit import Emitter
from qcompile.quantizer.equalise import equalise
from qcompile.quantizer.histogram import Histogram, Quantization, choose_8bit, choose_16bit, choose_table
from qcompile.quantizer.options import QuantizeOptions
from qcompile.quantizer.placement import LINEAR, SOFTMAX, WIDE_TABLE_FLOOR, Placement, Placer
from qcompile.quantizer.prepare import prepare
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
    check_bits(options.bits or {}, find_layers(graph))
    if options.equalise:
        equalise(graph, Placer(graph, options.wide_streams), samples)
    placer = Placer(graph, options.wide_streams)
    placement = placer.place()
    histograms, moments = _statistics(graph, placement, samples)
    quantizations = _quantizations(graph, placement, histograms, options)
    Emitter(graph, placer, placement, quantizations, moments, options).run()
    infer_shapes(graph)


def _statistics(graph: Graph, placement: Placement, samples: list):
    """Histograms by tensor, and (mean, mean square) per input channel of the data inputs of linear layers."""
    histograms: dict[str, Histogram] = defaultdict(Histogram)
    for name in {t for t, _ in [*placement.carrier.values(), *_keys(placement)] if t in graph.constants}:
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
    return histograms, {k: (m / c, s / c) for k, (m, s, c) in sums.items()}


def _keys(placement: Placement) -> list[tuple[str, str]]:
    placed = [(t, k) for t, kinds in placement.kinds.items() for k in kinds]
    return placed + list(placement.parent) + list(placement.parent.values())


def _quantizations(graph: Graph, placement: Placement, histograms: dict[str, Histogram], options: QuantizeOptions):
    """One quantization per group of tensors that share it."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key in dict.fromkeys([*_keys(placement), *placement.carrier.values()]):
        if key[0] in histograms:
            groups[placement.group(key)].append(key[0])
    result = {}
    for key, members in groups.items():
        merged = Histogram()
        for name in members:
            merged.merge(histograms[name])
        makers = [graph.producer(n) for n in members]
        if key[1] == "i16":
            result[key] = choose_16bit(merged)
        elif key[1] == "table":
            result[key] = choose_table(merged, _table_floor(graph, key[0]))
        elif len(members) == 1 and makers[0] is not None and makers[0].op_type in SOFTMAX - {"LogSoftmax"}:
            result[key] = SOFTMAX_CODES
        else:
            result[key] = choose_8bit(merged, options.ranges)
    return result


def _table_floor(graph: Graph, tensor: str) -> float:
    """Where the activations that read `tensor` are flat from below."""
    return min(
        (WIDE_TABLE_FLOOR[n.op_type] for n in graph.consumers(tensor) if n.op_type in WIDE_TABLE_FLOOR), default=-12.0
    )
