"""compile(): the way of a model from an ONNX file to an artifact."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from qcompile.agreement import MADE_UP, measured_samples, noisy_outputs, output_agreement, worth_measuring
from qcompile.artifact import ArtifactSpec, TensorInfo, build_artifact
from qcompile.backends import Backend, backend_for
from qcompile.codegen import plan_execution
from qcompile.defects import reports_defects
from qcompile.frontend import Graph, is_quantized, load_model, normalise_graph
from qcompile.frontend.fixed_inputs import fix_inputs
from qcompile.frontend.precision import declared_types
from qcompile.frontend.recurrent import RECURRENT
from qcompile.frontend.states import declare_states
from qcompile.frontend.states import states as declared_states
from qcompile.given import GivenModel
from qcompile.importer import import_onnx
from qcompile.kernels.program import Program
from qcompile.mixed import (
    Bits,
    BitsOptions,
    Budget,
    Plan,
    Request,
    layer_noise,
    make_plan,
    page,
    plan_report,
    read_request,
)
from qcompile.mixed.latency import LAYER, Build
from qcompile.passes import tidy
from qcompile.passes.bounds import prove_bounds
from qcompile.passes.check import check
from qcompile.passes.integerize import integerize
from qcompile.passes.integerize.approximations import APPROXIMATIONS
from qcompile.passes.origins import naming
from qcompile.passes.relax_form import to_relax
from qcompile.quantizer import LayerBits, QuantizeOptions, bits_json, load_calibration, quantize_graph
from qcompile.quantizer.calibration import Calibration as Samples
from qcompile.quantizer.float_inputs import join_input_grids, quantize_inputs
from qcompile.quantizer.islands import islands, quantize_islands
from qcompile.quantizer.pixels import fold_pixels
from qcompile.quantizer.prepare import prepare
from qcompile.statistics import macs
from qcompile.targets import CompileError, get_target

Calibration = str | Path | Iterable[Mapping[str, np.ndarray]] | None
Progress = Callable[[str], None]
STAGES = (
    "read",
    "calibrate and quantize",
    "import",
    "integerize",
    "measure",
    "lower",
    "generate code",
    "link and prove",
)


@dataclass
class Compiled:
    """path: the artifact's folder; manifest: what it says of itself; notes: remarks for the user; seconds: time per
    stage."""

    path: Path
    manifest: dict[str, Any]
    report: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


@reports_defects
def compile(
    model: str | Path | onnx.ModelProto,
    target: str = "host",
    *,
    bits: Bits = 8,
    budget: Budget = (),
    calibration: Calibration = None,
    output: str | Path = "build",
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    name: str | None = None,
    approx: str = "exact",
    keep: bool = False,
    report: bool = False,
    threads: int = 1,
    states: Mapping[str, str] | Iterable[str] | None = None,
    constants: Mapping[str, Any] | None = None,
    options: QuantizeOptions | None = None,
    bits_options: BitsOptions | None = None,
    progress: Progress | None = None,
) -> Compiled:
    """Compiles an ONNX model, float or with Q/DQ pairs, into the artifact folder `output/NAME-TARGET`.

    bits: 8, 4, "w4a8", "w4a4", "mixed", the path of a JSON file of bits per layer, or {layer name: LayerBits}; budget:
    what "mixed" must keep to, {"size": 0.6} or ("size=60%",), of the 8-bit model ("size", "latency", "bops") and of the
    output's energy ("loss"); bits_options: edges, groups, candidates, sensitivities, latencies. Float models only.
    calibration: an .npz path (arrays named as the inputs, samples along the first axis) or an iterable of {input:
    array}; for float models, and for float inputs of quantized ones. shapes: sizes for dynamic axes. approx: "exact"
    tables, "ibert" polynomials for GELU, or "pwl", straight segments for sigmoid and tanh. threads: recorded in the
    manifest as the number to run with. report: also measure each layer's signal-to-noise ratio and write report.html.
    keep: the same, and write bits.json and the program after each pass.
    constants: {input: value} that the model is compiled for; these inputs are gone.
    states: {input: output} (or ("input:output",)) that is fed back to it as integers (`Model.stream`).
    The folder always holds model.qdq.onnx (what was compiled, for ONNX Runtime and Netron) and program.npz (its numpy
    meaning). Raises CompileError, of which Defect means a fault of the compiler, and leaves nothing behind.
    """
    cpu = get_target(target)
    backend = backend_for(cpu)
    if approx not in APPROXIMATIONS:
        raise CompileError(f"unknown approximation {approx!r}; known are {', '.join(APPROXIMATIONS)}")
    options = options or QuantizeOptions()
    request = read_request(options.bits or bits, budget, bits_options)
    clock = _Clock(progress)
    notes: list[str] = []
    clock.start("read")
    graph = Graph(load_model(model))
    fix_inputs(graph, constants or {})
    given = GivenModel(model, {name: graph.constants[name] for name in constants or {}})
    declared = declared_types(graph)
    normalise_graph(graph, dict(shapes or {}), notes)
    declare_states(graph, states or {})
    plain, whole = _plain_inputs(graph), sorted(graph.whole_inputs)
    label = name or (Path(model).stem if isinstance(model, str | Path) else graph.name)
    clock.start("calibrate and quantize")
    plan, noise, agreement = Plan(), None, dict[str, float]()
    data, itself = None, None  # samples, and the model to be measured against on them
    if not is_quantized(graph):
        data = _samples(graph, calibration)
        plan, noise, itself = _quantize(graph, data, options, request, backend, report or keep, notes)
    else:
        if calibration is not None:
            data = load_calibration(calibration, graph)
            notes += data.notes
            itself = graph.twin() if worth_measuring(graph) else None
        quantize_inputs(graph, data, notes)
        join_input_grids(graph, notes)
        _quantize_floats(graph, data, options, notes)
        if bits != 8 or budget:
            notes.append("the model is quantized already: the choice of --bits is not used")
    qdq, pairs = graph.to_model(), declared_states(graph)
    del graph  # its weights
    clock.start("import")
    imported = import_onnx(qdq)
    clock.start("integerize")
    reference = tidy(integerize(imported.module, imported.names, imported.outputs, approx, notes, pairs))
    origins = reference.info.pop("origins", {})
    reference.info["inputs"] = {n: s for n, s in reference.info.get("inputs", {}).items() if n not in plain}
    reference.info["inputs"] |= dict.fromkeys(whole, (1.0, 0))
    check(reference, "integerize")
    with naming(origins):
        prove_bounds(reference)
    borders = _borders(reference, declared)
    if itself is not None and data is not None:
        clock.start("measure")
        samples = measured_samples(itself, data, macs(reference))
        agreement = output_agreement(given, itself, reference, borders, samples, notes)
        notes += noisy_outputs(agreement, len(samples), data.synthetic)
    del itself
    clock.start("lower")
    files: dict[str, bytes] = {"program.npz": reference.to_bytes(), "model.qdq.onnx": _serialised(qdq)}
    if keep:
        files["ir/0-import.txt"] = imported.module.script(show_meta=False).encode()
        files["ir/1-integerize.txt"] = relax_text(reference)
    program = reference
    for step, (pass_name, run) in enumerate(backend.passes, 2):
        with naming(origins):
            program = run(program)
            check(program, pass_name)
        if keep:
            files[f"ir/{step}-{pass_name}.txt"] = relax_text(program)
    clock.start("generate code")
    with naming(origins):
        execution = plan_execution(program, backend)
        code = backend.emit(execution)
    if keep:
        files["ir/plan.txt"] = execution.table().encode()
        files["ir/main.c"] = code.source.encode()
        files |= {"bits.json": bits_json(plan.bits).encode()} if plan.layers else {}
    clock.start("link and prove")
    spec = ArtifactSpec(
        label,
        cpu,
        code.objects,
        code.weights,
        code.arena_bytes,
        *borders,
        macs=macs(reference),
        extra={
            "bits": plan.label,
            "threads": threads,
            "live_bytes": execution.live_bytes,
            "ops": len(reference.nodes),
            "kernels": len(execution.kernels),
            "kernel_calls": len(execution.calls),
            "agreement_db": agreement,
            "agreement_of": "" if not agreement or data is None else MADE_UP if data.synthetic else "samples",
        },
        files=files,
        states=list(pairs.items()),
    )
    notes = list(dict.fromkeys(notes))
    made: dict[str, Any] = {}

    def tell(path: Path, manifest: Mapping[str, Any]) -> str:
        clock.stop()
        made.update({**_report(path, manifest, clock.seconds, notes), **plan_report(plan, noise)})
        return page(made) if report or keep else ""

    artifact = build_artifact(spec, output, tell if report or keep else None)
    if not made:
        tell(artifact.path, artifact.manifest)
    return Compiled(artifact.path, artifact.manifest, made, notes, clock.seconds)


def layer_builder(target: str) -> Build:
    """What compiles networks of one layer for `target`, so that their time can be measured."""

    def build(model: onnx.ModelProto, bits: LayerBits, folder: Path) -> Path:
        return compile(model, target, bits={LAYER: bits}, output=folder).path

    return build


def _quantize(
    graph: Graph,
    data: Samples,
    options: QuantizeOptions,
    request: Request,
    backend: Backend,
    report: bool,
    notes: list[str],
) -> tuple[Plan, dict[str, float] | None, Graph | None]:
    """Plans bits and turns the float `graph` into QDQ form; the noise of each layer, for a `report`, and the float
    graph where it is to be measured against."""
    prepare(graph)
    fold_pixels(graph, data.samples)
    plan = make_plan(graph, data, request, options, backend, layer_builder(backend.target.name), notes)
    if str(plan.label) != "8" and any(n.op_type in RECURRENT for n in graph.nodes):
        notes.append("LSTM, GRU and RNN keep 8-bit weights")
    measured = worth_measuring(graph)
    reference = graph.twin() if report or measured else None
    quantize_graph(graph, data, replace(options, bits=plan.bits), notes)
    normalise_graph(graph, {}, notes)
    noise = layer_noise(reference, graph, plan.layers, data.samples) if report and reference else None
    return plan, noise, reference if measured else None


def _samples(graph: Graph, calibration: Calibration) -> Samples:
    """Of a float graph, made up where none are given; CompileError where these would say nothing."""
    if graph.dynamic and calibration is None:
        raise CompileError(
            f"node {graph.dynamic}: the model is quantized dynamically; its static scales come from real samples: "
            "give them with --calib"
        )
    return load_calibration(calibration, graph)


def _quantize_floats(graph: Graph, data: Samples | None, options: QuantizeOptions, notes: list[str]) -> None:
    """Gives grids to the floats between the Q/DQ pairs of a quantized `graph`; a note where there are no samples."""
    if data is not None:
        if quantize_islands(graph, data, options, notes):
            normalise_graph(graph, {}, notes)
    elif found := islands(graph):
        notes.append(
            f"{len(found)} tensors between the quantized ones are floats ('{found[0]}' is the first): without samples "
            "they get 16 bits over all they could reach, which may be coarse; give samples with --calib"
        )


def _serialised(model: onnx.ModelProto) -> bytes:
    try:
        return model.SerializeToString()
    except (ValueError, EncodeError) as e:
        raise CompileError("the quantized model is larger than the 2 GB that an ONNX file may have; split it") from e


def _plain_inputs(graph: Graph) -> set[str]:
    """Inputs of integers that the model does not dequantize: a scale that they get inside is no concern of callers."""
    if any(n.op_type == "DequantizeLinear" and n.input[0] not in graph.constants for n in graph.nodes):
        return set()
    return {v.name for v in graph.inputs if not graph.is_float(v.name)}


def _borders(program: Program, declared: Mapping[str, str]) -> tuple[list[TensorInfo], list[TensorInfo]]:
    types = program.types()
    scales = program.info.get("inputs", {})
    inputs, outputs = [], []
    for name, t in program.inputs.items():
        scale, zero_point = scales.get(name) or (None, 0)
        inputs.append(TensorInfo(name, t.dtype, t.shape, scale, zero_point, declared=declared.get(name, "")))
    for tensor, name in zip(program.outputs, program.info["output_names"]):
        t, grid = types[tensor], program.info["outputs"].get(name) or (None, 0)
        scale, zero_point, axis = (*grid, 0)[:3]
        outputs.append(TensorInfo(name, t.dtype, t.shape, scale, zero_point, axis, declared.get(name, "")))
    return inputs, outputs


def relax_text(program: Program) -> bytes:
    """The program as TVMScript of its Relax form."""
    return to_relax(program).script(show_meta=False).encode()


def _report(path: Path, manifest: Mapping[str, Any], seconds: dict[str, float], notes: list[str]) -> dict[str, Any]:
    return {
        **manifest,
        "path": str(path),
        "notes": notes,
        "seconds": {k: round(v, 3) for k, v in seconds.items()},
    }


class _Clock:
    """Times the stages and tells whoever watches."""

    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}
        self._stage, self._since = "", 0.0

    def start(self, stage: str) -> None:
        self.stop()
        self._stage, self._since = stage, time.perf_counter()
        if self.progress:
            self.progress(stage)

    def stop(self) -> None:
        if self._stage:
            self.seconds[self._stage] = time.perf_counter() - self._since
        self._stage = ""


__all__ = ["STAGES", "Compiled", "compile"]
