"""Signal-to-noise ratio of each layer's output, the QDQ model against the float model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from qcompile.frontend.graph import Graph
from qcompile.mixed.probe import outputs_before_readout
from qcompile.quantizer.bits import Layer, layer_nodes
from qcompile.quantizer.calibration import Feed
from qcompile.quantizer.collect import counting, stream
from qcompile.quantizer.facts import Facts
from qcompile.quantizer.operators import is_bias_add

SAMPLES = 8
EQUALISED = 0.5  # of the noise that is left when each channel has a gain of its own: then channels were rescaled


@dataclass
class _Sums:
    """Per channel: of float², float·quantized and quantized², and how many values."""

    exact: np.ndarray | float = 0.0
    both: np.ndarray | float = 0.0
    actual: np.ndarray | float = 0.0
    count: int = field(default=0)

    def add(self, exact: np.ndarray, actual: np.ndarray, axis: int) -> None:
        rest = tuple(i for i in range(exact.ndim) if i != axis % max(exact.ndim, 1))
        x, y = exact.astype(np.float64), actual.astype(np.float64)
        self.exact, self.both = self.exact + (x * x).sum(rest), self.both + (x * y).sum(rest)
        self.actual, self.count = self.actual + (y * y).sum(rest), self.count + x.size // max(x.shape[axis], 1)

    def decibels(self) -> float:
        """Equalisation divides channels by factors that the next layer multiplies back. Where gains per channel take
        most of the noise away, they are such factors, and the rest is the noise."""
        plain = float(np.sum(self.exact - 2 * self.both + self.actual))
        gain = np.divide(self.both, self.actual, out=np.ones_like(self.both), where=self.actual > 0)
        fitted = float(np.sum(self.exact - 2 * gain * self.both + gain**2 * self.actual))
        fitted *= self.count / max(self.count - 1, 1)
        noise = fitted if self.count > 1 and fitted < EQUALISED * plain else plain
        signal = float(np.sum(self.exact))
        return float(10 * np.log10(max(signal, 1e-30) / max(noise, 1e-12 * signal, 1e-30)))


def layer_noise(reference: Graph, quantized: Graph, layers: Sequence[Layer], samples: list[Feed]) -> dict[str, float]:
    """{layer name: dB} of the layers' outputs, bias included, and {"": dB} of the network's outputs, in front of a
    softmax; padding is left out.

    `reference` is the prepared float graph, `quantized` the QDQ graph made from it. Layers whose output the quantizer
    moved elsewhere are left out.
    """
    tensors = {layer.name: t for layer in layers if (t := _output(reference, layer)) is not None}
    made = {o for n in quantized.nodes for o in n.output}
    tensors = {name: t for name, t in tensors.items() if t in made and quantized.is_float(t)}
    finals = [t for t in outputs_before_readout(reference) if t in made]
    wanted = [*tensors.values(), *finals]
    axes = {tensors[x.name]: 1 if x.op_type in ("Conv", "ConvTranspose") else -1 for x in layers if x.name in tensors}
    sums = {t: _Sums() for t in wanted}
    spaced = samples[:: -(-len(samples) // SAMPLES)]
    masks = Facts(reference).masks()
    runs = zip(spaced, stream(reference, wanted, spaced, "comparing"), stream(quantized, wanted, spaced, ""))
    for sample, exact, actual in runs:
        tokens = counting(sample, masks)
        for t in sums:
            x, y = exact[t], actual[t]
            if x.ndim and x.shape == y.shape:
                chosen = tokens.get(x.shape[:2], ...) if x.ndim > 2 and axes.get(t, -1) == -1 else ...
                sums[t].add(x[chosen], y[chosen], axes.get(t, -1))
    result = {name: sums[t].decibels() for name, t in tensors.items() if sums[t].count}
    finals = [t for t in finals if sums[t].count]
    if finals:
        result[""] = min(sums[t].decibels() for t in finals)
    return {name: round(value, 2) for name, value in result.items()}


def _output(graph: Graph, layer: Layer) -> str | None:
    node = layer_nodes(graph)[layer.name]
    add = graph.only_consumer(node.output[0], "Add")
    return add.output[0] if add is not None and is_bias_add(graph, add) else node.output[0]
