"""Normalisation and softmax of rows against numpy on every instruction set."""

from __future__ import annotations

import itertools

import numpy as np
from general_arrays import edge_array, node
from kernel_harness import Case, check_cases


def norm(rng, name, x, per_row=False, rms=False, groups=3, out="int8", epsilon=1000, zero_point=0, shift=21):
    d = x.shape[-1]
    low, high = np.iinfo(out).min, np.iinfo(out).max
    size = groups if per_row else d
    constants = {
        f"{name}_g": rng.integers(-(2**15), 2**15, size).astype(np.int16),
        f"{name}_b": rng.integers(-(2**20), 2**20, size).astype(np.int32),
    }
    constants[f"{name}_b"][0] = -(2**30) + 2**23
    attrs = {
        "x_zero_point": zero_point,
        "epsilon": epsilon,
        "rms": rms,
        "per_row": per_row,
        "shift": shift,
        "zero_point": -1,
        "qmin": low,
        "qmax": high,
        "dtype": out,
    }
    return Case(node(name, "layer_norm", [f"{name}_x", *constants], attrs), {f"{name}_x": x}, constants)


def soft(
    name, x, mask=None, constant_mask=False, out="int8", multiplier=2**30 + 77, shift=2, pre=3, op="softmax", **more
):
    low, high = np.iinfo(out).min, np.iinfo(out).max
    attrs = {
        "multiplier": multiplier,
        "shift": shift,
        "pre": pre,
        "out_shift": 5,
        "zero_point": -128 if out == "int8" else 0,
        "qmin": low,
        "qmax": high,
        "dtype": out,
    }
    if op == "softmax":
        attrs |= {"numerator": (1 << 45) + 12345}
    else:
        attrs |= {
            "x_multiplier": 2**29 + 5,
            "x_pre": 2,
            "log_multiplier": 2**24 + 3,
            "log_pre": 5,
            "zero_point": 100,
            "out_shift": 3,
        }
    masks = {} if mask is None else {f"{name}_m": mask}
    inputs = {f"{name}_x": x} | ({} if constant_mask else masks)
    return Case(node(name, op, [f"{name}_x", *masks], attrs | more), inputs, masks if constant_mask else {})


def cases(rng):
    # the sum of a row's numerators has more than 31, and than 32 bits
    for count in (70_001, 140_003):
        x = rng.integers(-3, 4, (1, count)).astype(np.int8)
        yield soft(f"long_{count}", x, out="int16", numerator=(1 << 45) + 12345, out_shift=1, multiplier=2**30, pre=0)
        yield soft(f"log_long_{count}", x, op="log_softmax", multiplier=2**30, pre=0)
    sizes = [(3, 1), (5, 7), (2, 3, 16), (4, 20), (4, 50), (6, 384), (1, 768), (130, 600)]
    for (i, shape), dtype in itertools.product(enumerate(sizes), ("int8", "uint8", "int16")):
        if i == 7 and dtype == "uint8":
            continue
        x = edge_array(rng, shape, dtype)
        x.reshape(-1, shape[-1])[0] = 3  # no variance at all
        zero_point = {"int8": -7, "uint8": 120, "int16": 11}[dtype]
        yield norm(rng, f"ln_{dtype}_{i}", x, zero_point=zero_point)
        yield norm(rng, f"rms_{dtype}_{i}", x, rms=True, zero_point=zero_point, out="int16", epsilon=0)
        if i < 5:
            yield norm(rng, f"rows_{dtype}_{i}", x, per_row=True, zero_point=zero_point, epsilon=1, groups=1 + i)
            yield norm(rng, f"eps_{dtype}_{i}", x, epsilon=1 << 61, zero_point=zero_point, shift=1)
            yield norm(
                rng,
                f"small_{dtype}_{i}",
                (x // 64 if dtype != "int16" else x // 16384).astype(dtype),
                epsilon=i,
                zero_point=0,
            )
            yield norm(rng, f"shift_{dtype}_{i}", x, epsilon=1 << (40 + i), out="int16", shift=15 if i % 2 else 0)
    extreme = np.where(np.arange(32767) % 2, 32767, -32768).astype(np.int16)[None]
    yield norm(rng, "longest", extreme, zero_point=-1)
    yield norm(rng, "longest_rms", extreme, zero_point=-1, rms=True)
    # variances on both sides of perfect squares
    near = [
        v
        for s in (1, 2, 3, 255, 256, 46340, 65535, 2**20 + 1, 2**31 - 1, 3037000499)
        for v in (s * s - 1, s * s, s * s + 1, s * s + 2 * s)
    ]
    for i, v in enumerate(near):
        yield norm(rng, f"root_{i}", np.zeros((1, 5), np.int8), epsilon=min(v, 2**63 - 1))
    shapes = [
        ((3, 1), None),
        ((4, 7), (1, 7)),
        ((2, 3, 16), (2, 1, 16)),
        ((2, 2, 5, 33), (2, 1, 5, 33)),
        ((2, 3, 4, 20), (2, 1, 1, 20)),
        ((2, 2, 3, 2, 19), (2, 1, 3, 1, 19)),
        ((3, 5, 40), (3, 5, 1)),
        ((20, 200), (200,)),
        ((2, 128, 260), (128, 260)),
        ((2, 1, 2, 1, 2, 9), (1, 1, 2, 1, 1, 9)),
        ((2, 2, 2, 2, 2, 18), (2, 1, 2, 1, 2, 18)),
    ]
    for (i, (shape, mask)), dtype in itertools.product(enumerate(shapes), ("int8", "uint8", "int16", "int32")):
        if i == 8 and dtype != "int8":
            continue
        x = edge_array(rng, shape, dtype) if dtype != "int32" else rng.integers(-(2**26), 2**26, shape).astype(np.int32)
        m = None if mask is None else rng.integers(-1, 2, mask).astype(np.int8)
        if m is not None:
            m.reshape(-1, mask[-1])[0] = 0  # rows without unmasked elements
        steep = {
            "int8": {},
            "uint8": {"multiplier": 2**31 - 1, "pre": 6},
            "int16": {"shift": 4},
            "int32": {"pre": 0, "shift": 15},
        }[dtype]
        alike = {"uniform": True} if m is not None and i % 4 < 2 else {}
        yield soft(f"soft_{dtype}_{i}", x, m, i % 2 == 1, "uint8" if i % 3 else "int16", **steep, **alike)
        yield soft(f"plain_{dtype}_{i}", x, **steep)
        if dtype != "int32":
            yield soft(f"log_{dtype}_{i}", x, op="log_softmax", **steep)


def test_rows(target, tmp_path):
    check_cases(list(cases(np.random.default_rng(4))), target, tmp_path)
