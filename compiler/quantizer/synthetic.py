"""Synthetic calibration inputs, from what the network itself tells of its data.

A BatchNormalization holds the mean and the standard deviation, per channel, of what it makes of the training data.
Inputs are distilled until the network's statistics are those (ZeroQ, Cai et al. 2020; Q-ASR, Kim et al. 2021). Where
it has been folded into weights before the compiler saw it, its channels are taken to be what they mostly are: mean 0
give or take a half, deviation 1 give or take a factor. Before the first nonlinearity the means are linear in the
inputs' mean, which follows by ridge regression; the rest is gradient descent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph
from qcompile.quantizer.differentiable import network, path_to, runs

SAMPLES = 16
STEPS = 150
FEW = 60  # steps; where they cost too much, fewer samples are distilled
FASTER = 0.3  # exponent: fewer steps are longer
WORK = 6e11  # multiply-accumulates that distilling may cost, some twenty seconds of a core
ROOM = 2e8  # values that it may hold in memory
ROWS = 256  # channels that the first layers' equations are made of
CONFIDENCE = 0.3  # weight of the cross entropy of classes drawn for the samples
BETA = 0.5  # deviation of the unknown means of normalised channels
LOUDNESS = 0.3  # deviation of the logarithm of the samples' gain
FAR = 4.0  # no input is further from its mean, in deviations
SPREAD = 0.4  # of the logarithm of their unknown deviations
LINEAR = ("Conv", "Gemm", "MatMul")
AFFINE = {*LINEAR, "Add", "Sub", "Mul", "Div", "AveragePool", "GlobalAveragePool", "ReduceMean", "Concat", "Slice"}
AFFINE |= {"Pad", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}
NORMALISING = ("LayerNormalization", "InstanceNormalization", "RMSNormalization", "GroupNormalization")
Feed = dict[str, np.ndarray]
Wanted = Mapping[str, tuple[tuple[int, ...], np.dtype]]
RECORDED = "synthetic inputs, distilled from the statistics of its BatchNormalization layers"
FOLDED = "synthetic inputs, estimated from weights and biases"
NOISE = "synthetic inputs (noise)"
NO_TORCH = "synthetic inputs (noise, as torch is not installed; pip install 'qcompile[torch]')"
NOTE = "no calibration data: ranges come from {}, and accuracy {} suffer; give real samples with --calib"


@dataclass
class Target:
    """What a tensor's channels (along `axis`) should have: mean, deviation [C]; `known`, or only likely."""

    tensor: str
    axis: int
    mean: np.ndarray
    std: np.ndarray
    known: bool


def synthetic_samples(graph: Graph, wanted: Wanted) -> tuple[list[Feed], list[str]]:
    """(samples, notes) for the inputs `wanted` = {name: (shape, dtype)} of a normalised `graph`; deterministic.

    Integer inputs are ids below the size of the table that they index, else any value of 8 or 16 bits, else 1.
    """
    rng = np.random.default_rng(0)
    samples = [_noise(graph, wanted, rng) for _ in range(SAMPLES)]
    source, likely = NOISE, "will"
    if any(dtype.kind == "f" for _, dtype in wanted.values()):
        try:
            targets = _within_reach(graph, find_targets(graph))
            if targets:
                samples = _distil(graph, wanted, samples, targets, rng)
                source, likely = RECORDED if any(t.known for t in targets) else FOLDED, "may"
        except ModuleNotFoundError:
            source = NO_TORCH
        except Exception:  # an attribute without torch form, a singular matrix, no convergence: noise always works
            pass
    return samples, [NOTE.format(source, likely)]


def _within_reach(graph: Graph, targets: list[Target]) -> list[Target]:
    """Those that no unknown operator stands before."""
    if runs(path_to(graph, [t.tensor for t in targets])):
        return targets
    return [t for t in targets if runs(path_to(graph, [t.tensor]))]


def _noise(graph: Graph, wanted: Wanted, rng: np.random.Generator) -> Feed:
    feed: Feed = {}
    for name, (shape, dtype) in wanted.items():
        if dtype.kind == "f":
            feed[name] = rng.standard_normal(shape).astype(dtype)
        elif (bound := id_bound(graph, name)) is not None:
            feed[name] = rng.integers(0, bound, shape).astype(dtype)
        elif dtype.kind in "iu" and dtype.itemsize <= 2:  # pixels, codes or sound
            feed[name] = rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)
        else:
            feed[name] = np.ones(shape, dtype)
    return feed


def id_bound(graph: Graph, name: str) -> int | None:
    """Rows of the smallest constant table that the integer input `name` indexes."""
    bounds, frontier = [], [name]
    while frontier:
        tensor = frontier.pop()
        for node in graph.consumers(tensor):
            if node.op_type == "Gather" and node.input[1] == tensor and node.input[0] in graph.constants:
                bounds.append(graph.constants[node.input[0]].shape[0])
            elif node.op_type in ("Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"):
                frontier.append(node.output[0])
    return min(bounds, default=None)


def find_targets(graph: Graph) -> list[Target]:
    """The tensors of which statistics were recorded, else those that were likely normalised, in graph order."""
    made = [v.name for v in graph.inputs] + [o for n in graph.nodes for o in n.output]
    recorded = {t: s for t, s in graph.statistics.items() if (graph.shape(t) or ())[1:2] == s[0].shape}
    known = [Target(t, 1, recorded[t][0], recorded[t][1], True) for t in made if t in recorded]
    likely = [] if any(n.op_type in NORMALISING for n in graph.nodes) else _likely(graph)
    if 2 * len(known) >= len(likely):
        return known
    both = {t.tensor: t for t in [*likely, *known]}  # as where only the inputs are normalised
    return [both[t] for t in made if t in both]


def _likely(graph: Graph) -> list[Target]:
    """What layers with a bias make, in front of other layers."""
    depth: dict[str, int] = {}  # linear layers that a tensor runs through at most, on its way to an output
    found: list[tuple[int, Target]] = []
    for node in reversed(graph.nodes):
        linear = node.op_type in LINEAR and node.input[1] in graph.constants
        behind = max(depth.get(o, 0) for o in node.output)
        for i in node.input:
            depth[i] = max(depth.get(i, 0), behind + linear)
        target = _biased(graph, node) if linear and behind else None
        if target is not None:
            found.append((behind, target))
    # what a classifier's last layer reads is large where it is sure: its cross entropy sees to that
    least = 2 if class_scores(graph) and any(behind > 1 for behind, _ in found) else 1
    return [t for behind, t in reversed(found) if behind >= least]


def _biased(graph: Graph, node: NodeProto) -> Target | None:
    """What a linear layer with a bias makes, taken to have been normalised."""
    y = node.output[0]
    biased = len(node.input) > 2 and node.input[2] in graph.constants
    add = graph.only_consumer(y, "Add")
    if node.op_type == "MatMul" and add is not None and any(i in graph.constants for i in add.input):
        y, biased = add.output[0], True
    shape = graph.shape(y)
    if not biased or shape is None:
        return None
    axis = 1 if node.op_type == "Conv" else len(shape) - 1
    return Target(y, axis, np.zeros(shape[axis]), np.ones(shape[axis]), False)


def class_scores(graph: Graph) -> str:
    """The tensor of logits [1, classes] of a classifier: a convolutional net with one vector of results; else ""."""
    if len(graph.outputs) != 1 or not any(n.op_type == "Conv" for n in graph.nodes):
        return ""
    name = graph.outputs[0].name
    while (node := graph.producer(name, "Softmax", "LogSoftmax", "Reshape", "Squeeze", "Flatten")) is not None:
        name = node.input[0]
    shape = graph.shape(name) or ()
    return name if shape[:1] == (1,) and int(np.prod(shape)) == max(shape) > 1 and graph.producer(name) else ""


def falling(shape: tuple[int, ...]) -> np.ndarray:
    """Amplitudes 1 / frequency, as natural signals have them, over the Fourier transform of `shape`; mean square 1."""
    frequency = np.zeros(shape)
    for i, n in enumerate(shape):
        frequency = frequency + np.fft.fftfreq(n).reshape([-1 if j == i else 1 for j in range(len(shape))]) ** 2
    amplitude = 1.0 / np.maximum(np.sqrt(frequency), 1.0 / max(shape, default=1))
    return (amplitude / np.sqrt(np.mean(np.square(amplitude)))).astype(np.float32)


def _distil(
    graph: Graph, wanted: Wanted, samples: list[Feed], targets: Sequence[Target], rng: np.random.Generator
) -> list[Feed]:
    import torch

    names = [t.tensor for t in targets]
    floats = [name for name, (_, dtype) in wanted.items() if dtype.kind == "f"]
    logits = class_scores(graph)
    logits = logits if runs(path_to(graph, [logits])) else ""
    run = network(graph, [*names, logits or names[-1]])
    classes = int(np.prod(graph.shape(logits) or (0,)))
    cost, held = _work(graph, [*names, logits or names[-1]])
    count = int(np.clip(min(WORK / (2 * cost * FEW), ROOM / held), 3, len(samples)))
    steps = int(np.clip(WORK / (2 * cost * count), 4, STEPS))
    others = {k: torch.tensor(np.stack([s[k] for s in samples])) for k in wanted if k not in floats}
    amplitudes = {k: torch.tensor(falling(wanted[k][0])) for k in floats}
    white = {k: torch.tensor(np.stack([s[k] for s in samples]).astype(np.float32)) for k in floats}
    loud = {k: torch.tensor(np.exp(LOUDNESS * rng.standard_normal(len(samples))).astype(np.float32)) for k in floats}

    def signal(k: str, some: slice) -> Any:
        """White noise made natural: falling amplitudes, some samples louder, no value far out."""
        made = torch.fft.fftn(white[k][some], dim=tuple(range(1, white[k].ndim))) * amplitudes[k]
        made = torch.fft.ifftn(made, dim=tuple(range(1, made.ndim))).real
        return FAR * torch.tanh(made * loud[k][some].reshape(-1, *(1,) * (made.ndim - 1)) / FAR)

    unit = {k: signal(k, slice(0, count)) for k in floats}
    first = [t for t in targets if all(n.op_type in AFFINE for n in path_to(graph, [t.tensor]))]
    centre = {k: np.zeros(wanted[k][0], np.float32) for k in floats}
    gain = 1.0
    with torch.enable_grad():
        if first:
            given = {k: v[:count] for k, v in others.items()}
            centre, gain = _start(network(graph, [t.tensor for t in first]), first, wanted, unit, given)
        mean = {k: torch.tensor(centre[k] / gain, requires_grad=True) for k in floats}
        scale = {k: torch.zeros(wanted[k][0], requires_grad=True) for k in floats}
        for k in floats:
            white[k].requires_grad_()

        def inputs(some: slice) -> dict[str, Any]:
            made = {k: gain * (mean[k] + torch.exp(scale[k]) * signal(k, some)) for k in floats}
            return made | {k: v[some] for k, v in others.items()}

        faster = (STEPS / steps) ** FASTER
        optimiser = torch.optim.Adam(
            [
                {"params": list(mean.values()), "lr": 0.02 * faster},
                {"params": list(scale.values()), "lr": 0.02 * faster},
                {"params": list(white.values()), "lr": 0.05 * faster},
            ]
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, 0.002)
        for _ in range(steps):
            optimiser.zero_grad()
            *outputs, scores = run(inputs(slice(0, count)))
            loss = sum(_loss(y, t) for y, t in zip(outputs, targets)) / len(targets)
            if logits:
                goal = torch.arange(count) * classes // count
                loss = loss + CONFIDENCE * torch.nn.functional.cross_entropy(scores.reshape(count, -1), goal)
            loss.backward()
            optimiser.step()
            schedule.step()
    with torch.no_grad():
        made = {k: v.numpy() for k, v in inputs(slice(None)).items()}
    if not all(np.isfinite(v).all() for v in made.values()):
        raise FloatingPointError("distilling diverged")
    return [{k: made[k][i].astype(wanted[k][1]) for k in wanted} for i in range(len(samples))]


def _work(graph: Graph, tensors: Sequence[str]) -> tuple[float, float]:
    """Multiply-accumulates of one forward pass to `tensors`, and the values that it makes."""
    work = values = 1.0
    for node in path_to(graph, tensors):
        out = float(np.prod(graph.shape(node.output[0]) or (1,)))
        if node.op_type == "Conv" and (weight := graph.shape(node.input[1])):
            work += out * float(np.prod(weight[1:]))
        elif node.op_type in LINEAR:
            work += out * float((graph.shape(node.input[0]) or (1,))[-1])
        values += out
    return work + values, values


def _moments(y: Any, target: Target) -> tuple[Any, Any]:
    """Mean and deviation per channel of y [N, *shape]."""
    import torch

    over = tuple(i for i in range(y.ndim) if i != target.axis + 1)
    mean = y.mean(over)
    variance = (y - y.mean(over, keepdim=True)).square().mean(over)
    return mean, torch.sqrt(variance + 1e-8)


def _loss(y: Any, target: Target) -> Any:
    import torch

    mean, std = _moments(y, target)
    if target.known:
        goal, likely = torch.tensor(target.mean), torch.tensor(target.std)
        unit = likely.clamp(min=0.1 * float(likely.median()) + 1e-6)
        return (((mean - goal) / unit).square() + ((std - likely) / unit).square()).mean()
    # a channel may well be far from what is likely: the loss grows slowly (Cauchy)
    return (torch.log1p((mean / BETA).square()) + torch.log1p((torch.log(std) / SPREAD).square())).mean()


def _start(
    run: Any, targets: Sequence[Target], wanted: Wanted, unit: Mapping[str, Any], others: Mapping[str, Any]
) -> tuple[Feed, float]:
    """(mean input, gain of the noise) for which the first layers, affine in the inputs, have their statistics."""
    import torch

    zero = {k: torch.zeros((1, *wanted[k][0]), requires_grad=True) for k in unit}
    some = {k: v[:1] for k, v in others.items()}
    means = torch.cat([_moments(y, t)[0] for y, t in zip(run(zero | some), targets)])
    chosen = np.unique(np.linspace(0, len(means) - 1, min(ROWS, len(means))).astype(int))
    rows = []
    for i in chosen:
        gradient = torch.autograd.grad(means[i], list(zero.values()), retain_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in gradient]))
    jacobian = torch.stack(rows).double().numpy()
    goal = np.concatenate([t.mean for t in targets]) - means.detach().double().numpy()
    flat = _ridge(jacobian, goal[chosen], 0.05 if all(t.known for t in targets) else BETA)
    centre, at = {}, 0
    for k, z in zero.items():
        centre[k] = flat[at : at + z.numel()].reshape(wanted[k][0]).astype(np.float32)
        at += z.numel()
    with torch.no_grad():
        outputs = run(dict(unit) | dict(others))
        ratio = [(_moments(y, t)[1].numpy() + 1e-12) / t.std for y, t in zip(outputs, targets)]
    return centre, float(1.0 / np.median(np.concatenate(ratio)))


def _ridge(jacobian: np.ndarray, goal: np.ndarray, deviation: float) -> np.ndarray:
    """The mean m ~ N(0, t^2) with goal = jacobian m + N(0, deviation^2), t of the largest likelihood."""
    values, basis = np.linalg.eigh(jacobian @ jacobian.T)
    values, along = np.maximum(values, 0.0), basis.T @ goal

    def likelihood(t2: float) -> float:
        variance = t2 * values + deviation**2
        return float(-np.sum(np.log(variance) + along**2 / variance))

    t2 = max((10.0**e for e in np.arange(-6, 10, 0.25)), key=likelihood)
    return t2 * jacobian.T @ (basis @ (along / (t2 * values + deviation**2)))
