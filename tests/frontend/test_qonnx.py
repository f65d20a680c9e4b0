"""Quant nodes as QONNX, Brevitas and FINN write them, against their definition."""

import numpy as np
import pytest
import qcompile
from onnx import helper
from qcompile.frontend.qonnx import DOMAINS
from small_models import model

RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((8, 4)).astype(np.float32)


def quant(x, scale, zero, bits, signed=1, narrow=0, rounding=np.rint):
    """The definition."""
    half = 2 ** (bits - 1)
    low, high = (narrow - half, half - 1) if signed else (0, 2 * half - 1 - narrow)
    return (np.clip(rounding(x / scale + zero), low, high) - zero) * scale


def net(domain, bits, scale, zero=0.0, signed=1, narrow=0, rounding="ROUND", weight_bits=4, weight_scale=None):
    """y = Quant(Quant(x) @ Quant(w)), the outer of 8 bits."""
    weight_scale = np.float32(0.3) if weight_scale is None else weight_scale
    constants = {
        "w": WEIGHT, "xs": np.float32(scale), "xz": np.float32(zero), "xb": np.float32(bits), "ws": weight_scale,
        "z": np.float32(0), "wb": np.float32(weight_bits), "ys": np.float32(0.05), "yb": np.float32(8),
    }  # fmt: skip
    made = model(
        ("Quant", ["x", "xs", "xz", "xb"], ["xq"], {"signed": signed, "narrow": narrow, "domain": domain}),
        ("Quant", ["w", "ws", "z", "wb"], ["wq"], {"signed": 1, "narrow": 1, "rounding_mode": rounding,
                                                   "domain": domain}),
        ("MatMul", ["xq", "wq"], ["m"], {}),
        ("Quant", ["m", "ys", "z", "yb"], ["y"], {"signed": 1, "domain": domain}),
        constants=constants,
    )  # fmt: skip
    made.opset_import.append(helper.make_opsetid(domain, 1))
    return made


CASES = {
    **{f"int{bits}": {"bits": bits, "scale": 2.0 / 2**bits} for bits in (2, 3, 4, 7, 8)},
    **{f"uint{bits}": {"bits": bits, "scale": 2.0 / 2**bits, "signed": 0} for bits in (1, 2, 4, 8)},
    "narrow": {"bits": 4, "scale": 0.25, "narrow": 1},
    "zero point": {"bits": 8, "scale": 0.02, "zero": 100.0, "signed": 0},
    "weights rounded down": {"bits": 8, "scale": 0.02, "rounding": "FLOOR"},
    "a scale for each channel": {"bits": 8, "scale": 0.02, "weight_scale": np.float32([[0.1, 0.2, 0.3, 0.4]])},
    "weights of 8 bits": {"bits": 8, "scale": 0.02, "weight_bits": 8, "weight_scale": np.float32(0.02)},
    "weights of 2 bits": {"bits": 8, "scale": 0.02, "weight_bits": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_quant(tmp_path, name):
    case = CASES[name]
    domain = sorted(DOMAINS)[len(name) % 3]
    loaded = qcompile.load(qcompile.compile(net(domain, **case), output=tmp_path).path)
    roundings = {"ROUND": np.rint, "FLOOR": np.floor}
    scale = case.get("weight_scale", np.float32(0.3))
    rounding = roundings[case.get("rounding", "ROUND")]
    w = quant(WEIGHT, scale, 0, case.get("weight_bits", 4), 1, 1, rounding)
    for _ in range(4):
        x = RNG.uniform(-1, 1, (1, 8)).astype(np.float32)
        grid = [case.get(k, 0) for k in ("scale", "zero", "bits")]
        inner = quant(x, *grid, case.get("signed", 1), case.get("narrow", 0))
        want = quant(inner @ w, 0.05, 0, 8)
        np.testing.assert_allclose(loaded.run({"x": x})["y"], want, atol=0.051, err_msg=name)


def test_bipolar(tmp_path):
    domain = "qonnx.custom_op.general"
    made = model(
        ("BipolarQuant", ["w", "s"], ["wq"], {"domain": domain}),
        ("MatMul", ["x", "wq"], ["y"], {}),
        constants={"w": WEIGHT, "s": np.float32(0.5)},
    )
    made.opset_import.append(helper.make_opsetid(domain, 1))
    x = RNG.uniform(-1, 1, (16, 1, 8)).astype(np.float32)
    built = qcompile.compile(made, calibration=[{"x": v} for v in x], output=tmp_path)
    want = x[0] @ np.where(WEIGHT >= 0, 0.5, -0.5)
    np.testing.assert_allclose(qcompile.load(built.path).run({"x": x[0]})["y"], want, atol=0.05)


@pytest.mark.parametrize("change, words", [({"bits": 20}, ["20 bits"]), ({"bits": 3.5}, ["bit width"])])
def test_refused_by_name(tmp_path, change, words):
    with pytest.raises(qcompile.CompileError) as failure:
        qcompile.compile(net("onnx.brevitas", **({"scale": 0.1} | change)), output=tmp_path / "out")
    assert all(w in str(failure.value) for w in ["the_xq", *words]), failure.value
