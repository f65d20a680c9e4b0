"""The machine that finds faults finds faults: its draws, its checks, its processes and its minimiser."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import onnx
import pytest
import qcompile
from qcompile.runtime.native import NativeEngine
from sample_artifacts import build_multiply
from small_models import model

from fuzz import report
from fuzz.build import session
from fuzz.case import DEFAULTS, Case, load
from fuzz.check import (
    AGREES,
    CRASH,
    DIFFERENCE,
    EXCEPTION,
    HANG,
    NAMELESS,
    OUTSIDE,
    REFUSED,
    Found,
    Result,
    _guarded,
    decibels,
    refusal,
)
from fuzz.generate import generate
from fuzz.minimise import minimise
from fuzz.operators import all_draws
from fuzz.undrawn import UNDRAWN, accepted_operators
from fuzz.workers import run_cases
from fuzz.yardstick import rounded_graph

pytestmark = [pytest.mark.filterwarnings("ignore:This process"), pytest.mark.unguarded]  # it forks, and guards itself


def relu_case(**options):
    net = model(("Relu", ["x"], ["r"], {}), ("Neg", ["r"], ["n"], {}), ("Abs", ["n"], ["y"], {}))
    net.graph.output[0].type.tensor_type.shape.SetInParent()
    samples = np.random.default_rng(0).standard_normal((4, 1, 8)).astype(np.float32)
    return Case("relu", net, {"x": samples}, {**DEFAULTS, **options})


def run(case, **how):
    ((_, result),) = run_cases([(0, lambda: case)], **how)
    return result


def test_every_operator_that_is_accepted_is_drawn():
    missing = accepted_operators() - set(all_draws()) - set(UNDRAWN)
    assert missing == set(), "give each a draw in tests/fuzz/operators, or its reason in tests/fuzz/undrawn.py"
    assert set(UNDRAWN) & set(all_draws()) == set()


def test_a_seed_is_one_case():
    first, second = generate(11), generate(11)
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert first.options == second.options
    assert all(np.array_equal(first.samples[n], second.samples[n]) for n in first.samples)
    assert generate(12).model.SerializeToString() != first.model.SerializeToString()


def test_a_case_is_a_file(tmp_path):
    case = relu_case(bits="4")
    read = load(case.save(tmp_path))
    assert read.options == case.options and read.model == case.model
    assert np.array_equal(read.samples["x"], case.samples["x"])


def test_what_agrees_agrees():
    result = run(relu_case(targets=["host", "x86-avx2"]))
    assert result.kind == AGREES and result.decibels["y"] > 30


def test_a_wrong_bit_is_a_difference(monkeypatch):
    honest = NativeEngine.run

    def flip(engine, inputs):
        outputs = honest(engine, inputs)
        outputs[0].reshape(-1)[3] ^= 1
        return outputs

    monkeypatch.setattr(NativeEngine, "run", flip)
    assert run(relu_case()).kind == DIFFERENCE


def test_deaths_hangs_and_exceptions_are_results(monkeypatch):
    def killed(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    def raises(*_, **__):
        raise KeyError("t1")

    def sleeps(*_, **__):
        time.sleep(60)

    for stand_in, kind in ((killed, CRASH), (raises, EXCEPTION), (sleeps, HANG)):
        monkeypatch.setattr(qcompile, "compile", stand_in)
        assert run(relu_case(), limit=1.0).kind == kind


WRITES_BEFORE = """
#include <stdint.h>
int32_t qc_main(const void *const *in, void *const *out, uint8_t *arena, const uint8_t *weights) {
    int32_t *y = out[0];
    (void)in, (void)arena, (void)weights;
    for (int i = 0; i < 24; i++) y[i] = 0;
    y[-1] = 1;
    return 0;
}
"""


def test_a_byte_outside_a_buffer_is_a_finding(tmp_path):
    made = qcompile.load(build_multiply(tmp_path, source=WRITES_BEFORE).path)
    with pytest.raises(Found) as found:
        _guarded(made, {"input/x": np.zeros((1, 24), np.int8)}, 1, "host")
    assert found.value.result.kind == OUTSIDE


def test_refusals_must_name_something():
    case = relu_case()
    assert refusal(case, "node the_r: Relu of infinity is not supported").kind == REFUSED
    assert refusal(case, "--budget size=1% cannot be reached").kind == REFUSED
    assert refusal(case, "codes leave the table").kind == NAMELESS


def test_failures_become_small(monkeypatch):
    real = qcompile.compile

    def fails_on_neg(net, *args, **options):
        if any(n.op_type == "Neg" for n in net.graph.node):
            raise ZeroDivisionError
        return real(net, *args, **options)

    monkeypatch.setattr(qcompile, "compile", fails_on_neg)
    case = relu_case(bits="4", targets=["host", "x86-avx2"])
    small = minimise(case, run(case), limit=20.0)
    assert [n.op_type for n in small.model.graph.node] == ["Neg"]
    assert small.options == DEFAULTS
    assert small.samples[small.model.graph.input[0].name].size <= 4
    onnx.checker.check_model(small.model)


def test_figures_count(tmp_path):
    rows = [
        report.row(seed, result, DEFAULTS)
        for seed, result in enumerate(
            [Result(AGREES, decibels={"y": 40.0}), Result("low", decibels={"y": 3.0}), Result(OUTSIDE, "x", "run host")]
        )
    ]
    for row in rows:
        report.append(tmp_path / "r.jsonl", row)
    text = report.figures(report.read(tmp_path / "r.jsonl"))
    assert "3 graphs: 2 compiled" in text and "1 of 2 under 20 dB (50.0 %)" in text and "1 out of bounds" in text
    assert report.is_hard(rows) and not report.is_hard(rows[:2])


def test_some_graphs():
    """A handful of fixed seeds, as `make fuzz` runs them."""
    results = dict(run_cases([(s, lambda s=s: generate(s, ["host", "x86-avx2"])) for s in range(6)]))
    assert len(results) == 6 and not report.is_hard(vars(r) for r in results.values()), results


def test_rounding_every_tensor_shows_what_8_bits_can_do():
    cancels = model(
        ("Add", ["x", "k"], ["far"], {}),
        ("Sub", ["far", "k"], ["y"], {}),
        constants={"k": np.float32(1000)},
    )
    case = relu_case()
    for net, enough in ((case.model, True), (cancels, False)):
        feeds = case.feeds()
        want, got = (session(m).run(None, feeds[0])[0] for m in (net, rounded_graph(net, feeds)))
        assert (decibels([{"y": want}], [{"y": got}])["y"] > 30) == enough
