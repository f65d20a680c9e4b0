"""Runs the float model on calibration samples in ONNX Runtime and streams statistics of chosen tensors."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import onnxruntime as ort
from onnx import NodeProto, helper
from qcompile.frontend.graph import Graph
from qcompile.quantizer.calibration import Feed
from qcompile.targets.errors import CompileError

LARGE = 1024  # elements; larger constants are handed over by address
FAULTY = ["MatMulAddFusion"]  # behind it, ONNX Runtime 1.31 makes a Reshape's zero point uint8 and its data int8
Observer = Callable[[str, np.ndarray], None]


def observe(graph: Graph, tensors: Iterable[str], samples: list[Feed], observer: Observer, title: str) -> None:
    """Call `observer(name, array)` for each of `tensors` (activations or graph inputs) on each sample.

    Memory is bounded by one sample's activations. Raises CompileError where ONNX Runtime cannot run the model or a
    tensor is not finite.
    """
    for values in stream(graph, tensors, samples, title):
        for name, value in values.items():
            observer(name, value)


def stream(
    graph: Graph,
    tensors: Iterable[str],
    samples: list[Feed],
    title: str = "",
    known: Mapping[str, np.ndarray] | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """{name: array} of `tensors` for each sample; `title` names the progress bar, "" shows none. Errors as above.

    `known` are values of tensors that need no computing: dequantized weights.
    """
    wanted = list(dict.fromkeys(tensors))
    inputs = {v.name for v in graph.inputs}
    inner = [t for t in wanted if t not in inputs]
    session = _session(graph, inner, known or {}) if inner else None
    for sample in progress(samples, title) if title else samples:
        made = dict(zip(inner, _run(session, inner, sample))) if inner else {}
        values = {name: made[name] if name in made else sample[name] for name in wanted}
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise CompileError(
                    f"calibration: tensor '{name}' becomes NaN or infinite; check the samples and the model"
                )
        yield values


def _needed(graph: Graph, outputs: list[str], known: Mapping[str, np.ndarray]) -> list[NodeProto]:
    """The nodes that `outputs` depend on, in order."""
    wanted, kept = set(outputs), []
    for node in reversed(graph.nodes):
        if any(o in wanted and o not in known for o in node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def _session(graph: Graph, outputs: list[str], known: Mapping[str, np.ndarray]) -> ort.InferenceSession:
    """A session over the weights where they are, in the graph: ONNX Runtime neither parses nor packs copies of them."""
    whole, graph = graph, copy.copy(graph)
    graph.nodes = _needed(whole, outputs, known)
    read = {i for n in graph.nodes for i in n.input}
    graph.constants = {k: v for k, v in {**whole.constants, **known}.items() if k in read}
    session = open_session(graph, outputs, disabled=FAULTY)
    whole.constants.update({k: v for k, v in graph.constants.items() if k in whole.constants})
    return session


def open_session(
    graph: Graph,
    outputs: Sequence[str],
    replaceable: Sequence[str] = (),
    disabled: Sequence[str] = (),
    quantized: bool = True,
) -> ort.InferenceSession:
    """A session that computes `outputs` over the constants of `graph` where they are, made contiguous there.

    The constants `replaceable` become inputs with defaults; `disabled` optimizers of ONNX Runtime stay off, and where
    not `quantized` those of Q/DQ pairs.
    """
    weights = [k for k, v in graph.constants.items() if v.size > LARGE and v.dtype.kind in "fiub"]
    for name in weights:
        graph.constants[name] = np.ascontiguousarray(graph.constants[name])
    model = graph.to_model(external=weights)
    for name in replaceable:
        value = graph.constants[name]
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        model.graph.input.append(helper.make_tensor_value_info(name, kind, value.shape))
    del model.graph.output[:]
    model.graph.output.extend(helper.make_tensor_value_info(o, graph.dtypes[o], graph.shapes[o]) for o in outputs)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # numpy needs the cores between two runs
    options.add_session_config_entry("session.disable_quant_qdq", "0" if quantized else "1")
    values = [ort.OrtValue.ortvalue_from_numpy(graph.constants[k]) for k in weights]
    options.add_external_initializers(weights, values)
    source, failure = model.SerializeToString(), ""
    for level in (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL):
        options.graph_optimization_level = level  # what it makes of Q/DQ pairs is at times invalid
        try:
            return ort.InferenceSession(
                source, options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disabled)
            )
        except Exception as e:  # ONNX Runtime's exception types are not public
            failure = failure or str(e).splitlines()[0]
    raise CompileError(f"ONNX Runtime cannot run the model for calibration: {failure}")


def _run(session: ort.InferenceSession, outputs: list[str], sample: Feed) -> list[np.ndarray]:
    try:
        return session.run(outputs, sample)
    except Exception as e:  # as above
        reason = str(e).splitlines()[0]
        raise CompileError(f"ONNX Runtime cannot run the model on a calibration sample: {reason}") from e


def counting(sample: Feed, masks: Sequence[str]) -> dict[tuple[int, ...], np.ndarray]:
    """{shape [batch, tokens]: bool}: the tokens that count, by the inputs `masks` of zeros and ones; padding does
    not."""
    found: dict[tuple[int, ...], np.ndarray] = {}
    for name in masks:
        mask = sample[name]
        if mask.any() and np.isin(mask, (0, 1)).all():
            found[mask.shape] = found.get(mask.shape, np.True_) & (mask != 0)
    return {shape: mask for shape, mask in found.items() if mask.any()}


Item = TypeVar("Item")


def progress(items: Sequence[Item], title: str) -> Iterable[Item]:
    """The items, with a progress bar where the user looks at a terminal."""
    if not sys.stderr.isatty() or len(items) < 2:
        return items
    from rich.console import Console
    from rich.progress import track

    return track(items, description=title, console=Console(stderr=True), transient=True)
