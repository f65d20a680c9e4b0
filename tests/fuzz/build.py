"""A graph that grows node by node, each evaluated by ONNX Runtime at once: shapes and values are always known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

SIZES = (1, 3, 5, 7, 13, 17, 31, 33, 35, 63, 65, 70, 100, 127, 129)
SMALL = (1, 2, 3, 4, 5, 7, 8)
LARGEST = 20_000  # elements of a tensor: one that runs in the reference and in an emulator at once
GREATEST = 1e6  # absolute value of a float
SAMPLES = 6
MICROSOFT = "com.microsoft"
FLOAT, INTEGER, BOOL = "float", "integer", "bool"
KINDS = {"f": FLOAT, "i": INTEGER, "u": INTEGER, "b": BOOL}

Values = list[np.ndarray]  # one array a sample


class Unsuitable(Exception):
    """A node that does not fit here: ONNX Runtime refuses it, or its values are no numbers to compare."""


def evaluate(
    nodes: Sequence[onnx.NodeProto], feeds: dict[str, Values], outputs: Sequence[str], opset: int
) -> list[Values]:
    """The values of `outputs` for each sample, by ONNX Runtime without optimisations."""
    count = max((len(v) for v in feeds.values()), default=1)
    graph = helper.make_graph(
        list(nodes),
        "part",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v[0].dtype), v[0].shape)
            for n, v in feeds.items()
        ],
        [helper.make_empty_tensor_value_info(o) for o in outputs],
    )
    run = session(helper.make_model(graph, opset_imports=opsets(opset), ir_version=10))
    found = [run.run(list(outputs), {n: v[i % len(v)] for n, v in feeds.items()}) for i in range(count)]
    return [list(values) for values in zip(*found)]


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """ONNX Runtime on one thread, the model as it is written; raises Unsuitable where it refuses."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as e:  # ONNX Runtime has no common class of its errors
        raise Unsuitable(str(e)) from e


def opsets(version: int) -> list[onnx.OperatorSetIdProto]:
    """ONNX's own operators and those of ONNX Runtime."""
    return [helper.make_opsetid("", version), helper.make_opsetid(MICROSOFT, 1)]


class Build:
    """The graph so far. `values` holds every tensor's arrays, one a sample; `floating` the names in order of making."""

    def __init__(self, rng: np.random.Generator, opset: int) -> None:
        self.rng, self.opset = rng, opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.inputs: dict[str, Values] = {}
        self.values: dict[str, Values] = {}
        self.read: set[str] = set()
        self._count = 0

    # --- random choices ---
    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def one_of(self, choices: Sequence[Any]) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def size(self, most: int = LARGEST) -> int:
        """A size of an axis, mostly small, at most `most`."""
        choices = [n for n in (SIZES if self.chance(0.5) else SMALL) if n <= max(most, 1)]
        return int(self.one_of(choices or [1]))

    def whole(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return int(self.rng.integers(low, high + 1))

    def real(self, low: float, high: float) -> float:
        return round(float(self.rng.uniform(low, high)), 3)

    # --- what there is ---
    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._first(name).shape)

    def rank(self, name: str) -> int:
        return self._first(name).ndim

    def kind(self, name: str) -> str:
        return KINDS.get(self._first(name).dtype.kind, "")

    def dtype(self, name: str) -> np.dtype:
        return self._first(name).dtype

    def span(self, name: str) -> tuple[float, float]:
        """The least and the greatest value over all samples."""
        arrays = self.values.get(name) or [self.constants[name]]
        return float(min(a.min() for a in arrays)), float(max(a.max() for a in arrays))

    def _first(self, name: str) -> np.ndarray:
        return self.constants[name] if name in self.constants else self.values[name][0]

    def tensors(self, suits: Callable[[str], bool]) -> list[str]:
        return [n for n in self.values if suits(n)]

    def take(self, kind: str = FLOAT, ranks: Sequence[int] = (1, 2, 3, 4, 5)) -> str:
        """A tensor of that kind and rank: one that is there, unread ones first, one made of it, or a new input."""
        found = self.tensors(lambda n: self.kind(n) == kind)
        unread = [n for n in found if n not in self.read]
        if self.chance(0.8) and unread:
            found = unread
        fitting = [n for n in found if self.rank(n) in ranks]
        if fitting and self.chance(0.95):
            return self.one_of(fitting[-4:])
        if found and kind == FLOAT and self.chance(0.9):
            return self.with_rank(self.one_of(found[-4:]), int(self.one_of(ranks)))
        return self.input(self.any_shape(int(self.one_of(ranks))), kind)

    def any_shape(self, rank: int) -> tuple[int, ...]:
        """Batch 1 to 3 first where the rank is two or more."""
        shape = [self.whole(1, 3)] if rank > 1 else []
        while len(shape) < rank:
            left = LARGEST // 4 // int(np.prod(shape, dtype=int))
            shape.append(self.size(int(left ** (1.0 / (rank - len(shape))) * 2)))
        return tuple(shape)

    # --- growing ---
    def name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"

    def input(self, shape: Sequence[int], kind: str = FLOAT, high: int = 2, dtype: Any = np.int64) -> str:
        """A graph input: noise of some scale and offset, or integers below `high`."""
        name = self.name("in")
        if kind == FLOAT:
            scale, offset = self.one_of((1.0, 1.0, 1.0, 0.01, 30.0)), self.one_of((0.0, 0.0, 0.0, 0.5, -2.0))
            arrays = [(self.rng.standard_normal(shape) + offset) * scale for _ in range(SAMPLES)]
            if self.chance(0.15):
                arrays = [np.abs(a) for a in arrays]
            self.inputs[name] = [a.astype(np.float32) for a in arrays]
        elif kind == BOOL:
            self.inputs[name] = [self.rng.random(shape) < 0.5 for _ in range(SAMPLES)]
        else:
            self.inputs[name] = [self.rng.integers(0, high, shape).astype(dtype) for _ in range(SAMPLES)]
        self.values[name] = self.inputs[name]
        return name

    def constant(self, array: Any, dtype: Any = None) -> str:
        name = self.name("c")
        self.constants[name] = np.asarray(array, dtype)
        return name

    def ints(self, values: Any) -> str:
        return self.constant(np.asarray(values, np.int64))

    def weight(self, shape: Sequence[int], fan_in: int = 1, axis: int = 0) -> str:
        """A float constant whose values are drawn in one of the ways that networks have; `axis` is its channels'."""
        array = self.rng.standard_normal(shape) / np.sqrt(max(fan_in, 1))
        way = self.rng.random()
        channel = np.ones([n if i == axis else 1 for i, n in enumerate(shape)])
        if way < 0.05:
            array *= 1e-4
        elif way < 0.1:
            array *= 50.0
        elif way < 0.12:
            array *= 0.0
        elif way < 0.2 and channel.size:
            channel.reshape(-1)[self.whole(0, channel.size - 1)] = 100.0
            array *= channel
        elif way < 0.23 and channel.size:
            channel.reshape(-1)[self.whole(0, channel.size - 1)] = 0.0
            array *= channel
        elif way < 0.27:
            array = np.full(shape, self.real(-1, 1) or 0.5) / np.sqrt(max(fan_in, 1))
        elif way < 0.32:
            array = np.round(array * np.sqrt(max(fan_in, 1)) * 2) / 2 / np.sqrt(max(fan_in, 1))
        elif way < 0.35:
            array = np.abs(array)
        return self.constant(array, np.float32)

    def add(
        self, op: str, inputs: Sequence[str], outputs: int = 1, domain: str = "", keep: int | None = None, **attrs: Any
    ) -> Any:
        """Appends a node and evaluates it: the name of its output, a list where there are several.

        keep: only the first `keep` of the outputs have names. Raises Unsuitable where its values cannot be compared.
        """
        label = self.name(op)
        names = [f"{label}_y" if outputs == 1 else f"{label}_y{i}" for i in range(outputs)]
        names = [n if keep is None or i < keep else "" for i, n in enumerate(names)]
        attrs = {k: v for k, v in attrs.items() if v is not None}
        node = helper.make_node(op, list(inputs), names, name=label, domain=domain, **attrs)
        known = reads(node)
        feeds = {i: [self.constants[i]] if i in self.constants else self.values[i] for i in known}
        named = [n for n in names if n]
        try:
            results = evaluate([node], feeds, named, self.opset)
        except Unsuitable:
            raise
        except Exception as e:
            raise Unsuitable(str(e)) from e
        for name, arrays in zip(named, results):
            self._check(name, arrays)
        self.nodes.append(node)
        self.read.update(known)
        for name, arrays in zip(named, results):
            self.values[name] = arrays if len(arrays) == SAMPLES else [arrays[0]] * SAMPLES
        return named[0] if outputs == 1 else named

    @staticmethod
    def _check(name: str, arrays: Values) -> None:
        for a in arrays:
            if not isinstance(a, np.ndarray) or not 0 < a.size <= LARGEST or a.shape != arrays[0].shape or a.ndim > 6:
                raise Unsuitable(f"{name} is empty, too large or of no fixed shape")
            if a.dtype.kind == "f" and not (np.isfinite(a).all() and np.abs(a).max() <= GREATEST):
                raise Unsuitable(f"{name} is not finite, or huge")

    # --- helpers that more than one operator needs ---
    def with_rank(self, x: str, rank: int) -> str:
        """`x` reshaped to another rank."""
        shape = list(self.shape(x))
        while len(shape) > rank:
            i = self.whole(0, len(shape) - 2)
            shape[i : i + 2] = [shape[i] * shape[i + 1]]
        while len(shape) < rank:
            i = self.whole(0, len(shape) - 1) if shape else 0
            n = shape[i] if shape else 1
            divisors = [d for d in (2, 3, 4, 5, 7, 8, 13) if n % d == 0]
            d = self.one_of(divisors) if divisors and self.chance(0.7) else 1
            shape[i : i + 1] = [d, n // d]
        return x if tuple(shape) == self.shape(x) else self.add("Reshape", [x, self.ints(shape)])

    def within(self, x: str, low: float, high: float) -> str:
        """`x`, clipped where it leaves [low, high]."""
        least, greatest = self.span(x)
        if least >= low and greatest <= high:
            return x
        bounds = [self.constant(v, np.float32) for v in (low, high)]
        return self.add("Clip", [x, *bounds])

    def modest(self, x: str) -> str:
        """`x`, scaled down where its values are large: sums and powers of it stay numbers."""
        least, greatest = self.span(x)
        top = max(-least, greatest)
        return x if top < 50 else self.add("Mul", [x, self.constant(4.0 / top, np.float32)])

    def partner(self, x: str) -> str:
        """A second operand for `x`: a tensor or a constant that broadcasts with it."""
        shape = self.shape(x)
        same = self.tensors(lambda n: self.kind(n) == FLOAT and n != x and _broadcasts(self.shape(n), shape))
        if same and self.chance(0.5):
            return self.one_of(same)
        part = list(shape[self.whole(0, len(shape)) :]) if self.chance(0.5) else list(shape)
        for i in range(len(part)):
            if self.chance(0.4):
                part[i] = 1
        if self.chance(0.25):
            return self.input(part)
        return self.weight(part, axis=max(len(part) - 1, 0)) if part else self.constant(self.real(-3, 3), np.float32)

    def axes(self, name: str, axes: Sequence[int], since: int) -> tuple[list[str], dict[str, Any]]:
        """Axes as an input from opset `since` on, as an attribute before: (further inputs, attributes)."""
        if self.opset >= since:
            return [self.ints(axes)], {}
        return [], {name: list(axes)}

    def snapshot(self) -> tuple[Any, ...]:
        return len(self.nodes), dict(self.constants), dict(self.inputs), dict(self.values), set(self.read)

    def restore(self, state: tuple[Any, ...]) -> None:
        count, self.constants, self.inputs, self.values, self.read = state
        del self.nodes[count:]

    def model(self, outputs: Sequence[str]) -> onnx.ModelProto:
        """The whole graph; constants that nothing reads are left out."""
        used = {i for n in self.nodes for i in reads(n)}

        def info(n: str) -> onnx.ValueInfoProto:
            return helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(self.dtype(n)), self.shape(n))

        graph = helper.make_graph(
            self.nodes,
            "fuzz",
            [info(n) for n in self.inputs],
            [info(n) for n in outputs],
            [numpy_helper.from_array(v, n) for n, v in self.constants.items() if n in used],
        )
        used_domains = {n.domain for n in self.nodes}
        imports = [o for o in opsets(self.opset) if not o.domain or o.domain in used_domains]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)


def _broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    try:
        return int(np.prod(np.broadcast_shapes(a, b), dtype=int)) <= LARGEST
    except ValueError:
        return False


def reads(node: onnx.NodeProto) -> list[str]:
    """The names that a node reads, those that its bodies take from outside included."""
    found = [i for i in node.input if i]
    for body in (a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH):
        own = {i.name for i in [*body.input, *body.initializer]} | {o for n in body.node for o in n.output}
        found += [i for inner in body.node for i in reads(inner) if i not in own]
        found += [o.name for o in body.output if o.name not in own]
    return list(dict.fromkeys(found))
