"""A failing case made small: fewer options, nodes and outputs, smaller shapes, while the same thing happens.

Delta debugging (Zeller and Hildebrandt, 2002) on the graph: each reduction yields smaller cases, the first that still
fails in the same place replaces the case, until none does or the time is spent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fuzz.build import reads, session
from fuzz.case import DEFAULTS, Case
from fuzz.check import HANG, LEAST_DB, LOW, Result
from fuzz.yardstick import all_values

SECONDS = 90.0
FEW = 2  # samples that are enough


def minimise(case: Case, found: Result, limit: float, seconds: float = SECONDS) -> Case:
    """The smallest case found that fails as `case` does, after `seconds`."""
    from fuzz.workers import run_cases

    end = time.monotonic() + seconds
    patience = min(limit, 20.0) if found.kind == HANG else limit

    def fails(candidate: Case) -> bool:
        try:
            session(candidate.model)
            (_, result), *_ = run_cases([(0, lambda: candidate)], 1, patience)
        except Exception:  # a reduction that made no valid model
            return False
        if found.kind == LOW:
            noisy = {n for n, d in result.decibels.items() if d < LEAST_DB}
            if noisy.isdisjoint(n for n, d in found.decibels.items() if d < LEAST_DB):
                return False  # another output, so perhaps another cause
        return result.kind == found.kind and _place(result) == _place(found)

    changed = True
    while changed:
        changed = False
        for reduction in REDUCTIONS if found.kind != LOW else KEEP_VALUES:
            case, reduced = _reduce(case, reduction, fails, end)
            changed |= reduced
    return case


def _reduce(
    case: Case, reduction: Callable[[Case], Iterator[Case]], fails: Callable[[Case], bool], end: float
) -> tuple[Case, bool]:
    """The case after as many steps of one reduction as still fail, and whether there was one."""
    reduced = False
    while True:
        for candidate in _candidates(reduction, case):
            if time.monotonic() > end:
                return case, False
            if fails(candidate):
                case, reduced = candidate, True
                break
        else:
            return case, reduced


def _candidates(reduction: Callable[[Case], Iterator[Case]], case: Case) -> Iterator[Case]:
    try:
        yield from reduction(case)
    except Exception:  # a graph that this reduction cannot read
        return


def _place(result: Result) -> str:
    """Where it failed; of a target only what was done, since another one will do as well."""
    return result.where.split(" ")[0] if result.kind != "difference" else ""


# --- reductions: each yields smaller cases, the smallest first --------------------------------------------------------
def _options(case: Case) -> Iterator[Case]:
    if len(case.options["targets"]) > 1:
        for target in case.options["targets"]:
            yield _with(case, options={**case.options, "targets": [target]})
    for key, value in DEFAULTS.items():
        if key not in ("targets", "form") and case.options[key] != value:
            yield _with(case, options={**case.options, key: value, **({"budget": []} if key == "bits" else {})})
    if case.options["targets"] not in (["host"], ["x86-avx2"]):
        for target in ("host", "x86-avx2"):
            yield _with(case, options={**case.options, "targets": [target]})


def _ends(case: Case) -> Iterator[Case]:
    """Each tensor as the only output, the first made first."""
    tensors = [o for n in case.model.graph.node for o in n.output if o]
    if len(case.model.graph.output) == 1:
        tensors = [t for t in tensors if t != case.model.graph.output[0].name]
    values = _values(case)
    for name in tensors:
        smaller = _cut(case, values, [name], set())
        if smaller is not None and len(smaller.model.graph.node) < len(case.model.graph.node):
            yield smaller
    if len(case.model.graph.output) > 1:
        for output in case.model.graph.output:
            yield _cut(case, values, [output.name], set())  # type: ignore[misc]


def _beginnings(case: Case) -> Iterator[Case]:
    """The first nodes left out, as many as possible; then each node's results as inputs."""
    nodes, values = case.model.graph.node, _values(case)
    outputs = [o.name for o in case.model.graph.output]
    for count in range(len(nodes) - 1, 0, -1):
        made = {o for n in nodes[:count] for o in n.output if o}
        yield from filter(None, [_cut(case, values, outputs, made)])
    for node in nodes:
        yield from filter(None, [_cut(case, values, outputs, {o for o in node.output if o})])


def _bypasses(case: Case) -> Iterator[Case]:
    """A node left out whose result has the shape and type of what it reads."""
    values = _values(case)
    outputs = {o.name for o in case.model.graph.output}
    for index, node in enumerate(case.model.graph.node):
        made = node.output[0]
        for source in node.input:
            like = source in values and values[source].shape == values[made].shape
            if like and values[source].dtype == values[made].dtype and made not in outputs:
                model = _copy(case.model)
                del model.graph.node[index]
                for other in model.graph.node:
                    for i, name in enumerate(other.input):
                        if name == made:
                            other.input[i] = source
                smaller = _with(case, model=model)
                yield _cut(smaller, values, list(outputs), set())  # type: ignore[misc]


def _attributes(case: Case) -> Iterator[Case]:
    for index, node in enumerate(case.model.graph.node):
        for attribute in node.attribute:
            model = _copy(case.model)
            kept = [a for a in node.attribute if a.name != attribute.name]
            del model.graph.node[index].attribute[:]
            model.graph.node[index].attribute.extend(kept)
            yield _with(case, model=model)


def _sizes(case: Case) -> Iterator[Case]:
    """Every axis of one size cut to a smaller one, in inputs, constants and targets of reshapes."""
    shapes = [v.shape[1:] for v in case.samples.values()]
    shapes += [tuple(t.dims) for t in case.model.graph.initializer]
    for size in sorted({n for shape in shapes for n in shape if n > 1}, reverse=True):
        for smaller in dict.fromkeys((1, 2, 3, size // 4, size // 2, size - 1)):
            if 0 < smaller < size:
                yield from filter(None, [_resized(case, size, smaller)])


def _samples(case: Case) -> Iterator[Case]:
    if min(len(v) for v in case.samples.values()) > FEW:
        yield _with(case, samples={n: v[:FEW] for n, v in case.samples.items()})


REDUCTIONS = (_samples, _options, _ends, _beginnings, _bypasses, _sizes, _attributes)


KEEP_VALUES = (_ends, _beginnings, _bypasses)  # noise is a matter of values: these leave them as they are


# --- graphs -----------------------------------------------------------------------------------------------------------
def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(model.SerializeToString())


def _with(case: Case, **changes: object) -> Case:
    return Case(**{**vars(case), **changes})  # type: ignore[arg-type]


def _values(case: Case) -> dict[str, np.ndarray]:
    return all_values(case.model, case.feeds())


def _cut(case: Case, values: dict[str, np.ndarray], outputs: list[str], given: set[str]) -> Case | None:
    """The part of the graph that makes `outputs`, where the tensors `given` become inputs; None where none is left."""
    graph, needed, kept = case.model.graph, set(outputs), []
    for node in reversed(graph.node):
        if any(o in needed and o not in given for o in node.output):
            kept.insert(0, node)
            needed.update(reads(node))
    made = {o for n in kept for o in n.output}
    weights = [t for t in graph.initializer if t.name in needed]
    inputs = [n for n in values if n in needed and n not in {t.name for t in weights} and (n in given or n not in made)]
    if not kept or not inputs or set(outputs) & given:
        return None

    def info(name: str) -> onnx.ValueInfoProto:
        v = values[name]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape[1:])

    smaller = helper.make_graph(kept, "fuzz", [info(n) for n in inputs], [info(n) for n in outputs], weights)
    model = helper.make_model(smaller, opset_imports=list(case.model.opset_import), ir_version=case.model.ir_version)
    states = {i: o for i, o in case.options["states"].items() if i in inputs and o in outputs}
    options = {**case.options, "states": states}
    return Case(case.name, model, {n: values[n] for n in inputs}, options)


def _resized(case: Case, size: int, smaller: int) -> Case | None:
    """Axes of `size` become `smaller`: the first of their elements stay."""

    def part(array: np.ndarray, first: int = 0) -> np.ndarray:
        return array[tuple(slice(smaller if n == size and i >= first else None) for i, n in enumerate(array.shape))]

    model = _copy(case.model)
    for tensor in model.graph.initializer:
        value = part(numpy_helper.to_array(tensor))
        if value.dtype == np.int64 and value.ndim < 2:
            value = np.where(value == size, smaller, value)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("hidden_size", "K", "N", "group", "num_groups") and attribute.i == size:
                attribute.i = smaller
    samples = {n: np.ascontiguousarray(part(v, 1)) for n, v in case.samples.items()}
    for i in model.graph.input:
        for d, n in zip(i.type.tensor_type.shape.dim, samples[i.name].shape[1:]):
            d.dim_value = n
    for o in model.graph.output:
        o.type.tensor_type.ClearField("shape")
    return _with_shapes(_with(case, model=model, samples=samples))


def _with_shapes(case: Case) -> Case | None:
    """The case with the shapes that its outputs have; None where ONNX Runtime refuses it."""
    try:
        run = session(case.model)
        results = run.run(None, case.feeds()[0])
    except Exception:
        return None
    for o, value in zip(case.model.graph.output, results):
        o.type.tensor_type.shape.SetInParent()
        for n in value.shape:
            o.type.tensor_type.shape.dim.add(dim_value=n)
    return case
