"""Writes the QDQ model: Q/DQ pairs at the placed tensors, integer weights, biases and constants."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import ml_dtypes
import numpy as np
from onnx import NodeProto, TensorProto
from qcompile.frontend.blocks import stored_codes
from qcompile.frontend.graph import Graph, attribute
from qcompile.quantizer.histogram import Histogram, Quantization, choose_16bit
from qcompile.quantizer.operators import LINEAR, is_bias_add, mover_inputs
from qcompile.quantizer.options import QuantizeOptions
from qcompile.quantizer.pixels import given_quantization
from qcompile.quantizer.placement import Placement, Placer
from qcompile.quantizer.stored import centred_codes, stored_weight
from qcompile.quantizer.weights import QuantizedWeight, bias_shift, channel_axis, input_importance, quantize_weight

FINER, FEW_CODES = 18, 64  # steps of a bias in one of sums of data with so few codes, as integerize has them
BIAS_LIMIT = 2.0**30  # a bias must leave room for the products in 32 bits
ORDER = ("table", "i16", "i8")
FLOAT_CONSTANTS = {"Mul", "Div", "Pow", "PRelu", "Clip"}  # their constants become multipliers, not operands


class Emitter:
    """Rewrites one float graph in place into QDQ form.

    `quantizations` maps (tensor, kind) groups to their quantization; `moments` maps the data inputs of linear layers to
    (mean, mean square) per input channel. `tables` are the embedding tables of few bits by name. The layers `later`
    keep their float weights until `finish` is called for each. planes: {low part: high part} of inputs that were split,
    which share the weights of the high one.
    """

    def __init__(
        self,
        graph: Graph,
        placer: Placer,
        placement: Placement,
        quantizations: Mapping[tuple[str, str], Quantization],
        moments: Mapping[str, tuple[np.ndarray, np.ndarray]],
        options: QuantizeOptions,
        tables: Mapping[str, QuantizedWeight] | None = None,
        later: Collection[NodeProto] = (),
        planes: Mapping[str, str] | None = None,
    ):
        self.graph, self.placer, self.placement = graph, placer, placement
        self.quantizations, self.moments, self.options = quantizations, moments, options
        self.parameters: dict[tuple, tuple[str, str]] = {}
        self.weights: dict[tuple, tuple[str, QuantizedWeight]] = {}
        self.tables, self.planes = tables or {}, planes or {}
        self.later = {id(n): n for n in later}
        self.data = {id(n): n.input[0] for n in later}
        self.bias_adds: dict[int, NodeProto] = {}
        self.values: dict[str, np.ndarray] = {}  # of narrow weights by their dequantized tensor, for who runs the graph

    def run(self) -> None:
        """Insert everything; the graph stays valid ONNX."""
        graph = self.graph
        nodes = list(graph.nodes)
        biases = {id(n): self._matmul_of(n) for n in nodes if is_bias_add(graph, n)}
        self.bias_adds = {id(layer): n for n in nodes if (layer := biases.get(id(n))) is not None}
        for node in nodes:
            if node.op_type in LINEAR and id(node) not in self.later:
                self._layer(node, shift_elsewhere=id(node) in self.bias_adds)
        for node in nodes:
            if id(node) not in biases:
                self._constants(node)
            elif id(biases[id(node)]) not in self.later:
                self._bias_add(node, biases[id(node)])
        pairs = {t: self._pairs(t, kinds) for t, kinds in self.placement.kinds.items()}
        for (tensor, kind), key in list(self.placement.carrier.items()):
            # data movement carries its input's codes; a pair with the same parameters behind it says so, changes no
            # value, and lets ONNX Runtime move integers
            repeated = self._pair(tensor, tensor, tensor, self.quantizations[self.placement.group(key)], clip=False)
            pairs.setdefault(tensor, {})[kind] = repeated
        for node in nodes:
            for i, name in enumerate(node.input):
                kind = self.placement.reads.get((id(node), i))
                if name in pairs and kind in pairs[name]:
                    node.input[i] = pairs[name][kind]
        self._name_outputs(pairs)
        graph.update()

    # --- activations ------------------------------------------------------------------------------------------------
    def _quantization(self, tensor: str, kind: str) -> Quantization:
        return self.quantizations[self.placement.of(tensor, kind)]

    def _parameters(self, q: Quantization) -> tuple[str, str]:
        key = (q.scale, q.zero_point, q.bits)
        if key not in self.parameters:
            self.parameters[key] = (
                self.graph.constant("scale", np.array(q.scale, np.float32)),
                self.graph.constant("zero_point", np.array(q.zero_point, q.dtype)),
            )
        return self.parameters[key]

    def _pair(self, source: str, base: str, tensor: str, q: Quantization, clip: bool = True) -> str:
        """Q and DQ of `source`, which is or repeats `tensor`; returns the dequantized tensor."""
        graph = self.graph
        if q.clipped and clip:
            bounds = [
                graph.constant(f"{base}_{n}", np.array(c * np.float32(q.scale), np.float32))
                for n, c in (("low", q.qmin), ("high", q.qmax))
            ]
            source = graph.add("Clip", [source, *bounds], f"{base}_clipped")
        codes = graph.add("QuantizeLinear", [source, *self._parameters(q)], f"{base}_q")
        result = graph.add("DequantizeLinear", [codes, *self._parameters(q)], f"{base}_dq")
        if tensor in graph.shapes:
            graph.shapes[result], graph.dtypes[result] = graph.shapes[tensor], TensorProto.FLOAT
        return result

    def _pairs(self, tensor: str, kinds: list[str]) -> dict[str, str]:
        """The pairs of one tensor by kind; an 8-bit pair beside a 16-bit one reads the 16-bit value."""
        made: dict[str, str] = {}
        for kind in (k for k in ORDER if k in kinds):
            if kind == "i8" and given_quantization(self.graph, tensor) == self._quantization(tensor, kind):
                made[kind] = tensor
                continue
            suffix = "" if len(kinds) == 1 else f"_{kind}"
            source = made.get("i16", tensor) if kind == "i8" else tensor
            made[kind] = self._pair(source, tensor + suffix, tensor, self._quantization(tensor, kind))
        return made

    def _name_outputs(self, pairs: Mapping[str, Mapping[str, str]]) -> None:
        """A quantized graph output keeps its name: its last DequantizeLinear takes it."""
        graph = self.graph
        for o in graph.outputs:
            name, kinds = o.name, pairs.get(o.name, {})
            final = kinds.get(self.placer.output_kind(name))
            if final is None:
                continue
            inner = graph.fresh(f"{name}_float")
            for node in graph.nodes:
                node.input[:] = [inner if i == name else name if i == final else i for i in node.input]
                node.output[:] = [inner if i == name else name if i == final else i for i in node.output]

    # --- constants --------------------------------------------------------------------------------------------------
    def _matmul_of(self, add: NodeProto) -> NodeProto:
        return next(m for i in add.input if (m := self.graph.producer(i, "MatMul")) is not None)

    def _layer(self, node: NodeProto, shift_elsewhere: bool) -> None:
        """Quantize a linear layer's constant weights and its own bias input."""
        graph, data = self.graph, node.input[0]
        for i in (0, 1):
            if node.input[i] not in graph.constants:
                continue
            weight = graph.constants[node.input[i]]
            axis = channel_axis(node, i, weight)
            bias = self._bias_of(node) if i == 1 else None
            s_x = None if data in graph.constants else np.float64(self._quantization(data, "i8").scale)
            least = self._least(weight, axis, bias, s_x)
            whole = self.planes.get(data, data)
            key = (node.input[i], axis, whole if self.options.clip_weights else "", None if least is None else id(node))
            if key not in self.weights:
                square = self.moments.get(whole, (None, None))[1]
                importance = input_importance(graph, node, weight, square) if i == 1 else None
                w = self._stored(node.input[i], axis) or stored_weight(weight, axis, least)
                w = w or quantize_weight(weight, axis, importance, self.options.clip_weights, least)
                self.weights[key] = (self._weight_pair(node.input[i], w), w)
            node_weight, w = self.weights[key]
            shift = None
            if i == 1 and self.options.bias_correction and data not in self.planes:
                shift = bias_shift(node, weight - w.dequantized(), self.moments.get(data, (None, None))[0])
            node.input[i] = node_weight
            if i == 1 and not shift_elsewhere and node.op_type != "MatMul":
                self._own_bias(node, s_x, w, shift)
            elif i == 1:
                self._shifts[id(node)] = (s_x, w, shift)

    def _stored(self, name: str, axis: int | None) -> QuantizedWeight | None:
        """Weights that the model has in blocks of few bits keep their codes."""
        found = stored_codes(self.graph, name) if axis == 1 else None
        if found is None:
            return None
        codes, scale, multipliers, block, along = found
        bits = 4 if codes.min() >= -8 and codes.max() <= 7 else 8
        return QuantizedWeight(codes, scale, axis, bits, multipliers, block, along)

    @staticmethod
    def _least(weight: np.ndarray, axis: int | None, bias: np.ndarray | None, s_x: float | None) -> np.ndarray | None:
        """Bounds of a weight's scales that keep the bias within 32 bits; None where they do not matter."""
        if bias is None or axis is None or s_x is None or bias.size not in (1, weight.shape[axis]):
            return None
        least = np.broadcast_to(np.abs(bias).reshape(-1) / (s_x * BIAS_LIMIT), (weight.shape[axis],))
        return least if least.max() > 1e-9 * np.abs(weight).max() else None

    def least(self, node: NodeProto) -> np.ndarray | None:
        """`_least` of a layer that comes later; asked before `run`."""
        weight = self.graph.constants[node.input[1]]
        s_x = np.float64(self._quantization(node.input[0], "i8").scale)
        return self._least(weight, channel_axis(node, 1, weight), self._bias_of(node), s_x)

    def finish(self, node: NodeProto, w: QuantizedWeight, shift: np.ndarray | None) -> None:
        """Write the weights of a layer that comes later, and its bias with `shift` added."""
        s_x = np.float64(self._quantization(self.data[id(node)], "i8").scale)
        key = (node.input[1], id(w))
        if key not in self.weights:
            self.weights[key] = (self._weight_pair(node.input[1], w), w)
        node.input[1] = self.weights[key][0]
        add = self.bias_adds.get(id(node))
        if add is not None:
            self._shifts[id(node)] = (s_x, w, shift)
            self._bias_add(add, node)
        elif node.op_type != "MatMul":
            self._own_bias(node, s_x, w, shift)

    def _weight_pair(self, name: str, w: QuantizedWeight) -> str:
        """DequantizeLinear of a weight: 4 bits as INT4, fewer as INT8 in a narrower range; blocked where in groups;
        with zero points where codes are out of the reach of INT8."""
        graph = self.graph
        codes, zero = centred_codes(w)
        codes = codes.astype(ml_dtypes.int4) if w.bits == 4 else codes
        inputs = [
            graph.constant(f"{name}_q", codes),
            graph.constant(f"{name}_scale", np.asarray(w.steps(), np.float32)),
            *([graph.constant(f"{name}_zero_point", zero)] if zero.any() else []),
        ]
        along = {"axis": w.axis} if w.multipliers is None else {"axis": w.group_axis, "block_size": w.group}
        result = graph.add("DequantizeLinear", inputs, f"{name}_dq", **along)
        if w.bits < 8:
            self.values[result] = w.dequantized()
        return result

    @property
    def _shifts(self) -> dict[int, tuple]:
        return self.__dict__.setdefault("_shift_table", {})

    def _bias_of(self, node: NodeProto) -> np.ndarray | None:
        if len(node.input) > 2:
            return self.graph.constants.get(node.input[2])
        add = self.graph.only_consumer(node.output[0], "Add")
        return (
            next((self.graph.constants[i] for i in add.input if i in self.graph.constants), None)
            if add is not None and is_bias_add(self.graph, add)
            else None
        )

    def _own_bias(self, node: NodeProto, s_x: float, w: QuantizedWeight, shift: np.ndarray | None) -> None:
        bias = self.graph.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if len(node.input) > 2 and node.input[2] and bias is None:
            return
        if bias is None and (shift is None or node.op_type == "ConvTranspose"):
            return
        # the groups of a transposed convolution share their weights' scales
        count = w.scale.size * (attribute(node, "group", 1) if node.op_type == "ConvTranspose" else 1)
        name = node.input[2] if bias is not None else f"{node.output[0]}_bias"
        value = np.zeros(count) if bias is None else np.broadcast_to(bias.reshape(-1), (count,)).astype(np.float64)
        value = value if shift is None else value + shift
        del node.input[2:]
        node.input.append(self._bias_constant(name, value, s_x, w, finer=self._finer(node)))

    def _bias_add(self, node: NodeProto, layer: NodeProto) -> None:
        k = next(i for i in (0, 1) if node.input[i] in self.graph.constants)
        s_x, w, shift = self._shifts[id(layer)]
        value = self.graph.constants[node.input[k]].astype(np.float64)
        count = w.scale.size if w.axis is not None else value.size
        value = np.broadcast_to(value.reshape(-1), (count,))
        # with the product's rank ONNX Runtime keeps MatMul + Add; as a vector it would rewrite them to Reshape and Gemm
        # and then fail to load the model (1.31: QDQ propagation against S8-to-U8)
        rank = self.graph.rank(node.output[0]) or 1
        node.input[k] = self._bias_constant(
            node.input[k],
            value if shift is None else value + shift,
            s_x,
            w,
            1 if rank < 3 else rank,
            self._finer(layer),
        )

    def _finer(self, layer: NodeProto) -> int:
        """Steps of a bias in one of the layer's sums: those of weights and data of few bits are coarse."""
        data = self.data.get(id(layer))
        q = None if data is None else self._quantization(data, "i8")
        return FINER if q is not None and q.qmax - q.qmin < FEW_CODES else 1

    def _bias_constant(
        self, name: str, value: np.ndarray, s_x: float, w: QuantizedWeight, rank: int = 1, finer: int = 1
    ) -> str:
        scale = np.tile((np.float32(s_x) * w.scale).astype(np.float32).reshape(-1), value.size // w.scale.size)
        if np.abs(value / scale).max(initial=0) * finer < BIAS_LIMIT:
            scale = scale / np.float32(finer)
        codes = np.clip(np.rint(value / scale), -(2**31), 2**31 - 1).astype(np.int32)
        return self._constant_pair(
            name, codes.reshape((1,) * (rank - 1) + (-1,)), np.ascontiguousarray(scale), rank - 1
        )

    def _constants(self, node: NodeProto) -> None:
        """Constant operands of sums and of data movement: 16-bit in wide streams, else 8-bit."""
        graph, movers = self.graph, mover_inputs(node)
        for i, name in enumerate(node.input):
            kind = self.placement.reads.get((id(node), i))
            value = graph.constants.get(name)
            if (
                kind is None
                or value is None
                or value.size == 1
                or node.op_type in LINEAR | FLOAT_CONSTANTS
                or (not movers and node.op_type not in ("Add", "Sub", "Sum", "Min", "Max"))
            ):
                continue
            if name in self.tables:
                if (name,) not in self.weights:
                    self.weights[name,] = (self._weight_pair(name, self.tables[name]), self.tables[name])
                node.input[i] = self.weights[name,][0]
                continue
            if movers:
                q = self._quantization(name, kind)
            else:
                h = Histogram()
                h.add(value)
                q = choose_16bit(h)  # beside an 8-bit operand too: the sum is rounded once, the constant costs nothing
            codes = q.quantize(value)
            key = (name, q)
            if key not in self.weights:
                zero = q.zero_point
                self.weights[key] = (self._constant_pair(name, codes, np.array(q.scale, np.float32), None, zero), None)
            node.input[i] = self.weights[key][0]

    def _constant_pair(self, name: str, codes: np.ndarray, scale: np.ndarray, axis: int | None, zero: int = 0) -> str:
        """An integer initializer and its DequantizeLinear; returns the dequantized tensor."""
        graph = self.graph
        inputs = [graph.constant(f"{name}_q", codes), graph.constant(f"{name}_scale", np.asarray(scale, np.float32))]
        if zero or codes.dtype == np.int16:
            inputs.append(graph.constant(f"{name}_zero_point", np.array(zero, codes.dtype)))
        return graph.add("DequantizeLinear", inputs, f"{name}_dq", axis=axis)
