"""Channel equalisation (SmoothQuant, Xiao et al. 2022; across layers, Nagel et al. 2019).

A tensor x that only feeds linear layers may be divided per channel by s while the layers' weights are multiplied by s:
the float result is the same, but one scale for all
channels of x wastes fewer codes. Where 1/s goes:
- LayerNormalization, RMSNormalization: into gamma and beta; a copy of the node where x has other readers too;
- Conv, MatMul or Gemm, with or without bias, and a Relu: into weights and bias;
- GELU and other activations: a Mul by a constant vector behind them.
s_j = max|x_j|^a / max|w_j|^b, with (a, b) by the least error that a noise model predicts: uniform, independent
rounding errors of x and of the weights, carried through the layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute
from qcompile.quantizer.bits import LayerBits, layer_nodes
from qcompile.quantizer.calibration import Feed
from qcompile.quantizer.collect import observe
from qcompile.quantizer.facts import Facts
from qcompile.quantizer.operators import LINEAR, STREAM_NORMS, is_bias_add
from qcompile.quantizer.stored import grid_steps

SAMPLES = 48  # calibration samples for the channel statistics
EXPONENTS = [(a, b) for a in (0.25, 0.4, 0.5, 0.6, 0.75, 1.0) for b in (0.0, 0.25, 0.5, 0.75) if a + b <= 1.25]
GAIN = 0.8  # a predicted error above this share of the old one is not worth the change
ACTIVATIONS = {"Gelu", "Mish", "Sigmoid", "Tanh", "HardSwish"}
DEAD = 1e-4  # of the largest channel
HOMOGENEOUS = {"Relu", "LeakyRelu"}
BLOCK = 1 << 18  # weights that are looked at together


@dataclass
class Site:
    """One tensor, its channel axis, the linear layers that read it, and its channel statistics."""

    tensor: str
    axis: int
    layers: list[NodeProto]
    low: np.ndarray | float = 0.0
    high: np.ndarray | float = 0.0
    squares: list[np.ndarray] = field(default_factory=list)


def equalise(graph: Graph, facts: Facts, samples: list[Feed], bits: Mapping[str, LayerBits] | None = None) -> None:
    """Equalise every site of `graph` where the predicted error falls enough; the float function stays the same.

    `bits` by layer name: what the rounding errors are to be, 8 bits where it says nothing.
    """
    widths = {id(n): (bits or {}).get(name, LayerBits()) for name, n in layer_nodes(graph).items()}
    sites = {s.tensor: s for s in _sites(graph, facts)}
    if not sites:
        return

    def observer(name: str, value: np.ndarray) -> None:
        site = sites[name]
        rest = tuple(i for i in range(value.ndim) if i != site.axis % value.ndim)
        site.low, site.high = np.minimum(site.low, value.min(rest)), np.maximum(site.high, value.max(rest))
        site.squares.append(np.square(value).mean(rest, dtype=np.float64))

    chosen = samples[:: -(-len(samples) // SAMPLES)]
    observe(graph, sites, chosen, observer, "equalising")
    for site in sites.values():
        factors = _factors(graph, site, [widths.get(id(n), LayerBits()) for n in site.layers])
        if factors is not None and _divide(graph, site, factors):
            for layer in site.layers:
                _multiply_inputs(graph, layer, factors)
            graph.update()


def _sites(graph: Graph, facts: Facts) -> list[Site]:
    found = []
    for node in graph.nodes:
        name = node.output[0]
        layers = [
            n
            for n in graph.consumers(name)
            if n.op_type in ("Conv", "MatMul", "Gemm")
            and n.input[0] == name
            and n.input[1] in graph.constants
            and list(n.input).count(name) == 1
        ]
        if not layers or len({n.op_type == "Conv" for n in layers}) > 1 or name in facts.exact:
            continue
        if any(n.op_type == "MatMul" and graph.rank(n.input[1]) != 2 for n in layers):
            continue
        axis = 1 if layers[0].op_type == "Conv" else -1
        behind = _linear_behind(graph, name, axis)
        if any(n.input[1] in graph.blocks for n in [*layers, *([behind[0]] if behind else [])]):
            continue  # weights that keep the codes they came with
        alone = len(layers) == len(graph.consumers(name)) and name not in graph.output_names
        if node.op_type in STREAM_NORMS:
            if axis == -1 and len(node.output) == 1 and attribute(node, "axis", -1) in (-1, graph.rank(name) - 1):
                found.append(Site(name, axis, layers))
        elif alone and (
            (node.op_type in ACTIVATIONS and axis == -1)
            or (id(node) in facts.gated and axis == -1)
            or behind is not None
        ):
            found.append(Site(name, axis, layers))
    return found


def _linear_behind(graph: Graph, name: str, axis: int) -> tuple[NodeProto, NodeProto | None] | None:
    """(layer, bias Add or None) where `name` is that layer's result, possibly through a homogeneous activation, and the
    layer's output channels lie along its `axis`."""
    rank = graph.rank(name)
    node = graph.producer(name)
    if node is not None and node.op_type in HOMOGENEOUS and graph.only_consumer(node.input[0]) is node:
        node = graph.producer(node.input[0])
    if node is None:
        return None
    add = node if is_bias_add(graph, node) else None
    layer = (
        next((m for i in node.input if (m := graph.producer(i, "MatMul")) is not None), None)
        if add is not None
        else node
    )
    if layer.op_type not in LINEAR - {"ConvTranspose"} or layer.input[1] not in graph.constants:
        return None
    if layer.op_type == "MatMul" and graph.rank(layer.input[1]) != 2:
        return None  # weights of their own for each image, or one output channel that has no axis
    if not rank or axis % rank != (1 if layer.op_type == "Conv" else rank - 1):
        return None
    if len(layer.input) > 2 and layer.input[2] and layer.input[2] not in graph.constants:
        return None
    return layer, add


@dataclass(frozen=True)
class Columns:
    """A layer's weights as [groups, outputs of a group, inputs of a group, taps], and what its noise depends on."""

    weight: np.ndarray
    squares: np.ndarray  # [channels]: sum of squares over outputs and taps
    reach: np.ndarray  # [channels]: largest magnitude
    levels: int = 127  # of the codes on each side of zero
    exact: bool = False  # whether the weights, as they are, lie on a grid of 8 bits

    @staticmethod
    def of(graph: Graph, layer: NodeProto, bits: int = 8) -> Columns:
        w = graph.constants[layer.input[1]]
        if layer.op_type == "Conv":
            groups = attribute(layer, "group", 1)
            w = w.reshape(groups, w.shape[0] // groups, w.shape[1], -1)
        else:
            w = (w if layer.op_type == "Gemm" and attribute(layer, "transB", 0) else w.T)[None, :, :, None]
        squares, reach = np.zeros((w.shape[0], w.shape[2])), np.zeros((w.shape[0], w.shape[2]), w.dtype)
        for part in _blocks(w):
            squares += np.square(part).sum((1, 3))
            reach = np.maximum(reach, np.abs(part).max((1, 3)))
        exact = bits == 8 and grid_steps(w.reshape(w.shape[0] * w.shape[1], -1)) is not None
        return Columns(w, squares.reshape(-1), reach.reshape(-1), 2 ** (bits - 1) - 1, exact)

    def steps(self, candidates: list[np.ndarray]) -> np.ndarray:
        """[candidates, groups]: for each s, the squared steps of the weights times s, summed over the outputs."""
        groups, _, inputs, _ = self.weight.shape
        factors = [s.astype(np.float32).reshape(groups, 1, inputs) for s in candidates]
        total = np.zeros((len(factors), groups))
        for part in _blocks(self.weight):
            largest = np.abs(np.ascontiguousarray(part)).max(3)
            scaled = np.empty_like(largest)
            for i, s in enumerate(factors):
                peaks = np.multiply(largest, s, out=scaled).max(2)
                total[i] += np.square(peaks).sum(1, dtype=np.float64)
        return total / self.levels**2


def _blocks(w: np.ndarray) -> Iterator[np.ndarray]:
    """Some outputs of each group at a time, so that a block stays in the cache while all factors are tried."""
    outputs = max(1, BLOCK * w.shape[1] // max(w.size, 1))
    for start in range(0, w.shape[1], outputs):
        yield w[:, start : start + outputs]


def _errors(
    site: Site, layers: list[Columns], square: np.ndarray, candidates: list[np.ndarray], codes: int = 256
) -> np.ndarray:
    """For each s, of which the first is ones, the predicted squared output error relative to the output's energy,
    summed over the layers; `codes`: how many the site's tensor has."""
    steps = np.array([((site.high / s).max() - (site.low / s).min()) / (codes - 1) for s in candidates])
    total = np.zeros(len(candidates))
    for layer in layers:
        groups, _, _, taps = layer.weight.shape
        rounding = steps**2 * [(layer.squares * s**2).sum() for s in candidates]
        energy = np.array([(square / s**2).reshape(groups, -1).sum(1) for s in candidates])
        weight_error = (layer.steps(candidates) * energy).sum(1) * taps
        weight_error[0] *= not layer.exact
        total += (rounding + weight_error) / 12 / max((layer.squares * square).sum(), 1e-30)
    return total


def _factors(graph: Graph, site: Site, bits: list[LayerBits]) -> np.ndarray | None:
    """The s of least predicted error, None where no s is clearly better than 1."""
    square = np.mean(site.squares, axis=0)
    peak = np.maximum(np.abs(site.low), np.abs(site.high))
    if not peak.max() > 0:
        return None
    layers = [Columns.of(graph, n, b.weights) for n, b in zip(site.layers, bits)]
    if any(layer.reach.size != peak.size for layer in layers):
        return None
    reach = np.max([layer.reach for layer in layers], axis=0)
    # channels that are never used stay as they are: their peaks say nothing of the others'
    live = (peak > DEAD * peak.max()) & (reach > DEAD * reach.max())
    if not live.any():
        return None
    candidates = [np.ones_like(peak)]
    for a, b in EXPONENTS:
        s = np.ones_like(peak)
        s[live] = peak[live] ** a / reach[live] ** b
        s[live] /= np.exp(np.log(s[live]).mean())
        candidates.append(s)
    errors = _errors(site, layers, square, candidates, 2 ** max(b.activations for b in bits))
    best = int(errors.argmin())
    return candidates[best].astype(np.float32) if errors[best] < GAIN * errors[0] else None


def _multiply_inputs(graph: Graph, layer: NodeProto, s: np.ndarray) -> None:
    w = graph.constants[layer.input[1]]
    if layer.op_type == "Conv":
        groups = attribute(layer, "group", 1)
        per_group = s.reshape(groups, w.shape[1]).repeat(w.shape[0] // groups, 0)
        shaped = per_group.reshape(*w.shape[:2], *(1,) * (w.ndim - 2))
    else:
        shaped = s if layer.op_type == "Gemm" and attribute(layer, "transB", 0) else s[:, None]
    layer.input[1] = graph.constant(f"{layer.input[1]}_equalised", w * shaped)


def _divide(graph: Graph, site: Site, s: np.ndarray) -> bool:
    """Let the layers of `site` read its tensor divided by s."""
    node, name = graph.producer(site.tensor), site.tensor
    if node.op_type in STREAM_NORMS:
        inputs = [
            node.input[0],
            *(graph.constant(f"{i}_equalised", graph.constants[i] / s) for i in node.input[1:] if i in graph.constants),
        ]
        if len(inputs) != len(node.input):
            return False
        target = graph.add(
            node.op_type,
            inputs,
            f"{name}_equalised",
            axis=attribute(node, "axis", -1),
            epsilon=attribute(node, "epsilon", 1e-5),
        )
    elif (behind := _linear_behind(graph, name, site.axis)) is not None:
        _divide_outputs(graph, *behind, s)
        return True
    else:
        factors = graph.constant(f"{name}_factors", 1.0 / s)
        target = graph.add("Mul", [name, factors], f"{name}_equalised")
    graph.shapes[target], graph.dtypes[target] = graph.shapes[name], graph.dtypes[name]
    graph.replace_uses(name, target, only=site.layers)
    return True


def _divide_outputs(graph: Graph, layer: NodeProto, add: NodeProto | None, s: np.ndarray) -> None:
    w = graph.constants[layer.input[1]]
    if layer.op_type == "Conv":
        shaped = s.reshape(-1, *(1,) * (w.ndim - 1))
    else:
        shaped = s[:, None] if layer.op_type == "Gemm" and attribute(layer, "transB", 0) else s
    layer.input[1] = graph.constant(f"{layer.input[1]}_equalised", w / shaped)
    holder = add if add is not None else layer
    for i in range(len(holder.input)) if add is not None else range(2, len(holder.input)):
        if holder.input[i] in graph.constants:
            bias = graph.constants[holder.input[i]]
            holder.input[i] = graph.constant(f"{holder.input[i]}_equalised", bias / s)
