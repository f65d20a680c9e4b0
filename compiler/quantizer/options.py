"""What a user can choose about quantization."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class QuantizeOptions:
    """Switches of the quantizer.

    weight_bits: width of weights; only 8 so far. max_samples: at most so many calibration samples are used, evenly
    spaced. ranges: "auto" (the candidate with the least measured error), "minmax", "percentile" or "mse".
    equalise: SmoothQuant-style channel equalisation before linear layers, across convolutions too.
    bias_correction: remove the mean error that rounding the weights causes. clip_weights: search each channel's weight
    scale by squared error. wide_streams: 16-bit residual streams, normalisation and GELU inputs in transformers.
    """

    weight_bits: int = 8
    max_samples: int = 200
    ranges: str = "auto"
    equalise: bool = True
    bias_correction: bool = True
    clip_weights: bool = True
    wide_streams: bool = True
