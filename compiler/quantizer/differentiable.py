"""The float network as a function of torch tensors, so that its inputs can be optimised by gradient descent.

It knows the usual operators of convolutional and dense networks, at the static shapes of the graph; a batch of
samples runs through `torch.func.vmap`. torch is imported by the functions: only who distils inputs needs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute

Operator = Callable[..., Any]


class UnknownOperator(Exception):
    """The network has an operator or an attribute that has no torch form here."""


def path_to(graph: Graph, outputs: Collection[str]) -> list[NodeProto]:
    """The nodes that `outputs` depend on, in order."""
    wanted, kept = set(outputs), []
    for node in reversed(graph.nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    return kept[::-1]


def runs(nodes: Sequence[NodeProto]) -> bool:
    """Whether there is a torch form of the operators of `nodes` (not yet: of all their attributes)."""
    table = _operators()
    return all(not n.domain and n.op_type in table and len(n.output) == 1 for n in nodes)


def network(graph: Graph, outputs: Sequence[str]) -> Callable[[Mapping[str, Any]], list[Any]]:
    """{input name: tensor [N, *shape]} -> the tensors `outputs`, each [N, *shape of the graph].

    Raises UnknownOperator. The network reads float32 constants; integer constants are shapes and axes.
    """
    import torch

    table, nodes = _operators(), path_to(graph, outputs)
    if not runs(nodes):
        raise UnknownOperator(", ".join(sorted({n.op_type for n in nodes} - set(table))))
    constants = {
        name: torch.tensor(graph.constants[name])
        for name in {i for n in nodes for i in n.input if i in graph.constants}
        if graph.constants[name].dtype.kind == "f"
    }

    def one(feed: Mapping[str, Any]) -> list[Any]:
        values = {**constants, **feed}
        for node in nodes:
            arguments = [values[i] if i in values else graph.constants.get(i) for i in node.input]
            values[node.output[0]] = table[node.op_type](node, *arguments)
        return [values[o] for o in outputs]

    return torch.func.vmap(one)


def _operators() -> dict[str, Operator]:
    """Operator name -> function of (node, *inputs); inputs are tensors, integer constants numpy arrays."""
    import torch
    from torch.nn import functional as F

    def plain(f: Operator) -> Operator:
        return lambda node, *x: f(*x)

    def windows(node: NodeProto, x: Any, kernel: Sequence[int], fill: float) -> tuple[Any, list[int], list[int]]:
        """x padded as the node asks for, strides, dilations."""
        rank = len(kernel)
        strides, dilations = attribute(node, "strides") or [1] * rank, attribute(node, "dilations") or [1] * rank
        pads, auto = attribute(node, "pads") or [0] * (2 * rank), attribute(node, "auto_pad", "NOTSET")
        if attribute(node, "ceil_mode", 0):
            raise UnknownOperator(f"{node.op_type} with ceil_mode")
        if auto.startswith("SAME"):
            sizes = x.shape[-rank:]
            total = [
                max(0, (math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n)
                for n, s, k, d in zip(sizes, strides, kernel, dilations)
            ]
            low = [t // 2 if auto == "SAME_UPPER" else t - t // 2 for t in total]
            pads = low + [t - a for t, a in zip(total, low)]
        if any(pads):
            order = [p for i in reversed(range(rank)) for p in (pads[i], pads[rank + i])]
            x = F.pad(x, order, value=fill)
        return x, list(strides), list(dilations)

    def conv(node: NodeProto, x: Any, w: Any, b: Any = None) -> Any:
        x, strides, dilations = windows(node, x, w.shape[2:], 0.0)
        f = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[w.ndim]
        return f(x, w, b, strides, 0, dilations, attribute(node, "group", 1))

    def max_pool(node: NodeProto, x: Any) -> Any:
        kernel = attribute(node, "kernel_shape")
        x, strides, dilations = windows(node, x, kernel, -torch.inf)
        return {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}[len(kernel)](x, kernel, strides, 0, dilations)

    def average_pool(node: NodeProto, x: Any) -> Any:
        kernel = attribute(node, "kernel_shape")
        f = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
        padded, strides, dilations = windows(node, x, kernel, 0.0)
        if any(d != 1 for d in dilations):
            raise UnknownOperator("AveragePool with dilations")
        y = f(padded, kernel, strides)
        if padded.shape == x.shape or attribute(node, "count_include_pad", 0):
            return y
        return y / f(windows(node, torch.ones(x.shape), kernel, 0.0)[0], kernel, strides)

    def gemm(node: NodeProto, a: Any, b: Any, c: Any = 0.0) -> Any:
        a, b = (a.T if attribute(node, "transA", 0) else a), (b.T if attribute(node, "transB", 0) else b)
        return attribute(node, "alpha", 1.0) * (a @ b) + attribute(node, "beta", 1.0) * c

    def axes(node: NodeProto, given: Any) -> list[int]:
        return attribute(node, "axes") if given is None else np.asarray(given).reshape(-1).tolist()

    def reduce(f: Operator) -> Operator:
        def run(node: NodeProto, x: Any, given: Any = None) -> Any:
            over = axes(node, given)
            return f(x, list(range(x.ndim)) if over is None else over, bool(attribute(node, "keepdims", 1)))

        return run

    def squeeze(node: NodeProto, x: Any, given: Any = None) -> Any:
        over = axes(node, given)
        return x.squeeze() if over is None else x.squeeze(tuple(over))

    def unsqueeze(node: NodeProto, x: Any, given: Any = None) -> Any:
        over = axes(node, given)
        for a in sorted(a % (x.ndim + len(over)) for a in over):
            x = x.unsqueeze(a)
        return x

    def reshape(node: NodeProto, x: Any, target: Any) -> Any:
        return x.reshape([x.shape[i] if t == 0 else int(t) for i, t in enumerate(target)])

    def pad(node: NodeProto, x: Any, pads: Any, value: Any = None, over: Any = None) -> Any:
        if attribute(node, "mode", "constant") != "constant" or over is not None:
            raise UnknownOperator("Pad that repeats values or names axes")
        order = [int(p) for i in reversed(range(x.ndim)) for p in (pads[i], pads[x.ndim + i])]
        return F.pad(x, order, value=0.0 if value is None else float(value))

    def clip(node: NodeProto, x: Any, low: Any = None, high: Any = None) -> Any:
        return torch.clamp(x, low, high)

    def flatten(node: NodeProto, x: Any) -> Any:
        return x.reshape(math.prod(x.shape[: attribute(node, "axis", 1)]), -1)

    def slice_(node: NodeProto, x: Any, starts: Any, ends: Any, over: Any = None, steps: Any = None) -> Any:
        cut = [slice(None)] * x.ndim
        for i, a in enumerate(range(len(starts)) if over is None else over):
            step = 1 if steps is None else int(steps[i])
            if step < 1:
                raise UnknownOperator("Slice with negative steps")
            cut[int(a)] = slice(int(starts[i]), int(ends[i]), step)
        return x[tuple(cut)]

    hard = {"HardSigmoid": lambda n, x: (attribute(n, "alpha", 0.2) * x + attribute(n, "beta", 0.5)).clamp(0, 1)}
    return hard | {
        "Conv": conv,
        "Gemm": gemm,
        "MatMul": plain(torch.matmul),
        "Add": plain(torch.add),
        "Sub": plain(torch.sub),
        "Mul": plain(torch.mul),
        "Div": plain(torch.div),
        "Relu": plain(F.relu),
        "Clip": clip,
        "LeakyRelu": lambda n, x: F.leaky_relu(x, attribute(n, "alpha", 0.01)),
        "Elu": lambda n, x: F.elu(x, attribute(n, "alpha", 1.0)),
        "PRelu": lambda n, x, slope: torch.where(x > 0, x, x * slope),
        "Gelu": lambda n, x: F.gelu(x, approximate=attribute(n, "approximate", "none")),
        "HardSwish": plain(F.hardswish),
        "Mish": plain(F.mish),
        "Sigmoid": plain(torch.sigmoid),
        "Tanh": plain(torch.tanh),
        "Softplus": plain(F.softplus),
        "Erf": plain(torch.erf),
        "Exp": plain(torch.exp),
        "Sqrt": plain(torch.sqrt),
        "Softmax": lambda n, x: torch.softmax(x, attribute(n, "axis", -1)),
        "MaxPool": max_pool,
        "AveragePool": average_pool,
        "GlobalAveragePool": lambda n, x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
        "GlobalMaxPool": lambda n, x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
        "ReduceMean": reduce(torch.mean),
        "ReduceSum": reduce(torch.sum),
        "ReduceMax": reduce(torch.amax),
        "Transpose": lambda n, x: x.permute(attribute(n, "perm") or list(range(x.ndim))[::-1]),
        "Reshape": reshape,
        "Flatten": flatten,
        "Squeeze": squeeze,
        "Unsqueeze": unsqueeze,
        "Concat": lambda n, *x: torch.cat(x, attribute(n, "axis")),
        "Slice": slice_,
        "Pad": pad,
        "Identity": plain(lambda x: x),
    }
