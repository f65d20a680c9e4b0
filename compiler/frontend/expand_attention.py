"""ONNX Runtime's attention operators as MatMul, masks, Softmax, MatMul.

Definitions: docs/ContribOperators.md of ONNX Runtime: Attention, QAttention, MultiHeadAttention, RotaryEmbedding.
Masks are added as mask_filter_value (-10000 by default), as ONNX Runtime does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from onnx import NodeProto, TensorProto
from qcompile.frontend.graph import Graph, attribute, label
from qcompile.frontend.shapes import infer_shapes
from qcompile.targets.errors import CompileError


def _input(node: NodeProto, i: int) -> str:
    return node.input[i] if i < len(node.input) else ""


def _output(node: NodeProto, i: int) -> str:
    return node.output[i] if i < len(node.output) else ""


@dataclass
class _Attention:
    """One attention while its parts are written. Tensors are [batch, heads, length, head size]."""

    graph: Graph
    node: NodeProto
    masks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.y = self.node.output[0]
        self.heads = attribute(self.node, "num_heads")
        self.fill = float(attribute(self.node, "mask_filter_value", -10000.0))

    def add(self, op: str, inputs: list[str], hint: str, **attrs) -> str:
        return self.graph.add(op, inputs, f"{self.y}_{hint}", **attrs)

    def ints(self, values, hint: str) -> str:
        return self.graph.constant(f"{self.y}_{hint}", np.array(values, np.int64))

    def shape(self, name: str) -> tuple[int, ...]:
        if self.graph.shape(name) is None:
            infer_shapes(self.graph)
        shape = self.graph.shape(name)
        if shape is None:
            raise CompileError(f"node {label(self.node)}: the shape of '{name}' is unknown; give --shapes")
        return shape

    def refuse(self, indices: dict[int, str]) -> None:
        for i, what in indices.items():
            if _input(self.node, i):
                raise CompileError(f"node {label(self.node)}: {what} is not supported; export the model without it")

    def split(self, x: str, hint: str) -> str:
        """[B, L, heads * size] to [B, heads, L, size]."""
        parts = self.add("Reshape", [x, self.ints([0, 0, self.heads, -1], "heads")], f"{hint}_heads")
        return self.add("Transpose", [parts], f"{hint}_split", perm=[0, 2, 1, 3])

    # --- masks ----------------------------------------------------------------------------------------------------
    def mask(self, name: str, length: int) -> None:
        """1 where a key counts, as integers [B], [2B], [B, L], [B, S, L] or [B, 1, S, L]."""
        shape = self.shape(name)
        if len(shape) == 1:
            batch = self.shape(self.node.input[0])[0]
            if shape[0] not in (batch, 2 * batch):
                raise CompileError(
                    f"node {label(self.node)}: a mask of shape {shape} is not supported; use [batch, keys]"
                )
            name = self._lengths(name, shape[0], batch, length)
            shape = (batch, length)
        axes = {2: [1, 2], 3: [1], 4: []}[len(shape)]
        real = self.add("Cast", [name], "kept", to=TensorProto.FLOAT)
        away = self.add("Sub", [self.graph.constant(f"{self.y}_one", np.float32(1)), real], "away")
        bias = self.add("Mul", [away, self.graph.constant(f"{self.y}_fill", np.float32(self.fill))], "mask")
        self.masks.append(self.add("Unsqueeze", [bias, self.ints(axes, "axes")], "mask4") if axes else bias)

    def _lengths(self, name: str, count: int, batch: int, length: int) -> str:
        """Ends (and starts) of the keys of each batch as a mask [B, L]."""
        places = self.graph.constant(f"{self.y}_places", np.arange(length, dtype=np.int32)[None])
        whole = self.add("Cast", [name], "bounds", to=TensorProto.INT32)

        def part(begin: int, hint: str) -> str:
            cut = [self.ints([v], f"{hint}_{k}") for k, v in enumerate((begin, begin + batch, 0))]
            piece = self.add("Slice", [whole, *cut], hint) if count != batch else whole
            return self.add("Unsqueeze", [piece, self.ints([1], "axis")], f"{hint}_column")

        before = self.add("Less", [places, part(0, "ends")], "before")
        if count == batch:
            return before
        late = self.add("Less", [places, part(batch, "starts")], "late")
        return self.add("And", [before, self.add("Not", [late], "begun")], "inside")

    def causal(self, queries: int, keys: int) -> None:
        rows = np.arange(queries)[:, None] + keys - queries
        hidden = np.arange(keys)[None] > rows
        value = np.where(hidden, np.float32(self.fill), np.float32(0))
        self.masks.append(self.graph.constant(f"{self.y}_causal", value))

    # --- the product ----------------------------------------------------------------------------------------------
    def finish(self, q: str, k: str, v: str, size: int) -> None:
        """softmax(scale * q k^T + masks) v, heads side by side again."""
        scale = attribute(self.node, "scale", 0.0) or 1.0 / np.sqrt(size)
        turned = self.add("Transpose", [k], "keys", perm=[0, 1, 3, 2])
        scores = self.add("MatMul", [q, turned], "scores")
        scores = self.add("Mul", [scores, self.graph.constant(f"{self.y}_scale", np.float32(scale))], "scaled")
        for mask in self.masks:
            scores = self.add("Add", [scores, mask], "masked")
        weights = self.add("Softmax", [scores], "weights", axis=-1)
        values = self.add("MatMul", [weights, v], "values")
        rows = self.add("Transpose", [values], "rows", perm=[0, 2, 1, 3])
        self.graph.replace(self.node, "Reshape", [rows, self.ints([0, 0, -1], "joined")])


def expand_attention(graph: Graph, node: NodeProto) -> None:
    """Attention: input, weights [D, 3H], bias, mask, past, attention bias; QAttention: the same on integers."""
    a, quantized = _Attention(graph, node), node.op_type == "QAttention"
    if attribute(node, "do_rotary", 0):
        raise CompileError(f"node {label(node)}: do_rotary is not supported; export with a RotaryEmbedding of its own")
    mask, past, bias = (_input(node, i) for i in ((5, 8, 2) if quantized else (3, 4, 2)))
    x, weight = node.input[0], node.input[1]
    if quantized:
        x, weight = _dequantized_operands(graph, node)
    else:
        a.refuse({6: "a shared past buffer"})
    sizes = attribute(node, "qkv_hidden_sizes") or [a.shape(weight)[1] // 3] * 3
    joint = a.add("MatMul", [x, weight], "projected")
    if bias:
        joint = a.add("Add", [joint, bias], "projection")
    parts = [graph.fresh(f"{a.y}_{n}") for n in ("query", "key", "value")]
    graph.add("Split", [joint, a.ints(sizes, "sizes")], parts, axis=-1)
    q, k, v = (a.split(p, n) for p, n in zip(parts, "qkv"))
    queries = keys = a.shape(node.input[0])[1]
    if past:
        keys += a.shape(past)[3]
        k, v = (
            a.add("Concat", [a.add("Gather", [past, a.ints(i, "which")], f"past{i}", axis=0), t], f"all{i}", axis=2)
            for i, t in enumerate((k, v))
        )
    if _output(node, 1):
        both = [a.add("Unsqueeze", [t, a.ints([0], "axis")], f"present{i}") for i, t in enumerate((k, v))]
        graph.add("Concat", both, [node.output[1]], axis=0)
    if mask:
        a.mask(mask, keys)
    if attribute(node, "unidirectional", 0):
        a.causal(queries, keys)
    if not quantized and _input(node, 5):
        a.masks.append(node.input[5])
    a.finish(q, k, v, sizes[0] // a.heads)


def _dequantized_operands(graph: Graph, node: NodeProto) -> tuple[str, str]:
    """(input, weights) of QAttention as floats: input, weight, bias, scales, mask, zero points, past."""
    scale, weight_scale, weight_zero = (_input(node, i) for i in (3, 4, 7))
    if graph.producer(scale, "DynamicQuantizeLinear") is None:
        raise CompileError(
            f"node {label(node)}: the products inside have no scales; quantize with Q/DQ pairs instead of operators"
        )
    x = node.input[0]
    codes = graph.constants.get(node.input[1])
    factor = graph.constants.get(weight_scale)
    if codes is None or factor is None or (weight_zero and weight_zero not in graph.constants):
        raise CompileError(f"node {label(node)}: its weights are computed; they must be constant")
    offset = graph.constants[weight_zero].astype(np.float32).reshape(-1) if weight_zero else np.zeros(1, np.float32)
    weight = (codes.astype(np.float32) - offset) * factor.reshape(-1)
    return x, graph.constant(f"{node.output[0]}_weight", weight.astype(np.float32))


def expand_multi_head(graph: Graph, node: NodeProto) -> None:
    """MultiHeadAttention: query, key, value, bias, key padding mask, attention bias, past key, past value."""
    a = _Attention(graph, node)
    query, key, value, bias, padding, added, past_key, past_value = (_input(node, i) for i in range(8))
    a.refuse({8: "a shared past buffer", 9: "a beam's cache"})
    shape = a.shape(query)
    if len(shape) == 5:  # [B, S, heads, 3, size]: packed
        flat = [
            a.add("Gather", [query, a.ints(i, "which")], f"packed{i}", axis=3) for i in range(3)
        ]  # [B, S, heads, size]
        q, k, v = (a.add("Transpose", [t], f"split{i}", perm=[0, 2, 1, 3]) for i, t in enumerate(flat))
        size, keys = shape[4], shape[1]
    else:
        size = shape[-1] // a.heads
        offsets = _biases(a, bias, shape[-1])
        q = a.split(_shifted(a, query, offsets[0], "q"), "q")
        if key and len(a.shape(key)) == 5:  # [B, L, heads, 2, size]
            both = [a.add("Gather", [key, a.ints(i, "which")], f"packed{i}", axis=3) for i in range(2)]
            k, v = (a.add("Transpose", [t], f"split{i}", perm=[0, 2, 1, 3]) for i, t in enumerate(both))
            keys = a.shape(key)[1]
        elif key and len(a.shape(key)) == 4:  # [B, heads, L, size]
            k, v, keys = key, value, a.shape(key)[2]
        else:
            k = a.split(_shifted(a, key or query, offsets[1], "k"), "k")
            v = a.split(_shifted(a, value or query, offsets[2], "v"), "v")
            keys = a.shape(key or query)[1]
    queries = shape[1]
    if past_key:
        keys += a.shape(past_key)[2]
        k = a.add("Concat", [past_key, k], "all_keys", axis=2)
        v = a.add("Concat", [past_value, v], "all_values", axis=2)
    for i, t in ((1, k), (2, v)):
        if _output(node, i):
            graph.add("Identity", [t], [node.output[i]])
    if padding:
        a.mask(padding, keys)
    if attribute(node, "unidirectional", 0):
        a.causal(queries, keys)
    if added:
        a.masks.append(added)
    a.finish(q, k, v, size)


def _biases(a: _Attention, bias: str, hidden: int) -> list[str]:
    """The parts of a bias [2 H + H of values] for query, key and value."""
    if not bias:
        return ["", "", ""]
    if bias in a.graph.constants:
        whole = a.graph.constants[bias]
        return [a.graph.constant(f"{a.y}_bias", part) for part in np.split(whole, [hidden, 2 * hidden])]
    total = a.shape(bias)[0]
    names = [a.graph.fresh(f"{a.y}_bias") for _ in range(3)]
    a.graph.add("Split", [bias, a.ints([hidden, hidden, total - 2 * hidden], "parts")], names, axis=0)
    return names


def _shifted(a: _Attention, x: str, bias: str, hint: str) -> str:
    return a.add("Add", [x, bias], f"{hint}_biased") if bias else x


def expand_rotary(graph: Graph, node: NodeProto) -> None:
    """com.microsoft RotaryEmbedding: input, position ids, cosines, sines; each pair of numbers turned by its angle."""
    a = _Attention(graph, node)
    x, positions, cosines, sines = node.input[:4]
    shape = a.shape(x)
    if attribute(node, "is_packed_batching", 0) or attribute(node, "scale", 1.0) != 1.0:
        raise CompileError(f"node {label(node)}: packed batches and scales are not supported")
    half = a.shape(cosines)[1]
    rotary = attribute(node, "rotary_embedding_dim", 0) or 2 * half
    flat = len(shape) == 3
    heads = attribute(node, "num_heads", 0) or (shape[2] // rotary if flat else shape[1])
    if len(a.shape(positions)) == 1:  # one offset: positions follow it
        steps = graph.constant(f"{a.y}_steps", np.arange(shape[1 if flat else 2], dtype=np.int64)[None])
        positions = a.add("Add", [positions, steps], "positions")
    if flat:
        x = a.add("Reshape", [x, a.ints([0, 0, heads, -1], "heads")], "heads4")
    axis = 2 if flat else 1
    angles = [
        a.add("Unsqueeze", [a.add("Gather", [t, positions], f"rows{i}"), a.ints([axis], "axis")], f"angles{i}")
        for i, t in enumerate((cosines, sines))
    ]
    size = shape[2] // heads if flat else shape[3]
    rest = ""
    if rotary < size:
        parts = [graph.fresh(f"{a.y}_turned"), graph.fresh(f"{a.y}_kept")]
        graph.add("Split", [x, a.ints([rotary, size - rotary], "parts")], parts, axis=-1)
        x, rest = parts
    interleaved = bool(attribute(node, "interleaved", 0))
    if interleaved:
        x = a.add("Reshape", [x, a.ints([0, 0, 0, half, 2], "pairs")], "paired")
        x, y = (a.add("Gather", [x, a.ints(i, "which")], f"part{i}", axis=-1) for i in range(2))
    else:
        halves = [graph.fresh(f"{a.y}_half{i}") for i in range(2)]
        graph.add("Split", [x, a.ints([half, half], "halves")], halves, axis=-1)
        x, y = halves
    cos, sin = angles
    first = a.add("Sub", [a.add("Mul", [x, cos], "xc"), a.add("Mul", [y, sin], "ys")], "first")
    second = a.add("Add", [a.add("Mul", [x, sin], "xs"), a.add("Mul", [y, cos], "yc")], "second")
    if interleaved:
        ends = [a.add("Unsqueeze", [t, a.ints([-1], "axis")], f"end{i}") for i, t in enumerate((first, second))]
        joined = a.add("Concat", ends, "pairs_joined", axis=-1)
        joined = a.add("Reshape", [joined, a.ints([0, 0, 0, 2 * half], "whole")], "joined")
    else:
        joined = a.add("Concat", [first, second], "joined", axis=-1)
    if rest:
        joined = a.add("Concat", [joined, rest], "with_rest", axis=-1)
    if flat:
        graph.replace(node, "Reshape", [joined, a.ints([0, 0, -1], "flat")])
    else:
        graph.replace(node, "Identity", [joined])
