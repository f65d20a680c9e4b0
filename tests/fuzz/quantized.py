"""Graphs as the tools of ONNX Runtime quantize them, in the variants that people use."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

QDQ, QOPERATOR = QuantFormat.QDQ, QuantFormat.QOperator
S8, U8, S16, U16 = QuantType.QInt8, QuantType.QUInt8, QuantType.QInt16, QuantType.QUInt16
VARIANTS: dict[str, dict[str, Any]] = {
    "qdq": {"activation_type": S8, "weight_type": S8},
    "qdq per channel": {"activation_type": S8, "weight_type": S8, "per_channel": True},
    "qdq u8": {"activation_type": U8, "weight_type": S8, "per_channel": True},
    "qdq u8 u8": {"activation_type": U8, "weight_type": U8},
    "qdq reduced": {"activation_type": U8, "weight_type": S8, "reduce_range": True},
    "qdq symmetric": {
        "activation_type": S8,
        "weight_type": S8,
        "per_channel": True,
        "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True},
    },
    "qdq 16": {"activation_type": U16, "weight_type": S8},
    "qdq s16": {"activation_type": S16, "weight_type": S8, "extra_options": {"ActivationSymmetric": True}},
    "qdq products": {
        "activation_type": U8,
        "weight_type": S8,
        "op_types_to_quantize": ["MatMul", "Conv", "Gemm"],
    },
    "qoperator": {"quant_format": QOPERATOR, "activation_type": U8, "weight_type": S8},
    "qoperator u8": {"quant_format": QOPERATOR, "activation_type": U8, "weight_type": U8},
}
DYNAMIC: dict[str, dict[str, Any]] = {
    "dynamic": {"weight_type": S8},
    "dynamic u8": {"weight_type": U8},
    "dynamic per channel": {"weight_type": S8, "per_channel": True, "reduce_range": True},
}
FORMS = (*VARIANTS, *DYNAMIC)


class _Samples(CalibrationDataReader):
    def __init__(self, feeds: list[dict[str, np.ndarray]]) -> None:
        self.left = list(feeds)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop(0) if self.left else None


def quantized(model: onnx.ModelProto, samples: dict[str, np.ndarray], form: str) -> onnx.ModelProto:
    """The model in one of FORMS. Raises whatever ONNX Runtime raises."""
    logging.getLogger().setLevel(logging.ERROR)
    count = min(len(v) for v in samples.values())
    with tempfile.TemporaryDirectory() as folder:
        source, target = (str(Path(folder) / n) for n in ("float.onnx", "quantized.onnx"))
        onnx.save(model, source)
        if form in DYNAMIC:
            quantize_dynamic(source, target, **DYNAMIC[form])
        else:
            feeds = _Samples([{n: v[i] for n, v in samples.items()} for i in range(count)])
            quantize_static(source, target, feeds, **{"quant_format": QDQ, **VARIANTS[form]})
        return onnx.load(target)
