"""Which tensors and layers get 16 bits because the samples ask for it.

Noise of rounding one tensor is measured where it counts: at the outputs, on samples, with all else in float. Noise of
different tensors is taken to add up, which holds while it is small and independent. Where all of it leaves an output
with too little signal to noise, what adds most gets 16 bits until the rest is small, or hidden below what cannot be
helped: first tensors between layers, which cost little, then inputs of layers, each of which costs a second product.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort
from onnx import NodeProto, TensorProto, helper
from qcompile.frontend.graph import Graph
from qcompile.quantizer.bits import Layer, find_layers, layer_nodes
from qcompile.quantizer.calibration import Feed
from qcompile.quantizer.collect import open_session, progress
from qcompile.quantizer.histogram import Quantization
from qcompile.quantizer.operators import LINEAR, mover_inputs
from qcompile.quantizer.pixels import given_quantization
from qcompile.quantizer.placement import Placement
from qcompile.quantizer.weights import channel_axis, input_importance
from qcompile.targets.errors import CompileError

ENOUGH = 26.0  # dB of signal to noise at an output; no tensor is widened where all outputs have it
LEAST, BETTER = 20.0, 23.0  # dB; layers read 16 bits where an output has less than the first, up to the second
HIDDEN = 0.26  # of the noise that cannot be helped: more costs less than 1 dB
DEARER = 0.3  # of the network's products: so many more may be spent on layers that read 16 bits
FREE = 1_000_000  # products that may be spent in any case: below a millisecond on most CPUs
SAMPLES = 8  # at most; fewer where the network is large
MOST_MACS = 1e12  # of all runs: some ten seconds; a network of which one sample takes more is left as it is
LARGEST = 1 << 29  # bytes of weights, of which a second set is made
Group = tuple[str, str]


@dataclass
class Widened:
    """tensors: those with 16 bits wherever they are read but by layers; layers: names of those that read 16 bits."""

    tensors: set[str] = field(default_factory=set)
    layers: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.tensors or self.layers)


def choose_widths(
    graph: Graph,
    placement: Placement,
    grids: Mapping[Group, Quantization],
    moments: Mapping[str, tuple[np.ndarray, np.ndarray]],
    samples: Sequence[Feed],
    fixed: Iterable[str],
    notes: list[str],
) -> Widened:
    """What gets 16 bits of the tensors to which `placement` gives 8 with `grids`, and of the layers but those `fixed`;
    a note on it. moments: means and mean squares of the layers' input channels.

    Nothing where the network is too large to be run so often, or ONNX Runtime cannot run it in parts."""
    layers = {x.name: x for x in find_layers(graph) if x.op_type in LINEAR}
    macs = max(sum(x.macs for x in layers.values()), 1)
    runs = len(placement.kinds) + len(layers) + 4
    count = int(min(MOST_MACS // (macs * runs), SAMPLES, len(samples)))
    if not count or sum(c.nbytes for c in graph.constants.values()) > LARGEST:
        return Widened()
    spaced = [samples[i] for i in np.linspace(0, len(samples) - 1, count).round().astype(int)]
    try:
        probe = _Probe(graph, placement, grids, layers, set(fixed), moments)
        groups, dear = probe.choose(spaced, max(DEARER * macs, FREE))
    except CompileError:
        return Widened()
    if groups:
        notes.append(f"{len(groups)} tensors have 16 bits: with 8, most of the outputs' noise came from them")
    if dear:
        share = sum(layers[name].macs for name in dear) / macs
        notes.append(
            f"{len(dear)} of {len(layers)} layers read 16 bits, as two products each ({share:.0%} more "
            "multiplications): with 8, most of the outputs' noise came from them"
        )
    return Widened({tensor for group in groups for tensor in probe.members[group]}, dear)


class _Probe:
    """The float network with a switch for each rounding: of a group of tensors that share a grid, for its readers that
    are no layers; of a layer's input; of all weights and of what cannot be widened ("").

    members: {group: tensors that carry its codes}.
    """

    def __init__(
        self,
        graph: Graph,
        placement: Placement,
        grids: Mapping[Group, Quantization],
        layers: Mapping[str, Layer],
        fixed: set[str],
        moments: Mapping[str, tuple[np.ndarray, np.ndarray]],
    ) -> None:
        self.graph, self._grids, self._placement, self._layers = graph.twin(), grids, placement, layers
        self.members: dict[Group, list[str]] = defaultdict(list)
        self._switches: dict[Group | str, str] = {}
        self._made: dict[tuple[str, str, Group | str], str] = {}
        self._weights: dict[str, NodeProto] = {}  # by the layers that read them
        self._coded: dict[str, np.ndarray] = {}  # weights rounded to 8 bits, when they have been asked for
        self._moments = moments
        names = {id(n): name for name, n in layer_nodes(graph).items() if name in layers}
        for ours, theirs in zip(list(self.graph.nodes), graph.nodes, strict=True):
            name = names.get(id(theirs), "")
            for i, tensor in enumerate(theirs.input):
                kind = placement.reads.get((id(theirs), i))
                if kind is None or tensor in graph.constants or mover_inputs(theirs):
                    continue
                if kind != "i8":
                    ours.input[i] = self._rounded(tensor, kind, "")
                elif theirs.op_type not in LINEAR:
                    ours.input[i] = self._rounded(tensor, kind, None)
                elif given_quantization(graph, tensor) is None:
                    ours.input[i] = self._rounded(tensor, kind, "" if name in fixed else name)
            if name:
                self._weights[ours.input[1]] = theirs
        self._measured = [o.name for o in graph.outputs]
        for i, tensor in enumerate(self._measured):
            if "i8" in placement.kinds.get(tensor, ()) or (tensor, "i8") in placement.carrier:
                self._measured[i] = self._rounded(tensor, "i8", None)
        self.graph.outputs = [helper.make_tensor_value_info(t, self.graph.dtypes[t], None) for t in self._measured]
        self.graph.update()
        self._switches = {key: s for key, s in self._switches.items() if s in self.graph.constants}
        self._session = self._opened([])

    def choose(self, samples: Sequence[Feed], spare: float) -> tuple[list[Group], list[str]]:
        """(groups to widen, layers that are to read 16 bits); these cost at most `spare` products."""
        exact = [self._run((), s) for s in samples]
        signal = np.sum([[_energy(y) for y in ys] for ys in exact], 0)

        def noise(on: Collection[Group | str]) -> np.ndarray:
            changed = (self._run(on, s) for s in samples)
            return np.sum([[_energy(a - b) for a, b in zip(x, y)] for x, y in zip(exact, changed)], 0)

        def each(names: Sequence[Group | str], title: str) -> np.ndarray:
            return np.array([noise([n]) for n in progress(names, title)]).reshape(len(names), len(signal))

        groups = [g for g in self.members if g in self._switches]
        layers = [name for name in self._switches if isinstance(name, str) and name]
        allowed, helped = signal * 10 ** (-ENOUGH / 10), noise([*groups, *layers])
        if (helped <= allowed).all() or (helped <= np.maximum(allowed, HIDDEN * (fixed := noise([""])))).all():
            return [], []
        by_group, others = each(groups, "measuring tensors"), noise(["", *layers])
        wide, dear = _most(by_group, allowed, others), set[int]()
        left = by_group[[i not in wide for i in range(len(groups))]].sum(0)
        if (left + others > signal * 10 ** (-LEAST / 10)).any() and (noise(layers) > HIDDEN * (left + fixed)).any():
            by_layer = each(layers, "measuring layers")
            costs = np.array([self._layers[name].macs for name in layers], np.float64)
            dear = _most(by_layer, signal * 10 ** (-BETTER / 10), left + fixed, costs, spare)
            others = fixed + by_layer[[i not in dear for i in range(len(layers))]].sum(0)
            wide |= _most(by_group, allowed, others)  # what the layers' noise has hidden
        return [groups[i] for i in sorted(wide)], [layers[i] for i in sorted(dear)]

    def _opened(self, weights: list[str]) -> ort.InferenceSession:
        """A session to whose runs switches and `weights` may be given."""
        return open_session(self.graph, self._measured, [*self._switches.values(), *weights], quantized=False)

    def _run(self, on: Collection[Group | str], sample: Feed) -> list[np.ndarray]:
        given = {self._switches[key]: np.array(True) for key in on if key in self._switches}
        if "" in on and self._weights and not self._coded:
            self._session = self._opened(list(self._weights))  # not before: it keeps weights of its own
            self._coded = {name: self._rounded_weight(name) for name in self._weights}
        if "" in on:
            given |= self._coded
        try:
            made = self._session.run(self._measured, {**sample, **given})
        except Exception as e:  # ONNX Runtime's exception types are not public
            raise CompileError(f"ONNX Runtime cannot run the model on a sample: {str(e).splitlines()[0]}") from e
        return [np.asarray(y, np.float64) for y in made]

    def _switch(self, key: Group | str) -> str:
        if key not in self._switches:
            self._switches[key] = self.graph.constant("round", np.array(False))
        return self._switches[key]

    def _rounded(self, tensor: str, kind: str, layer: str | None) -> str:
        """`tensor`, on the codes of its group where the switch of `layer` is on; that of the group, if None is
        given."""
        group = self._placement.of(tensor, kind)
        key = group if layer is None else layer
        if layer is None and tensor not in self.members[group]:
            self.members[group].append(tensor)
        if (tensor, kind, key) not in self._made:
            graph, q, source = self.graph, self._grids[group], tensor
            if q.clipped:
                ends = ((c - q.zero_point) * q.scale for c in (q.qmin, q.qmax))
                limits = [graph.constant("limit", np.array(end, np.float32)) for end in ends]
                source = graph.add("Clip", [tensor, *limits], f"{tensor}_clipped")
            scale = graph.constant("scale", np.array(q.scale, np.float32))
            zero = graph.constant("zero_point", np.array(q.zero_point, q.dtype))
            codes = graph.add("QuantizeLinear", [source, scale, zero], f"{tensor}_codes")
            value = graph.add("DequantizeLinear", [codes, scale, zero], f"{tensor}_coded")
            made = graph.add("Where", [self._switch(key), value, tensor], f"{tensor}_switched")
            graph.shapes[made], graph.dtypes[made] = graph.shapes[tensor], TensorProto.FLOAT
            self._made[tensor, kind, key] = made
        return self._made[tensor, kind, key]

    def _rounded_weight(self, name: str) -> np.ndarray:
        """A weight on the nearest of 8-bit codes per channel. Of the error e along the mean m of the layer's input so
        much is left that E (e x)^2 is what is left of it when biases are corrected: e Cov(x) e, of independent inputs
        of one variance."""
        node, weight = self._weights[name], self.graph.constants[name]
        axis = channel_axis(node, 1, weight)
        rest = tuple(i for i in range(weight.ndim) if i != axis)
        scale = np.maximum(np.abs(weight).max(rest, keepdims=True), np.float32(1e-30)) / np.float32(127)
        error = np.rint(weight / scale) * scale - weight
        first, second = self._moments.get(node.input[0], (None, None))
        mean = input_importance(self.graph, node, weight, first)
        if mean is not None and first is not None and second is not None and axis is not None:
            variance = float(np.mean(second - np.square(first)))
            length = (np.square(mean) * np.ones_like(error)).sum(rest, keepdims=True) + 1e-30  # of m, squared
            kept = np.sqrt(max(variance, 0.0) / (max(variance, 0.0) + length))
            error = error - (1 - kept) * (error * mean).sum(rest, keepdims=True) / length * mean
        return (weight + error).astype(np.float32)


def _most(
    noise: np.ndarray, allowed: np.ndarray, others: np.ndarray, costs: np.ndarray | None = None, spare: float = np.inf
) -> set[int]:
    """The rows of `noise` [candidates, outputs] to be taken away, largest first, until the rest is within what is
    `allowed` beside the noise of `others`, or hidden below these; together they cost at most `spare`."""
    costs = np.zeros(len(noise)) if costs is None else costs
    taken: set[int] = set()
    for j in range(noise.shape[1]):
        most = max(allowed[j] - others[j], HIDDEN * others[j])
        for i in map(int, np.argsort(-noise[:, j], kind="stable")):
            if sum(noise[k, j] for k in range(len(noise)) if k not in taken) <= most or noise[i, j] <= 0:
                break
            if i not in taken and costs[[*taken, i]].sum() <= spare:
                taken.add(i)
    return taken


def _energy(y: np.ndarray) -> float:
    """Sum of squares; without bound where something is no number, as the logarithm of what was rounded to 0."""
    total = float(np.square(y).sum())
    return total if np.isfinite(total) else np.inf
