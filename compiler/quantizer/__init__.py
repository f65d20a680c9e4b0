"""The quantizer: float ONNX in, QDQ ONNX out."""

from qcompile.quantizer.calibration import Calibration, load_calibration
from qcompile.quantizer.options import QuantizeOptions
from qcompile.quantizer.quantize import quantize, quantize_graph

__all__ = ["Calibration", "QuantizeOptions", "load_calibration", "quantize", "quantize_graph"]
