"""What bench.py measures: the zoo, and the real nets of ../shared/models where they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cases import FOLDER, load_cases
from zoo import ZOO, onnx_file, samples

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / "build" / "bench"
CALIBRATION = 100  # samples of the real nets
Feed = dict[str, np.ndarray]


@dataclass(frozen=True)
class BenchNet:
    """model(): the float ONNX file; calibration(): feeds for the quantizers; tflite: the same net, if there is one."""

    name: str
    model: Callable[[], Path]
    calibration: Callable[[], list[Feed]]
    tflite: Path | None = None

    @property
    def folder(self) -> Path:
        """Where everything made of the net is kept."""
        return CACHE / self.name


def _zoo_net(name: str) -> BenchNet:
    return BenchNet(name, lambda: onnx_file(name, CACHE / "zoo"), lambda: samples(ZOO[name]))


def bench_nets() -> dict[str, BenchNet]:
    """All nets by name: the zoo, then the real nets that lie beside the repository."""
    nets = {name: _zoo_net(name) for name in ZOO}
    if not (FOLDER / "cases.py").exists():
        return nets
    for name, case in load_cases().items():
        tflite = Path(case.model).with_name("int8.tflite")
        nets[name] = BenchNet(
            name,
            lambda c=case: Path(c.model),
            lambda c=case: _few(c.calibration()),
            tflite if tflite.exists() else None,
        )
    return nets


def _few(feeds: list[Feed]) -> list[Feed]:
    return feeds[:: -(-len(feeds) // CALIBRATION)]


__all__ = ["CACHE", "BenchNet", "bench_nets"]
