"""Standalone elementwise kernels against their numpy meaning, bit for bit, on every instruction set."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from general_arrays import arrays_of, edge_array, node
from kernel_harness import Case, check_cases

RANGE = {"int8": (-128, 127), "uint8": (0, 255), "int16": (-32768, 32767), "int32": (-(2**31), 2**31 - 1)}
FACTOR = 1 << 30


def requantize(name, x, multiplier, dtype="int8", **attrs):
    low, high = RANGE[dtype]
    a = {"x_zero_point": 0, "shift": 6, "pre": 0, "zero_point": 3, "qmin": low, "qmax": high, "dtype": dtype} | attrs
    return Case(node(name, "requantize", [f"{name}_x", f"{name}_m"], a), {f"{name}_x": x}, {f"{name}_m": multiplier})


def add(name, x, r, dtype="int8", constant=False, **attrs):
    low, high = RANGE[dtype]
    a = {
        "x_zero_point": 3,
        "x_multiplier": 9173,
        "r_zero_point": -5,
        "r_multiplier": -7001,
        "shift": 13,
        "zero_point": 1,
        "qmin": low,
        "qmax": high,
        "dtype": dtype,
    } | attrs
    inputs = {f"{name}_x": x, f"{name}_r": r}
    return Case(
        node(name, "add", list(inputs), a),
        {f"{name}_x": x} if constant else inputs,
        {f"{name}_r": r} if constant else {},
    )


def cases(rng):
    for i, (shape, dtype) in enumerate(
        [
            ((3, 5, 7), "int32"),
            ((1, 40), "int32"),
            ((4, 16), "int32"),
            ((2, 3, 64), "int32"),
            ((9, 33), "int16"),
            ((6, 100), "int8"),
            ((5, 2), "uint8"),
            ((1,), "int32"),
            ((300, 3), "int32"),
        ]
    ):
        x = edge_array(rng, shape, dtype)
        yield requantize(f"rq{i}", x, np.array([FACTOR], np.int32), shift=9)
        yield requantize(
            f"rqc{i}",
            x,
            rng.integers(-(2**31) + 1, 2**31 - 1, shape[-1]).astype(np.int32),
            "uint8",
            shift=15,
            qmin=7,
            qmax=250,
        )
        yield requantize(f"rqw{i}", x, np.array([2**31 - 1], np.int32), "int16", shift=1, zero_point=-9)
    yield requantize(
        "rqp",
        rng.integers(-100, 100, (7, 30)).astype(np.int8),
        np.array([12345], np.int32),
        "int32",
        pre=8,
        x_zero_point=4,
        shift=2,
    )
    big = rng.integers(-128, 128, (65, 1040)).astype(np.int8)
    yield requantize("rqbig", big, np.array([2**30], np.int32), shift=1, pre=3)
    yield requantize("rqbigc", big, rng.integers(1, 2**30, 1040).astype(np.int32), shift=1, pre=3)
    for k, dtype in enumerate(("int8", "uint8", "int16")):
        for i, (a, b) in enumerate(
            [
                ((4, 30), (4, 30)),
                ((2, 3, 17), (17,)),
                ((2, 3, 17), (2, 3, 1)),
                ((5, 6, 20), (5, 1, 20)),
                ((6, 8), (1,)),
                ((3, 1, 9), (1, 4, 9)),
                ((2, 1, 40), (2, 5, 40)),
                ((1, 1), (3, 70)),
                ((2, 4, 5, 6), (4, 1, 6)),
                ((1, 196, 1), (1, 196, 24)),
                ((200, 3), (3,)),
                ((1, 6, 8, 3), (6, 8, 3)),
            ]
        ):
            yield add(
                f"add{k}_{i}",
                edge_array(rng, a, dtype),
                edge_array(rng, b, dtype),
                "int8" if k else "int16",
                constant=i % 2 == 1,
                **({"x_multiplier": 21, "r_multiplier": -33, "shift": 4} if k == 2 else {}),
            )
    yield add("addbig", big, big[::-1].copy(), shift=14)
    yield add("addzero", big[:3], big[3:6], shift=0, x_multiplier=1, r_multiplier=1)
    same = edge_array(rng, (3, 50), "int8")
    yield Case(node("double", "add", ["d", "d"], add("q", same, same).node.attrs), {"d": same})
    for i, (a, b) in enumerate(
        [
            ((4, 30), (4, 30)),
            ((3, 5, 24), (3, 1, 24)),
            ((3, 5, 24), (3, 5, 1)),
            ((7,), (6, 7)),
            ((5, 1), (1, 8)),
            ((2, 3, 4, 20), (2, 1, 1, 20)),
            ((2, 1, 1, 20), (2, 3, 4, 20)),
            ((2, 3, 4, 20), (2, 1, 1, 1)),
            ((2, 1, 1, 20), (3, 4, 1)),
        ]
    ):
        c = np.broadcast_shapes(a, b)[-1]
        m = rng.integers(1, 2**31 - 1, c if i % 2 else 1).astype(np.int32)
        attrs = {
            "x_zero_point": -7,
            "r_zero_point": 2,
            "shift": 2,
            "pre": i % 3,
            "zero_point": -1,
            "qmin": -128,
            "qmax": 127,
            "dtype": "int8",
        }
        inputs = {f"mul{i}_x": edge_array(rng, a, "int8"), f"mul{i}_r": edge_array(rng, b, "uint8")}
        yield Case(node(f"mul{i}", "mul", [*inputs, f"mul{i}_m"], attrs), inputs, {f"mul{i}_m": m})
    for i, (shape, dtype) in enumerate([((4, 30), "int8"), ((2, 9), "int16"), ((3, 64), "int32")]):
        m, q = (rng.integers(1, 2**31 - 1, shape[-1]).astype(np.int32) for _ in range(2))
        attrs = {
            "x_zero_point": 5 if dtype != "int32" else 0,
            "shift": 3,
            "pre": 0,
            "zero_point": 2,
            "qmin": -128,
            "qmax": 127,
            "dtype": "int8",
        }
        yield Case(
            node(f"prelu{i}", "prelu", [f"p{i}", f"p{i}m", f"p{i}q"], attrs),
            {f"p{i}": edge_array(rng, shape, dtype)},
            {f"p{i}m": m, f"p{i}q": q},
        )
    for i, (dtype, to) in enumerate([(a, b) for a in ("int8", "uint8") for b in ("int8", "uint8", "int16")]):
        first = np.iinfo(dtype).min
        table = rng.integers(np.iinfo(to).min, np.iinfo(to).max + 1, 256).astype(to)
        codes = np.arange(256, dtype=np.int64).astype(np.uint8).view(dtype)
        for j, x in enumerate((codes, rng.permutation(codes)[:37], np.tile(codes, 300))):
            yield Case(
                node(f"lut{i}_{j}", "lut", [f"l{i}{j}", f"t{i}{j}"], {"first": first}),
                {f"l{i}{j}": x},
                {f"t{i}{j}": table},
            )
    for i, (first, size) in enumerate([(-2048, 4096), (-32768, 65536), (-100, 150)]):
        x = rng.integers(first, first + size, (3, 21)).astype(np.int16)
        yield Case(
            node(f"wide{i}", "lut", [f"w{i}", f"u{i}"], {"first": first}),
            {f"w{i}": x},
            {f"u{i}": rng.integers(-128, 128, size).astype(np.int8 if i else np.int16)},
        )
    for i, (first, bits, pieces, to) in enumerate(
        [
            (-2048, 6, 64, "int8"),
            (-1700, 6, 128, "uint8"),
            (-32768, 9, 128, "int16"),
            (100, 1, 64, "int16"),
            (-32768, 10, 64, "uint8"),
        ]
    ):
        limit = min(first + (pieces << bits), 32768)
        codes = rng.integers(first, limit, (3, 149)).astype(np.int16)
        codes[0, :4] = first, limit - 1, first + 1, limit - 2
        knots = rng.integers(-32768 if to == "int16" else -9000, 32768 if to == "int16" else 17000, pieces + 1)
        table = np.array([knots[:-1], np.clip(np.diff(knots), -32768, 32767)])
        table[0] = np.clip(table[0], -32768 - np.minimum(table[1], 0), 32767 - np.maximum(table[1], 0))
        low, high = np.iinfo(to).min, np.iinfo(to).max
        attrs = {"first": first, "bits": bits, "dtype": to}
        attrs |= {"zero_point": 0 if to == "int16" else 7, "qmin": low + 3, "qmax": high - 2}
        yield Case(
            node(f"pieces{i}", "interpolate", [f"i{i}", f"k{i}"], attrs),
            {f"i{i}": codes},
            {f"k{i}": table.astype(np.int16)},
        )
    x = rng.integers(-(2**30), 2**30, (6, 45)).astype(np.int32)
    for i, shape in enumerate([(45,), (6, 1), (1,), (6, 45)]):
        yield Case(
            node(f"bias{i}", "bias_add", [f"bx{i}", f"bb{i}"], {}),
            {f"bx{i}": x},
            {f"bb{i}": rng.integers(-(2**30), 2**30, shape).astype(np.int32)},
        )
    attrs = {
        "r_zero_point": 4,
        "r_multiplier": 1 << 12,
        "shift": 7,
        "pre": 1,
        "zero_point": 0,
        "qmin": -128,
        "qmax": 127,
        "dtype": "int8",
    }
    for i, m in enumerate((np.array([2**28], np.int32), rng.integers(1, 2**28, 45).astype(np.int32))):
        yield Case(
            node(f"residual{i}", "add_residual", [f"ra{i}", f"rr{i}", f"rm{i}"], attrs),
            {f"ra{i}": x >> 2, f"rr{i}": edge_array(rng, x.shape, "int8")},
            {f"rm{i}": m},
        )
    for i, (a, b) in enumerate(
        [
            ("int8", "int16"),
            ("int16", "int8"),
            ("int32", "uint8"),
            ("uint8", "int8"),
            ("int8", "uint8"),
            ("int16", "int32"),
        ]
    ):
        yield Case(
            node(f"cast{i}", "cast", [f"cx{i}"], {"offset": (0, 3, -128, -128, 128, 0)[i], "dtype": b}),
            {f"cx{i}": edge_array(rng, (5, 27), a)},
        )
    for i, dtype in enumerate(("int8", "uint8", "int16", "int32", "int64")):
        for j, shapes in enumerate(
            [((4, 9),) * 3, ((4, 1), (4, 9), (1,)), ((1, 3), (1,), (2, 3)), ((70, 1000), (70, 1000), (1, 1))]
        ):
            if j < 3 or i == 0:
                names = [f"s{i}{j}c", f"s{i}{j}x", f"s{i}{j}r"]
                yield Case(
                    node(f"where{i}_{j}", "where", names, {}),
                    {
                        names[0]: rng.integers(-1, 2, shapes[0]).astype(np.int8),
                        **arrays_of(rng, names[1:], shapes[1:], dtype),
                    },
                )
    # a fused body: one kernel runs all of it
    first = add("f1", edge_array(rng, (6, 40), "int8"), edge_array(rng, (6, 40), "int8"))
    last = requantize(
        "f2", first.arrays["f1_x"], rng.integers(1, 2**31 - 1, 40).astype(np.int32), x_zero_point=1, shift=1
    )
    body = (
        first.node,
        replace(last.node, inputs=("f1", "f2_m")),
        node("f3", "lut", ["f2", "f_t"], {"first": -128}),
        node("f4", "add", ["f3", "f1_x"], first.node.attrs),
    )
    yield Case(
        replace(node("f4", "fused", ["f1_x", "f1_r", "f2_m", "f_t"], {}), body=body),
        first.arrays,
        last.constants | {"f_t": rng.integers(-128, 128, 256).astype(np.int8)},
    )

    # accumulators of few channels through a table: the last vector must not read further than the slack
    accumulators = rng.integers(-(2**31), 2**31, (5, 3)).astype(np.int32)
    few = requantize("n1", accumulators, np.array([FACTOR], np.int32), shift=9)
    yield Case(
        replace(
            node("n2", "fused", ["n1_x", "n1_m", "n_t"], {}),
            body=(few.node, node("n2", "lut", ["n1", "n_t"], {"first": -128})),
        ),
        few.arrays,
        few.constants | {"n_t": rng.integers(-128, 128, 256).astype(np.int8)},
    )

    # one chain over rows of whole vectors, of short and of shortest ones: three kernels, not one
    for size in (140, 70, 35, 17, 5, 1):
        accumulators = rng.integers(-(2**31), 2**31, size).astype(np.int32)
        sized = requantize(f"s{size}", accumulators, np.array([FACTOR], np.int32), shift=9)
        yield Case(
            replace(
                node(f"s{size}l", "fused", [f"s{size}_x", f"s{size}_m", "n_t"], {}),
                body=(sized.node, node(f"s{size}l", "lut", [f"s{size}", "n_t"], {"first": -128})),
            ),
            sized.arrays,
            sized.constants | {"n_t": rng.integers(-128, 128, 256).astype(np.int8)},
        )


def test_elementwise(target, tmp_path):
    counts = check_cases(list(cases(np.random.default_rng(1))), target, tmp_path)
    assert counts["bytes"] < 700_000
