"""Bits of each layer: which layers there are, and how many bits their weights and data take.

Layers are the nodes with constant weights: convolutions and products by a constant matrix, and embedding tables. Their
names are the same in every run on the same model: those of the nodes after `normalise_graph` and `prepare`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from onnx import NodeProto
from qcompile.frontend.graph import Graph, attribute
from qcompile.quantizer.operators import LINEAR
from qcompile.targets.errors import CompileError

WEIGHT_BITS, ACTIVATION_BITS, GROUPS = (2, 3, 4, 8), (4, 8), (0, 32, 64, 128)
FINE_GROUP = 32  # for layers that hold much of a network at its edges, and for tables
SHARE = 1.08  # a network above MANY weights may take so many times bits/8 of its 8-bit bytes, overhead included
MANY = 1_000_000


@dataclass(frozen=True)
class LayerBits:
    """weights: bits of a weight, 2, 3, 4 or 8. activations: bits of the layer's data input, 4 or 8. group: weights
    along the input channels that share a multiplier, 0 for one scale an output channel."""

    weights: int = 8
    activations: int = 8
    group: int = 0


@dataclass(frozen=True)
class Layer:
    """A node with constant weights.

    name: the node's name, else its first output; weight, data: tensor names; count: weights; macs: multiply-accumulates
    of one inference; channels: output channels (a table's width); rows: output pixels or rows; inputs: the length
    along which groups run; depthwise: one input channel an output channel, or a transposed convolution in groups; edge:
    no layer before it, or none behind.
    """

    name: str
    op_type: str
    weight: str
    data: str
    count: int
    macs: int
    channels: int
    rows: int
    depthwise: bool
    edge: bool
    inputs: int = 0

    @property
    def table(self) -> bool:
        """Whether this is an embedding table, which has no products."""
        return self.op_type == "Gather"


def layer_nodes(graph: Graph) -> dict[str, NodeProto]:
    """The nodes with constant weights by layer name, in graph order."""
    found: dict[str, NodeProto] = {}
    for node in graph.nodes:
        if _is_layer(graph, node):
            name = node.name if node.name and node.name not in found else node.output[0]
            found[name] = node
    return found


def find_layers(graph: Graph) -> list[Layer]:
    """The layers of a normalised and prepared float graph, in graph order."""
    nodes = layer_nodes(graph)
    ids = {id(n) for n in nodes.values()}
    first, last = _without(graph, ids, backwards=False), _without(graph, ids, backwards=True)
    layers = []
    for name, node in nodes.items():
        table = node.op_type == "Gather"
        k = 0 if table else 1
        weight = graph.constants[node.input[k]]
        size = int(np.prod(graph.shape(node.output[0]) or (1,)))
        channels, inputs = _sizes(node, weight)
        depthwise = node.op_type == "Conv" and weight.shape[1] == 1 and attribute(node, "group", 1) > 1
        macs = 0 if table else size * (weight.size // channels)
        if node.op_type == "ConvTranspose":  # each input element meets every tap
            macs = int(np.prod(graph.shape(node.input[0]) or (1,))) * int(np.prod(weight.shape[1:]))
            depthwise = attribute(node, "group", 1) > 1  # the groups share their scales
        layers.append(
            Layer(
                name,
                node.op_type,
                node.input[k],
                node.input[1 - k],
                weight.size,
                macs,
                channels,
                max(size // max(channels, 1), 1),
                depthwise,
                id(node) in first or id(node) in last,
                inputs,
            )
        )
    return layers


def _is_layer(graph: Graph, node: NodeProto) -> bool:
    if node.op_type == "Gather":
        table = graph.constants.get(node.input[0])
        return (
            table is not None
            and table.ndim == 2
            and table.dtype.kind == "f"
            and attribute(node, "axis", 0) == 0
            and node.input[1] not in graph.constants
        )
    if node.op_type not in LINEAR or node.input[0] in graph.constants:
        return False
    weight = graph.constants.get(node.input[1])
    return weight is not None and weight.dtype.kind == "f" and (weight.ndim == 2 or node.op_type not in ("MatMul",))


def _sizes(node: NodeProto, weight: np.ndarray) -> tuple[int, int]:
    """Output channels, and the length of the input-channel axis."""
    if node.op_type == "Conv":
        return weight.shape[0], weight.shape[1]
    if node.op_type == "ConvTranspose":
        return weight.shape[1] * attribute(node, "group", 1), weight.shape[0]
    if node.op_type == "Gather":
        return weight.shape[1], weight.shape[1]
    return weight.shape[::-1] if not attribute(node, "transB", 0) else weight.shape


def _without(graph: Graph, layers: set[int], backwards: bool) -> set[int]:
    """The layers that no other layer precedes; `backwards`: that no other layer follows."""
    reached: set[str] = set()  # tensors with a layer before (behind) them
    found = set()
    for node in reversed(graph.nodes) if backwards else graph.nodes:
        sources, results = (node.output, node.input) if backwards else (node.input, node.output)
        behind = any(t in reached for t in sources)
        if id(node) in layers and not behind:
            found.add(id(node))
        if id(node) in layers or behind:
            reached.update(t for t in results if t)
    return found


def stored_bytes(layer: Layer, bits: LayerBits) -> int:
    """Bytes of the layer's weights: codes, and one byte for each group's multiplier."""
    grouped = bits.group and bits.weights < 8 and layer.inputs % bits.group == 0
    groups = layer.count // bits.group if grouped and layer.count > layer.channels * bits.group else 0
    return -(-layer.count * bits.weights // 8) + groups


def uniform_bits(
    layers: Sequence[Layer],
    weights: int,
    activations: int = 8,
    group: int = 0,
    edge: int | None = None,
    notes: list[str] | None = None,
) -> dict[str, LayerBits]:
    """The same bits for all layers, with the exceptions that keep accuracy.

    Depthwise convolutions stay at 8 bits. The first and the last layers have `edge` bits; None: 8 bits, but in
    networks above a million weights the largest of them get `weights` bits in groups of 32 until the whole needs no
    more than 1.08 * weights/8 of its 8-bit bytes. Their data stays at 8 bits. `notes` receives remarks for the user.
    """
    _check("weights", weights, WEIGHT_BITS)
    _check("activations", activations, ACTIVATION_BITS)
    _check("group", group, GROUPS)
    notes = [] if notes is None else notes
    if edge is not None:
        _check("edge", edge, WEIGHT_BITS)
    inner = LayerBits(weights, activations, group)
    result = {}
    for layer in layers:
        if layer.depthwise:
            result[layer.name] = replace(inner, weights=8, group=0)
        elif layer.table:
            result[layer.name] = LayerBits(edge or 8, 8, FINE_GROUP if (edge or 8) < 8 else 0)
        elif layer.edge:
            result[layer.name] = LayerBits(edge or 8, 8, group if (edge or 8) < 8 else 0)
        else:
            result[layer.name] = inner if weights < 8 else replace(inner, group=0)
    if weights < 8 and any(layer.depthwise for layer in layers):
        count = sum(layer.depthwise for layer in layers)
        notes.append(f"{count} depthwise convolutions keep 8-bit weights: they are small and sensitive")
    if edge is None and weights < 8:
        _narrow_large_edges(layers, weights, result, notes)
    return result


def _narrow_large_edges(layers: Sequence[Layer], weights: int, bits: dict[str, LayerBits], notes: list[str]) -> None:
    whole = sum(layer.count for layer in layers)
    limit = SHARE * weights / 8 * whole
    if whole < MANY:
        return
    wide = sorted((x for x in layers if not x.depthwise and bits[x.name].weights == 8), key=lambda x: -x.count)
    for layer in wide:
        if sum(stored_bytes(x, bits[x.name]) for x in layers) <= limit:
            break
        bits[layer.name] = LayerBits(weights, 8, FINE_GROUP if layer.inputs % FINE_GROUP == 0 else 0)
        kind = "table" if layer.table else "layer"
        notes.append(
            f"{kind} '{layer.name}' holds {100 * layer.count / whole:.0f} % of the weights: it has {weights} bits too, "
            f"though it is at the network's edge; --bits-edge 8 keeps 8"
        )


def _check(what: str, value: object, known: Sequence[int], where: str = "bits") -> None:
    if value not in known or isinstance(value, bool):
        raise CompileError(f"{where}: {what} is {value!r}; known are {', '.join(map(str, known))}")


def check_bits(bits: Mapping[str, LayerBits], layers: Sequence[Layer], where: str = "bits") -> None:
    """Raises CompileError for unknown layers and for widths that do not exist."""
    names = [layer.name for layer in layers]
    for name, b in bits.items():
        if not isinstance(b, LayerBits):
            raise CompileError(f"{where}: layer '{name}' has {b!r}; give LayerBits(weights=4)")
        if name not in names:
            raise CompileError(f"{where}: the model has no layer '{name}'; it has {_some(names)}")
        _check(f"weights of layer '{name}'", b.weights, WEIGHT_BITS, where)
        _check(f"activations of layer '{name}'", b.activations, ACTIVATION_BITS, where)
        _check(f"group of layer '{name}'", b.group, GROUPS, where)


def _some(names: Sequence[str], count: int = 8) -> str:
    return ", ".join(names[:count]) + (f" and {len(names) - count} more" if len(names) > count else "")


def read_bits(path: str | os.PathLike[str], layers: Sequence[Layer]) -> dict[str, LayerBits]:
    """The choice in a file that `bits_json` wrote; layers that it does not name have 8 bits.

    Raises CompileError where the file is unreadable or names layers, keys or widths that do not exist.
    """
    where = f"bits file {path}"
    try:
        content = json.loads(Path(path).read_text())
    except OSError as e:
        raise CompileError(f"{where}: cannot be read ({e.strerror}); give 4, w4a4, mixed or a JSON file") from e
    except (ValueError, RecursionError) as e:
        raise CompileError(f"{where}: is no JSON ({e}); --keep writes such a file") from e
    table = content.get("layers") if isinstance(content, dict) else None
    if not isinstance(table, dict):
        raise CompileError(f'{where}: expected {{"layers": {{"name": {{"weights": 4}}}}}}; --keep writes such a file')
    known = [f.name for f in fields(LayerBits)]
    chosen = {}
    for name, entry in table.items():
        unknown = [k for k in entry if k not in known] if isinstance(entry, dict) else [entry]
        if unknown:
            raise CompileError(f"{where}: layer '{name}' has {unknown[0]!r}; known are {', '.join(known)}")
        chosen[name] = LayerBits(**entry)
    check_bits(chosen, layers, where)
    return {layer.name: chosen.get(layer.name, LayerBits()) for layer in layers}


def bits_json(bits: Mapping[str, LayerBits]) -> str:
    """The choice as text that `read_bits` reads: {"layers": {"name": {"weights": 4, "activations": 8, "group": 0}}}."""
    lines = [f"    {json.dumps(name)}: {json.dumps(asdict(b))}" for name, b in bits.items()]
    return '{\n  "layers": {\n' + ",\n".join(lines) + "\n  }\n}\n"
