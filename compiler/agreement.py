"""How near the outputs of the integer program are to those of the model itself, on calibration samples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict

import numpy as np
from qcompile.artifact.spec import TensorInfo
from qcompile.frontend.graph import Graph
from qcompile.given import GivenModel
from qcompile.kernels.program import Program
from qcompile.quantizer.calibration import Calibration, Feed
from qcompile.quantizer.collect import stream
from qcompile.runtime.borders import as_integers, dequantize, quantize
from qcompile.runtime.errors import ArtifactError
from qcompile.runtime.manifest import Tensor
from qcompile.targets.errors import CompileError

FEWEST, MOST = 4, 64  # samples
VALUES = 1024  # of each output that a ratio should rest on: a few scores may be near by chance
MOST_MACS = 8_000_000_000  # multiplications that all samples may take together, unless it is one
LEAST = 20.0  # dB; an output below is said to be noisy
LARGEST = 1 << 29  # bytes of weights up to which the float network is kept beside the quantized one
MADE_UP = "made-up inputs"
CLEAN = 99.0  # dB; what is no different


def worth_measuring(graph: Graph) -> bool:
    """Whether there is room for the model beside the program."""
    return sum(c.nbytes for c in graph.constants.values()) <= LARGEST


def measured_samples(graph: Graph, data: Calibration, macs: int) -> list[Feed]:
    """As many samples as let the smallest computed output be compared by VALUES numbers; macs: multiplications that the
    program takes for one."""
    sizes = [math.prod(graph.shape(o.name) or ()) for o in graph.outputs if _computed(graph, o.name)]
    wanted = min(max(FEWEST, math.ceil(VALUES / max(min(sizes, default=VALUES), 1))), MOST)
    return data.spaced(max(min(wanted, MOST_MACS // max(macs, 1)), 1))


def output_agreement(
    given: GivenModel,
    model: Graph,
    program: Program,
    borders: tuple[list[TensorInfo], list[TensorInfo]],
    samples: list[Feed],
    notes: list[str],
) -> dict[str, float]:
    """{output: dB} of signal to noise, over the samples, beside the model as it was given; of an output with a scale
    for each index of an axis, that of the worst group of indices with one scale. Left out are outputs of integers and
    what is zero in all samples.

    Where ONNX Runtime cannot run the given model, its normalised form `model` takes its place, and a note says so;
    nothing is there where it can run neither, or the loader would refuse a sample.

    The program's own numbers are measured (its numpy meaning, which every target equals), so that a fault of any pass
    shows.
    """
    entries, exits = ([Tensor(**asdict(t)) for t in side] for side in borders)
    real = [o for o in exits if _computed(model, o.name)]
    names = [o.name for o in real]
    if not names:
        return {}
    try:
        made = [_run(program, entries, exits, sample) for sample in samples]
    except ArtifactError:
        return {}
    try:
        return _ratios(real, made, given.stream(names, samples))
    except CompileError as e:
        reason = e
    try:
        found = _ratios(real, made, stream(model, names, samples))
    except CompileError:
        return {}
    notes.append(f"noise is not that beside the model as it was given ({reason}), but beside its normal form")
    return found


def _ratios(
    outputs: list[Tensor], made: list[dict[str, np.ndarray]], wanted: Iterable[dict[str, np.ndarray]]
) -> dict[str, float]:
    """Signal to noise of what was made for each sample, beside what was wanted. CompileError for other shapes."""
    sums: dict[tuple[str, int], np.ndarray] = {}
    for actual, exact in zip(made, wanted):
        for o in outputs:
            want, got = exact[o.name].astype(np.float64), actual[o.name].astype(np.float64).reshape(o.shape)
            if want.size != got.size:
                raise CompileError(f"output '{o.name}' has shape {list(want.shape)}, not {list(o.shape)}")
            for i, part in enumerate(_groups(o)):
                x, y = want.reshape(o.shape)[part], got[part]
                energies = np.array([np.square(x).sum(), np.square(x - y).sum()])
                sums[o.name, i] = sums.get((o.name, i), 0.0) + energies
    found: dict[str, float] = {}
    for (name, _), (signal, noise) in sums.items():
        if signal > 0:
            ratio = np.clip(10 * np.log10(signal / max(noise, 1e-12 * signal)), -CLEAN, CLEAN)
            found[name] = round(min(found.get(name, CLEAN), float(ratio)), 1)
    return found


def _computed(graph: Graph, output: str) -> bool:
    """Whether an output is floats that are computed."""
    return graph.is_float(output) and graph.producer(output) is not None


def _run(program: Program, inputs: list[Tensor], outputs: list[Tensor], sample: Feed) -> dict[str, np.ndarray]:
    """The program on a sample as a caller gives it, and what he gets."""
    enter = {i.name: as_integers if i.scale is None else quantize for i in inputs}
    made = program.run({i.name: enter[i.name](i, sample[i.name]) for i in inputs})
    return {o.name: dequantize(o, made[tensor]) for o, tensor in zip(outputs, program.outputs)}


def _groups(output: Tensor) -> list[tuple]:
    """Index tuples of the parts of an output that have a scale of their own: all of it, in most cases."""
    if not isinstance(output.scale, list) or not output.shape:
        return [(...,)]
    scale = np.asarray(output.scale)
    return [(*[slice(None)] * output.axis, np.flatnonzero(scale == s)) for s in np.unique(scale)]


def noisy_outputs(agreement: dict[str, float], count: int, synthetic: bool) -> list[str]:
    """Notes on the outputs that lie below LEAST, of `count` samples measured; synthetic: they were made up."""
    where = f"on {count} of the samples; give more and more varied samples"
    if synthetic:
        where = f"on {count} made-up inputs; ranges and this figure are of made-up inputs: give samples with --calib"
    return [
        f"output '{name}' is noisy: {ratio:.1f} dB of signal to noise beside the model itself, {where}, or see layer "
        "by layer with --report where it is lost"
        for name, ratio in agreement.items()
        if ratio < LEAST
    ]
