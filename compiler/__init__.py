"""qcompile: neural networks as integer-only programs.

    artifact = qcompile.compile("model.onnx", target="arm-a76", calibration="calib.npz", output="build")
    model = qcompile.load(artifact.path)
    y = model.run({"input": x})

Names are imported where they are first used: running an artifact, or asking a command for help, needs no compiler,
whose imports take seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompile.mixed import BitsOptions, HessianTraces, hessian_trace
    from qcompile.pipeline import Compiled, compile
    from qcompile.quantizer import LayerBits, QuantizeOptions
    from qcompile.runtime import ArtifactError, Model, load
    from qcompile.targets import CompileError

__all__ = [
    "ArtifactError",
    "BitsOptions",
    "CompileError",
    "Compiled",
    "HessianTraces",
    "LayerBits",
    "Model",
    "QuantizeOptions",
    "compile",
    "hessian_trace",
    "load",
]

_HOMES = {
    "mixed": ("BitsOptions", "HessianTraces", "hessian_trace"),
    "pipeline": ("Compiled", "compile"),
    "quantizer": ("LayerBits", "QuantizeOptions"),
    "runtime": ("ArtifactError", "Model", "load"),
    "targets": ("CompileError",),
}


NO_COMPILER = "only the runtime is installed; the compiler comes with: pip install 'qcompile[compiler]'"


def __getattr__(name: str) -> Any:
    home = next((home for home, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(f"{__name__}.{home}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith(__name__):
            raise
        raise ImportError(f"{__name__}.{name}: {NO_COMPILER} ({error.name} is missing)") from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
