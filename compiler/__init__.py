"""qcompile: neural networks as integer-only programs.

    artifact = qcompile.compile("model.onnx", target="arm-a76", calibration="calib.npz", output="build")
    model = qcompile.load(artifact.path)
    y = model.run({"input": x})
"""

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
