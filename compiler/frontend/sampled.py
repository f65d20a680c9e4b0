"""Operators that look at computed places of an image, as GridSample and what is done with the samples."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute


def _ints(graph: Graph, base: str, values: list[int]) -> str:
    return graph.constant(base, np.array(values, np.int64))


def expand_deform_conv(graph: Graph, node: NodeProto) -> None:
    """DeformConv over two axes: the samples of each tap below those of the one before, [N, C, taps * OH, OW], and over
    these a convolution whose taps are OH rows apart."""
    shape, weights, out, y = (
        graph.shape(node.input[0]),
        graph.constants.get(node.input[1]),
        graph.shape(node.output[0]),
        node.output[0],
    )
    if shape is None or weights is None or out is None or len(shape) != 4 or graph.shape(node.input[2]) is None:
        return
    (n, c, h, w), (height, width), kernel = shape, out[2:], weights.shape[2:]
    parts, taps = attribute(node, "offset_group", 1), int(np.prod(kernel))
    rows = taps * height
    grid = _deformed_grid(graph, node, (h, w), kernel, (height, width))
    x = graph.add("Reshape", [node.input[0], _ints(graph, f"{y}_size", [n * parts, c // parts, h, w])], f"{y}_parts")
    samples = graph.add("GridSample", [x, grid], f"{y}_samples", mode="linear", padding_mode="zeros", align_corners=0)
    if len(node.input) > 4 and node.input[4]:
        size = _ints(graph, f"{y}_size", [n * parts, 1, rows, width])
        mask = graph.add("Reshape", [node.input[4], size], f"{y}_mask")
        samples = graph.add("Mul", [samples, mask], f"{y}_masked")
    columns = graph.add("Reshape", [samples, _ints(graph, f"{y}_size", [n, c, rows, width])], f"{y}_columns")
    flat = graph.constant(f"{y}_weights", weights.reshape(*weights.shape[:2], taps, 1))
    bias = [node.input[3]] if len(node.input) > 3 and node.input[3] else []
    attrs = {"kernel_shape": [taps, 1], "dilations": [height, 1], "group": attribute(node, "group", 1)}
    graph.replace(node, "Conv", [columns, flat, *bias], **attrs)


def _deformed_grid(
    graph: Graph, node: NodeProto, size: tuple[int, int], kernel: tuple[int, ...], out: tuple[int, int]
) -> str:
    """[N * offset groups, taps * OH, OW, 2]: where each tap looks, (x, y) from -1 to 1 over the image."""
    y, parts, taps = node.output[0], attribute(node, "offset_group", 1), int(np.prod(kernel))
    strides, dilations = (attribute(node, name) or [1, 1] for name in ("strides", "dilations"))
    pads = attribute(node, "pads") or [0] * 4
    n = graph.shape(node.input[0])[0]  # type: ignore[index]
    split = _ints(graph, f"{y}_size", [n * parts, taps, 2, *out])
    offsets = graph.add("Reshape", [node.input[2], split], f"{y}_offsets")
    turned = graph.add("Transpose", [offsets], f"{y}_turned", perm=[0, 1, 3, 4, 2])
    ends = [_ints(graph, f"{y}_back", [v]) for v in (-1, -3, 4, -1)]  # (dy, dx) as (x, y)
    pairs = graph.add("Slice", [turned, *ends], f"{y}_pairs")
    rows = graph.add("Reshape", [pairs, _ints(graph, f"{y}_size", [n * parts, taps * out[0], out[1], 2])], f"{y}_rows")
    steps = [np.arange(o) * s - p for o, s, p in zip(out, strides, pads)]
    reach = [np.arange(k) * d for k, d in zip(kernel, dilations)]
    tap_y, tap_x, row, column = np.meshgrid(*reach, *steps, indexing="ij")
    at = np.stack([tap_x + column, tap_y + row], -1).reshape(1, taps * out[0], out[1], 2)
    span = np.array([size[1], size[0]])
    scaled = graph.add("Mul", [rows, graph.constant(f"{y}_step", np.float32(2 / span))], f"{y}_scaled")
    return graph.add("Add", [scaled, graph.constant(f"{y}_places", np.float32((2 * at + 1) / span - 1))], f"{y}_grid")


def expand_roi_align(graph: Graph, node: NodeProto) -> None:
    """RoiAlign of averages over a fixed number of samples: GridSample at all of them, zeros for those that lie more
    than a pixel outside, then an AveragePool."""
    shape, rois, y = graph.shape(node.input[0]), graph.shape(node.input[1]), node.output[0]
    each = attribute(node, "sampling_ratio", 0)
    if shape is None or rois is None or each < 1 or attribute(node, "mode", "avg") != "avg":
        return
    (n, c, h, w), count = shape, rois[0]
    bins = attribute(node, "output_height", 1), attribute(node, "output_width", 1)
    rows, columns = (b * each for b in bins)
    starts, sizes = _regions(graph, node)
    parts = []
    for axis, samples in enumerate((rows, columns)):
        parts.append(_along_region(graph, f"{y}_axis{axis}", starts, sizes, 1 - axis, samples))
        wanted = [count, samples, 1] if axis == 0 else [count, 1, samples]
        parts[-1] = graph.add("Reshape", [parts[-1], _ints(graph, f"{y}_size", wanted)], f"{y}_at")
    inside = [_near(graph, f"{y}_near", at, size) for at, size in zip(parts, (h, w))]
    near = graph.add("And", inside, f"{y}_inside")
    pairs = []
    for at, size in ((parts[1], w), (parts[0], h)):  # (x, y) from -1 to 1 over the image
        scaled = graph.add("Mul", [at, graph.constant(f"{y}_step", np.float32(2 / size))], f"{y}_scaled")
        moved = graph.add("Add", [scaled, graph.constant(f"{y}_first", np.float32(1 / size - 1))], f"{y}_moved")
        wide = graph.add("Expand", [moved, _ints(graph, f"{y}_size", [count, rows, columns])], f"{y}_wide")
        pairs.append(graph.add("Unsqueeze", [wide, _ints(graph, f"{y}_last", [3])], f"{y}_pair"))
    grid = graph.add("Concat", pairs, f"{y}_grid", axis=3)
    image, images = node.input[0], count
    if n == 1:
        images = 1
        grid = graph.add("Reshape", [grid, _ints(graph, f"{y}_size", [1, count * rows, columns, 2])], f"{y}_rows")
    else:
        image = graph.add("Gather", [image, node.input[2]], f"{y}_images", axis=0)
    taken = graph.add("GridSample", [image, grid], f"{y}_taken", padding_mode="border")
    places = _ints(graph, f"{y}_size", [images, 1, count * rows // images, columns])
    mask = graph.add("Reshape", [near, places], f"{y}_mask")
    kept = graph.add("Where", [mask, taken, graph.constant(f"{y}_none", np.float32(0))], f"{y}_samples")
    window = {"kernel_shape": [each, each], "strides": [each, each]}
    if n > 1:
        graph.replace(node, "AveragePool", [kept], **window)
        return
    pooled = graph.add("AveragePool", [kept], f"{y}_pooled", **window)
    split = graph.add("Reshape", [pooled, _ints(graph, f"{y}_size", [c, count, *bins])], f"{y}_regions")
    graph.replace(node, "Transpose", [split], perm=[1, 0, 2, 3])


def _regions(graph: Graph, node: NodeProto) -> tuple[str, str]:
    """(corners, sizes) of the regions in pixels, both [count, 2] of (x, y)."""
    y, half = node.output[0], attribute(node, "coordinate_transformation_mode", "half_pixel") == "half_pixel"
    scale = graph.constant(f"{y}_scale", np.float32(attribute(node, "spatial_scale", 1.0)))
    pixels = graph.add("Mul", [node.input[1], scale], f"{y}_pixels")
    if half:
        pixels = graph.add("Sub", [pixels, graph.constant(f"{y}_half", np.float32(0.5))], f"{y}_shifted")
    ends = []
    for begin in (0, 2):
        cuts = [_ints(graph, f"{y}_cut", [v]) for v in (begin, begin + 2, 1)]
        ends.append(graph.add("Slice", [pixels, *cuts], f"{y}_corner"))
    size = graph.add("Sub", ends[::-1], f"{y}_extent")
    if not half:
        size = graph.add("Max", [size, graph.constant(f"{y}_least", np.float32(1))], f"{y}_atleast")
    return ends[0], size


def _along_region(graph: Graph, base: str, starts: str, sizes: str, column: int, samples: int) -> str:
    """[count, samples]: where the samples of each region lie along one axis, in pixels."""
    cuts = [_ints(graph, f"{base}_cut", [v]) for v in (column, column + 1, 1)]
    start, size = (graph.add("Slice", [name, *cuts], f"{base}_column") for name in (starts, sizes))
    share = ((np.arange(samples) + 0.5) / samples).astype(np.float32)[None]
    reach = graph.add("Mul", [size, graph.constant(f"{base}_shares", share)], f"{base}_reach")
    return graph.add("Add", [start, reach], f"{base}_places")


def _near(graph: Graph, base: str, at: str, size: int) -> str:
    """Whether positions lie at most a pixel outside."""
    low = graph.add("GreaterOrEqual", [at, graph.constant(f"{base}_low", np.float32(-1))], f"{base}_low")
    high = graph.add("LessOrEqual", [at, graph.constant(f"{base}_high", np.float32(size))], f"{base}_high")
    return graph.add("And", [low, high], base)
