"""The float network in ONNX Runtime, with weights and data inputs of single layers replaced from run to run.

One session serves all runs: every layer's weight is an input whose default is the float weight, kept where it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph
from qcompile.quantizer.bits import Layer, layer_nodes
from qcompile.quantizer.calibration import Feed
from qcompile.quantizer.collect import counting, open_session
from qcompile.quantizer.facts import Facts
from qcompile.quantizer.histogram import Quantization
from qcompile.quantizer.weights import QuantizedWeight
from qcompile.targets.errors import CompileError

READOUTS = {"Softmax", "LogSoftmax", "Sigmoid", "ArgMax", "ArgMin", "Cast"}  # what outputs are looked at in front of


@dataclass(frozen=True)
class Rounded:
    """A layer's weights at some width, and the shift of its bias, per output channel, that goes with them."""

    quantized: QuantizedWeight
    shift: np.ndarray | None = None

    @property
    def weight(self) -> np.ndarray:
        """float32, in the layer's own layout."""
        return self.quantized.dequantized().astype(np.float32, copy=False)


def observed(graph: Graph) -> list[str]:
    """The float tensors that stand for the network's outputs; CompileError where there are none."""
    found = outputs_before_readout(graph)
    if not found:
        raise CompileError("mixed bits: the network has no float output by which layers could be judged")
    return found


def outputs_before_readout(graph: Graph) -> list[str]:
    """The network's outputs, or, behind a softmax, sigmoid or argmax, whose outputs saturate, what is in front of it;
    float tensors only."""
    found = []
    for output in sorted(graph.output_names):
        tensor = output
        while (node := graph.producer(tensor)) is not None:
            floats = [i for i in node.input if i and graph.is_float(i)]
            if not floats or (graph.is_float(tensor) and node.op_type not in READOUTS):
                break
            tensor = floats[0]
        if graph.is_float(tensor) and graph.producer(tensor) is not None:
            found.append(tensor)
    return list(dict.fromkeys(found))


class Probe:
    """Runs `graph` on `samples` with some of `layers` at fewer bits and compares what `observed` names.

    narrow: {layer name: quantization} of the data inputs that `loss` may be asked to round.
    """

    def __init__(
        self,
        graph: Graph,
        layers: Sequence[Layer],
        samples: Sequence[Feed],
        narrow: Mapping[str, Quantization] | None = None,
    ) -> None:
        graph = graph.twin()
        self.outputs, self.samples = observed(graph), samples
        masks = Facts(graph).masks()
        self.counting = [counting(sample, masks) for sample in samples]
        self.weights = {layer.name: f"weight of layer {i}" for i, layer in enumerate(layers)}
        self.shifts: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.switches = {name: f"narrow input of layer {name}" for name in narrow or {}}
        nodes = layer_nodes(graph)
        for layer in layers:
            node, name = nodes[layer.name], self.weights[layer.name]
            graph.constants[name] = np.ascontiguousarray(graph.constants[layer.weight])
            node.input[list(node.input).index(layer.weight)] = name
            if layer.name in self.switches:
                rounded = _rounded(graph, layer.data, self.switches[layer.name], (narrow or {})[layer.name])
                node.input[list(node.input).index(layer.data)] = rounded
            if not layer.table:
                self.shifts[layer.name] = _shifted(graph, node, layer.channels)
        graph.update()
        shifts = [name for name, _ in self.shifts.values()]
        self.session = open_session(graph, self.outputs, [*self.weights.values(), *shifts, *self.switches.values()])
        self.reference = [self._run({}, sample) for sample in samples]
        pairs = zip(self.reference, self.counting)
        self.energy = np.sum([[_energy(y, tokens) for y in ys] for ys, tokens in pairs], 0)

    def loss(self, rounded: Mapping[str, Rounded], narrow: Iterable[str] = ()) -> float:
        """Energy of the change of the outputs over the outputs' energy, averaged over the outputs, with `rounded`
        {layer name: weights} in place of the layers' own and the data inputs of the layers `narrow` rounded."""
        given = {self.weights[name]: np.ascontiguousarray(r.weight) for name, r in rounded.items()}
        for layer, r in rounded.items():
            if r.shift is not None:
                name, shape = self.shifts[layer]
                given[name] = r.shift.astype(np.float32).reshape(shape)
        given.update({self.switches[name]: np.ones((), np.float32) for name in narrow})
        change = np.zeros(len(self.outputs))
        for sample, reference, tokens in zip(self.samples, self.reference, self.counting):
            change += [_energy(a - b, tokens) for a, b in zip(self._run(given, sample), reference)]
        return float(np.mean(change / np.maximum(self.energy, 1e-30)))

    def _run(self, given: Mapping[str, np.ndarray], sample: Feed) -> list[np.ndarray]:
        try:
            return self.session.run(self.outputs, {**sample, **given})
        except Exception as e:  # ONNX Runtime's exception types are not public
            raise CompileError(f"ONNX Runtime cannot run the model on a sample: {str(e).splitlines()[0]}") from e


def _energy(y: np.ndarray, tokens: Mapping[tuple[int, ...], np.ndarray]) -> float:
    """Sum of squares over the tokens that count."""
    mask = tokens.get(y.shape[:2])
    return float(np.square(y if mask is None else y[mask], dtype=np.float64).sum())


def _shifted(graph: Graph, node: NodeProto, channels: int) -> tuple[str, tuple[int, ...]]:
    """Adds a constant to the outputs of a layer, zero by default; its name and shape."""
    output = node.output[0]
    rank = graph.rank(output) or 1
    behind = rank - 2 if node.op_type in ("Conv", "ConvTranspose") else 0
    shape = (channels, *(1,) * behind)
    name = graph.constant(f"shift of {output}", np.zeros(shape, np.float32))
    node.output[0] = graph.fresh(f"{output}_unshifted")
    graph.add("Add", [node.output[0], name], [output])
    graph.nodes[-1].name = node.output[0]
    return name, shape


def _rounded(graph: Graph, tensor: str, switch: str, q: Quantization) -> str:
    """x + switch * (rounded x - x): `tensor` as it is while `switch` is 0, at `q`'s codes where it is 1."""
    graph.constants[switch] = np.zeros((), np.float32)

    def add(op_type: str, *inputs: str | float) -> str:
        named = [i if isinstance(i, str) else graph.constant("bits_constant", np.array(i, np.float32)) for i in inputs]
        return graph.add(op_type, named, f"{tensor}_narrow")

    low, high = q.qmin - q.zero_point, q.qmax - q.zero_point
    steps = add("Clip", add("Round", add("Div", tensor, q.scale)), low, high)
    return add("Add", tensor, add("Mul", switch, add("Sub", add("Mul", steps, q.scale), tensor)))
