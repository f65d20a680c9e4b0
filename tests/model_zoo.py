"""The real models of the tests, where they lie beside the repository, and ONNX Runtime as the yardstick."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime as ort

MODELS = Path(__file__).resolve().parents[2] / "shared" / "models"
NAMES = (
    "kws_dscnn",
    "ic_resnet8",
    "vww_mobilenetv1_025",
    "ad_autoencoder",
    "sww_dsconv1d",
    "fsdd_quartz_ctc",
    "vit_mnist",
    "minilm_l6",
)


@cache
def cases() -> ModuleType:
    """The module that describes the models: inputs, calibration and score of each."""
    spec = importlib.util.spec_from_file_location("model_cases", MODELS / "cases.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["model_cases"] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


def run_onnxruntime(model: Path, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name of one inference, graph optimisations off: the model as it is written."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return dict(zip((o.name for o in session.get_outputs()), session.run(None, feeds)))
