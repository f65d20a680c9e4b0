"""Integer inputs that become floats: masks of zeros and ones, which stay exact, or numbers, which need a range."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto
from qcompile.frontend.graph import Graph, label
from qcompile.quantizer.calibration import Calibration, Feed
from qcompile.quantizer.collect import observe
from qcompile.quantizer.synthetic import id_bound
from qcompile.targets.errors import CompileError

FLAGS = (0, 1)  # what is computed from integers in here may be a mask, and saturates nowhere
# of types whose whole range stands in for samples: synthetic ones hold it
SMALL = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16}


def find_numbers(graph: Graph, data: Calibration, samples: list[Feed], masks: set[str]) -> None:
    """Notes in `graph.numbers` the results of Casts from integers to floats that are not masks of zeros and ones: their
    ranges are calibrated as those of other activations.

    masks: inputs that are masks of attention scores, zeros and ones without samples. Raises CompileError naming the
    input where only samples could tell what its integers are.
    """
    casts = [n for n in graph.nodes if n.op_type == "Cast" and graph.is_float(n.output[0]) and _counts(graph, n)]
    if data.synthetic:
        for node in casts:
            for source in sorted(_sources(graph, node.input[0])):
                if graph.dtypes.get(source) not in SMALL and source not in masks and id_bound(graph, source) is None:
                    raise CompileError(
                        f"node {label(node)}: input '{source}' holds integers of unknown range that are used as "
                        "numbers; give samples with --calib"
                    )
    ranges: dict[str, list[float]] = {}

    def observer(name: str, value: np.ndarray) -> None:
        if value.size:
            low, high = ranges.setdefault(name, [0.0, 0.0])
            ranges[name] = [min(low, float(value.min())), max(high, float(value.max()))]

    if casts:
        observe(graph, [n.output[0] for n in casts], samples, observer, "reading integer inputs")
    masking = {n.output[0] for n in casts if _sources(graph, n.input[0]) <= masks}
    graph.numbers = {
        name
        for name, (low, high) in ranges.items()
        if low < FLAGS[0] or high > FLAGS[1] or name not in masking  # the samples may not show all that occurs
    }


def _counts(graph: Graph, cast: NodeProto) -> bool:
    """Whether a Cast reads integers that are neither flags nor constants."""
    name = cast.input[0]
    return name not in graph.constants and graph.dtypes.get(name) != TensorProto.BOOL and not graph.is_float(name)


def _sources(graph: Graph, name: str) -> set[str]:
    """The integer inputs that a tensor of integers is made from, through nothing but integers."""
    inputs = {v.name for v in graph.inputs}
    found, seen, stack = set[str](), {name}, [name]
    while stack:
        tensor = stack.pop()
        if tensor in inputs:
            found.add(tensor)
        node = graph.producer(tensor)
        for i in node.input if node is not None else ():
            integers = graph.dtypes.get(i) not in (None, TensorProto.BOOL) and not graph.is_float(i)
            if i and i not in seen and i not in graph.constants and integers:
                seen.add(i)
                stack.append(i)
    return found
