"""Cells that exporters spell out: unrolled, as Scan and as Loop with a fixed trip count; LSTM, GRU, LayerNorm-LSTM."""

import numpy as np
import onnxruntime as ort
import pytest
import qcompile
from onnx import TensorProto, helper, numpy_helper
from qcompile.frontend.graph import Graph
from qcompile.quantizer.cells import spelled_cells
from recurrent_models import RecurrentModel

UNITS, INPUTS, STEPS = 16, 8, 6


class Cell:
    """Nodes of one step, with names that begin with `prefix`; weights are the graph's."""

    def __init__(self, kind, prefix=""):
        self.kind, self.prefix, self.nodes = kind, prefix, []

    def op(self, op_type, *inputs, out="", outputs=1, **attrs):
        names = [out or f"{self.prefix}{op_type}{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op_type, list(inputs), names, **attrs))
        return names[0] if outputs == 1 else names

    def step(self, x, h, c, h_out, c_out):
        return (self.gru if self.kind == "gru" else self.lstm)(x, h, c, h_out, c_out)

    def lstm(self, x, h, c, h_out, c_out):
        inner, outer = self.op("MatMul", x, "W"), self.op("MatMul", h, "R")
        if self.kind == "norm":
            inner, outer = (self.op("LayerNormalization", v, f"g{i}", f"b{i}") for i, v in enumerate((inner, outer)))
        gates = self.op("Add", self.op("Add", inner, outer), "B")
        i, f, g, o = self.op("Split", gates, outputs=4, axis=1, num_outputs=4)
        kept = self.op("Mul", self.op("Sigmoid", f), c)
        added = self.op("Mul", self.op("Sigmoid", i), self.op("Tanh", g))
        state = self.op("Add", kept, added, out=c_out)
        self.op("Mul", self.op("Sigmoid", o), self.op("Tanh", state), out=h_out)

    def gru(self, x, h, c, h_out, c_out):
        inner, outer = self.op("Add", self.op("MatMul", x, "W"), "B"), self.op("MatMul", h, "R")
        (zx, rx, nx), (zh, rh, nh) = (self.op("Split", v, outputs=3, axis=1, num_outputs=3) for v in (inner, outer))
        z, r = self.op("Sigmoid", self.op("Add", zx, zh)), self.op("Sigmoid", self.op("Add", rx, rh))
        n = self.op("Tanh", self.op("Add", nx, self.op("Mul", r, nh)))
        self.op("Add", self.op("Mul", self.op("Sub", "one", z), n), self.op("Mul", z, h), out=h_out)
        self.op("Identity", c, out=c_out)


def value(name, *shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(kind, form):
    """y [steps, UNITS]: the hidden states of a cell over x [steps, INPUTS]."""
    rng = np.random.default_rng(len(kind))
    gates = 3 if kind == "gru" else 4
    weights = {"W": rng.normal(0, 0.5, (INPUTS, gates * UNITS)), "R": rng.normal(0, 0.4, (UNITS, gates * UNITS)),
               "B": rng.normal(0, 0.3, gates * UNITS), "one": np.array(1.0), "zero": np.zeros((1, UNITS))}  # fmt: skip
    for i in (0, 1) if kind == "norm" else ():
        weights |= {f"g{i}": rng.uniform(0.5, 1.5, 4 * UNITS), f"b{i}": rng.normal(0, 0.1, 4 * UNITS)}
    constants = [numpy_helper.from_array(v.astype(np.float32), n) for n, v in weights.items()]
    constants += [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in
                  {"i0": 0, "axes": [0], "axis1": [1], "count": STEPS}.items()]  # fmt: skip
    nodes = []
    if form == "unrolled":
        h = c = "zero"
        for t in range(STEPS):
            cell = Cell(kind, f"s{t}_")
            constants.append(numpy_helper.from_array(np.array([t]), f"t{t}"))
            row = cell.op("Gather", "x", f"t{t}", axis=0)
            cell.step(row, h, c, f"h{t}", f"c{t}")
            h, c = f"h{t}", f"c{t}"
            nodes += cell.nodes
        nodes.append(helper.make_node("Concat", [f"h{t}" for t in range(STEPS)], ["y"], axis=0))
    else:
        body = Cell(kind)
        if form == "scan":
            row = body.op("Unsqueeze", "row", "axes")
            body.step(row, "h", "c", "h_out", "c_out")
            ends = [value("h", 1, UNITS), value("c", 1, UNITS), value("row", INPUTS)]
            out = "scanned"
            body.op("Squeeze", "h_out", "axes", out=out)
            graph = helper.make_graph(
                body.nodes, "body", ends, [value("h_out", 1, UNITS), value("c_out", 1, UNITS), value(out, UNITS)]
            )
            nodes.append(helper.make_node("Scan", ["zero", "zero", "x"], ["h_end", "c_end", "y"], body=graph,
                                          num_scan_inputs=1))  # fmt: skip
        else:
            row = body.op("Gather", "x", body.op("Reshape", "t", "axis1"), axis=0)
            body.step(row, "h", "c", "h_out", "c_out")
            body.op("Squeeze", "h_out", "axes", out="scanned")
            body.op("Identity", "go", out="go_on")
            ends = [value("t", dtype=TensorProto.INT64), value("go", dtype=TensorProto.BOOL), value("h", 1, UNITS),
                    value("c", 1, UNITS)]  # fmt: skip
            graph = helper.make_graph(body.nodes, "body", ends, [
                value("go_on", dtype=TensorProto.BOOL), value("h_out", 1, UNITS), value("c_out", 1, UNITS),
                value("scanned", UNITS)])  # fmt: skip
            constants.append(numpy_helper.from_array(np.array(True), "yes"))
            given = ["count", "yes", "zero", "zero"]
            nodes.append(helper.make_node("Loop", given, ["h_end", "c_end", "y"], body=graph))
    graph = helper.make_graph(nodes, "cells", [value("x", STEPS, INPUTS)], [value("y", STEPS, UNITS)], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def feeds(count, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(0, 1, (STEPS, INPUTS)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("form", ["unrolled", "scan", "loop"])
@pytest.mark.parametrize("kind", ["lstm", "gru", "norm"])
def test_spelled_cells_stay_near_float(kind, form, tmp_path):
    made = model(kind, form)
    built = qcompile.compile(made, calibration=feeds(20), output=tmp_path, name="cells")
    compiled, session = qcompile.load(built.path), ort.InferenceSession(made.SerializeToString())
    noise = power = 0.0
    for feed in feeds(10, seed=1):
        want, got = session.run(["y"], feed)[0], compiled.run(feed)["y"]
        noise, power = noise + np.square(want - got).sum(), power + np.square(want).sum()
    ratio = 10 * np.log10(power / noise)
    assert ratio > 30, f"{kind}, {form}: {ratio:.1f} dB"
    integers = compiled.quantize(feeds(1, seed=2)[0])
    assert np.array_equal(compiled.run_integer(integers)["y"], compiled.reference_integer(integers)["y"])


def test_gated_products_without_a_state_stay_narrow():
    nodes = [helper.make_node("Sigmoid", ["x"], ["g"]), helper.make_node("Mul", ["g", "z"], ["p"]),
             helper.make_node("Add", ["p", "x"], ["y"])]  # fmt: skip
    graph = helper.make_graph(nodes, "glu", [value("x", 1, 4), value("z", 1, 4)], [value("y", 1, 4)])
    made = Graph(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]))
    assert spelled_cells(made) == (set(), set())


@pytest.mark.parametrize("target", ["arm-a53", "arm-a55", "arm-a710", "x86-avx2", "x86-avx512vnni"])
@pytest.mark.parametrize("kind,more", [("LSTM", {}), ("GRU", {"linear_before_reset": 1}), ("RNN", {"rows": 3})])
def test_cells_are_proved_to_be_integers(kind, more, target, tmp_path):
    """LLVM makes some constants with float instructions; the proof would refuse them."""
    made = RecurrentModel(kind, units=21, **more)
    feeds = [made.feed() for _ in range(3)]
    built = qcompile.compile(made.model(), target, calibration=feeds, output=tmp_path, name="cell")
    assert built.manifest["proof"]["float_instructions"] == 0
