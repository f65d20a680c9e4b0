"""The page of operators says what the conformance run saw, and lists what the compiler has a form of."""

from __future__ import annotations

from pathlib import Path

import pytest
from qcompile.frontend.expand_functions import EXPANDED
from qcompile.frontend.expand_operators import TABLE
from qcompile.importer.operators import CONVERTERS

operators = pytest.importorskip("operators")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "operators.md"
UNTESTED = {"SimplifiedLayerNormalization"}  # not ONNX's own, or without a node test


def test_reasons_have_no_names_and_numbers():
    text = "node TopK 'the_node': the shape of its result 'y' depends on 3 inputs"
    assert operators.reason_of(text) == "the shape of its result … depends on n inputs"


def test_the_page_counts_cases():
    rows = [
        {"name": "a", "outcome": "agrees", "reason": ""},
        {"name": "b", "outcome": "refused", "reason": "node b: no"},
        {"name": "c", "outcome": "no numbers", "reason": ""},
    ]
    assert "| Add | 1 of 2 | no (1) |" in operators.page(rows, dict.fromkeys("abc", "Add"))


def test_the_page_lists_every_operator_with_a_form():
    listed = {line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if line.startswith("| ")}
    assert sorted((EXPANDED | set(TABLE) | set(CONVERTERS)) - listed - UNTESTED) == []
