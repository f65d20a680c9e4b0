"""Each graph of this folder that once failed: it compiles and agrees to the bit on its targets, or is refused by name.

`make fuzz FUZZ=--keep` writes them: NAME.onnx with its options in its metadata, NAME.npz with its samples.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz.case import load
from fuzz.check import AGREES, LOW, REFUSED
from fuzz.workers import run_cases

FOLDER = Path(__file__).parent
LEAST_DB = {"s30036": 35.0, "s30226": 40.0}  # graphs whose ratio of signal to noise was once too small


@pytest.mark.filterwarnings("ignore:This process")  # it forks
@pytest.mark.unguarded  # each case guards its own runs
@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.onnx")))
def test_regression(name: str) -> None:
    case = load(FOLDER / f"{name}.onnx")
    ((_, result),) = run_cases([(0, lambda: case)])
    assert result.kind in (AGREES, LOW, REFUSED), f"{result.kind}: {result.where}: {result.reason}"
    if name in LEAST_DB:
        assert min(result.decibels.values()) >= LEAST_DB[name], result.decibels
