"""The real nets of ../shared/models and what must hold for each."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "models"

GOALS = {  # case -> (metric, the least or most it may be, from float; the same from the QDQ file that comes with it)
    "kws_dscnn": ("accuracy", lambda s, f: s >= 0.905, lambda s, f: s >= 0.897, ">= 0.905 (QDQ file: 0.897)"),
    "ic_resnet8": ("accuracy", lambda s, f: s >= f - 0.005, lambda s, f: s >= f - 0.005, "within 0.005 of float"),
    "vww_mobilenetv1_025": ("agrees_with_float", lambda s, f: s >= 0.99, None, ">= 0.99"),
    "ad_autoencoder": ("anomaly_score", lambda s, f: abs(s - 9.707) <= 0.15, None, "9.707 +- 0.15"),
    "sww_dsconv1d": ("accuracy", lambda s, f: s >= 0.889, None, ">= 0.889"),
    "fsdd_quartz_ctc": ("wer", lambda s, f: s <= 0.020, None, "<= 0.020"),
    "mnist_lstm": ("accuracy", lambda s, f: s >= 0.973, None, ">= 0.973"),
    "vit_mnist": ("accuracy", lambda s, f: s >= 0.950, None, ">= 0.950"),
    "minilm_l6": ("sts_spearman", lambda s, f: s >= 81.3, None, ">= 81.3, cosine >= 0.99"),
}


def load_cases() -> dict[str, Any]:
    """shared/models/cases.py's table, without the nets that have no goal here; exits with a message where it is
    absent."""
    file = FOLDER / "cases.py"
    if not file.exists():
        raise SystemExit(f"{FOLDER} is not there: this program measures the real nets in it")
    spec = importlib.util.spec_from_file_location("shared_cases", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["shared_cases"] = module
    spec.loader.exec_module(module)
    return {name: module.CASES[name] for name in GOALS}


def feed(model: Any, sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The case's input by position and shape: files converted from tflite name and shape theirs otherwise."""
    return {t.name: np.asarray(a).reshape(t.shape) for t, a in zip(model.inputs, sample.values())}


def answer(model: Any, outputs: dict[str, np.ndarray], like: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The outputs under the float model's names and shapes."""
    return {name: y.reshape(shape) if shape else y for (name, shape), y in zip(like.items(), outputs.values())}
