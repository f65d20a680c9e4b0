"""An instruction set that the compiler does not know is added as a contributor would: one class, no table elsewhere.

It is x86-64 with SSE4.1: registers of 16 bytes, products of bytes spelled out in what every machine has. Networks
compile for it and agree with their numpy meaning to the bit.
"""

import numpy as np
import pytest
import qcompile
from machines import need
from programs import attention_net, residual_net, weights
from qcompile.kernels.cpu import isa
from qcompile.kernels.cpu.builder import bind, cast, concat, lanes_of, shuffle
from qcompile.kernels.cpu.isa.base import Isa
from qcompile.kernels.cpu.isa.dot import Dot
from qcompile.kernels.cpu.isa.taps import TapDot
from qcompile.targets import TARGETS, CompileError, CpuTarget, get_target
from small_models import model

NAME = "x86-penryn"


def products(total, a, b):
    """total[i] + a[4i] * b[4i] + ... + a[4i+3] * b[4i+3]."""
    all_of_them = bind(cast(a, "int32") * cast(b, "int32"))
    return total + sum(shuffle([all_of_them], range(e, lanes_of(a), 4)) for e in range(4))


class SpelledOut(Dot):
    """Four products into each int32 lane; a register of weights holds four groups of four channels."""

    name = "spelled_out"
    registers = 16
    rate = 0.25
    tiles = ((2, 8), (1, 8), (4, 4), (2, 4), (1, 4))

    def step(self, tile, acc, rows, w, groups, first=0):
        n = tile.columns // self.lanes
        for g in range(groups):
            vectors = self.weights(tile, w, g)
            for i, row in enumerate(rows, first):
                pixel = bind(row.load(g * self.group, self.group))
                pixel = bind(concat([pixel] * self.lanes))
                for j, vector in enumerate(vectors):
                    o = self.index(tile, i * n + j, g)
                    acc.store(o, products(acc.load(o, self.lanes), pixel, vector))


class SpelledOutTaps(TapDot):
    """Four taps into each int32 lane."""

    name = "spelled_out_taps"
    registers = 12
    longest = widest = 2

    def dots(self, acc, first, zipped, weights):
        for u in range(self.units):
            o = first + u * self.lanes
            acc.store(o, products(acc.load(o, self.lanes), zipped[u], weights[u]))


class Sse41(Isa):
    """Everything that the compiler need know of it."""

    name = "sse41"
    arch = "x86_64"
    features = frozenset({"sse4.1"})
    lanes = 4
    width = 16
    dots = activation_dots = (SpelledOut(),)
    taps = exact_taps = SpelledOutTaps()


@pytest.fixture(params=[True, False], ids=["uint8", "int8"])
def penryn(request, monkeypatch):
    """A CPU that has no set but this one, with either type of activations."""
    kilobyte = 1024
    target = CpuTarget(
        NAME,
        arch="x86_64",
        mcpu="penryn",
        l1=32 * kilobyte,
        l2=3072 * kilobyte,
        l3=0,
        features=Sse41.features,
        cpuinfo_flags=("sse4_1",),
        unsigned_activations=request.param,
    )
    monkeypatch.setitem(TARGETS, NAME, target)
    monkeypatch.setattr(isa, "ISAS", (Sse41(), *isa.ISAS))
    return target


def depthwise_net():
    return model(
        ("Conv", ["x", "w"], ["c"], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
        ("Relu", ["c"], ["r"], {}),
        ("Conv", ["r", "d"], ["e"], {"pads": [1, 1, 1, 1], "group": 20}),
        ("HardSwish", ["e"], ["h"], {}),
        ("Conv", ["h", "p"], ["y"], {}),
        inputs={"x": [1, 3, 18, 14]},
        constants={"w": weights(20, 3, 3, 3), "d": weights(20, 1, 3, 3), "p": weights(7, 20, 1, 1)},
    )


@pytest.mark.parametrize(("net", "bits"), [(residual_net, 8), (attention_net, 4), (depthwise_net, 8)])
def test_networks_compile_for_it(penryn, net, bits, tmp_path):
    need(penryn)
    artifact = qcompile.compile(net(), NAME, bits=bits, output=tmp_path)
    loaded = qcompile.load(artifact.path)
    rng = np.random.default_rng(9)
    x = {t.name: rng.integers(*np.iinfo(t.dtype).min + np.array([0, 256]), t.shape, t.dtype) for t in loaded.inputs}
    want = loaded.reference_integer(x)
    for name, y in loaded.run_integer(x).items():
        np.testing.assert_array_equal(y, want[name], err_msg=f"{name} of {net.__name__} on {NAME}")


def test_its_code_uses_nothing_else(penryn):
    chosen = isa.get_isa(penryn)
    assert chosen.name == "sse41" and isa.get_isa(get_target("x86-avx2")).name == "avx2"


def test_a_cpu_without_any_set_is_refused(penryn, monkeypatch):
    monkeypatch.setattr(isa, "ISAS", isa.ISAS[1:])
    with pytest.raises(CompileError, match=r"target x86-penryn: no kernels .* x86_64 with sse4.1"):
        isa.get_isa(penryn)
