"""From what a user asks for to the bits of each layer, with what they cost and what else could have been had."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from qcompile.backends import Backend
from qcompile.frontend.graph import Graph
from qcompile.mixed import latency, sensitivity, solve
from qcompile.mixed.hessian import HessianTraces
from qcompile.mixed.probe import Probe
from qcompile.mixed.request import MIXED, BitsOptions, Request
from qcompile.mixed.rounding import equalised, narrow_data, round_weights
from qcompile.quantizer import Calibration, QuantizeOptions
from qcompile.quantizer.bits import (
    Layer,
    LayerBits,
    check_bits,
    find_layers,
    read_bits,
    stored_bytes,
    uniform_bits,
)
from qcompile.targets.errors import CompileError

DEFAULT_BUDGET = {"size": 0.6}
EIGHT = LayerBits()
NOT_A_SUM, NEGLIGIBLE = 2.0, 1e-3  # a loss so many times the layers' sum is worth a note, if it is any
REFINEMENTS = 6  # rounds in which a loss budget is met by measurement


@dataclass
class Plan:
    """The `bits` of each of `layers`; `label`, as the user called them; `times` of the layers, in `unit`.

    Mixed bits also have: `losses` of the layers; `fronts` {cost: points}; `summary`: costs relative to 8 bits,
    predicted and measured loss, and what the losses are.
    """

    label: int | str = 8
    layers: list[Layer] = field(default_factory=list)
    bits: dict[str, LayerBits] = field(default_factory=dict)
    times: dict[str, float] = field(default_factory=dict)
    unit: str = "cycles"
    losses: dict[str, float] = field(default_factory=dict)
    fronts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    summary: dict[str, Any] | None = None


def make_plan(
    graph: Graph,
    data: Calibration,
    request: Request,
    quantize: QuantizeOptions,
    backend: Backend,
    build: latency.Build,
    notes: list[str],
) -> Plan:
    """The bits of each layer of `graph`, normalised and prepared, which stays as it is; `data`: calibration samples;
    `build`: compiles a layer whose time is to be measured.

    Raises CompileError for layers that do not exist and budgets out of reach.
    """
    wanted, options, layers = request.wanted, request.options, find_layers(graph)
    if isinstance(wanted, str):
        if not layers:
            raise CompileError("--bits mixed: the model has no layers with constant weights")
        return _Chooser(graph, data, options, quantize, backend, build, notes).choose(request.budgets)
    if isinstance(wanted, LayerBits):
        chosen = uniform_bits(layers, wanted.weights, wanted.activations, options.groups[0], options.edge_bits, notes)
    elif isinstance(wanted, Mapping):
        check_bits(wanted, layers)
        chosen = {layer.name: wanted.get(layer.name, EIGHT) for layer in layers}
    else:
        chosen = read_bits(wanted, layers)
    times = {layer.name: latency.cycles(backend, layer, chosen[layer.name]) for layer in layers}
    return Plan(request.label, layers, chosen, times)


class _Chooser:
    """Sets the programme up, solves it, and checks the answer."""

    def __init__(
        self,
        graph: Graph,
        data: Calibration,
        options: BitsOptions,
        quantize: QuantizeOptions,
        backend: Backend,
        build: latency.Build,
        notes: list[str],
    ) -> None:
        self.options, self.notes = options, notes
        self.choices = list(dict.fromkeys([EIGHT, *options.choices()]))
        layers = find_layers(graph)
        self.allowed = np.array([[_possible(layer, b) for b in self.choices] for layer in layers])
        if EIGHT not in options.choices():  # then only for layers that cannot do with less
            self.allowed[:, 0] = ~self.allowed[:, 1:].any(1)
        graph = equalised(graph, data.spaced(quantize.max_samples), quantize, self._narrowest(layers))
        self.layers = layers = find_layers(graph)  # the same, with other weights
        runs = int(self.allowed.sum())
        rounding, samples = sensitivity.split(data.samples, layers, runs, quantize.max_samples)
        widths = [[b for b, a in zip(self.choices, row) if a] for row in self.allowed]
        self.weights = round_weights(graph, layers, widths, rounding, quantize)
        narrow = min(b.activations for b in self.choices)
        self.probe = Probe(graph, layers, samples, narrow_data(graph, layers, narrow, samples) if narrow < 8 else None)
        if options.sensitivity is None:
            self.measure = "share of the output's energy"
            loss = sensitivity.measured(self.probe, layers, self.choices, self.allowed, self.weights, graph)
        else:
            self.measure = "Hessian trace times squared change of the weights"
            given = options.sensitivity
            traces = given if isinstance(given, HessianTraces) else HessianTraces.load(given)
            loss = sensitivity.from_traces(traces, graph, layers, self.choices, self.allowed, self.weights)
        if options.latency == "measured":
            self.unit, times = "us", latency.measured(backend, build, graph, layers, self.choices, self.allowed)
        else:
            self.unit, times = "cycles", latency.modelled(backend, layers, self.choices)
        costs = {
            "size": np.array([[stored_bytes(x, b) for b in self.choices] for x in layers], float),
            "bops": np.array([[x.macs * b.weights * b.activations for b in self.choices] for x in layers], float),
            "latency": times,
        }
        labels = [b.activations for b in self.choices]
        self.problem = solve.Problem(loss, costs, self.allowed, labels, tied(graph, layers))
        eight = np.zeros(len(layers), int)
        self.full = {name: self.problem.total(name, eight) for name in costs}

    def _narrowest(self, layers: Sequence[Layer]) -> dict[str, LayerBits]:
        """Most of what is lost is lost by the layers of fewest bits: channels are equalised for these."""
        possible = ([b for b, allowed in zip(self.choices, row) if allowed] for row in self.allowed)
        return {x.name: min(bits, key=lambda b: (b.weights, -b.activations)) for x, bits in zip(layers, possible)}

    def choose(self, budgets: Mapping[str, float]) -> Plan:
        """The plan within `budgets`, shares of the 8-bit model and of the output's energy."""
        if not budgets:
            budgets = DEFAULT_BUDGET
            self.notes.append("no --budget given: mixed bits for size=60% of the 8-bit weights")
        limits = {n: share * self.full[n] for n, share in budgets.items() if n != solve.LOSS}
        if solve.LOSS in budgets:
            chosen = self._within_loss(budgets[solve.LOSS], limits)
        else:
            found = solve.solve(self.problem, limits)
            chosen = found if found is not None else self._refuse(budgets)
        return self._plan(chosen)

    def _within_loss(self, budget: float, limits: Mapping[str, float]) -> np.ndarray:
        """The smallest plan whose measured loss, all layers together, is within `budget`.

        Losses do not quite add up: the sum that the programme may spend is moved until the measured loss fits.
        """
        allowance, best, best_size = budget, None, np.inf
        for _ in range(REFINEMENTS):
            chosen = solve.solve(self.problem, {**limits, solve.LOSS: allowance}, "size")
            if chosen is None:
                break
            actual, size = self._measure(chosen), self.problem.total("size", chosen)
            if actual <= budget and size < best_size:
                best, best_size = chosen, size
            ratio = float(np.clip(budget / max(actual, 1e-30), 0.25, 4.0))
            if actual <= budget and (ratio < 1.05 or size <= solve.least(self.problem, "size")):
                break
            allowance *= ratio * (0.98 if actual > budget else 1.0)
        if best is None:  # the plan of least loss, if any, is the last hope
            best = solve.solve(self.problem, limits)
            if best is None:
                return self._refuse({n: v / self.full[n] for n, v in limits.items()})
            actual = self._measure(best)
            if actual > budget:
                within = " within the other budgets" if limits else ""
                raise CompileError(
                    f"--budget loss={100 * budget:g}% cannot be reached{within}: the least is {_percent_up(actual)}"
                )
        return best

    def _refuse(self, budgets: Mapping[str, float]) -> Any:
        for name, share in budgets.items():
            if name == solve.LOSS:
                continue
            reachable = solve.least(self.problem, name) / self.full[name]
            if reachable > share:
                wider = "" if name == "latency" else "; narrower --widths reach less"
                raise CompileError(
                    f"--budget {name}={100 * share:g}% cannot be reached: the least is {_percent_up(reachable)}{wider}"
                )
        names = " and ".join(f"{n}={100 * s:g}%" for n, s in budgets.items())
        raise CompileError(f"--budget {names} cannot be reached together; relax one of them")

    def _bits(self, chosen: np.ndarray) -> dict[str, LayerBits]:
        return {layer.name: self.choices[c] for layer, c in zip(self.layers, chosen)}

    def _measure(self, chosen: np.ndarray) -> float:
        return sensitivity.whole(self.probe, self.layers, self._bits(chosen), self.weights)

    def _point(self, chosen: np.ndarray) -> dict[str, Any]:
        shares = {n: round(self.problem.total(n, chosen) / max(f, 1e-30), 5) for n, f in self.full.items()}
        counts: dict[str, int] = defaultdict(int)
        for c in chosen:
            counts[describe(self.choices[c])] += 1
        return {**shares, "loss": self.problem.total(solve.LOSS, chosen), "layers": dict(counts)}

    def _plan(self, chosen: np.ndarray) -> Plan:
        rows = range(len(self.layers))
        names = [layer.name for layer in self.layers]
        summary = {**self._point(chosen), "measured_loss": self._measure(chosen), "measure": self.measure}
        predicted, actual = summary["loss"], summary["measured_loss"]
        if self.options.sensitivity is None and actual > NOT_A_SUM * max(predicted, NEGLIGIBLE):
            self.notes.append(
                f"mixed bits: the layers' losses sum up to {100 * predicted:.3g} % of the output's energy; together "
                f"they lose {100 * actual:.3g} %; --budget loss=... plans by the latter"
            )
        return Plan(
            MIXED,
            self.layers,
            self._bits(chosen),
            {n: float(self.problem.costs["latency"][i, chosen[i]]) for i, n in zip(rows, names)},
            self.unit,
            {n: float(self.problem.loss[i, chosen[i]]) for i, n in zip(rows, names)},
            {c: [self._point(p) for p in solve.front(self.problem, c)] for c in ("size", "latency")},
            summary,
        )


def describe(bits: LayerBits) -> str:
    """As users write it: "w8", "w4", "w4 groups of 32", "w4a4"."""
    data = f"a{bits.activations}" if bits.activations != 8 else ""
    return f"w{bits.weights}{data}" + (f" groups of {bits.group}" if bits.group else "")


def _possible(layer: Layer, bits: LayerBits) -> bool:
    """Depthwise weights and data of tables stay at 8 bits; a group must be a part of the inputs."""
    if layer.depthwise:
        return bits.weights == 8
    if layer.table and bits.activations < 8:
        return False
    return not bits.group or (layer.inputs % bits.group == 0 and layer.inputs > bits.group)


def _percent_up(share: float) -> str:
    """A share as a percentage that can be given back as a budget: rounded up."""
    return f"{np.ceil(share * 1e4 - 1e-9) / 100:g}%"


def tied(graph: Graph, layers: Sequence[Layer]) -> list[tuple[int, ...]]:
    """Groups of layers that must agree on the bits of their data: those that read the same tensor, and those that read
    the two inputs of a sum, which are rescaled to meet (HAWQ-V3, section 3.3)."""
    parent: dict[str, str] = {}

    def root(tensor: str) -> str:
        while parent.get(tensor, tensor) != tensor:
            tensor = parent[tensor]
        return tensor

    for node in graph.nodes:
        computed = [i for i in node.input if i and i not in graph.constants and graph.is_float(i)]
        if node.op_type == "Add" and len(computed) == 2:
            parent[root(computed[0])] = root(computed[1])
    groups: dict[str, list[int]] = defaultdict(list)
    for i, layer in enumerate(layers):
        if not layer.table:
            groups[root(layer.data)].append(i)
    return [tuple(g) for g in groups.values() if len(g) > 1]
