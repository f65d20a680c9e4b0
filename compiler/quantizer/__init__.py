"""The quantizer: float ONNX in, QDQ ONNX out."""

from qcompile.quantizer.bits import Layer, LayerBits, bits_json, find_layers, read_bits, stored_bytes, uniform_bits
from qcompile.quantizer.calibration import Calibration, load_calibration
from qcompile.quantizer.options import QuantizeOptions
from qcompile.quantizer.quantize import quantize, quantize_graph

__all__ = [
    "Calibration",
    "Layer",
    "LayerBits",
    "QuantizeOptions",
    "bits_json",
    "find_layers",
    "load_calibration",
    "quantize",
    "quantize_graph",
    "read_bits",
    "stored_bytes",
    "uniform_bits",
]
