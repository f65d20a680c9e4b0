"""Small QDQ graphs, and their comparison with ONNX Runtime."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from qcompile.frontend import normalise
from qcompile.importer import import_onnx
from qcompile.kernels.program import Program
from qcompile.passes.integerize import integerize

FLOAT, INT64, INT32, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL


class Graph:
    """Collects nodes; every method returns the name of the tensor that it made."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants, self.inputs = [], [], []

    def input(self, name, *shape, dtype=FLOAT):
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))
        return name

    def const(self, value):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def normal(self, *shape):
        return self.rng.standard_normal(shape).astype(np.float32)

    def op(self, kind, *inputs, outputs=1, **attrs):
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(
            helper.make_node(kind, [i or "" for i in inputs], names, name=f"{kind}_{len(self.nodes)}", **attrs)
        )
        return names[0] if outputs == 1 else names

    def q(self, x, scale=0.04, zero_point=0, dtype="int8"):
        """x through QuantizeLinear and DequantizeLinear."""
        grid = self.const(np.float32(scale)), self.const(np.array(zero_point, dtype))
        return self.op("DequantizeLinear", self.op("QuantizeLinear", x, *grid), *grid)

    def data(self, name, *shape, **grid):
        """A quantized float input."""
        return self.q(self.input(name, *shape), **grid)

    def weight(self, *shape, axis=0):
        """int8 weights with one scale per channel."""
        scale = (0.005 + 0.01 * self.rng.random(shape[axis])).astype(np.float32)
        codes = self.rng.integers(-127, 128, shape).astype(np.int8)
        return self.op(
            "DequantizeLinear",
            self.const(codes),
            self.const(scale),
            self.const(np.zeros(shape[axis], np.int8)),
            axis=axis,
        )

    def model(self, *outputs, opset=21, dtype=FLOAT):
        graph = helper.make_graph(
            self.nodes,
            "g",
            self.inputs,
            [helper.make_tensor_value_info(o, dtype, None) for o in outputs],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def random_feeds(model, count=4, ids=10):
    rng = np.random.default_rng(1)
    feeds = []
    for _ in range(count):
        feed = {}
        for i in model.graph.input:
            t = i.type.tensor_type
            shape, dtype = [d.dim_value for d in t.shape.dim], helper.tensor_dtype_to_np_dtype(t.elem_type)
            integers = 2 if "mask" in i.name or dtype == np.bool_ else ids
            feed[i.name] = (
                rng.standard_normal(shape) * 2 if dtype == np.float32 else rng.integers(0, integers, shape)
            ).astype(dtype)
        feeds.append(feed)
    return feeds


def compiled(model: onnx.ModelProto) -> Program:
    imported = import_onnx(normalise(model))
    return integerize(imported.module, imported.names, imported.outputs)


def run_program(program: Program, feed):
    """Outputs as real numbers, as a user of the artifact sees them."""
    inputs = {}
    for name, type_ in program.inputs.items():
        value = feed[name]
        if value.dtype == np.float32:
            scale, zero_point = program.info["inputs"][name]
            info = np.iinfo(type_.dtype)
            value = np.clip(np.rint(value / np.float32(scale)) + zero_point, info.min, info.max)
        inputs[name] = value
    values = program.run(inputs)
    result = []
    for name, tensor in zip(program.info["output_names"], program.outputs):
        scale, zero_point = program.info["outputs"].get(name, (1.0, 0))
        result.append((values[tensor].astype(np.float64) - zero_point) * scale)
    return result


def check(model: onnx.ModelProto, steps: float = 1.0, feeds=None, mean: float = 0.1) -> Program:
    """Compiles and compares with ONNX Runtime: at most `steps` output steps off anywhere, `mean` on average."""
    program = compiled(model)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    for feed in feeds or random_feeds(model):
        for name, ours, want in zip(program.info["output_names"], run_program(program, feed), session.run(None, feed)):
            assert ours.shape == want.shape, f"{name} has shape {ours.shape}, ONNX Runtime says {want.shape}"
            off = np.abs(ours - want) / program.info["outputs"].get(name, (1.0, 0))[0]
            assert off.max(initial=0) <= steps + 1e-3, f"{name} is {off.max():.2f} steps off"
            assert off.mean() <= mean, f"{name} is {off.mean():.3f} steps off on average"
    return program


def kind(op: str) -> str:
    """All ways to rescale are one kind."""
    return "requantize" if op == "narrow_word" else re.sub("_(words?|low)$", "", op)


def ops(program: Program) -> Counter:
    return Counter(kind(n.op) for n in program.nodes)
