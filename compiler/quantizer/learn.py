"""Narrow weights from calibration data: second moments of what each layer reads, then codes and biases from them.

Two networks run side by side: the float network, and the one that is being quantized, whose layers before the present
ones are final. A layer's codes are chosen so that on the quantized network's data it repeats what the float layer makes
of the float data: errors of earlier layers are corrected as far as the layer's inputs tell them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute
from qcompile.quantizer.bits import LayerBits
from qcompile.quantizer.calibration import Feed
from qcompile.quantizer.collect import counting, stream
from qcompile.quantizer.columns import Columns
from qcompile.quantizer.options import QuantizeOptions
from qcompile.quantizer.rounding import damped, learn
from qcompile.quantizer.weights import QuantizedWeight, choose_steps, narrow_weight
from scipy import linalg

MOMENT_BYTES = 1 << 29  # of second moments that are kept at the same time
FORWARD = 2e12  # multiply-accumulates that running the two networks may cost in all
STAGES = 8  # at least so many, if there are as many layers: the samples are fewer then
FEWEST = 32  # samples that stages do not reduce further
ROW_WORK = 1 << 33  # multiply-accumulates of one second moment
MOST_ROWS = 1 << 15
FEEDBACK_ROWS = 16  # rows an input that error feedback needs: on fewer it learns the samples by heart
MEAN_SHARE = 0.1  # of the inputs' squared mean that codes must respect, though a corrected bias would hide it


@dataclass
class Narrow:
    """A layer whose weights get fewer than 8 bits. source, data: what it reads in the float and in the quantized
    network; weight: the float values; biased: whether a bias can take up the mean error; least: bound of the scales."""

    name: str
    node: NodeProto
    columns: Columns
    bits: LayerBits
    source: str
    data: str
    weight: np.ndarray
    weight_name: str
    biased: bool
    least: np.ndarray | None

    @property
    def key(self) -> tuple:
        return (self.source, self.data, *self.columns.key)


@dataclass
class Moments:
    """Sums over rows: of x x^T and of (float x - x) x^T, [groups, depth, depth], and of both x, [groups, depth]."""

    columns: Columns
    square: np.ndarray = field(init=False)
    drift: np.ndarray = field(init=False)
    mean: np.ndarray = field(init=False)
    float_mean: np.ndarray = field(init=False)
    count: int = 0

    def __post_init__(self) -> None:
        shape = (self.columns.groups, self.columns.depth, self.columns.depth)
        self.square, self.drift = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.mean, self.float_mean = np.zeros(shape[:2]), np.zeros(shape[:2])

    def add(self, exact: np.ndarray, actual: np.ndarray) -> None:
        """Rows [groups, rows, depth] of the float and of the quantized network."""
        for g, (floats, x) in enumerate(zip(map(np.ascontiguousarray, exact), map(np.ascontiguousarray, actual))):
            self.square[g] += x.T @ x
            difference = floats - x
            if difference.any():
                self.drift[g] += difference.T @ x
        self.mean += actual.sum(1, dtype=np.float64)
        self.float_mean += exact.sum(1, dtype=np.float64)
        self.count += actual.shape[1]

    def centred(self, share: float) -> tuple[np.ndarray, np.ndarray]:
        """Means of both products, less (1 - share) of what the rows' means alone make."""
        n = max(self.count, 1)
        mean, drift = (self.mean / n).astype(np.float32), ((self.float_mean - self.mean) / n).astype(np.float32)
        rest = np.float32(1 - share)
        return (
            self.square / n - rest * mean[:, :, None] * mean[:, None, :],
            self.drift / n - rest * drift[:, :, None] * mean[:, None, :],
        )


def learn_weights(
    layers: Sequence[Narrow],
    exact: Graph,
    quantized: Graph,
    samples: list[Feed],
    macs: int,
    options: QuantizeOptions,
    known: Mapping[str, np.ndarray],
    masks: Sequence[str],
    finish: Callable[[Narrow, QuantizedWeight, np.ndarray | None], None],
) -> None:
    """Choose the weights of `layers` (in graph order) stage by stage.

    `exact` and `quantized` are the two networks, `macs` the cost of one of them, `known` what `quantized`'s weights of
    few bits dequantize to; `masks` are inputs [batch, tokens] that say which tokens count: padding does not;
    `finish(layer, weight, shift)` writes a layer's weights and the shift of its bias (per output channel) into
    `quantized`, before the next stage runs it.
    """
    count = max(int(FORWARD / (2 * max(macs, 1) * min(STAGES, len(layers)))), FEWEST)
    if len(samples) > count:
        samples = [samples[i] for i in np.linspace(0, len(samples) - 1, count).round().astype(int)]
    stages = max(int(FORWARD / (2 * max(macs, 1) * len(samples))), 1)
    for stage in _stages(layers, stages):
        moments = _moments(stage, exact, quantized, samples, known, masks)
        solved: dict[tuple, QuantizedWeight] = {}
        for layer in stage:
            alike = [
                x
                for x in stage
                if x.weight_name == layer.weight_name and x.bits == layer.bits and x.columns.key == layer.columns.key
            ]
            key = (layer.weight_name, layer.bits, layer.columns.key)
            if key not in solved:
                # what follows in a stage sees the drift of former stages only, which its first layers correct already
                m = moments[layer.key]
                enough = m.count >= FEEDBACK_ROWS * layer.columns.depth
                follow = options.error_feedback and enough and layer.key == stage[0].key
                solved[key] = solve(layer, [moments[x.key] for x in alike], options, follow)
            weight = solved[key]
            shift = mean_error(layer, weight, moments[layer.key]) if options.bias_correction else None
            finish(layer, weight, shift)
        quantized.update()


def _stages(layers: Sequence[Narrow], most: int) -> list[list[Narrow]]:
    """Consecutive layers; those that share weights stay together, and so do neighbours that read the same rows."""
    units: list[list[Narrow]] = []
    for layer in layers:
        known = next((u for u in units if any(x.weight_name == layer.weight_name for x in u)), None)
        if known is None and units and units[-1][0].key == layer.key:
            known = units[-1]
        if known is not None:
            known.append(layer)
        else:
            units.append([layer])
    size, used, stages = -(-len(units) // most), 0, []
    for i, unit in enumerate(units):
        need = sum(8 * x.columns.groups * x.columns.depth**2 for x in {x.key: x for x in unit}.values())
        if not stages or len(stages[-1]) >= size or used + need > MOMENT_BYTES:
            stages.append([])
            used = 0
        stages[-1].append(i)
        used += need
    return [[x for i in stage for x in units[i]] for stage in stages]


def _moments(
    stage: Sequence[Narrow],
    exact: Graph,
    quantized: Graph,
    samples: list[Feed],
    known: Mapping[str, np.ndarray],
    masks: Sequence[str],
) -> dict[tuple, Moments]:
    geometry = {x.key: x for x in stage}
    moments = {k: Moments(x.columns) for k, x in geometry.items()}
    pairs = zip(
        stream(exact, [x.source for x in geometry.values()], samples, "rounding"),
        stream(quantized, [x.data for x in geometry.values()], samples, known=known),
    )
    for i, (floats, actuals) in enumerate(pairs):
        tokens = counting(samples[i], masks)
        for key, layer in geometry.items():
            depth = layer.columns.depth
            most = min(max(2 * depth, ROW_WORK // depth**2), MOST_ROWS)
            limit = -(-most // len(samples))
            both = (floats[layer.source], actuals[layer.data])
            if layer.columns.pointwise and (chosen := tokens.get(both[0].shape[:2])) is not None:
                both = (both[0][chosen], both[1][chosen])
            rows = [layer.columns.rows(v, limit, np.random.default_rng(i)) for v in both]
            moments[key].add(*rows)
    return moments


def solve(layer: Narrow, moments: Sequence[Moments], options: QuantizeOptions, follow: bool) -> QuantizedWeight:
    """Scales, multipliers and codes of one layer from the moments of all that share its weights.

    follow: let the weights make up for what the quantized network's data lost against the float network's.
    """
    columns, bits = layer.columns, layer.bits
    matrix = np.ascontiguousarray(columns.matrix(layer.weight), np.float32)
    g, n, inputs, taps = matrix.shape
    share = MEAN_SHARE if layer.biased and options.bias_correction else 1.0
    parts = [m.centred(share) for m in moments]
    shares = np.array([m.count for m in moments], np.float32) / max(sum(m.count for m in moments), 1)
    square, drift = (np.einsum("m,mgjk->gjk", shares, np.stack([p[i] for p in parts])) for i in (0, 1))
    least = None if layer.least is None else layer.least.reshape(g, n) if layer.least.size == g * n else None
    codes = np.empty(matrix.shape, np.int8)
    scales, multipliers = [], []
    for i in range(g):
        h = damped(square[i], options.damping)
        w = matrix[i]
        target = w
        if follow and not columns.per_tap and drift[i].any():
            flat = w.reshape(n, -1)
            target = flat + linalg.solve(h, (flat @ drift[i]).T, assume_a="pos", check_finite=False).T
            target = np.ascontiguousarray(target, np.float32).reshape(w.shape)
        importance = np.diag(h).reshape(inputs, -1)
        bound = None if least is None else least[i]
        scale, m = choose_steps(
            target, np.broadcast_to(importance, (inputs, taps)), bits.weights, bits.group, options.clip_weights, bound
        )
        steps = scale[:, None, None] * m.repeat(inputs // m.shape[1], 1)
        steps = np.broadcast_to(steps, w.shape).astype(np.float32)
        codes[i], gain = _codes(
            target, h, steps, bits.weights, options, None if bound is None else bound / scale, columns.per_tap
        )
        scales.append(scale * gain)
        multipliers.append(m)
    return narrow_weight(columns, codes, np.concatenate(scales), np.stack(multipliers), bits)


def _codes(w, h, steps, bits, options, least, per_tap):
    """Codes of [outputs, inputs, taps] and gains per output channel."""
    qmax = 2 ** (bits - 1) - 1
    if not options.learned_rounding:
        return np.clip(np.rint(w / steps), -qmax, qmax).astype(np.int8), np.ones(len(w), np.float32)
    if not per_tap:
        flat = lambda a: np.ascontiguousarray(a).reshape(len(a), -1)  # noqa: E731
        codes, gain = learn(flat(w), h, flat(steps), qmax, least=least)
        return codes.reshape(w.shape), gain
    along = lambda a: np.ascontiguousarray(a.transpose(0, 2, 1)).reshape(-1, a.shape[1])  # noqa: E731
    codes, _ = learn(along(w), h, along(steps), qmax, sweeps=0)
    return codes.reshape(len(w), -1, w.shape[1]).transpose(0, 2, 1), np.ones(len(w), np.float32)


def mean_error(layer: Narrow, weight: QuantizedWeight, m: Moments) -> np.ndarray:
    """What the bias must add, per output channel: the mean that rounding the weights takes from the outputs.

    Measured on the quantized network's data alone. To bring the outputs' means back to those of the float network as
    well hurts residual networks: each layer would answer for the drift of the whole stream.
    """
    columns = layer.columns
    error = columns.matrix(layer.weight - weight.dequantized())
    if columns.per_tap:  # each output pixel meets the taps of one input pixel for each stride
        error = error.sum(3, keepdims=True) / np.prod(attribute(layer.node, "strides") or [1])
    error = error.reshape(*error.shape[:2], -1).astype(np.float64)
    return np.einsum("gnk,gk->gn", error, m.mean / max(m.count, 1)).reshape(-1)


__all__ = ["Moments", "Narrow", "learn_weights", "mean_error", "solve"]
