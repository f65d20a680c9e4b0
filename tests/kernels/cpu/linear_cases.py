"""Generators of nodes for the tests of the linear kernels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from kernel_harness import Case
from qcompile.kernels.program import Node
from qcompile.targets import Target

INT32 = 2**31 - 1


class Cases:
    """Builds cases for one target from one seed; 8-bit activations have the target's dtype."""

    def __init__(self, target: Target, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.dtype = "uint8" if target.unsigned_activations else "int8"
        self.low = 0 if target.unsigned_activations else -128
        self.count = 0

    def name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}{self.count}"

    def activation(self, shape: tuple[int, ...], edges: bool = False) -> np.ndarray:
        if edges:
            return self.rng.choice([self.low, self.low + 255], shape).astype(self.dtype)
        return self.rng.integers(self.low, self.low + 256, shape).astype(self.dtype)

    def weight(self, shape: tuple[int, ...], edges: bool = False) -> np.ndarray:
        return (self.rng.choice([-127, 127], shape) if edges else self.rng.integers(-127, 128, shape)).astype(np.int8)

    def dense(self, m: int, k: int, n: int, edges: bool = False) -> tuple[Node, dict, dict]:
        x, w, b = (
            self.activation((m, k), edges),
            self.weight((n, k), edges),
            self.rng.integers(-(10**6), 10**6, n).astype(np.int32),
        )
        return (
            Node(self.name("dense"), "dense", ("x", "w", "b"), {"x_zero_point": self.low + 100}),
            {"x": x},
            {"w": w, "b": b},
        )

    def conv(
        self,
        shape,
        out: int,
        kernel,
        strides=(1, 1),
        dilations=(1, 1),
        pads=(0, 0, 0, 0),
        groups: int = 1,
        edges: bool = False,
    ) -> tuple[Node, dict, dict]:
        x = self.activation(shape, edges)
        w = self.weight((out, *kernel, shape[-1] // groups), edges)
        b = self.rng.integers(-(10**6), 10**6, out).astype(np.int32)
        attrs = {
            "strides": list(strides),
            "dilations": list(dilations),
            "pads": list(pads),
            "groups": groups,
            "x_zero_point": self.low + 77,
        }
        return Node(self.name("conv"), "conv2d", ("x", "w", "b"), attrs), {"x": x}, {"w": w, "b": b}

    def matmul(
        self,
        a: tuple[int, ...],
        b: tuple[int, ...],
        transpose_b: bool,
        zero_points: tuple[int, int],
        edges: bool = False,
    ):
        attrs = {
            "transpose_b": transpose_b,
            "a_zero_point": self.low + zero_points[0],
            "b_zero_point": self.low + zero_points[1],
        }
        return (
            Node(self.name("matmul"), "matmul", ("a", "b"), attrs),
            {"a": self.activation(a, edges), "b": self.activation(b, edges)},
            {},
        )

    # ---- epilogues: each returns (steps, arrays, constants) for a value called `value` of `shape`

    def multiplier(self, n: int) -> np.ndarray:
        m = self.rng.integers(-INT32, INT32, n)
        m[:3] = [INT32, -INT32, 1][: len(m[:3])]
        return m.astype(np.int32)

    def requantize(
        self,
        value: str,
        channels: int,
        *,
        per_channel: bool = True,
        shift: int = 9,
        pre: int = 0,
        dtype: str | None = None,
        qmin: int | None = None,
        x_zero_point: int = 0,
    ) -> tuple[Node, dict[str, np.ndarray]]:
        dtype = dtype or self.dtype
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        name = self.name("rq")
        attrs = {
            "x_zero_point": x_zero_point,
            "shift": shift,
            "pre": pre,
            "zero_point": int(low + 117) if dtype != "int32" else 0,
            "qmin": int(low if qmin is None else qmin),
            "qmax": int(high),
            "dtype": dtype,
        }
        return Node(name, "requantize", (value, name + "_m"), attrs), {
            name + "_m": self.multiplier(channels if per_channel else 1)
        }

    def lut(self, value: str) -> tuple[Node, dict[str, np.ndarray]]:
        name = self.name("lut")
        table = self.rng.integers(self.low, self.low + 256, 256).astype(self.dtype)
        return Node(name, "lut", (value, name + "_t"), {"first": self.low}), {name + "_t": table}

    def bounds(self) -> dict[str, int | str]:
        return {"zero_point": self.low + 120, "qmin": self.low + 3, "qmax": self.low + 250, "dtype": self.dtype}

    def fuse(self, head: tuple[Node, dict, dict], steps: list[Node], arrays: dict, constants: dict) -> Case:
        node, inputs, params = head
        body = (node, *steps)
        known = {n.name for n in body}
        used = [i for n in body for i in n.inputs if i not in known]
        return Case(
            Node(self.name("fused"), "fused", tuple(dict.fromkeys(used)), {}, body),
            inputs | arrays,
            params | constants,
        )


def epilogue_cases(c: Cases, size: int = 300) -> Iterator[Case]:
    """Every elementwise op behind a dense or convolution whose output has ragged channels."""

    def head(channels: int = 37):
        return c.conv((2, 3, 3, 16), channels, (1, 1)) if c.count % 2 else c.dense(18, 24, channels)

    def shape(node: Node, channels: int = 37) -> tuple[int, ...]:
        return (2, 3, 3, channels) if node.op == "conv2d" else (18, channels)

    for shift in range(1, 16):
        h = head(48 if shift % 2 else 37)
        rq, k = c.requantize(h[0].name, 48 if shift % 2 else 37, shift=shift, per_channel=shift % 3 != 0)
        yield c.fuse(h, [rq], {}, k)
    for shift in (1, 8, 15):  # accumulators over all of int32: the biases, since x is its zero point
        node, arrays, params = head()
        arrays["x"][...] = node.attrs["x_zero_point"]
        params["b"][...] = c.rng.integers(-INT32 - 1, INT32 + 1, 37)
        params["b"][:4] = INT32, -INT32 - 1, 0, -1
        rq, k = c.requantize(node.name, 37, shift=shift)
        yield c.fuse((node, arrays, params), [rq], {}, k)
    for dtype, pre in (("int16", 0), ("int16", 3), ("int8", 5), ("uint8", 0), ("int32", 0)):
        h = head()
        rq, k = c.requantize(h[0].name, 37, dtype=dtype, pre=pre, shift=1)
        yield c.fuse(h, [rq], {}, k)
    for channels in (37, 64, 5):  # table
        h = head(channels)
        rq, k = c.requantize(h[0].name, channels, shift=12)
        lut, t = c.lut(rq.name)
        yield c.fuse(h, [rq, lut], {}, k | t)
    for wide in (False, True):  # residual of 8 and 16 bits
        h = head()
        n = c.name("res")
        info = np.iinfo("int16" if wide else c.dtype)
        r = c.rng.integers(info.min, info.max + 1, shape(h[0])).astype(info.dtype)
        attrs = {"r_zero_point": 0 if wide else c.low + 9, "r_multiplier": 5000, "shift": 11, "pre": 1, **c.bounds()}
        yield c.fuse(
            h,
            [Node(n, "add_residual", (h[0].name, n + "_r", n + "_m"), attrs)],
            {n + "_r": r},
            {n + "_m": c.multiplier(37) // 8},
        )
    for kind in ("same", "channel", "scalar", "row", "image", "constant"):  # second operand of add and mul
        h = c.conv((2, 3, 3, 16), 37, (1, 1))
        rq, k = c.requantize(h[0].name, 37, shift=12)
        operand = {
            "same": (2, 3, 3, 37),
            "channel": (1, 1, 1, 37),
            "scalar": (1,),
            "row": (2, 3, 3, 1),
            "image": (2, 1, 1, 37),
            "constant": (37,),
        }[kind]
        data = {f"{kind}_r": c.activation(operand)}
        mul = Node(
            c.name("mul"),
            "mul",
            (f"{kind}_r", rq.name, "mul_m"),
            {"x_zero_point": c.low + 5, "r_zero_point": c.low + 200, "shift": 2, "pre": 1, **c.bounds()},
        )
        add = Node(
            c.name("add"),
            "add",
            (mul.name, f"{kind}_r"),
            {
                "x_zero_point": c.low + 5,
                "x_multiplier": 12345,
                "r_zero_point": c.low + 200,
                "r_multiplier": -30000,
                "shift": 14,
                **c.bounds(),
            },
        )
        if operand != (2, 3, 3, 37):
            mul = Node(mul.name, "mul", (rq.name, f"{kind}_r", "mul_m"), mul.attrs)
        known = kind == "constant"
        yield c.fuse(
            h, [rq, mul, add], {} if known else data, k | {"mul_m": c.multiplier(1) // 2} | (data if known else {})
        )
    h = head()  # x * sigmoid(x): a value used twice
    rq, k = c.requantize(h[0].name, 37, shift=12)
    lut, t = c.lut(rq.name)
    silu = Node(
        c.name("mul"),
        "mul",
        (rq.name, lut.name, "mul_m"),
        {"x_zero_point": c.low + 5, "r_zero_point": c.low, "shift": 3, "pre": 0, **c.bounds()},
    )
    yield c.fuse(h, [rq, lut, silu], {}, k | t | {"mul_m": c.multiplier(37)})
    for kind in ("channel", "same", "row", "scalar"):  # bias_add of any shape, prelu, cast
        h = head()
        full = shape(h[0])
        bias_shape = {"channel": full[-1:], "same": full, "row": (*full[:-1], 1), "scalar": (1,)}[kind]
        bias = Node(c.name("bias"), "bias_add", (h[0].name, "bias_b"), {})
        attrs = {"x_zero_point": 0, "shift": 10, "pre": 0, **c.bounds()}
        prelu = Node(c.name("prelu"), "prelu", (bias.name, "pos", "neg"), attrs)
        other = "int8" if c.dtype == "uint8" else "uint8"
        cast = Node(c.name("cast"), "cast", (prelu.name,), {"offset": -100, "dtype": other})
        constants = {
            "bias_b": c.rng.integers(-9999, 9999, bias_shape).astype(np.int32),
            "pos": c.multiplier(37),
            "neg": c.multiplier(37),
        }
        yield c.fuse(h, [bias, prelu, cast], {}, constants)
    h = head()  # 16-bit table with few codes
    rq = Node(
        c.name("rq"),
        "requantize",
        (h[0].name, "wide_m"),
        {"x_zero_point": 0, "shift": 8, "pre": 0, "zero_point": 0, "qmin": -600, "qmax": 700, "dtype": "int16"},
    )
    lut = Node(c.name("lut"), "lut", (rq.name, "wide_t"), {"first": -600})
    yield c.fuse(h, [rq, lut], {}, {"wide_m": c.multiplier(37), "wide_t": c.activation((1301,))})
    for bits, pieces, dtype in ((6, 64, c.dtype), (9, 128, "int16")):  # a function of many codes in straight pieces
        h = head()
        first = -((pieces << bits) // 2)
        rq = Node(
            c.name("rq"),
            "requantize",
            (h[0].name, "fine_m"),
            {"x_zero_point": 0, "shift": 6, "pre": 0, "zero_point": 0, "qmin": first, "qmax": -first - 1}
            | {"dtype": "int16"},
        )
        knots = c.rng.integers(-9000, 9000, pieces + 1)
        table = np.array([knots[:-1], np.diff(knots)], np.int16)
        limits = c.bounds() if dtype == c.dtype else {"zero_point": 0, "qmin": -9000, "qmax": 8000, "dtype": dtype}
        line = Node(c.name("line"), "interpolate", (rq.name, "fine_t"), {"first": first, "bits": bits, **limits})
        yield c.fuse(h, [rq, line], {}, {"fine_m": c.multiplier(37), "fine_t": table})
