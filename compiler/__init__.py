"""qcompile: neural networks as integer-only programs.

    artifact = qcompile.compile("model.onnx", target="arm-a76", calibration="calib.npz", output="build")
    model = qcompile.load(artifact.path)
    y = model.run({"input": x})
"""

from qcompile.pipeline import Compiled, compile
from qcompile.runtime import ArtifactError, Model, load
from qcompile.targets import CompileError

__all__ = ["ArtifactError", "CompileError", "Compiled", "Model", "compile", "load"]
