"""The ONNX front door: load, check and normalise models (ONNX in, ONNX out)."""

from qcompile.frontend.load import load_model
from qcompile.frontend.normalise import is_quantized, normalise

__all__ = ["is_quantized", "load_model", "normalise"]
