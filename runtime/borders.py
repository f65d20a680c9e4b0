"""Real numbers to integers and back, at the border of an artifact: as ONNX QuantizeLinear and DequantizeLinear do."""

import numpy as np
from qcompile.runtime.errors import ArtifactError
from qcompile.runtime.manifest import FLOATS, Tensor


def quantize(tensor: Tensor, values: np.ndarray) -> np.ndarray:
    """Float ``values`` as the tensor's integers: round(values / scale) + zero_point, half to even, saturated.

    Floats that the model only casts to integers (int32 here) are cut off toward zero, as Cast does.
    float32 arithmetic as in ONNX Runtime.  Raises ArtifactError for NaN and for a tensor without a scale.
    """
    if tensor.scale is None:
        raise ArtifactError(f"input {tensor.name!r} takes {tensor.dtype} values as they are, not {values.dtype}")
    if np.isnan(values).any():
        raise ArtifactError(f"input {tensor.name!r} holds NaN")
    limits = np.iinfo(tensor.dtype)
    round_steps = np.trunc if tensor.dtype == "int32" and tensor.declared in FLOATS else np.rint
    with np.errstate(over="ignore"):
        steps = round_steps(values.astype(np.float32) / _along_axis(tensor)).astype(np.float64) + tensor.zero_point
    return np.clip(steps, limits.min, limits.max).astype(tensor.dtype)


def dequantize(tensor: Tensor, values: np.ndarray) -> np.ndarray:
    """What the model itself returns: scale * (values - zero_point) in the declared float type, float32 where there is
    none; integers in the declared integer type, codes too."""
    if tensor.declared and tensor.declared not in FLOATS:
        return values.astype(tensor.declared)
    if tensor.scale is None:
        return values
    real = (values.astype(np.int64) - tensor.zero_point).astype(np.float32) * _along_axis(tensor)
    return real.astype(tensor.declared) if tensor.declared in ("float16", "float64") else real


def as_array(name: str, values: object) -> np.ndarray:
    """``values`` as an array; ArtifactError where they are rows of unlike lengths."""
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ArtifactError(f"input {name!r} is no array: {error}") from error


def as_integers(tensor: Tensor, values: np.ndarray) -> np.ndarray:
    """Integer or boolean ``values`` in the tensor's type; ArtifactError where one does not fit."""
    if values.dtype == tensor.dtype:
        return values
    if values.dtype.kind not in "iub":
        raise ArtifactError(f"input {tensor.name!r} takes {tensor.dtype}, not {values.dtype}")
    if tensor.dtype != "bool" and values.size:
        limits = np.iinfo(tensor.dtype)
        low, high = int(values.min()), int(values.max())
        if low < limits.min or high > limits.max:
            raise ArtifactError(
                f"input {tensor.name!r} holds {low if low < limits.min else high}, which {tensor.dtype} cannot hold"
            )
    return values.astype(tensor.dtype)


def check_shape(tensor: Tensor, values: np.ndarray) -> None:
    """Raises ArtifactError unless ``values`` has the tensor's shape."""
    if values.shape != tensor.shape:
        raise ArtifactError(
            f"input {tensor.name!r} has shape {list(values.shape)}, the model takes {list(tensor.shape)}"
        )


def _along_axis(tensor: Tensor) -> np.ndarray:
    scale = np.asarray(tensor.scale, np.float32)
    if not scale.ndim:
        return scale
    return scale.reshape([-1 if axis == tensor.axis else 1 for axis in range(len(tensor.shape))])
