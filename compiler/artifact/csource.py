"""The C header of an artifact and the C shim behind it, from the templates in `runtime/c`."""

from importlib import resources

import jinja2
import numpy as np
from qcompile.artifact.spec import ArtifactSpec, TensorInfo, c_variables
from qcompile.runtime.manifest import ABI_VERSION, DTYPES

_TEMPLATES = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)


def render(spec: ArtifactSpec, content_hash: str, parallel: bool) -> tuple[str, str]:
    """(header, shim) of the artifact; ``parallel`` where the objects hold TVM's slot for parallel loops."""
    tensors = _template_tensors([*spec.inputs, *spec.outputs])
    facts = {
        "name": spec.name,
        "cpu": spec.target.cpu,
        "parallel": parallel,
        "abi_version": ABI_VERSION,
        "dtypes": DTYPES,
        "arena_bytes": spec.arena_bytes,
        "weights_bytes": len(spec.weights),
        "content_hash": content_hash,
        "inputs": tensors[: len(spec.inputs)],
        "outputs": tensors[len(spec.inputs) :],
        "states": _states(spec),
    }
    folder = resources.files("qcompile.runtime") / "c"
    header, shim = (
        _TEMPLATES.from_string((folder / file).read_text("utf-8")).render(facts) for file in ("model.h.j2", "shim.c.j2")
    )
    return header, shim


def _template_tensors(tensors: list[TensorInfo]) -> list[dict[str, object]]:
    variables = c_variables((tensor.name for tensor in tensors), taken=("arena", "inputs", "outputs", "error"))
    return [
        {
            "variable": variable,
            "c_name": _c_string(tensor.name),
            "summary": _summary(tensor),
            "dtype": tensor.dtype,
            "dims": [int(size) for size in tensor.shape],
            "scales": [_c_float(scale) for scale in tensor.scales],
            "axis": tensor.axis,
            "zero_point": int(tensor.zero_point),
        }
        for tensor, variable in zip(tensors, variables)
    ]


def _states(spec: ArtifactSpec) -> list[str]:
    """A line of a C comment for each state: one buffer may serve both ends, since inputs are read before all else."""
    ends = [[t.name for t in tensors] for tensors in (spec.inputs, spec.outputs)]
    return [
        f"inputs[{ends[0].index(source)}] and outputs[{ends[1].index(target)}] may be one buffer, which keeps the "
        "state between calls; zero points at first"
        for source, target in spec.states
    ]


def _summary(tensor: TensorInfo) -> str:
    """One line of a C comment: '"image" uint8[1][28][28], scale 0.0039, zero point 0'."""
    dims = "".join(f"[{size}]" for size in tensor.shape) or " scalar"
    scales = tensor.scales
    quantized = (
        f", scale {scales[0]:.9g}, zero point {tensor.zero_point}"
        if len(scales) == 1
        else (f", {len(scales)} scales along axis {tensor.axis}" if scales else "")
    )
    return f"{_c_string(tensor.name)} {tensor.dtype}{dims}{quantized}".replace("*/", "* /").replace("/*", "/ *")


def _c_string(text: str) -> str:
    """A C string literal of the UTF-8 bytes of ``text``; octal escapes end by themselves, unlike hexadecimal ones."""
    safe = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in text.encode())
    return '"' + "".join(safe) + '"'


def _c_float(value: float) -> str:
    """The exact single-precision constant in C99's hexadecimal form."""
    return f"{float(np.float32(value)).hex()}f"
