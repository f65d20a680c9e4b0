"""QuartzNet 15x5 (Kriman et al. 2019): speech to letters by separable convolutions over time, trained with CTC."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEATURES, LETTERS = 64, 28 + 1  # mel bands; letters, space, apostrophe, and CTC's blank
BLOCKS = ((256, 33), (256, 39), (512, 51), (512, 63), (512, 75))  # channels and kernel
SEPARABLE = 5  # convolutions in a block
REPEATS = 3  # of each block


def separable(inputs: int, outputs: int, kernel: int, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
    """Depthwise convolution over time, pointwise convolution, batch norm."""
    return [
        nn.Conv1d(inputs, inputs, kernel, stride, dilation * (kernel - 1) // 2, dilation, inputs, bias=False),
        *pointwise(inputs, outputs),
    ]


def pointwise(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv1d(inputs, outputs, 1, bias=False), nn.BatchNorm1d(outputs, eps=1e-3)]


class Block(nn.Module):
    """Separable convolutions beside a pointwise shortcut."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        layers = separable(inputs, outputs, kernel)
        for _ in range(SEPARABLE - 1):
            layers += [nn.ReLU(), *separable(outputs, outputs, kernel)]
        self.body, self.shortcut = nn.Sequential(*layers), nn.Sequential(*pointwise(inputs, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def quartznet15x5() -> nn.Module:
    """Log probabilities of letters, for every second frame."""
    layers: list[nn.Module] = [*separable(FEATURES, 256, 33, stride=2), nn.ReLU()]
    channels = 256
    for outputs, kernel in BLOCKS:
        for _ in range(REPEATS):
            layers.append(Block(channels, outputs, kernel))
            channels = outputs
    layers += [
        *separable(channels, 512, 87, dilation=2),
        nn.ReLU(),
        *pointwise(512, 1024),
        nn.ReLU(),
        nn.Conv1d(1024, LETTERS, 1),
        nn.LogSoftmax(1),
    ]
    return nn.Sequential(*layers)
