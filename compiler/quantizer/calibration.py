"""Calibration samples: from an npz file, from any iterable of feeds, or synthetic."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import helper
from qcompile.frontend.graph import Graph
from qcompile.npz import read_npz
from qcompile.quantizer.batches import batch_axis, batches
from qcompile.quantizer.outliers import without_wild
from qcompile.quantizer.synthetic import synthetic_samples
from qcompile.targets.errors import CompileError

Feed = dict[str, np.ndarray]
Source = str | os.PathLike[str] | Iterable[Mapping[str, np.ndarray]] | None


@dataclass
class Calibration:
    """Re-iterable samples, each {input name: array of exactly the model's input shape and type}."""

    samples: list[Feed]
    notes: list[str] = field(default_factory=list)
    synthetic: bool = False

    def __iter__(self) -> Iterator[Feed]:
        return iter(self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    def spaced(self, count: int) -> list[Feed]:
        """At most `count` samples, evenly spaced."""
        if len(self.samples) <= count:
            return self.samples
        return [self.samples[i] for i in np.linspace(0, len(self.samples) - 1, count).round().astype(int)]


def load_calibration(source: Source, model: onnx.ModelProto | Graph) -> Calibration:
    """Samples for `model` (normalised: static shapes).

    An npz path holds one array per input, first axis = samples; a sample is a row of the model's batch, or an entry of
    the model's full shape. An iterable yields feeds of the full shape, or of a batch of 1: as many as the model's batch
    is large are joined. None makes synthetic inputs and says so in `notes`. Raises CompileError for missing inputs,
    wrong shapes or types, no samples, NaN or infinity.
    """
    graph = model if isinstance(model, Graph) else Graph(model)
    wanted = {
        v.name: (
            tuple(d.dim_value for d in v.type.tensor_type.shape.dim),
            np.dtype(helper.tensor_dtype_to_np_dtype(v.type.tensor_type.elem_type)),
        )
        for v in graph.inputs
    }
    if source is None:
        return Calibration(*synthetic_samples(graph, wanted), synthetic=True)
    if isinstance(source, Calibration):
        return source
    if isinstance(source, str | os.PathLike):
        feeds: Iterable[Mapping[str, np.ndarray]] = _npz_feeds(Path(source), wanted)
    else:
        if not isinstance(source, Iterable):
            raise CompileError(
                f"calibration: {source!r} is neither an npz file nor an iterable of {{input name: array}}"
            )
        feeds = source
    samples = [_checked(feed, wanted, i, graph.whole_inputs) for i, feed in enumerate(feeds)]
    if not samples:
        raise CompileError("calibration: no samples; give at least one, some tens are better")
    samples = batches(samples, {name: shape for name, (shape, _) in wanted.items()})
    notes: list[str] = []
    return Calibration(without_wild(samples, notes), notes)


def _npz_feeds(path: Path, wanted: Mapping[str, tuple]) -> Iterator[Feed]:
    arrays = read_npz(path, "calibration")
    columns = {}
    for name, (shape, _) in wanted.items():
        if name not in arrays:
            raise CompileError(f"calibration {path}: no array named '{name}'; it has {', '.join(arrays) or 'none'}")
        array = arrays[name]
        if array.shape[1:] == shape:
            columns[name] = array
        elif shape and array.shape[1:] == shape[1:]:
            columns[name] = array[:, None]
        elif batch_axis(array.shape[1:], shape) is not None:
            columns[name] = array
        else:
            raise CompileError(
                f"calibration {path}: array '{name}' has shape {array.shape}, expected (samples, "
                f"{', '.join(map(str, shape[1:] if shape[:1] == (1,) else shape))})"
            )
    counts = {len(c) for c in columns.values()}
    if len(counts) > 1:
        raise CompileError(f"calibration {path}: the arrays have different numbers of samples: {sorted(counts)}")
    for i in range(counts.pop() if counts else 0):
        yield {name: column[i] for name, column in columns.items()}


def _checked(feed: Mapping[str, np.ndarray], wanted: Mapping[str, tuple], index: int, whole: Set[str]) -> Feed:
    """whole: integer inputs that may come as floats."""
    if not isinstance(feed, Mapping):
        raise CompileError(f"calibration sample {index}: expected {{input name: array}}, got {type(feed).__name__}")
    result = {}
    for name, (shape, dtype) in wanted.items():
        if name not in feed:
            raise CompileError(
                f"calibration sample {index}: input '{name}' is missing; it has {', '.join(map(str, feed)) or 'none'}"
            )
        try:
            value = np.asarray(feed[name])
        except ValueError as e:  # rows of unequal lengths
            raise CompileError(f"calibration sample {index}: input '{name}' is no array: {e}") from e
        if value.shape != shape and batch_axis(value.shape, shape) is None:
            raise CompileError(f"calibration sample {index}: input '{name}' has shape {value.shape}, expected {shape}")
        if name in whole and value.dtype.kind == "f" and np.isfinite(value).all():
            value = np.trunc(value).astype(np.int64)
        if value.dtype.kind not in "fiub" or (value.dtype.kind == "f" and dtype.kind in "iub"):
            raise CompileError(f"calibration sample {index}: input '{name}' has type {value.dtype}, expected {dtype}")
        with np.errstate(over="ignore"):
            result[name] = np.asarray(value, dtype, order="C")
        if dtype.kind == "f" and not np.isfinite(result[name]).all():
            raise CompileError(f"calibration sample {index}: input '{name}' has NaN or infinite values")
    return result
