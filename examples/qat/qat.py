"""Quantization-aware training at 4 bits, from a torch module to integer machine code.

A small convolutional net learns MNIST digits in float, is fine-tuned with fake quantization (learned step sizes: LSQ,
Esser et al. 2020), exported by torch.onnx as it is, and compiled. Prints the accuracy of each stage and the weights'
bytes. Needs torch, which qcompile itself does not.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import qcompile
import torch
from torch import Tensor, nn
from torch.nn import functional

DIGITS = Path(__file__).parents[1] / "demo" / "digits.npz"
TRAINED_ON = 2000  # digits; the others are for evaluation


@dataclass(frozen=True)
class Bits:
    """Widths of weights and activations inside the net; its first and last layer have 8-bit weights."""

    weights: int = 4
    activations: int = 8


class FakeQuantize(nn.Module):
    """clip(round(x / step), low, high) * step, with steps that are learned; off until the first call of `start`.

    The rounding's gradient is 1 (straight through), which gives the step the gradient of LSQ, equation 3.
    """

    def __init__(self, bits: int, signed: bool, channels: int = 0):
        super().__init__()
        self.low, self.high = (1 - (1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
        self.step = nn.Parameter(torch.ones(channels, 1, 1, 1) if channels else torch.ones(()))
        self.on = False

    def start(self, x: Tensor) -> None:
        """Steps from the mean magnitude of `x` [channels, ...] or of all of it (LSQ, section 2.1)."""
        mean = x.abs().flatten(1).mean(1).reshape(self.step.shape) if self.step.ndim else x.abs().mean()
        largest = x.abs().max() / self.high
        self.step.data = (2 * mean / self.high**0.5).clamp(1e-5).minimum(largest.clamp(1e-5))
        if self.high > 63:  # 8 bits need not clip
            peak = x.abs().flatten(1).amax(1).reshape(self.step.shape) if self.step.ndim else x.abs().max()
            self.step.data = (peak / self.high).clamp(1e-5)
        self.on = True

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return x
        scaled = x / self.step
        rounded = torch.round(scaled)
        if self.training:
            rounded = scaled + (rounded - scaled).detach()
        return torch.clamp(rounded, self.low, self.high) * self.step


class Layer(nn.Module):
    """A convolution with fake-quantized weights."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int, bits: int):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, size // 2)
        self.weight = FakeQuantize(bits, signed=True, channels=outputs)

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight(self.conv.weight), self.conv.bias, self.conv.stride, self.conv.padding)


class Activation(nn.Module):
    """ReLU, then unsigned codes; what reads it, a layer or a residual sum, reads the codes."""

    def __init__(self, bits: int):
        super().__init__()
        self.codes, self.waiting = FakeQuantize(bits, signed=False), False

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(x)
        if self.waiting:
            self.codes.start(x.detach())
            self.waiting = False
        return self.codes(x)


class Net(nn.Module):
    """[N, 1, 28, 28] digits in [0, 1] to [N, 10] logits: six convolutions, one residual, about 42,000 weights."""

    def __init__(self, bits: Bits, width: int = 32):
        super().__init__()
        self.image = Activation(8)
        self.first = Layer(1, width // 2, 3, 2, 8)
        shapes = ((width // 2, width, 1), (width, width, 2), (width, width, 1), (width, 2 * width, 2))
        self.body = nn.ModuleList([Layer(i, o, 3, stride, bits.weights) for i, o, stride in shapes])
        self.last = Layer(2 * width, 10, 1, 1, 8)
        self.activations = nn.ModuleList([Activation(bits.activations) for _ in range(5)])

    def forward(self, image: Tensor) -> Tensor:
        a = self.activations
        x = a[0](self.first(self.image(image)))
        x = a[1](self.body[0](x))
        x = a[2](self.body[1](x))
        x = a[3](self.body[2](x) + x)
        x = a[4](self.body[3](x))
        return self.last(x).mean((2, 3))

    def start_quantization(self) -> None:
        """Weights' steps now, activations' with the first batch."""
        for module in self.modules():
            if isinstance(module, Layer):
                module.weight.start(module.conv.weight.detach())
            elif isinstance(module, Activation):
                module.waiting = True


def digits() -> tuple[Tensor, Tensor]:
    """Images [3000, 1, 28, 28] in [0, 1] and their labels."""
    data = np.load(DIGITS)
    return torch.from_numpy(data["x"][:, None].astype(np.float32) / 255), torch.from_numpy(data["y"].astype(np.int64))


def train(net: Net, x: Tensor, y: Tensor, epochs: int, rate: float) -> None:
    """Adam with a one-cycle rate; images are shifted by up to two pixels."""
    net.train()
    batch = 64
    steps = epochs * (len(x) // batch)
    optimiser = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for rows in order[: len(x) // batch * batch].split(batch):
            shift = torch.randint(-2, 3, (2,)).tolist()
            loss = functional.cross_entropy(net(torch.roll(x[rows], shift, (2, 3))), y[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    net.eval()


def train_quantized(net: Net, x: Tensor, y: Tensor, epochs: int, rate: float = 1e-3) -> None:
    """Fine-tune with fake quantization."""
    net.start_quantization()
    train(net, x, y, epochs, rate)


def export(net: Net, path: Path) -> None:
    """The module with its fake quantization as ONNX; the compiler recognises the arithmetic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net.eval(),
            (torch.zeros(1, 1, 28, 28),),
            str(path),
            input_names=["image"],
            output_names=["logits"],
            opset_version=17,
            dynamo=False,
        )


def accuracy(classify: Callable[[np.ndarray], np.ndarray], x: Tensor, y: Tensor) -> float:
    """Share of digits that `classify` ([1, 1, 28, 28] to [1, 10]) gets right."""
    return float(np.mean([classify(image[None].numpy()).argmax() == label for image, label in zip(x, y.numpy())]))


def torch_accuracy(net: Net, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((net(x).argmax(1) == y).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bits", choices=("w4a8", "w4a4", "w2a8", "w3a4"), default="w4a8")
    parser.add_argument("--target", default="host")
    parser.add_argument("--epochs", type=int, default=40, help="in float; half as many with fake quantization")
    arguments = parser.parse_args()
    bits = Bits(int(arguments.bits[1]), int(arguments.bits[3]))
    torch.manual_seed(0)
    x, y = digits()
    net, began = Net(bits), time.monotonic()
    train(net, x[:TRAINED_ON], y[:TRAINED_ON], arguments.epochs, 4e-3)
    unseen = x[TRAINED_ON:], y[TRAINED_ON:]
    print(f"float               {torch_accuracy(net, *unseen):.4f}")
    train_quantized(net, x[:TRAINED_ON], y[:TRAINED_ON], max(1, arguments.epochs // 2))
    print(f"fake-quantized      {torch_accuracy(net, *unseen):.4f}   ({time.monotonic() - began:.0f} s of training)")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "digits.onnx"
        export(net, path)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        print(f"ONNX Runtime        {accuracy(lambda i: session.run(None, {'image': i})[0], *unseen):.4f}")
        built = qcompile.compile(path, arguments.target, output=folder)
        model = qcompile.load(built.path)
        print(f"integer artifact    {accuracy(lambda i: model.run({'image': i})['logits'], *unseen):.4f}")
    count = sum(p.numel() for layer in net.modules() if isinstance(layer, Layer) for p in layer.conv.parameters())
    proof = built.manifest["proof"]
    print(
        f"weights             {built.manifest['weights_bytes']:,} bytes for {count:,} numbers ({4 * count:,} in float)"
    )
    print(f"machine code        {proof['float_instructions']} float instructions in {proof['instructions']}")


if __name__ == "__main__":
    main()
