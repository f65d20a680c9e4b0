"""Float networks quantized and run by the numpy meaning of their program, beside ONNX Runtime on the float model."""

import numpy as np
import onnxruntime as ort
from onnx import TensorProto
from qcompile.frontend import normalise
from qcompile.frontend.graph import Graph
from qcompile.importer import import_onnx
from qcompile.passes import tidy
from qcompile.passes.integerize import integerize
from qcompile.quantizer import QuantizeOptions, load_calibration, quantize


def quantized(net, samples=None, notes=None):
    """The QDQ form of `net`, 8 bits."""
    notes = [] if notes is None else notes
    loaded = normalise(net, {}, notes)
    return normalise(quantize(loaded, load_calibration(samples, loaded), QuantizeOptions(), notes), {}, notes)


def program_of(qdq, notes=None):
    """The integer program of a QDQ model."""
    imported = import_onnx(qdq)
    return tidy(integerize(imported.module, imported.names, imported.outputs, "exact", notes))


def run_program(program, feed):
    """Real numbers in and out of a program."""
    codes, scales = {}, program.info.get("inputs", {})
    for name, kind in program.inputs.items():
        value = np.asarray(feed[name])
        if value.dtype.kind == "f":
            scale, zero = scales[name][:2]
            limits = np.iinfo(kind.dtype)
            value = np.clip(np.rint(value / np.float32(scale)) + zero, limits.min, limits.max)
        codes[name] = value.astype(kind.dtype)
    made = program.run(codes)
    return {name: real(program, name, made[tensor])
            for name, tensor in zip(program.info["output_names"], program.outputs)}  # fmt: skip


def real(program, name, codes):
    """The output `name` dequantized: by one scale, or by one for each index along an axis."""
    found = program.info["outputs"].get(name)
    if found is None:
        return codes
    scale, zero, *axis = found
    scale = np.asarray(scale, np.float64)
    if axis:
        scale = scale.reshape([-1 if i == axis[0] else 1 for i in range(codes.ndim)])
    return (codes.astype(np.float64) - zero) * scale


def both(net, samples, feeds=None, notes=None):
    """({output: float results}, {output: integer results}) over `feeds`, or the samples, stacked."""
    program = program_of(quantized(net, samples, notes), notes)
    return stacked(net, program, samples if feeds is None else feeds)


def stacked(net, program, feeds):
    """The results of a float network and of a program over `feeds`."""
    session = ort.InferenceSession(net.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    wanted = [dict(zip(names, session.run(names, f))) for f in feeds]
    made = [run_program(program, f) for f in feeds]
    return tuple({n: np.stack([r[n] for r in side]) for n in names} for side in (wanted, made))


def decibels(exact, actual):
    """Signal to noise."""
    exact, actual = np.asarray(exact, np.float64), np.asarray(actual, np.float64)
    return float(10 * np.log10((exact**2).sum() / max(((exact - actual) ** 2).sum(), 1e-30)))


def float_samples(net, rng, count=8, scale=1.0):
    """Normal numbers for each input."""
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in Graph(net).inputs
              if v.type.tensor_type.elem_type == TensorProto.FLOAT}  # fmt: skip
    return [{n: (scale * rng.standard_normal(s)).astype(np.float32) for n, s in shapes.items()} for _ in range(count)]
