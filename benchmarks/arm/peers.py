"""The other runtimes on the same inputs, in the lab. Figures change with their version and model only: cached."""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from arm.lab import Core, Lab
from arm.nets import CACHE, Net, file_hash

RUNS = 2
PEERS = {  # name -> (guest_peer's word, the lab's site)
    "ONNX Runtime fp32": ("ort", "onnxruntime"),
    "ONNX Runtime int8": ("ort", "onnxruntime"),
    "LiteRT int8": ("litert", "ai-edge-litert"),
}


@dataclass(frozen=True)
class PeerResult:
    """One inference of a peer; cosine: of its outputs with ours, as real numbers."""

    name: str
    version: str
    instructions: float
    cycles: float
    cosine: float


def models(net: Net) -> dict[str, Path]:
    """Which file each peer runs, where there is one."""
    files = {"ONNX Runtime fp32": net.float_model, "ONNX Runtime int8": net.qdq_model, "LiteRT int8": net.tflite}
    return {name: file for name, file in files.items() if file}


def measure_peers(lab: Lab, net: Net, core: Core) -> list[PeerResult]:
    return [_measure(lab, net, core, name, file) for name, file in models(net).items()]


def _measure(lab: Lab, net: Net, core: Core, name: str, model: Path) -> PeerResult:
    word, site = PEERS[name]
    version = _version(lab, site)
    key = json.dumps([name, version, core.name, core.mca, RUNS, file_hash(model), file_hash(net.reals)])
    cached = CACHE / "peers" / (hashlib.sha256(key.encode()).hexdigest()[:24] + ".json")
    if not cached.exists():
        with tempfile.TemporaryDirectory() as folder:
            outputs = Path(folder) / "y.npz"
            guest = Path(__file__).with_name("guest_peer.py")
            dump = lab.run(core, site, guest, word, model, str(RUNS), net.reals, outputs, identify=True)
            tally = dump.per_run(RUNS)
            with np.load(outputs) as z:
                theirs = [z[n] for n in z.files]
        result = PeerResult(
            name, version, tally.instructions, tally.cycles, _cosine(theirs, net.arrays("real_outputs"))
        )
        cached.parent.mkdir(parents=True, exist_ok=True)
        cached.write_text(json.dumps(asdict(result)))
    return PeerResult(**json.loads(cached.read_text()))


def _version(lab: Lab, site: str) -> str:
    folder = lab.home / f"site-{site}"
    found = sorted(folder.glob(f"{site.replace('-', '_')}-*.dist-info"))
    return found[0].name.split("-")[1] if found else "unknown"


def _cosine(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Of the outputs one after another, those of the same size only (formats order them alike)."""
    pairs = [(x.ravel().astype(np.float64), y.ravel().astype(np.float64)) for x, y in zip(a, b) if x.size == y.size]
    if not pairs:
        return float("nan")
    x, y = (np.concatenate(parts) for parts in zip(*pairs))
    scale = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / scale if scale else 1.0
