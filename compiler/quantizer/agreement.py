"""How near the outputs of the quantized network are to those of the float one, on calibration samples."""

from __future__ import annotations

import math

import numpy as np
from qcompile.frontend.graph import Graph, attribute
from qcompile.quantizer.calibration import Calibration, Feed
from qcompile.quantizer.collect import stream
from qcompile.targets.errors import CompileError

FEWEST, MOST = 4, 64  # samples
VALUES = 1024  # of each output that a ratio should rest on: a few scores may be near by chance
LEAST = 20.0  # dB; an output below is said to be noisy
LARGEST = 1 << 29  # bytes of weights up to which the float network is kept beside the quantized one
CLEAN = 99.0  # dB; what is no different


def worth_measuring(graph: Graph, data: Calibration) -> bool:
    """Whether there are samples to measure on, and room for both networks."""
    return not data.synthetic and sum(c.nbytes for c in graph.constants.values()) <= LARGEST


def output_agreement(reference: Graph, quantized: Graph, data: Calibration) -> dict[str, float]:
    """{output: dB} of signal to noise, over a few samples; of an output with a scale for each index of an axis, that of
    the worst group of indices with one scale. Outputs of integers are left out, and all where ONNX Runtime cannot run
    the quantized model."""
    names = [o.name for o in reference.outputs if all(_computed(g, o.name) for g in (reference, quantized))]
    groups = {name: _groups(quantized, name) for name in names}
    sums: dict[tuple[str, int], np.ndarray] = {}
    samples = measured_samples(reference, data)
    try:
        for exact, actual in zip(stream(reference, names, samples), stream(quantized, names, samples)):
            for name in names:
                for i, part in enumerate(groups[name]):
                    x, y = exact[name].astype(np.float64)[part], actual[name].astype(np.float64)[part]
                    energies = np.array([np.square(x).sum(), np.square(x - y).sum()])
                    sums[name, i] = sums.get((name, i), 0.0) + energies
    except CompileError:
        return {}
    found: dict[str, float] = {}
    for (name, _), (signal, noise) in sums.items():
        if signal > 0:
            ratio = min(CLEAN, 10 * np.log10(signal / max(noise, 1e-12 * signal)))
            found[name] = round(min(found.get(name, CLEAN), float(ratio)), 1)
    return found


def measured_samples(graph: Graph, data: Calibration) -> list[Feed]:
    """As many samples as let the smallest computed output be compared by VALUES numbers."""
    sizes = [math.prod(graph.shape(o.name) or ()) for o in graph.outputs if _computed(graph, o.name)]
    return data.spaced(min(max(FEWEST, math.ceil(VALUES / max(min(sizes, default=VALUES), 1))), MOST))


def noisy_outputs(agreement: dict[str, float], count: int) -> list[str]:
    """Notes on the outputs that lie below LEAST, of `count` samples measured."""
    return [
        f"output '{name}' is noisy: {ratio:.1f} dB of signal to noise beside the float model, on {count} "
        "of the samples; give more and more varied samples, or see layer by layer with --report where it is lost"
        for name, ratio in agreement.items()
        if ratio < LEAST
    ]


def _computed(graph: Graph, output: str) -> bool:
    """Whether an output is floats, of known shape, that are computed."""
    return graph.is_float(output) and graph.shape(output) is not None and graph.producer(output) is not None


def _groups(graph: Graph, output: str) -> list[tuple]:
    """Index tuples of the parts of an output that have a scale of their own: all of it, in most cases."""
    node, shape = graph.producer(output, "DequantizeLinear"), graph.shape(output)
    scale = None if node is None else graph.constants.get(node.input[1])
    if scale is None or scale.size < 2 or not shape:
        return [(...,)]
    axis = attribute(node, "axis", 1) % len(shape)
    return [(*[slice(None)] * axis, np.flatnonzero(scale.ravel() == s)) for s in np.unique(scale)]
