"""Small graphs with one LSTM, GRU or RNN, with weights and inputs at random."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


class RecurrentModel:
    """kind with X [steps, rows, inputs] (layout 1: [rows, steps, inputs]) and H units.

    states: initial states are graph inputs; lengths: so are sequence lengths; qdq: weights are int8 behind
    DequantizeLinear, X and the results have Q/DQ pairs. Further attributes go to the node.
    """

    def __init__(self, kind, steps=7, rows=2, inputs=9, units=20, *, states=False, lengths=False, qdq=False,
                 bias=True, seed=0, peepholes=None, **attrs):  # fmt: skip
        self.kind, self.rng, self.steps, self.rows = kind, np.random.default_rng(seed), steps, rows
        self.nodes, self.constants, self.inputs = [], [], []
        batch_first = attrs.get("layout", 0)
        directions = 2 if attrs.get("direction") == "bidirectional" else 1
        size, reach = GATES[kind] * units, 1.2 / np.sqrt(units)
        x = self.input("x", (rows, steps, inputs) if batch_first else (steps, rows, inputs))
        x = self.pair(x, 3 / 127, 3, np.int8) if qdq else x
        given = [x, self.weight("W", (directions, size, inputs), reach, qdq),
                 self.weight("R", (directions, size, units), reach, qdq)]  # fmt: skip
        given.append(self.constant("B", self.rng.normal(0, 0.3, (directions, 2 * size))) if bias else "")
        given.append(self.input("lengths", (rows,), TensorProto.INT32) if lengths else "")
        state = (rows, directions, units) if batch_first else (directions, rows, units)
        for name, step in (("h0", 2.0**-15), ("c0", 2.0**-12))[: (2 if kind == "LSTM" else 1) if states else 0]:
            self.input(name, state)
            given.append(self.pair(name, step, 0, np.int16) if qdq else name)
        if peepholes is not None:
            given += [""] * (7 - len(given)) + [self.constant("P", peepholes)]
        while not given[-1]:
            given.pop()
        outputs = ["Y", "Y_h", "Y_c"][: 3 if kind == "LSTM" else 2]
        self.nodes.append(helper.make_node(kind, given, outputs, "cell", hidden_size=units, **attrs))
        self.outputs = outputs
        if qdq:
            pairs = [("Y", 1 / 127, 0, np.int8), ("Y_h", 2.0**-15, 0, np.int16), ("Y_c", 2.0**-12, 0, np.int16)]
            self.outputs = [self.pair(*pair) for pair in pairs[: len(outputs)]]

    def input(self, name, shape, dtype=TensorProto.FLOAT):
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def constant(self, name, value):
        value = np.asarray(value)
        value = value.astype(np.float32) if value.dtype == np.float64 else value
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def weight(self, name, shape, reach, qdq):
        if not qdq:
            return self.constant(name, self.rng.uniform(-reach, reach, shape))
        codes = self.constant(f"{name}_q", self.rng.integers(-127, 128, shape).astype(np.int8))
        scale = self.constant(f"{name}_s", self.rng.uniform(0.5, 1, shape[1]) * reach / 127)
        self.nodes.append(helper.make_node("DequantizeLinear", [codes, scale], [name], axis=1))
        return name

    def pair(self, name, scale, zero_point, dtype):
        parameters = [
            self.constant(f"{name}_s", np.float32(scale)), self.constant(f"{name}_z", np.array(zero_point, dtype))
        ]  # fmt: skip
        self.nodes.append(helper.make_node("QuantizeLinear", [name, *parameters], [f"{name}_q"]))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", *parameters], [f"{name}_dq"]))
        return f"{name}_dq"

    def model(self):
        outputs = [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in self.outputs]
        graph = helper.make_graph(self.nodes, "recurrent", self.inputs, outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)

    def feed(self):
        feed = {}
        for value in self.inputs:
            shape = [d.dim_value for d in value.type.tensor_type.shape.dim]
            if value.name == "lengths":
                feed[value.name] = self.rng.integers(1, self.steps + 1, shape).astype(np.int32)
            else:
                feed[value.name] = np.clip(self.rng.normal(0, 0.9, shape), -1, 1).astype(np.float32)
        return feed
