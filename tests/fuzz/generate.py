"""A case of a seed: a graph, its samples, and the options to compile it with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from fuzz.build import FLOAT, SAMPLES, Build, Unsuitable, reads, session
from fuzz.case import Case
from fuzz.operators import Draw, all_draws
from fuzz.quantized import FORMS, quantized

OPSETS = (13, 17, 17, 18, 20, 21, 23, 24)
PARTLY = {"QuantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger"}  # floats around codes
LAYERS = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
MOST_NODES = 30
TRIES = 60
# Compiled and run: x86 natively where the machine can, ARM by an emulator
TARGETS = ("host", "x86-avx512vnni", "x86-avxvnni", "x86-avx2", "arm-a76", "arm-a72", "arm-a53", "arm-a710")


def generate(seed: int, targets: Sequence[str] = TARGETS) -> Case:
    """The case of `seed`, always the same. targets: those that can run here."""
    rng = np.random.default_rng([seed, 0xF022])
    for _ in range(TRIES):
        try:
            return _case(rng, seed, targets)
        except Unsuitable:
            continue
    raise Unsuitable(f"seed {seed}: no graph in {TRIES} tries")


def _case(rng: np.random.Generator, seed: int, targets: Sequence[str]) -> Case:
    model, samples = graph(rng)
    options = _options(rng, model, samples, targets)
    if options["form"] != "float":
        try:
            model = quantized(model, samples, options["form"])
        except Exception:  # ONNX Runtime's tools fail in many ways; then the graph stays as it is
            options["form"] = "float"
    if any(n.op_type in PARTLY for n in model.graph.node) and options["form"] == "float":
        options["form"] = "partly"
    if options["form"] != "float":
        options.update(bits="8", budget=[], calibrated=True)
    return Case(f"seed{seed}", model, samples, options)


def graph(rng: np.random.Generator) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A random graph and its samples, {input: [samples, ...]}."""
    b = Build(rng, int(rng.choice(OPSETS)))
    table = {op: d for op, d in all_draws().items() if d.since <= b.opset and d.weight}
    for _ in range(b.whole(1, 2)):
        b.input(b.any_shape(int(rng.choice([1, 2, 2, 3, 3, 4, 4, 4, 5]))))
    wanted = int(rng.choice([1, 2, 3, 4, 5, 6, 8, 10, 12]))
    for _ in range(wanted):
        _grow(b, table)
        if len(b.nodes) >= MOST_NODES:
            break
    outputs = _outputs(b)
    if not b.nodes or not outputs:
        raise Unsuitable("no nodes")
    model = b.model(outputs)
    read = {i for n in model.graph.node for i in reads(n)}
    for i in [i for i in model.graph.input if i.name not in read]:
        model.graph.input.remove(i)
    if not model.graph.input:
        raise Unsuitable("no inputs")
    return model, {i.name: np.stack(b.inputs[i.name]) for i in model.graph.input}


def _grow(b: Build, table: dict[str, Draw]) -> None:
    """One draw that fits."""
    operators, weights = list(table), np.array([d.weight for d in table.values()])
    for _ in range(TRIES):
        op = operators[int(b.rng.choice(len(operators), p=weights / weights.sum()))]
        before = b.snapshot()
        try:
            table[op].function(b, op)
            return
        except (Unsuitable, IndexError, ValueError):  # nothing of that kind is there, or ONNX Runtime refuses it
            b.restore(before)
    raise Unsuitable("nothing fits")


def _outputs(b: Build) -> list[str]:
    """What nothing reads, mostly; a read one beside it, and dead ends, at times."""
    made = [o for n in b.nodes for o in n.output if o]
    ends = [n for n in made if n not in b.read]
    if len(ends) > 1 and b.chance(0.15):
        ends.pop(b.whole(0, len(ends) - 2))  # a dead end
    inner = [n for n in made if n in b.read and b.kind(n) == FLOAT]
    if inner and b.chance(0.2):
        ends.append(b.one_of(inner))
    return ends[-6:]


def _options(
    rng: np.random.Generator, model: onnx.ModelProto, samples: dict[str, np.ndarray], targets: Sequence[str]
) -> dict[str, Any]:
    """How it is compiled; `form`: "float", or how ONNX Runtime quantizes it before."""

    def one_of(choices: Sequence[Any]) -> Any:
        return choices[int(rng.integers(len(choices)))]

    bits = one_of(("8", "8", "8", "8", "8", "4", "w4a4", "mixed"))
    if bits == "mixed" and not LAYERS & {n.op_type for n in model.graph.node}:
        bits = "8"  # nothing to choose
    return {
        "targets": sorted({one_of(targets) for _ in range(1 + int(rng.random() < 0.35))}),
        "form": one_of(FORMS) if rng.random() < 0.2 else "float",
        "bits": bits,
        "budget": [one_of(("size=60%", "latency=80%", "bops=50%", "loss=1%"))] if bits == "mixed" else [],
        "calibrated": bool(rng.random() < 0.8),
        "approx": one_of(("exact",) * 6 + ("ibert", "pwl")),
        "threads": one_of((1, 1, 2)),
        "states": _states(rng, model, samples),
    }


def _states(rng: np.random.Generator, model: onnx.ModelProto, samples: dict[str, np.ndarray]) -> dict[str, str]:
    """An output that is fed back to an input of its shape and about its range, at times."""
    if rng.random() > 0.25:
        return {}
    run = session(model)
    names = [o.name for o in run.get_outputs()]
    made = dict(zip(names, run.run(names, {n: v[0] for n, v in samples.items()})))
    pairs = [
        (i.name, o.name)
        for i in model.graph.input
        for o in model.graph.output
        if i.type == o.type and i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        if _alike(samples[i.name][0], made[o.name])
    ]
    if not pairs:
        return {}
    source, target = pairs[int(rng.integers(len(pairs)))]
    return {source: target}


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether one grid suits both."""
    low, high = sorted((float(np.abs(a).max()), float(np.abs(b).max())))
    return high <= 4 * low


__all__ = ["SAMPLES", "TARGETS", "generate", "graph"]
