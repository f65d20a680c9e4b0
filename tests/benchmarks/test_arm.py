"""The ARM benchmark: its tables, its messages, and, where the lab is set up, its counts."""

from __future__ import annotations

import numpy as np
import pytest
from arm.lab import CORES, Block, Lab, LabError, Symbols, Tally, by_place
from arm.nets import CACHE, find
from arm.ours import WINDOW, measure_program
from arm.peers import models
from arm.table import calls_text, geometric_mean, markdown, shares
from kernel_shapes import dense, values


def row(net="kws_dscnn", core="cortex-a76", cycles=2e6, peers=(("LiteRT int8", 3e6),), ratio=1.5):
    calls = [
        {"node": "a", "op": "conv2d", "kernel": "conv_8x8", "macs": 4_000_000, "cost": 0.75 * cycles},
        {"node": "a", "op": "conv2d", "kernel": "pad", "macs": 0, "cost": 0.05 * cycles},
        {"node": "b", "op": "softmax", "kernel": "softmax", "macs": 0, "cost": 0.2 * cycles},
    ]
    return {
        "net": net,
        "core": core,
        "model": "neoverse-n1",
        "macs": 4_000_000,
        "instructions": 5e6,
        "cycles": cycles,
        "ratio": ratio,
        "peers": [{"name": n, "cycles": c, "instructions": c} for n, c in peers],
        "ops": shares(calls),
        "calls": calls,
    }


def test_table_says_that_cycles_are_estimated_and_what_the_ratio_is():
    text = markdown([row(), row("vww_mobilenetv1_025", peers=[("ONNX Runtime fp32", 8e6)], ratio=6.0)])
    assert "estimated by llvm-mca's neoverse-n1" in text
    assert "| kws_dscnn | 2.0000 | 2.0 | 3.000 | – | 1.50 | conv2d 80 %, softmax 20 % |" in text
    assert "Geometric mean of the ratios, all: 3.00 (2 nets)" in text and "MLPerf Tiny: 3.00" in text


def test_a_core_without_a_model_of_its_pipeline_shows_instructions():
    text = markdown([row(core="cortex-a72", cycles=0.0, peers=[("LiteRT int8", 1e7)], ratio=2.0)])
    assert "cortex-a72: instructions" in text and "estimated" not in text and "| 5.0000 | 0.8 | 10.000 | 2.00 |" in text


def test_the_costliest_calls_come_first():
    lines = calls_text(row()).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["75.0", "20.0", "5.0"] and "2.7" in lines[1]


def test_shares_add_up():
    assert sum(row()["ops"].values()) == pytest.approx(1) and geometric_mean([2.0, 8.0]) == pytest.approx(4)


def test_blocks_are_counted_by_where_they_lie():
    blocks = [Block(0, 10, ("add", "b"), "f", 1.0), Block(8, 1, ("ret",), "g", 1.0), Block(16, 5, ("nop",), "f", 2.0)]
    places = by_place(Tally.of(blocks))
    assert list(places) == ["f", "g"] and places["f"].cycles == 20 and places["f"].instructions == 25


def test_symbols_are_found_by_address():
    symbols = Symbols([(0x10, "first"), (0x40, "second")], 0x1000)
    assert [symbols.at(a) for a in (0x1000, 0x1010, 0x103C, 0x1040, 0x9999)] == [
        "?", "first", "first", "second", "second"
    ]  # fmt: skip


def test_a_missing_lab_is_said_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("ARMLAB_TOOLS", str(tmp_path))
    with pytest.raises(LabError, match="set ARMLAB_TOOLS"):
        Lab()
    (tmp_path / "armreport.py").touch()
    monkeypatch.setenv("ARMLAB", str(tmp_path / "home"))
    with pytest.raises(LabError, match=r"run .*setup\.sh once"):
        Lab()


def test_an_unknown_net_is_refused_by_name(tmp_path):
    with pytest.raises(SystemExit, match="neither a file"):
        find(str(tmp_path / "missing.onnx"))


def test_float_models_are_no_peer_of_quantized_ones(tmp_path):
    from arm.nets import Net

    net = Net("n", tmp_path, None, None, {})
    assert list(models(net)) == ["ONNX Runtime int8"] and CACHE.name == "bench-arm"


@pytest.fixture
def lab():
    try:
        return Lab()
    except LabError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("core", CORES)
def test_calls_add_up_to_the_inference(lab, core):
    program = dense(16, 64, 40)
    inputs = values(program)
    outputs = list(program.run(dict(zip(program.inputs, inputs))).values())
    measured = measure_program(lab, program, inputs, outputs, CORES[core], calls=True)
    assert measured.equal and 0 < len(measured.calls) <= WINDOW
    assert sum(c.macs for c in measured.calls) == 16 * 64 * 40
    instructions = sum(c.tally.instructions for c in measured.calls)
    assert instructions == pytest.approx(measured.total.instructions, rel=0.1)
    assert (measured.total.cycles > 0) == bool(CORES[core].mca)


def test_a_wrong_result_is_seen(lab):
    program = dense(4, 16, 8)
    inputs = values(program)
    outputs = [np.bitwise_xor(y, 1) for y in program.run(dict(zip(program.inputs, inputs))).values()]
    assert not measure_program(lab, program, inputs, outputs, CORES["cortex-a76"]).equal
