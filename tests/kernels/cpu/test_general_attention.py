"""Attention against numpy on every instruction set: head sizes, lengths, masks, zero points and dtypes of all kinds."""

from __future__ import annotations

import numpy as np
from general_arrays import edge_array, node
from kernel_harness import Case, check_cases


def attention(
    rng,
    name,
    q,
    k,
    v,
    dtypes=("int8", "int8", "int8"),
    mask=None,
    bias=None,
    out="int8",
    score_shift=3,
    narrow=True,
    **more,
):
    limit = 16 if narrow else None
    inputs = {}
    for letter, shape, dtype in zip("qkv", (q, k, v), dtypes):
        x = edge_array(rng, shape, dtype)
        middle = 128 if dtype == "uint8" else 0
        if limit and letter != "v":
            x = np.clip(x.astype(np.int64), middle - limit, middle + limit).astype(dtype)
        inputs[f"{name}_{letter}"] = x
    table = np.rint(255 * 0.5 ** (np.arange(256) / 40)).astype(np.uint8)
    if mask is not None:
        m = (rng.random(mask) < 0.7).astype(np.int8) * rng.choice([-1, 1, 7], mask).astype(np.int8)
        m.reshape(-1, mask[-1])[0] = 0
    inputs[f"{name}_t"] = table
    if mask is not None:
        inputs[f"{name}_m"] = m
    if bias is not None:
        inputs[f"{name}_b"] = rng.integers(-20000, 20000, bias).astype(np.int32)
    low, high = np.iinfo(out).min, np.iinfo(out).max
    attrs = {
        "has_mask": mask is not None,
        "has_bias": bias is not None,
        "q_zero_point": 5,
        "k_zero_point": -9,
        "v_zero_point": 3,
        "score_shift": score_shift,
        "score_multiplier": 12345,
        "numerator": 1 << 38,
        "shift": 7,
        "zero_point": -2,
        "qmin": low,
        "qmax": high,
        "dtype": out,
    } | more
    constants = {n: inputs.pop(n) for n in list(inputs) if n[-2:] == "_t"}
    return Case(
        node(name, "attention", [f"{name}_{c}" for c in "qkvtmb" if f"{name}_{c}" in inputs | constants], attrs),
        inputs,
        constants,
    )


def cases(rng):
    u8 = ("uint8",) * 3
    for i, (lead, m, length, d, e) in enumerate(
        [
            ((2,), 32, 32, 32, 32),
            ((1, 3), 17, 19, 20, 24),
            ((2, 2), 1, 50, 16, 16),
            ((1,), 5, 3, 3, 5),
            ((1, 2), 40, 130, 64, 64),
            ((2,), 9, 64, 33, 40),
            ((1,), 1, 1, 1, 1),
            ((2,), 13, 65, 8, 70),
        ]
    ):
        q, k, v = (*lead, m, d), (*lead, length, d), (*lead, length, e)
        zero = {"q_zero_point": 130, "k_zero_point": 121, "v_zero_point": 128}
        kinds = [
            ("s", dict()),
            ("u", dict(dtypes=u8, **zero)),
            ("wide", dict(dtypes=u8, narrow=False, score_shift=6, out="uint8", zero_point=128, **zero)),
            ("mask", dict(mask=(*lead, m, length))),
            ("row", dict(dtypes=u8, mask=(*lead[:1], *(1,) * len(lead), length), score_shift=0, **zero)),
            ("bias", dict(bias=(m, length), out="int16")),
            ("both", dict(dtypes=u8, mask=(m, 1), bias=(*lead, 1, length), score_shift=5, **zero)),
            ("left", dict(dtypes=("int8", "uint8", "int8"), score_shift=-2, score_multiplier=32767)),
        ]
        for kind, more in kinds[i % 3 :: 3]:  # each kind meets a third of the shapes
            yield attention(rng, f"{kind}{i}", q, k, v, uniform="mask" in more and bool(i % 2), **more)
    yield attention(rng, "shared", (2, 3, 7, 16), (2, 1, 20, 16), (3, 20, 16))
    yield attention(rng, "steep", (1, 7, 16), (1, 20, 16), (1, 20, 16), score_shift=-20)
    yield attention(rng, "flat", (1, 7, 16), (1, 20, 16), (1, 20, 16), score_shift=25)
    for alike in (False, True):  # one mask for all queries, of which one batch has no key
        masked = dict(mask=(3, 1, 1, 50), uniform=alike)
        yield attention(rng, f"alone{alike}", (3, 2, 33, 16), (3, 2, 50, 16), (3, 2, 50, 16), **masked)
        yield attention(rng, f"few{alike}", (3, 2, 3, 16), (3, 2, 50, 16), (3, 2, 50, 16), **masked)
    yield attention(rng, "heads", (1, 12, 40, 32), (1, 12, 40, 32), (1, 12, 40, 32))


def test_attention(target, tmp_path):
    check_cases(list(cases(np.random.default_rng(5))), target, tmp_path)
