"""ResNet (He et al. 2015), MobileNetV2 (Sandler et al. 2018), Inception v3 (Szegedy et al. 2015) and SqueezeNet 1.1
(Iandola et al. 2016), as torchvision configures them for 1000 classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

CLASSES = 1000


def conv(
    inputs: int,
    outputs: int,
    kernel: int | tuple[int, int],
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    groups: int = 1,
    activation: Callable[[], nn.Module] | None = nn.ReLU,
    eps: float = 1e-5,
) -> nn.Sequential:
    """Convolution, batch norm and activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=eps),
    ]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)), or their sum alone."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, activate: bool = True) -> None:
        super().__init__()
        self.body, self.shortcut, self.activate = body, shortcut, activate

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x) + self.shortcut(x)
        return torch.relu(y) if self.activate else y


def _basic(inputs: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, width, 3, stride, 1), conv(width, width, 3, 1, 1, activation=None))


def _bottleneck(inputs: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        conv(inputs, width, 1), conv(width, width, 3, stride, 1), conv(width, 4 * width, 1, activation=None)
    )


def _resnet(block: Callable[[int, int, int], nn.Sequential], expansion: int, depths: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = [conv(3, 64, 7, 2, 3), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(depths):
        width = 64 << stage
        for index in range(depth):
            stride, outputs = (2 if stage and not index else 1), width * expansion
            same = stride == 1 and channels == outputs
            shortcut = nn.Identity() if same else conv(channels, outputs, 1, stride, activation=None)
            layers.append(Residual(block(channels, width, stride), shortcut))
            channels = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def resnet18() -> nn.Module:
    return _resnet(_basic, 1, (2, 2, 2, 2))


def resnet50() -> nn.Module:
    return _resnet(_bottleneck, 4, (3, 4, 6, 3))


MOBILENET_V2 = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # expansion, channels, blocks, stride of the first


def _inverted(inputs: int, outputs: int, stride: int, expansion: int) -> nn.Module:
    hidden = inputs * expansion
    body = nn.Sequential(
        *([conv(inputs, hidden, 1, activation=nn.ReLU6)] if expansion > 1 else []),
        conv(hidden, hidden, 3, stride, 1, hidden, nn.ReLU6),
        conv(hidden, outputs, 1, activation=None),
    )
    return Residual(body, nn.Identity(), activate=False) if stride == 1 and inputs == outputs else body


def mobilenet_v2() -> nn.Module:
    layers: list[nn.Module] = [conv(3, 32, 3, 2, 1, activation=nn.ReLU6)]
    channels = 32
    for expansion, outputs, blocks, stride in MOBILENET_V2:
        for index in range(blocks):
            layers.append(_inverted(channels, outputs, 1 if index else stride, expansion))
            channels = outputs
    return nn.Sequential(
        *layers,
        conv(channels, 1280, 1, activation=nn.ReLU6),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(1280, CLASSES),
    )


class Branches(nn.Module):
    """Several ways side by side, joined along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


def _fire(inputs: int, squeeze: int, expand: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inputs, squeeze, 1),
        nn.ReLU(),
        Branches(
            nn.Sequential(nn.Conv2d(squeeze, expand, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(squeeze, expand, 3, padding=1), nn.ReLU()),
        ),
    )


def squeezenet1_1() -> nn.Module:
    pool = lambda: nn.MaxPool2d(3, 2, ceil_mode=True)  # noqa: E731
    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2),
        nn.ReLU(),
        pool(),
        _fire(64, 16, 64),
        _fire(128, 16, 64),
        pool(),
        _fire(128, 32, 128),
        _fire(256, 32, 128),
        pool(),
        _fire(256, 48, 192),
        _fire(384, 48, 192),
        _fire(384, 64, 256),
        _fire(512, 64, 256),
        nn.Conv2d(512, CLASSES, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def _chain(inputs: int, *layers: tuple) -> nn.Sequential:
    """Convolutions one after the other: (channels, kernel, stride, padding), the last two optional; as in the paper,
    batch norm's epsilon is 0.001."""
    modules = []
    for channels, kernel, *rest in layers:
        stride, padding = (*rest, *(1, 0)[len(rest) :])
        modules.append(conv(inputs, channels, kernel, stride, padding, eps=0.001))
        inputs = channels
    return nn.Sequential(*modules)


def _pooled(inputs: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(3, 1, 1), _chain(inputs, (channels, 1)))


def _inception_a(inputs: int, pooled: int) -> nn.Module:
    return Branches(
        _chain(inputs, (64, 1)),
        _chain(inputs, (48, 1), (64, 5, 1, 2)),
        _chain(inputs, (64, 1), (96, 3, 1, 1), (96, 3, 1, 1)),
        _pooled(inputs, pooled),
    )


def _inception_c(width: int) -> nn.Module:
    row, column = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    return Branches(
        _chain(768, (192, 1)),
        _chain(768, (width, 1), (width, *row), (192, *column)),
        _chain(768, (width, 1), (width, *column), (width, *row), (width, *column), (192, *row)),
        _pooled(768, 192),
    )


def _inception_e(inputs: int) -> nn.Module:
    def split() -> Branches:
        return Branches(_chain(384, (384, (1, 3), 1, (0, 1))), _chain(384, (384, (3, 1), 1, (1, 0))))

    return Branches(
        _chain(inputs, (320, 1)),
        nn.Sequential(_chain(inputs, (384, 1)), split()),
        nn.Sequential(_chain(inputs, (448, 1), (384, 3, 1, 1)), split()),
        _pooled(inputs, 192),
    )


def inception_v3() -> nn.Module:
    """Without the auxiliary classifier, which only training uses."""
    row, column = ((1, 7), 1, (0, 3)), ((7, 1), 1, (3, 0))
    return nn.Sequential(
        _chain(3, (32, 3, 2), (32, 3), (64, 3, 1, 1)),
        nn.MaxPool2d(3, 2),
        _chain(64, (80, 1), (192, 3)),
        nn.MaxPool2d(3, 2),
        _inception_a(192, 32),
        _inception_a(256, 64),
        _inception_a(288, 64),
        Branches(_chain(288, (384, 3, 2)), _chain(288, (64, 1), (96, 3, 1, 1), (96, 3, 2)), nn.MaxPool2d(3, 2)),
        _inception_c(128),
        _inception_c(160),
        _inception_c(160),
        _inception_c(192),
        Branches(
            _chain(768, (192, 1), (320, 3, 2)),
            _chain(768, (192, 1), (192, *row), (192, *column), (192, 3, 2)),
            nn.MaxPool2d(3, 2),
        ),
        _inception_e(1280),
        _inception_e(2048),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2048, CLASSES),
    )
