"""Zeros that are put around an image before a convolution reads it become the convolution's own padding."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute, set_attribute


def fold_pads(graph: Graph) -> None:
    """Pad (constant, of zeros, along the image's axes) before Conv: the pads of the Conv."""
    for node in list(graph.nodes):
        if node.op_type != "Conv" or attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            continue
        pad = graph.producer(node.input[0], "Pad")
        found = None if pad is None else _zeros(graph, pad)
        if pad is None or found is None or graph.only_consumer(pad.output[0]) is not node:
            continue
        own = attribute(node, "pads") or [0] * len(found)
        set_attribute(node, "auto_pad", None)
        set_attribute(node, "pads", [int(a + b) for a, b in zip(own, found)])
        node.input[0] = pad.input[0]
        graph.update()


def _zeros(graph: Graph, pad: NodeProto) -> list[int] | None:
    """The pads along the axes from 2 on, before all and after all; None for any other Pad."""
    rank, pads = graph.rank(pad.input[0]), graph.constants.get(pad.input[1])
    value = graph.scalar(pad.input[2]) if len(pad.input) > 2 and pad.input[2] else 0.0
    axes = graph.constants.get(pad.input[3]) if len(pad.input) > 3 and pad.input[3] else None
    if rank is None or rank < 3 or pads is None or value != 0.0 or attribute(pad, "mode", "constant") != "constant":
        return None
    if len(pad.input) > 3 and pad.input[3] and axes is None:
        return None
    full = np.zeros((2, rank), np.int64)
    full[:, np.arange(rank) if axes is None else axes % rank] = pads.reshape(2, -1)
    if full[:, :2].any() or full.min() < 0:
        return None
    return full[:, 2:].reshape(-1).tolist()
