"""What a user can choose about quantization."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qcompile.quantizer.bits import LayerBits


@dataclass(frozen=True)
class QuantizeOptions:
    """Switches of the quantizer.

    bits: of each layer by name (`find_layers`); layers that are not named, and None, mean 8 bits. max_samples: at most
    so many calibration samples are used, evenly spaced. ranges: "auto" (the candidate with the least measured error),
    "minmax", "percentile" or "mse". equalise: SmoothQuant-style channel equalisation before linear layers, across
    convolutions too. bias_correction: remove the mean error that rounding the weights causes. clip_weights: search
    each channel's weight scale by squared error. wide_streams: 16-bit residual streams, normalisation and GELU inputs
    in transformers. widening: 16 bits for the tensors and inputs of layers that lose most on the samples, where an
    output would be noisy (see `widths`).
    For weights below 8 bits: learned_rounding: codes from the second moments of each layer's inputs, with `damping`
    times their mean added; without it, codes are rounded to nearest. error_feedback: let each layer correct the errors
    of those before it.
    """

    bits: Mapping[str, LayerBits] | None = None
    max_samples: int = 200
    ranges: str = "auto"
    equalise: bool = True
    bias_correction: bool = True
    clip_weights: bool = True
    wide_streams: bool = True
    widening: bool = True
    learned_rounding: bool = True
    error_feedback: bool = True
    damping: float = 0.01
