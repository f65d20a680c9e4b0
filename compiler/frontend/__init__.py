"""The ONNX front door: load, check and normalise models (ONNX in, ONNX out)."""

from qcompile.frontend.graph import Graph
from qcompile.frontend.load import load_model
from qcompile.frontend.normalise import is_quantized, normalise, normalise_graph

__all__ = ["Graph", "is_quantized", "load_model", "normalise", "normalise_graph"]
