"""What each layer at each width costs in accuracy: measured from ONNX alone, or from Hessian traces.

Measured: the share of the outputs' energy that changes when one layer alone has fewer bits, on calibration data. The
losses of layers are taken to add up, which holds while they are small and independent; `Probe.loss` of a whole plan
tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from qcompile.frontend.graph import Graph
from qcompile.mixed.hessian import HessianTraces, floor_of
from qcompile.mixed.match import match_traces
from qcompile.mixed.probe import Probe, Rounded
from qcompile.quantizer.bits import Layer, LayerBits
from qcompile.quantizer.calibration import Feed
from qcompile.quantizer.collect import progress

MOST_MACS = 5e11  # of all forward passes: some ten seconds
MOST_SAMPLES, FEWEST_SAMPLES = 64, 4
ENOUGH, HELD_OUT = 32, 4  # so many samples, and one in so many is not rounded by
Weights = Mapping[tuple[str, LayerBits], Rounded]


def split(samples: list[Feed], layers: Sequence[Layer], runs: int, rounding: int) -> tuple[list[Feed], list[Feed]]:
    """At most `rounding` samples to round weights by, and samples to run `runs` times within MOST_MACS.

    They are different ones where there are ENOUGH: weights fit the samples that they are rounded by, and where these
    are few, no others.
    """
    one = max(sum(layer.macs for layer in layers), 1)
    most = int(np.clip(MOST_MACS // (one * max(runs, 1)), FEWEST_SAMPLES, MOST_SAMPLES))
    if len(samples) < ENOUGH:
        return spaced(samples, rounding), spaced(samples, most)
    kept = [s for i, s in enumerate(samples) if i % HELD_OUT]
    return spaced(kept, rounding), spaced(samples[::HELD_OUT], most)


def spaced(samples: list[Feed], count: int) -> list[Feed]:
    """At most `count`, evenly spaced."""
    if len(samples) <= count:
        return samples
    return [samples[i] for i in np.linspace(0, len(samples) - 1, count).round().astype(int)]


def measured(
    probe: Probe,
    layers: Sequence[Layer],
    choices: Sequence[LayerBits],
    allowed: np.ndarray,
    weights: Weights,
    graph: Graph,
) -> np.ndarray:
    """Loss [layers, choices] by `probe`; zero where not `allowed`.

    8-bit weights are not run: their loss is that of the layer's widest measured choice, by the energy of the change of
    the weights, which for small changes is exact. Data at 4 bits is measured together with the weights.
    """
    loss = np.zeros((len(layers), len(choices)))
    order = sorted(range(len(choices)), key=lambda c: (choices[c].weights, -choices[c].group))
    for i, layer in enumerate(progress(layers, "measuring sensitivities")):
        float_weight = graph.constants[layer.weight]
        reference: tuple[float, float] | None = None
        for c in (c for c in order if allowed[i, c]):
            bits = choices[c]
            rounded = weights[layer.name, bits]
            change = float(np.square(rounded.weight - float_weight, dtype=np.float64).sum())
            if bits.weights == 8 and bits.activations == 8 and reference is not None:
                loss[i, c] = reference[0] * change / reference[1]
                continue
            loss[i, c] = probe.loss({layer.name: rounded}, [layer.name] if bits.activations < 8 else [])
            if bits.activations == 8 and change:
                reference = loss[i, c], change
    return loss


def from_traces(
    traces: HessianTraces,
    graph: Graph,
    layers: Sequence[Layer],
    choices: Sequence[LayerBits],
    allowed: np.ndarray,
    weights: Weights,
) -> np.ndarray:
    """Loss [layers, choices] as HAWQ-V3 has it: average Hessian trace times the energy of the change of the weights.

    The traces are those of the torch parameters, the changes those of the network's folded weights: each output
    channel's change is brought to the scale of the parameter by their norms. Bits of the data do not enter.
    """
    loss = np.zeros((len(layers), len(choices)))
    matched, floor = match_traces(traces, graph, layers), floor_of(traces)
    for i, layer in enumerate(layers):
        trace, scale = matched[layer.name]
        average = max(trace.average, floor)
        for c in range(len(choices)):
            if allowed[i, c]:
                change = np.square(weights[layer.name, choices[c]].weight - graph.constants[layer.weight])
                loss[i, c] = average * float((change * scale).sum(dtype=np.float64))
    return loss


def whole(probe: Probe, layers: Sequence[Layer], plan: Mapping[str, LayerBits], weights: Weights) -> float:
    """The loss with all layers at their bits in `plan` at once."""
    rounded = {layer.name: weights[layer.name, plan[layer.name]] for layer in layers}
    return probe.loss(rounded, [n for n, b in plan.items() if b.activations < 8 and n in probe.switches])
