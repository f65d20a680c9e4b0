"""The field's networks, built in torch with random weights and exported to ONNX: latency does not depend on weights.

`params` and `gmacs` are the published figures, which a test compares the nets with; `gmacs` counts convolutions,
linear layers and the products of attention.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SAMPLES = 4  # for calibration
PADDING = 0.25  # of a padded calibration sentence


@dataclass(frozen=True)
class Input:
    """shape and kind of one input: "real" (normal distribution), "ids" (below `size`) or "mask" (ones, then zeros)."""

    shape: tuple[int, ...]
    kind: str = "real"
    size: int = 0


@dataclass(frozen=True)
class Net:
    """module, builder: the function in this package that makes it, and its arguments."""

    module: str
    builder: str
    inputs: dict[str, Input]
    params: int
    gmacs: float
    arguments: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        """The torch module, in evaluation mode; weights as torch draws them."""
        from importlib import import_module

        return getattr(import_module(f"zoo.{self.module}"), self.builder)(**self.arguments).eval()


def _image(size: int) -> dict[str, Input]:
    return {"image": Input((1, 3, size, size))}


def _tokens(length: int, vocabulary: int) -> dict[str, Input]:
    return {"input_ids": Input((1, length), "ids", vocabulary), "attention_mask": Input((1, length), "mask")}


MINILM = {"width": 384, "depth": 6, "heads": 12, "hidden": 1536}

ZOO: dict[str, Net] = {
    "resnet18": Net("convolutional", "resnet18", _image(224), 11_689_512, 1.814),
    "resnet50": Net("convolutional", "resnet50", _image(224), 25_557_032, 4.089),
    "mobilenet_v2": Net("convolutional", "mobilenet_v2", _image(224), 3_504_872, 0.301),
    "inception_v3": Net("convolutional", "inception_v3", _image(299), 23_834_568, 5.713),
    "squeezenet1_1": Net("convolutional", "squeezenet1_1", _image(224), 1_235_496, 0.349),
    "quartznet15x5": Net("audio", "quartznet15x5", {"mel": Input((1, 64, 300))}, 18_924_381, 2.83),
    "bert_base_128": Net("transformers", "bert", _tokens(128, 30522), 109_482_240, 11.17),
    "minilm_l6_32": Net("transformers", "bert", _tokens(32, 30522), 22_713_216, 0.345, MINILM),
    "minilm_l6_128": Net("transformers", "bert", _tokens(128, 30522), 22_713_216, 1.435, MINILM),
    "deit_s": Net("transformers", "vit", _image(224), 22_050_664, 4.60, {"width": 384, "heads": 6}),
    "vit_b_16": Net("transformers", "vit", _image(224), 86_567_656, 17.56, {"width": 768, "heads": 12}),
    "gpt2_64": Net("transformers", "gpt2", {"input_ids": Input((1, 64), "ids", 50257)}, 124_439_808, 7.98),
}


def samples(net: Net, count: int = SAMPLES) -> list[dict[str, np.ndarray]]:
    """Made-up inputs, the same each time: the first sentence fills its length, the later ones are padded."""
    random = np.random.default_rng(0)
    return [{name: _sample(i, random, padded=index > 0) for name, i in net.inputs.items()} for index in range(count)]


def _sample(wanted: Input, random: np.random.Generator, padded: bool) -> np.ndarray:
    if wanted.kind == "ids":
        return random.integers(0, wanted.size, wanted.shape, np.int64)
    if wanted.kind == "mask":
        mask = np.ones(wanted.shape, np.int64)
        mask[:, round(wanted.shape[-1] * (1 - PADDING * padded)) :] = 0
        return mask
    return random.standard_normal(wanted.shape, np.float32)


def onnx_file(name: str, folder: Path) -> Path:
    """The net's ONNX file (opset 17), exported if `folder` has none newer than this package."""
    file = folder / f"{name}.onnx"
    newest = max(f.stat().st_mtime for f in Path(__file__).parent.glob("*.py"))
    if not file.exists() or file.stat().st_mtime < newest:
        folder.mkdir(parents=True, exist_ok=True)
        _export(ZOO[name], file)
    return file


def _export(net: Net, file: Path) -> None:
    import logging
    import warnings

    import torch

    torch.manual_seed(0)
    model = net.build()
    feeds = samples(net, 2)
    settle_batch_norms(model, [torch.from_numpy(np.concatenate([f[n] for f in feeds])) for n in net.inputs])
    example = tuple(torch.from_numpy(feeds[0][n]) for n in net.inputs)
    fresh = file.with_suffix(".new")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            example,
            str(fresh),
            input_names=list(net.inputs),
            output_names=["output"],
            opset_version=17,
            dynamo=False,
        )
    fresh.replace(file)


def settle_batch_norms(model: Any, inputs: list[Any]) -> None:
    """Statistics as training would leave them for such inputs, give or take a fifth, and scales and shifts that are not
    all alike: with torch's initial ones, values would fade from layer to layer."""
    import torch

    norms = [m for m in model.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            norm.weight.uniform_(0.8, 1.2)
            norm.bias.normal_(0, 0.1)
        model.train()
        model(*inputs)
        model.eval()
        for norm in norms:
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.8, 1.25))
            norm.running_mean.add_(norm.running_var.sqrt() * torch.empty_like(norm.running_mean).normal_(0, 0.1))


__all__ = ["ZOO", "Input", "Net", "onnx_file", "samples"]
