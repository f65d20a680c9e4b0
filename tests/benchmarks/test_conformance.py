"""ONNX's node tests: those of quantized operators, and one of each outcome, as `make conformance` judges them."""

from __future__ import annotations

from pathlib import Path

import pytest

conformance = pytest.importorskip("conformance")
EXACT = (
    "test_qlinear",
    "test_quantizelinear",
    "test_dequantizelinear",
    "test_rms_normalization",
    "test_attention_4d_causal",
    "test_bitshift",
    "test_bitwise",
    "test_flexattention",
    "test_linear_attention_linear",
    "test_resize",
    "test_scatter",
    "test_top_k",
)


@pytest.fixture(scope="module")
def cases():
    return {c.name: c for c in conformance._cases()}


@pytest.mark.filterwarnings("ignore")
def test_quantized_operators_agree_or_are_refused(cases):
    outcomes = {n: conformance.run_case(c, reference=True) for n, c in cases.items() if n.startswith(EXACT)}
    assert len(outcomes) > 140
    assert {n: r for n, r in outcomes.items() if r.outcome in conformance.FAILURES} == {}
    assert sum(r.outcome == "agrees" for r in outcomes.values()) > 120


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name, outcome", [("test_relu", "agrees"), ("test_det_2d", "refused"), ("test_isnan", "no numbers")]
)
def test_outcomes(cases, name, outcome):
    assert conformance.run_case(cases[name], reference=True).outcome == outcome


def test_a_wrong_result_is_seen(cases, monkeypatch):
    def off(model, feed):
        results, quantized, steps = reference(model, feed)
        return [(value + 0.5, scale) for value, scale in results], quantized, steps

    reference = conformance._reference
    monkeypatch.setattr(conformance, "_reference", off)
    assert conformance.run_case(cases["test_relu"], reference=True).outcome == "wrong"


def test_the_table_counts_outcomes():
    rows = [{"name": "a", "outcome": "agrees", "reason": ""}, {"name": "b", "outcome": "wrong", "reason": "off"}]
    text = conformance.report(rows, {"a": "Add", "b": "Add"})
    assert "| Add | 1 |  | 1 |" in text and "wrong: b: off" in text
    assert Path(conformance.__file__).name == "conformance.py"
