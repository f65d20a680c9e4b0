"""Which tensors get 16 bits because the samples ask for it.

Noise of rounding one tensor is measured where it counts: at the outputs, on samples, with all else in float. Noise of
different tensors is taken to add up, which holds while it is small and independent. What layers take (8-bit inputs and
weights) is the floor; where the rest lifts an output's noise above what is ENOUGH, the tensors that add most are
widened, until what is left is either small or hidden below the floor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from onnx import NodeProto, TensorProto, helper
from qcompile.frontend.graph import Graph
from qcompile.frontend.recurrent import RECURRENT
from qcompile.quantizer.bits import find_layers
from qcompile.quantizer.calibration import Feed
from qcompile.quantizer.collect import open_session, progress
from qcompile.quantizer.histogram import Quantization
from qcompile.quantizer.operators import LINEAR, mover_inputs
from qcompile.quantizer.placement import Placement
from qcompile.quantizer.weights import channel_axis
from qcompile.targets.errors import CompileError

ENOUGH = 26.0  # dB of signal to noise at an output; nothing is widened where all outputs have it
HIDDEN = 0.26  # of the floor: noise that costs less than 1 dB of what can be had
SAMPLES = 8  # at most; fewer where the network is large
MOST_MACS = 3e11  # of all runs: some seconds; a network of which one sample takes more is left as it is
LARGEST = 1 << 29  # bytes of weights, of which a second set is made
FLOOR = "floor"  # the switch of what layers take
Key = tuple[str, str]


def tensors_to_widen(
    graph: Graph, placement: Placement, grids: Mapping[Key, Quantization], samples: Sequence[Feed], notes: list[str]
) -> set[str]:
    """The tensors to be widened, of those to which `placement` gives 8 bits with `grids`, and a note on them; none
    where the network is too large to be run so often, or ONNX Runtime cannot run it in parts."""
    count = _affordable(graph, len({placement.of(t, "i8") for t, kinds in placement.kinds.items() if "i8" in kinds}))
    if not count:
        return set()
    chosen = [samples[i] for i in np.linspace(0, len(samples) - 1, min(count, len(samples))).round().astype(int)]
    try:
        probe = _Probe(graph, placement, grids)
        groups = probe.to_widen(chosen)
    except CompileError:
        return set()
    if groups:
        notes.append(
            f"{len(groups)} of {len(probe.members)} 8-bit tensors outside of layers have 16 bits: their rounding was "
            "much of the noise of the outputs on the samples"
        )
    return {tensor for group in groups for tensor in probe.members[group]}


def _affordable(graph: Graph, groups: int) -> int:
    """How many samples may be run once for each of `groups`."""
    if sum(c.nbytes for c in graph.constants.values()) > LARGEST:
        return 0
    macs = max(sum(layer.macs for layer in find_layers(graph)), 1)
    return int(min(MOST_MACS // (macs * (groups + 3)), SAMPLES))


class _Probe:
    """The float network with a switch for the rounding of each group of tensors that share a grid.

    members: {group: tensors that carry its codes}.
    """

    def __init__(self, graph: Graph, placement: Placement, grids: Mapping[Key, Quantization]) -> None:
        self.members: dict[Key, list[str]] = defaultdict(list)
        self.graph, self._grids, self._placement = graph.twin(), grids, placement
        self._switches: dict[Key | str, str] = {}
        self._made: dict[tuple[str, Key | str], str] = {}
        self.measured = [o.name for o in graph.outputs]
        for ours, theirs in zip(list(self.graph.nodes), graph.nodes, strict=True):
            for i, name in enumerate(theirs.input):
                if placement.reads.get((id(theirs), i)) == "i8" and name not in graph.constants:
                    ours.input[i] = self._rounded(name, FLOOR if _only_layers(graph, theirs) else None)
            if theirs.op_type in LINEAR:
                self._round_weight(ours)
        for i, name in enumerate(self.measured):
            if "i8" in placement.kinds.get(name, ()) and graph.is_float(name):
                self.measured[i] = self._rounded(name, None)
        self.graph.outputs = [helper.make_tensor_value_info(t, self.graph.dtypes[t], None) for t in self.measured]
        self.graph.update()
        self._session = open_session(self.graph, self.measured, list(self._switches.values()), quantized=False)

    def to_widen(self, samples: Sequence[Feed]) -> list[Key]:
        """The groups to be widened."""
        exact = [self._run((), s) for s in samples]
        signal = np.sum([[_energy(y) for y in ys] for ys in exact], 0)
        allowed = signal * 10 ** (-ENOUGH / 10)
        groups = list(self.members)
        if (self._noise([*groups, FLOOR], samples, exact) <= allowed).all():
            return []
        floor = self._noise([FLOOR], samples, exact)
        noise = np.array([self._noise([g], samples, exact) for g in progress(groups, "measuring rounding")])
        wide = np.zeros(len(groups), bool)
        for j in range(len(self.measured)):
            for i in np.argsort(-noise[:, j], kind="stable"):
                if noise[~wide, j].sum() <= max(allowed[j] - floor[j], HIDDEN * floor[j]):
                    break
                wide[i] |= noise[i, j] > 0
        return [g for g, w in zip(groups, wide, strict=True) if w]

    def _noise(self, on: Iterable[Key | str], samples: Sequence[Feed], exact: list[list[np.ndarray]]) -> np.ndarray:
        """Energy of the change of each output with the switches `on`."""
        changed = (self._run(on, s) for s in samples)
        return np.sum([[_energy(a - b) for a, b in zip(x, y)] for x, y in zip(exact, changed)], 0)

    def _run(self, on: Iterable[Key | str], sample: Feed) -> list[np.ndarray]:
        given = {self._switches[key]: np.array(True) for key in on if key in self._switches}
        try:
            made = self._session.run(self.measured, {**sample, **given})
        except Exception as e:  # ONNX Runtime's exception types are not public
            raise CompileError(f"ONNX Runtime cannot run the model on a sample: {str(e).splitlines()[0]}") from e
        return [np.asarray(y, np.float64) for y in made]

    def _switch(self, key: Key | str) -> str:
        if key not in self._switches:
            self._switches[key] = self.graph.constant("round", np.array(False))
        return self._switches[key]

    def _rounded(self, tensor: str, switch: str | None) -> str:
        """`tensor`, on the codes of its group where the switch is on: that of the group, if none is given."""
        group = self._placement.of(tensor, "i8")
        key = switch or group
        if switch is None and tensor not in self.members[group]:
            self.members[group].append(tensor)
        if (tensor, key) not in self._made:
            graph, q = self.graph, self._grids[group]
            scale = graph.constant("scale", np.array(q.scale, np.float32))
            zero = graph.constant("zero_point", np.array(q.zero_point, q.dtype))
            codes = graph.add("QuantizeLinear", [tensor, scale, zero], f"{tensor}_codes")
            value = graph.add("DequantizeLinear", [codes, scale, zero], f"{tensor}_coded")
            self._made[tensor, key] = graph.add("Where", [self._switch(key), value, tensor], f"{tensor}_switched")
            self._note_type(self._made[tensor, key], tensor)
        return self._made[tensor, key]

    def _round_weight(self, node: NodeProto) -> None:
        """Weights on the nearest of 8-bit codes per channel, by the switch of the floor."""
        name = node.input[1]
        weight = self.graph.constants.get(name)
        if weight is None:
            return
        axis = channel_axis(node, 1, weight)
        rest = tuple(i for i in range(weight.ndim) if i != axis)
        scale = np.maximum(np.abs(weight).max(rest, keepdims=True), 1e-30) / 127
        value = self.graph.constant(f"{name}_coded", (np.rint(weight / scale) * scale).astype(np.float32))
        node.input[1] = self.graph.add("Where", [self._switch(FLOOR), value, name], f"{name}_switched")

    def _note_type(self, name: str, like: str) -> None:
        self.graph.shapes[name], self.graph.dtypes[name] = self.graph.shapes[like], TensorProto.FLOAT


def _only_layers(graph: Graph, node: NodeProto) -> bool:
    """Whether what `node` reads reaches layers alone, which take 8 bits."""
    if node.op_type in LINEAR or node.op_type in RECURRENT:
        return True
    if not mover_inputs(node) or graph.output_names.intersection(node.output):
        return False
    return all(_only_layers(graph, reader) for o in node.output for reader in graph.consumers(o))


def _energy(y: np.ndarray) -> float:
    return float(np.square(y).sum())
