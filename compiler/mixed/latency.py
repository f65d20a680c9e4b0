"""Time per layer and choice: from the target's cost model, in cycles, or measured on this machine, in microseconds."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper
from qcompile.backends import Backend
from qcompile.frontend.graph import Graph
from qcompile.quantizer.bits import Layer, LayerBits, layer_nodes
from qcompile.quantizer.collect import progress
from qcompile.targets.errors import CompileError

SECONDS, FEWEST_CALLS = 0.03, 7  # measuring one layer at one width
LAYER = "layer"  # what the only layer of a network is called
Build = Callable[[ModelProto, LayerBits, Path], Path]  # compiles a network of one LAYER into a folder: the artifact


def modelled(backend: Backend, layers: Sequence[Layer], choices: Sequence[LayerBits]) -> np.ndarray:
    """Cycles [layers, choices] on the backend's target; a table costs nothing."""
    return np.array([[cycles(backend, layer, bits) for bits in choices] for layer in layers], float)


def cycles(backend: Backend, layer: Layer, bits: LayerBits) -> float:
    """Cycles of one layer on the backend's target."""
    return 0.0 if layer.table or not layer.count else backend.cycles(layer, bits)


def measured(
    backend: Backend,
    build: Build,
    graph: Graph,
    layers: Sequence[Layer],
    choices: Sequence[LayerBits],
    allowed: np.ndarray,
) -> np.ndarray:
    """Microseconds [layers, choices] of code for the backend's target on this machine; equal layers are measured once.

    Each is compiled alone, with weights of its own size; 4-bit data takes the time of 8-bit data, as whose codes it is
    stored. CompileError where this machine cannot run it.
    """
    reason = backend.why_not_here()
    if reason:
        raise CompileError(
            f"--latency measured: {reason}; use --latency model, the target's cost model, or compile there"
        )
    nodes = layer_nodes(graph)
    known: dict[tuple, float] = {}
    evicted = np.zeros(sum(layer.count for layer in layers), np.int8)
    table = np.zeros((len(layers), len(choices)))
    for i, layer in enumerate(progress(layers, "measuring layers")):
        if layer.table:
            continue
        for c, bits in enumerate(choices):
            if allowed[i, c]:
                node = nodes[layer.name]
                key = (_signature(graph, node), bits.weights, bits.group)
                if key not in known:
                    known[key] = _microseconds(backend, build, graph, node, replace(bits, activations=8), evicted)
                table[i, c] = known[key]
    return table


def _signature(graph: Graph, node: NodeProto) -> tuple:
    attributes = tuple(sorted(a.SerializeToString() for a in node.attribute))
    return (node.op_type, *(graph.shape(i) for i in node.input if i), attributes)


def _microseconds(
    backend: Backend, build: Build, graph: Graph, node: NodeProto, bits: LayerBits, evicted: np.ndarray
) -> float:
    """The median time of the layer compiled as a network of its own; `evicted` is read before each call,
    as the rest of the network would be."""
    data, copied = node.input[0], NodeProto()
    copied.CopyFrom(node)
    copied.name = LAYER
    ends = [helper.make_tensor_value_info(t, graph.dtypes[data], graph.shape(t)) for t in (data, node.output[0])]
    constants = [numpy_helper.from_array(graph.constants[i], i) for i in node.input if i in graph.constants]
    proto = helper.make_graph([copied], LAYER, ends[:1], ends[1:], constants)
    opsets = [helper.make_opsetid(domain, version) for domain, version in graph.opsets.items()]
    with tempfile.TemporaryDirectory() as folder:
        alone = helper.make_model(proto, opset_imports=opsets)
        run = backend.repeated(build(alone, bits, Path(folder)))
        deadline = time.perf_counter() + SECONDS
        times: list[int] = []
        while len(times) < FEWEST_CALLS or time.perf_counter() < deadline:
            evicted.max(initial=0)
            began = time.perf_counter_ns()
            run()
            times.append(time.perf_counter_ns() - began)
    return float(np.median(times)) / 1000
