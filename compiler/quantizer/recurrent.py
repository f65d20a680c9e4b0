"""LSTM, GRU and RNN: integer weights, and the ranges of what the operator keeps inside.

ONNX Runtime shows no cell state but the last, so the float cell is run here on the calibration samples. The largest
hidden and cell states go with the node, as its metadata "qcompile.hidden_range" and
"qcompile.cell_range", that of the projected inputs as "qcompile.input_range".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute
from qcompile.frontend.recurrent import CELL, FUNCTIONS, HIDDEN, LENGTHS, RECURRENT, WEIGHTS
from qcompile.kernels.ops.recurrent import CELL_MARGIN, UNIT_BITS, cell_bits
from qcompile.quantizer.collect import observe
from qcompile.quantizer.histogram import Histogram, Quantization
from qcompile.quantizer.options import QuantizeOptions
from qcompile.quantizer.placement import Placement
from qcompile.quantizer.stored import stored_weight
from qcompile.quantizer.weights import quantize_weight

SAMPLES = 64  # the float cell runs on
MOST = 1 << 24  # elements of samples that it runs on at once
ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Sigmoid": lambda x: 0.5 * (1 + np.tanh(0.5 * x)),
    "Tanh": np.tanh,
    "Relu": lambda x: np.maximum(x, 0),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "HardSigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "ScaledTanh": np.tanh,
}


def quantize_recurrent(graph: Graph, samples: list, options: QuantizeOptions) -> None:
    """Note the ranges of every recurrent node's states, and make its weights int8 per gate and unit."""
    nodes = note_ranges(graph, samples)
    made: dict[str, str] = {}
    for node in nodes:
        for i in (1, 2):
            name = node.input[i]
            if name not in graph.constants:
                continue
            if name not in made:
                w = stored_weight(graph.constants[name], 1)
                if w is None or w.codes.dtype != np.int8:
                    w = quantize_weight(graph.constants[name], 1, None, options.clip_weights)
                codes, scale = graph.constant(f"{name}_q", w.codes), graph.constant(f"{name}_scale", w.scale)
                made[name] = graph.add("DequantizeLinear", [codes, scale], f"{name}_dq", axis=1)
            node.input[i] = made[name]
    if nodes:
        graph.update()


def state_steps(graph: Graph, placement: Placement) -> dict[tuple[str, str], float]:
    """The step of each 16-bit group that holds initial or final states: the one that the cell keeps them in, so that
    nothing is converted."""
    steps: dict[tuple[str, str], float] = {}
    for node in graph.nodes:
        names = [a.decode() if isinstance(a, bytes) else a for a in attribute(node, "activations") or ()]
        if node.op_type not in RECURRENT or "Relu" in names:
            continue
        noted = {p.key: float(p.value) for p in node.metadata_props if p.key.startswith("qcompile.")}
        cell = 2.0 ** -cell_bits(noted.get("qcompile.cell_range", 0.0) * CELL_MARGIN)
        ends = [(node.input, HIDDEN, 2.0**-UNIT_BITS), (node.input, CELL, cell)]
        ends += [(node.output, 1, 2.0**-UNIT_BITS), (node.output, 2, cell)]
        for tensors, i, step in ends:
            if i < len(tensors) and tensors[i]:
                key = placement.of(tensors[i], "i16")
                steps[key] = max(steps.get(key, 0.0), step)
    return steps


def choose_state(h: Histogram, step: float) -> Quantization:
    """16 bits in powers of two of `step`, so far as the range asks for them."""
    top = max(-h.low, h.high)
    while top > step * 32768:
        step *= 2
    return Quantization(step, 0, 16, -32768, 32767)


def note_ranges(graph: Graph, samples: list) -> list[NodeProto]:
    """Note the ranges of the states of every recurrent node with constant weights on the samples; these nodes."""
    nodes = [n for n in graph.nodes if n.op_type in RECURRENT and n.input[1] in graph.constants]
    samples = samples[:: max(1, len(samples) // SAMPLES)]
    wanted = {node.input[i] for node in nodes for i in (0, LENGTHS, HIDDEN, CELL) if i < len(node.input)}
    wanted = {name for name in wanted if name and name not in graph.constants}
    tops: dict[int, np.ndarray] = {id(node): np.zeros(3) for node in nodes}
    seen: dict[str, list[np.ndarray]] = {name: [] for name in wanted}

    def run() -> None:
        """The cells on all samples seen so far, side by side as rows."""
        for node in nodes if all(seen.values()) else ():
            count = len(seen[node.input[0]]) if node.input[0] in seen else 1
            values = {}
            for i, name in enumerate(node.input):
                parts = seen.get(name) or [graph.constants[name]] * (1 if i in WEIGHTS else count) if name else []
                if parts:
                    values[i] = parts[0] if i in WEIGHTS else np.concatenate(parts, 0 if i == LENGTHS else 1)
            tops[id(node)] = np.maximum(tops[id(node)], state_ranges(node, values))
        for parts in seen.values():
            parts.clear()

    def observer(name: str, value: np.ndarray) -> None:
        seen[name].append(value)
        whole = len({len(parts) for parts in seen.values()}) == 1
        if whole and sum(v.size for parts in seen.values() for v in parts) > MOST:
            run()

    if wanted:
        observe(graph, wanted, samples, observer, "running recurrent cells")
        run()
    for node in nodes:
        kept = [p for p in node.metadata_props if not p.key.startswith("qcompile.")]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
        for key, value in zip(("hidden_range", "cell_range", "input_range"), tops[id(node)]):
            if value > 0:
                node.metadata_props.add(key=f"qcompile.{key}", value=repr(float(np.float32(value))))
    return nodes


def state_ranges(node: NodeProto, values: Mapping[int, np.ndarray]) -> np.ndarray:
    """(largest |hidden state|, |cell state|, |projected input|) of a plain recurrent node over all steps, float;
    values: of its inputs, by index."""
    x, w, r = (values[i].astype(np.float32) for i in range(3))
    w, r, bias, lengths = w[0], r[0], values.get(3), values.get(LENGTHS)
    units, rows, op = r.shape[1], x.shape[1], node.op_type
    both = np.zeros(2 * len(r), np.float32) if bias is None else bias[0]
    wb, rb = both[: len(r)], both[len(r) :]
    names = [a.decode() if isinstance(a, bytes) else a for a in attribute(node, "activations") or FUNCTIONS[op]]
    f = [ACTIVATIONS.get(n, np.tanh) for n in names]
    states = [values.get(i) for i in (HIDDEN, CELL)]
    h, c = (np.zeros((rows, units), np.float32) if s is None else s[0] for s in states)
    top = np.array([np.abs(h).max(), np.abs(c).max(), 0.0])
    clip = attribute(node, "clip", 0.0) or np.inf
    reset_after = attribute(node, "linear_before_reset", 0)
    steps = range(len(x))
    for t in reversed(steps) if attribute(node, "direction", "forward") == "reverse" else steps:
        part, inner = x[t] @ w.T + wb, h @ r.T + rb
        if op == "LSTM":
            i, o, forget, g = (np.clip(v, -clip, clip) for v in np.split(part + inner, 4, 1))
            new_c = f[0](forget) * c + f[0](i) * f[1](g)
            new = f[0](o) * f[2](new_c)
        elif op == "GRU":
            z, reset, _ = (f[0](np.clip(v, -clip, clip)) for v in np.split(part + inner, 3, 1))
            last = slice(2 * units, None)
            n = reset * inner[:, last] if reset_after else (reset * h) @ r[last].T + rb[last]
            new_c, new = c, (1 - z) * f[1](np.clip(part[:, last] + n, -clip, clip)) + z * h
        else:
            new_c, new = c, f[0](np.clip(part + inner, -clip, clip))
        active = np.ones((rows, 1), bool) if lengths is None else (t < lengths)[:, None]
        h, c = np.where(active, new, h), np.where(active, new_c, c)
        top = np.maximum(top, [np.abs(h).max(), np.abs(c).max(), np.abs(part).max() + np.abs(rb).max()])
    return top
