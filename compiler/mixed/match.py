"""Which torch parameter became which layer's weights."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute
from qcompile.mixed.hessian import HessianTraces, Trace
from qcompile.quantizer.bits import Layer, layer_nodes
from qcompile.targets.errors import CompileError

SCOPES = "pkg.torch.onnx.name_scopes"  # what the dynamo exporter writes on every node


def match_traces(traces: HessianTraces, graph: Graph, layers: Sequence[Layer]) -> dict[str, tuple[Trace, np.ndarray]]:
    """{layer name: (its parameter's trace, scale)}; `scale` (broadcastable to the layer's weight) is what a squared
    change of the weight is to be multiplied by to be one of the parameter, before BatchNormalization was folded in.

    By the initializer's name where the exporter kept it, by the module path in the node's name ("/layer1/conv1/Conv")
    or its metadata, by the name of the bias; else the parameters that are left by their shapes, in order. Raises
    CompileError naming the layers that no parameter fits.
    """
    nodes = layer_nodes(graph)
    found: dict[str, str] = {}
    for layer in layers:
        names = (p for hint in _hints(graph, layer, nodes[layer.name]) for p in _named(traces, hint))
        match = next((p for p in names if _fits(traces[p], graph, layer)), None)
        if match is not None:
            found[layer.name] = match
    _by_shape(traces, graph, [x for x in layers if x.name not in found], found)
    missing = [layer.name for layer in layers if layer.name not in found]
    if missing:
        raise CompileError(
            f"--sensitivity: no parameter of the module fits layer '{missing[0]}'"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + "; export the same module, with its parameter names, that the traces were taken of"
        )
    result = {}
    for layer in layers:
        trace = traces[found[layer.name]]
        result[layer.name] = trace, _scale(trace, nodes[layer.name], graph.constants[layer.weight])
    return result


def _hints(graph: Graph, layer: Layer, node: NodeProto) -> Iterator[str]:
    """Names that the parameter may have: of the tensor itself, and of the module with any parameter."""
    yield layer.weight
    if layer.name.startswith("/"):
        path: list[str] = []
        for part in layer.name.strip("/").split("/")[:-1]:  # "stem/stem.0": inside a Sequential the path is repeated
            if path and part.startswith(path[-1] + "."):
                path.pop()
            path.append(part)
        yield ".".join(path) + ".*"
    for p in node.metadata_props:
        if p.key == SCOPES:
            try:
                scopes = ast.literal_eval(p.value)
            except (ValueError, SyntaxError):
                continue
            yield from (f"{scope}.*" for scope in reversed(scopes[:-1]) if scope)
    bias = [*node.input[2:], *(i for n in graph.consumers(node.output[0]) if n.op_type == "Add" for i in n.input)]
    yield from (f"{b.removesuffix('.bias')}.*" for b in bias if b.endswith(".bias"))


def _named(traces: HessianTraces, hint: str) -> list[str]:
    """Parameters called `hint`, or of that module where it ends in ".*"; one of the two may lack leading modules, as
    where a wrapper was exported."""
    module = hint.endswith(".*")
    wanted = hint.removesuffix(".*")
    if not wanted:
        return []
    plain = {p: p.rpartition(".")[0] if module else p for p in traces}
    exact = [p for p, q in plain.items() if q == wanted]
    if exact:
        return exact
    return [p for p, q in plain.items() if q and (q.endswith("." + wanted) or wanted.endswith("." + q))]


def _shape(graph: Graph, layer: Layer) -> tuple[int, ...]:
    """Sizes without order: a Linear's weight arrives transposed."""
    return _sizes(graph.constants[layer.weight].shape)


def _sizes(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted(d for d in shape if d != 1))


def _fits(trace: Trace, graph: Graph, layer: Layer) -> bool:
    return _sizes(trace.shape) == _shape(graph, layer)


def _by_shape(traces: HessianTraces, graph: Graph, layers: Sequence[Layer], found: dict[str, str]) -> None:
    """Layers without names: the parameters of the same shape that are left, in order, if they are as many.

    Layers that read the same tensor may be the parts of one parameter (fused Q, K and V), which then serves them all.
    """
    left = [p for p in traces if p not in found.values()]
    siblings: dict[tuple[str, tuple[int, ...]], list[Layer]] = defaultdict(list)
    for layer in layers:
        siblings[layer.data, _shape(graph, layer)].append(layer)
    units: dict[tuple[int, ...], list[list[Layer]]] = defaultdict(list)
    for parts in siblings.values():
        whole = _sizes((parts[0].channels * len(parts), parts[0].count // parts[0].channels))
        if len(parts) > 1 and any(_sizes(traces[p].shape) == whole for p in left):
            units[whole].append(parts)
        else:
            for layer in parts:
                units[_shape(graph, layer)].append([layer])
    for shape, group in units.items():
        fitting = [p for p in left if _sizes(traces[p].shape) == shape]
        if len(fitting) == len(group):
            found.update({layer.name: p for parts, p in zip(group, fitting) for layer in parts})


def _scale(trace: Trace, node: NodeProto, weight: np.ndarray) -> np.ndarray:
    """Norms of the parameter over those of the layer's weight, squared: per slice along the parameter's first axis,
    which is the last of a transposed one."""
    norms, square = np.array(trace.norms), np.square(weight, dtype=np.float64)
    transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not attribute(node, "transB", 0))
    fits = {0: trace.shape == weight.shape, weight.ndim - 1: trace.shape == weight.shape[::-1]}
    order = reversed(fits) if transposed else fits
    axis = next((a for a in order if fits[a]), None)
    if axis is None:  # one part of a parameter
        own = square.sum() / weight.size
        return np.array(norms.sum() / np.prod(trace.shape) / own if own > 0 else 1.0)
    own = square.sum(tuple(i for i in range(weight.ndim) if i != axis))
    ratio = np.divide(norms, own, out=np.ones_like(norms), where=own > 0)
    shape = [1] * weight.ndim
    shape[axis] = -1
    return ratio.reshape(shape)
