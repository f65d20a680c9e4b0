"""Other runtimes that qbench times beside an artifact."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from qcompile.runtime import ArtifactError, Model, Tensor

KEPT_MODEL = "model.qdq.onnx"
_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16"}


@dataclass(frozen=True)
class Peer:
    """A runtime with a model and inputs in place: ``call()`` is one inference."""

    name: str
    model: str
    call: Callable[[], object]


def open_peer(text: str, artifact: Model, inputs: Mapping[str, np.ndarray], threads: int) -> Peer:
    """The peer that ``--against text`` means: ``onnxruntime`` (the QDQ model kept in the artifact folder),
    ``onnxruntime:MODEL.onnx`` or ``litert:MODEL.tflite``; ``inputs`` are the artifact's integers.

    Raises ArtifactError where there is none.
    """
    name, _, path = text.partition(":")
    if name not in _RUNTIMES or (name == "litert" and not path):
        raise ArtifactError(
            f"unknown peer {text!r}; known are onnxruntime, onnxruntime:MODEL.onnx and litert:MODEL.tflite"
        )
    file = Path(path) if path else artifact.manifest.folder / KEPT_MODEL
    if not file.is_file():
        raise ArtifactError(
            f"{file} does not exist"
            if path
            else f"{artifact.manifest.folder} has no {KEPT_MODEL}: compile with --keep, or name a model: "
            "--against onnxruntime:MODEL.onnx"
        )
    return Peer(name, str(file), _RUNTIMES[name](file, artifact, inputs, threads))


def _onnxruntime_call(
    file: Path, artifact: Model, inputs: Mapping[str, np.ndarray], threads: int
) -> Callable[[], object]:
    """One inference with inputs and outputs bound to fixed buffers, so that the call does nothing but compute."""
    import onnxruntime as ort  # 100 ms to import, and only needed here

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # its helpers spin while a call lasts, as by default, but not into the next contender's turn
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        binding = session.io_binding()
        for name, values in _feeds(session, file, artifact, inputs).items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(values))
        names = [output.name for output in session.get_outputs()]
        for name in names:
            binding.bind_output(name)
        session.run_with_iobinding(binding)
        for name, value in zip(names, binding.get_outputs()):
            binding.bind_ortvalue_output(name, value)
        session.run_with_iobinding(binding)
    except ArtifactError:
        raise
    except Exception as error:  # its exceptions share no base class
        raise ArtifactError(f"onnxruntime cannot run {file}: {str(error).splitlines()[0]}") from error
    return lambda: session.run_with_iobinding(binding)


def _feeds(session: object, file: Path, artifact: Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The session's inputs, the same values as the artifact's."""
    tensors = {tensor.name: tensor for tensor in artifact.inputs}
    feeds = {}
    for wanted in session.get_inputs():  # type: ignore[attr-defined]
        if wanted.name not in tensors:
            raise ArtifactError(f"{file} has an input {wanted.name!r} that the artifact lacks")
        tensor, values = tensors[wanted.name], inputs[wanted.name]
        dtype = _TYPES.get(wanted.type) or wanted.type.removeprefix("tensor(").removesuffix(")")
        if wanted.type in _TYPES:
            values = _reals(tensor, values)
        feeds[wanted.name] = np.ascontiguousarray(values.astype(dtype))
    return feeds


def _reals(tensor: Tensor, values: np.ndarray) -> np.ndarray:
    """What the integers mean; plain integers are themselves."""
    if tensor.scale is None:
        return values
    return (values.astype(np.float64) - tensor.zero_point) * np.asarray(tensor.scale)


def _litert_call(file: Path, artifact: Model, inputs: Mapping[str, np.ndarray], threads: int) -> Callable[[], object]:
    """One inference by the interpreter with its default kernels (XNNPACK); inputs by position, as a tflite file has
    other names for them."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ArtifactError("litert is not installed: pip install ai-edge-litert") from error
    try:
        interpreter = Interpreter(str(file), num_threads=threads)
        interpreter.allocate_tensors()
        wanted = interpreter.get_input_details()
        if len(wanted) != len(artifact.inputs):
            raise ArtifactError(f"{file} has {len(wanted)} inputs, the artifact {len(artifact.inputs)}")
        for tensor, details in zip(artifact.inputs, wanted):
            interpreter.set_tensor(details["index"], _quantized(_reals(tensor, inputs[tensor.name]), details))
        interpreter.invoke()
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(f"litert cannot run {file}: {str(error).splitlines()[0]}") from error
    return interpreter.invoke


def _quantized(values: np.ndarray, details: Mapping[str, Any]) -> np.ndarray:
    """Real values in the type, scale and shape that a tflite file takes."""
    dtype, (scale, zero_point) = np.dtype(details["dtype"]), details["quantization"]
    if scale and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = np.clip(np.rint(values / scale) + zero_point, limits.min, limits.max)
    return np.ascontiguousarray(values.reshape(details["shape"]).astype(dtype))


_RUNTIMES = {"onnxruntime": _onnxruntime_call, "litert": _litert_call}
