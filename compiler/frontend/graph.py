"""A small mutable view of an ONNX graph that the passes share.

Nodes are a list in topological order; constants are numpy arrays by name. A pass looks patterns up through
`producer` and `consumers`, edits nodes in place or appends new ones, and calls `update`, which prunes what nobody
reads, sorts, and rebuilds the maps. No pass handles node indices. `update(node, ...)` does so for these nodes and those
added since only, so that a pass of many edits takes time in proportion to them.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from numpy.typing import ArrayLike
from onnx import AttributeProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto, helper, numpy_helper
from qcompile.frontend.local_functions import local_functions

Shape = tuple[int, ...]


def attribute(node: NodeProto, name: str, default: Any = None) -> Any:
    """Value of a node's attribute (strings decoded), or `default` where the node does not carry it."""
    for a in node.attribute:
        if a.name == name:
            value = helper.get_attribute_value(a)
            return value.decode() if isinstance(value, bytes) else value
    return default


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    """Set or replace an attribute; None removes it."""
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))


def label(node: NodeProto) -> str:
    """How error messages call a node: its type and name, or its first output where it has no name."""
    return f"{node.op_type} '{node.name or (node.output[0] if node.output else '')}'"


def name_nodes(nodes: Iterable[NodeProto]) -> None:
    """Give every node a name of its own: ONNX Runtime refuses models in which two nodes share one, and layers go by
    name. Those without one, and the later ones of a name, are called after their first output."""
    used: set[str] = set()
    for node in nodes:
        base = next((n for n in (node.name, *node.output) if n and n not in used), node.output[0])
        name, k = base, 0
        while name in used:
            k += 1
            name = f"{base}_{k}"
        node.name = name
        used.add(name)


def reads(node: NodeProto) -> list[str]:
    """The tensors that a node reads, those read inside its subgraphs (If, Loop, Scan) included."""
    names = list(node.input)
    for a in node.attribute:
        if a.type == AttributeProto.GRAPH:
            own = {v.name for v in a.g.input} | {t.name for t in a.g.initializer}
            own |= {o for n in a.g.node for o in n.output}
            inner = [i for n in a.g.node for i in reads(n)] + [v.name for v in a.g.output]
            names += [i for i in inner if i and i not in own]
    return names


def _copy(message: Message) -> Any:
    """A message of its own: a part of a model keeps all of it in memory."""
    return type(message).FromString(message.SerializeToString())


def dense(sparse: SparseTensorProto) -> np.ndarray:
    """The whole array of a sparse tensor, whose indices count elements, or are one row of numbers for each."""
    values, indices = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    result = np.zeros(tuple(sparse.dims), values.dtype)
    result[tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, result.shape)] = values
    return result


class Graph:
    """Nodes, constants and static facts of one ONNX model.

    Attributes: `nodes` in topological order, `constants` {name: array}, `inputs` and `outputs` (ValueInfoProto),
    `shapes` {name: shape} and `dtypes` {name: TensorProto type} as far as known, `opsets` {domain: version}; `blocks`
    {name of a float constant: (scales, axis, block size) of the codes that it was made from}; `dynamic`
    names a node whose input the model quantized dynamically, so that its range is not in the model; `statistics`
    {name: (mean, deviation) per channel, axis 1} of what BatchNormalization made of the training data; `numbers`: float
    tensors made from integer inputs that hold more than few values; `whole_inputs`: integer inputs that the model
    declares as floats.
    The graph keeps nothing of the model it is made from, whose weights may then be freed.
    """

    def __init__(self, model: onnx.ModelProto):
        g = model.graph
        self.name, self.metadata = g.name or "model", [_copy(p) for p in model.metadata_props]
        self._loose: list[NodeProto] = []  # added or changed since the last update
        self._gone: set[int] = set()  # ids of nodes that are still in the list
        self.nodes = [_copy(n) for n in g.node]
        self.constants = {t.name: numpy_helper.to_array(t) for t in g.initializer}
        self.constants |= {t.values.name: dense(t) for t in g.sparse_initializer}
        self.inputs = [_copy(v) for v in g.input if v.name not in self.constants]
        self.outputs = [_copy(v) for v in g.output]
        self.opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
        self.blocks: dict[str, tuple[np.ndarray, int, int]] = {}
        self.dynamic = ""
        self.statistics: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.numbers: set[str] = set()
        self.whole_inputs: set[str] = set()
        self.shapes: dict[str, Shape] = {}
        self.dtypes: dict[str, int] = {}
        self.note_types([*g.input, *g.value_info, *g.output])
        self._names = {n for node in self.nodes for n in [*node.input, *node.output]} | set(self.constants)
        self._counts: dict[str, int] = {}  # names that `fresh` made from each base
        self.changed = False
        self.update()
        self.changed = False

    @property
    def nodes(self) -> list[NodeProto]:
        """All nodes in topological order."""
        if self._stale:
            self._rebuild()
        return self._nodes

    @nodes.setter
    def nodes(self, value: list[NodeProto]) -> None:
        self._nodes, self._stale = value, False

    def twin(self) -> Graph:
        """A graph with nodes of its own over the same constants, which are not copied."""
        other = copy.copy(self)
        other.nodes = [_copy(n) for n in self.nodes]
        other.constants, other.shapes, other.dtypes = dict(self.constants), dict(self.shapes), dict(self.dtypes)
        other.inputs, other.outputs, other._names = list(self.inputs), list(self.outputs), set(self._names)
        other._counts, other._loose, other._gone = dict(self._counts), [], set()
        other.update()
        return other

    # --- looking up -------------------------------------------------------------------------------------------
    def producer(self, name: str, *op_types: str) -> NodeProto | None:
        """The node that makes `name`, if any and (where given) if it is one of `op_types`."""
        node = self._producers.get(name)
        return node if node is not None and (not op_types or node.op_type in op_types) else None

    def consumers(self, name: str) -> list[NodeProto]:
        return list(self._consumers[name].values()) if name in self._consumers else []

    def only_consumer(self, name: str, *op_types: str) -> NodeProto | None:
        """The single node that reads `name` (once, and the tensor is no graph output), or None."""
        users = self._consumers.get(name, {})
        if len(users) != 1 or name in self.output_names:
            return None
        (user,) = users.values()
        if list(user.input).count(name) != 1:
            return None
        return user if not op_types or user.op_type in op_types else None

    def is_constant(self, name: str) -> bool:
        return name in self.constants

    def scalar(self, name: str) -> float | None:
        """Value of a constant with one element, else None."""
        value = self.constants.get(name)
        return float(value.reshape(-1)[0]) if value is not None and value.size == 1 and value.dtype != object else None

    def rank(self, name: str) -> int | None:
        shape = self.shape(name)
        return None if shape is None else len(shape)

    def shape(self, name: str) -> Shape | None:
        if name in self.constants:
            return tuple(self.constants[name].shape)
        return self.shapes.get(name)

    def is_float(self, name: str) -> bool:
        if name in self.constants:
            return self.constants[name].dtype in (np.float32, np.float64, np.float16)
        return self.dtypes.get(name) in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)

    @property
    def output_names(self) -> set[str]:
        return {o.name for o in self.outputs}

    # --- editing ----------------------------------------------------------------------------------------------
    def fresh(self, base: str) -> str:
        """A tensor or node name that is not in use yet."""
        name, k = base, self._counts.get(base, 0)
        while name in self._names:
            k += 1
            name = f"{base}_{k}"
        self._counts[base] = k
        self._names.add(name)
        return name

    def constant(self, base: str, value: ArrayLike) -> str:
        """Add a constant and return its name."""
        name = self.fresh(base)
        self.constants[name] = np.asarray(value)
        return name

    def add(
        self, op_type: str, inputs: Sequence[str], base: str | Sequence[str], domain: Any = "", **attrs: Any
    ) -> str:
        """Append a node; a string `base` names one fresh output, a list the exact names. Returns the first.

        domain: a string; its type is left open, since `attrs` come as dicts that mypy would take it to be in.
        """
        outputs = [self.fresh(base)] if isinstance(base, str) else list(base)
        attrs = {k: v for k, v in attrs.items() if v is not None}
        self._nodes.append(helper.make_node(op_type, list(inputs), outputs, name=outputs[0], domain=domain, **attrs))
        self._loose.append(self._nodes[-1])
        return outputs[0]

    def replace_uses(self, old: str, new: str, only: Iterable[NodeProto] | None = None) -> None:
        """Let the readers of `old` (or those in `only`) read `new`."""
        for node in list(self.consumers(old)) if only is None else only:
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new
            self._loose.append(node)

    def replace(self, node: NodeProto, op_type: str, inputs: Sequence[str], domain: Any = "", **attrs: Any) -> None:
        """Turn the producer of `node`'s first output into another op, keeping that output's name."""
        attrs = {k: v for k, v in attrs.items() if v is not None}
        node.CopyFrom(helper.make_node(op_type, list(inputs), [node.output[0]], name=node.name, domain=domain, **attrs))
        self._loose.append(node)

    def bypass(self, node: NodeProto, source: str) -> None:
        """Remove a node whose output equals `source`; a graph output keeps its name."""
        out, maker = node.output[0], self.producer(source)
        if out not in self.output_names:
            self.replace_uses(out, source)
        elif maker is not None and source not in self.output_names:
            self.replace_uses(source, out)
            for i, name in enumerate(maker.output):
                if name == source:
                    maker.output[i] = out
            self._loose.append(maker)
        else:
            return  # an output that repeats an input or another output stays as an Identity
        if out in self.statistics and self.shape(out) == self.shape(source):
            kept = out if out in self.output_names else source
            self.statistics[kept] = self.statistics[out]
        self.remove(node)

    def remove(self, node: NodeProto) -> None:
        """Take a node away whose outputs nobody reads, and those that it alone read."""
        self.update(node)
        self._unread((node, name) for name in self._drop(node))

    @property
    def has_loose_ends(self) -> bool:
        """Whether nodes were added, changed or dropped since the last update."""
        return bool(self._loose or self._gone)

    def update(self, *touched: NodeProto) -> None:
        """After edits: sort topologically, drop nodes and constants that lead to no output, rebuild the maps.

        Where nodes are given, the maps follow these and what `add`, `replace` and `replace_uses` have changed since the
        last update; the list and the constants follow when the list is next asked for.
        """
        self.changed = True
        if not touched:
            self._rebuild()
            return
        nodes = {id(n): n for n in (*self._loose, *touched) if id(n) not in self._gone}
        self._loose, self._stale = [], True
        lost = [(node, name) for node in nodes.values() for name in self._note(node)]
        self._unread(lost)

    def _note(self, node: NodeProto) -> list[str]:
        """The maps learn what a node reads and makes now; the names that it read before and does not now."""
        _, before, made = self._known.get(id(node), (node, [], []))
        self._learn(node, reads(node))
        _, names, outputs = self._known[id(node)]
        for name in made:
            if name not in outputs and self._producers.get(name) is node:
                del self._producers[name]
        return [n for n in before if n not in names]

    def _learn(self, node: NodeProto, read: list[str]) -> None:
        """Note in the maps what a node reads and makes."""
        names, outputs, key = [n for n in dict.fromkeys(read) if n], list(node.output), id(node)
        self._known[key] = node, names, outputs
        for name in outputs:
            if name:
                self._producers[name] = node
        for name in names:
            self._consumers[name][key] = node

    def _unread(self, lost: Iterable[tuple[NodeProto, str]]) -> None:
        """Nodes do not read these names any more; the makers of what nobody reads leave the maps."""
        lost = list(lost)
        while lost:
            node, name = lost.pop()
            self._consumers[name].pop(id(node), None)
            maker = self._producers.get(name)
            outputs = self.output_names
            if maker is not None and not any(o in outputs or self._consumers.get(o) for o in maker.output):
                lost += [(maker, i) for i in self._drop(maker)]

    def _drop(self, node: NodeProto) -> list[str]:
        """A node leaves the maps; what it read."""
        self._gone.add(id(node))
        _, names, made = self._known.pop(id(node), (node, [], []))
        for name in made:
            if self._producers.get(name) is node:
                del self._producers[name]
        return names

    def _rebuild(self) -> None:
        nodes = [n for n in self._nodes if id(n) not in self._gone]
        self._producers = {o: n for n in nodes for o in n.output if o}
        order: list[NodeProto] = []
        names: dict[int, list[str]] = {}
        for output in self.outputs:
            stack = [(self._producers.get(output.name), False)]
            while stack:
                node, done = stack.pop()
                if node is None:
                    continue
                if done:
                    order.append(node)
                elif id(node) not in names:
                    names[id(node)] = reads(node)
                    stack.append((node, True))
                    stack.extend((self._producers.get(i), False) for i in reversed(names[id(node)]))
        self.nodes, self._loose, self._gone = order, [], set()
        self._producers = {}
        self._consumers: dict[str, dict[int, NodeProto]] = defaultdict(dict)
        self._known: dict[int, tuple[NodeProto, list[str], list[str]]] = {}
        for node in order:
            self._learn(node, names[id(node)])
        read = set(self._consumers) | self.output_names
        self.constants = {k: v for k, v in self.constants.items() if k in read}

    # --- types and the model ------------------------------------------------------------------------------------
    def note_types(self, values: Iterable[ValueInfoProto]) -> None:
        """Remember shapes (where every dimension is known) and element types of `values`."""
        for v in values:
            t = v.type.tensor_type
            if v.type.HasField("tensor_type") and t.elem_type:
                self.dtypes[v.name] = t.elem_type
                if t.HasField("shape") and all(d.HasField("dim_value") for d in t.shape.dim):
                    self.shapes[v.name] = tuple(d.dim_value for d in t.shape.dim)

    def to_model(self, external: Collection[str] = ()) -> onnx.ModelProto:
        """The graph as a ModelProto: nodes, initializers, inputs, outputs and the known shapes as value_info.

        The constants in `external` are declared without their values, as external data at location "memory".
        """
        known = [
            helper.make_tensor_value_info(o, self.dtypes[o], self.shapes[o])
            for n in self.nodes
            for o in n.output
            if o in self.shapes and o in self.dtypes and o not in self.output_names
        ]
        outputs = [
            helper.make_tensor_value_info(o.name, self.dtypes[o.name], self.shapes[o.name])
            if o.name in self.shapes and o.name in self.dtypes
            else o
            for o in self.outputs
        ]
        graph = helper.make_graph(self.nodes, self.name, self.inputs, outputs, value_info=known)
        name_nodes(graph.node)
        opsets = [helper.make_opsetid(d, v) for d, v in self.opsets.items()]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="qcompile")
        model.metadata_props.extend(self.metadata)
        model.functions.extend(local_functions(self.nodes, self.opsets.get("", 1)))
        # last, and one by one: make_graph and make_model copy what they are given
        for name, value in self.constants.items():
            declared = _declared(name, value) if name in external else _carried(name, value)
            model.graph.initializer.append(declared)
        return model


def _carried(name: str, value: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)


def _declared(name: str, value: np.ndarray) -> TensorProto:
    tensor = TensorProto(
        name=name,
        dims=value.shape,
        data_type=helper.np_dtype_to_tensor_dtype(value.dtype),
        data_location=TensorProto.EXTERNAL,
    )
    tensor.external_data.add(key="location", value="memory")
    return tensor
