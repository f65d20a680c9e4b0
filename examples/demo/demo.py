"""The main job on real input: a vision transformer becomes integer instructions, for this machine and for a Cortex-A76.

Prints accuracy beside ONNX Runtime, latency beside it, and what was proved of the machine code.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import qcompile
from qcompile.cli.timing import measure
from rich.console import Console
from rich.progress import track
from rich.table import Table

HERE = Path(__file__).parent
MODEL = HERE / "vit_mnist.onnx"


def session(path: Path) -> onnxruntime.InferenceSession:
    """ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def accuracy(logits: list[np.ndarray], labels: np.ndarray) -> float:
    return float((np.concatenate(logits).argmax(1) == labels[: len(logits)]).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--digits", type=int, default=1000, help="digits to classify on this machine (at most 3000)")
    parser.add_argument("--emulated", type=int, default=50, help="digits to classify as a Cortex-A76, emulated")
    arguments = parser.parse_args()
    console = Console()
    data = np.load(HERE / "digits.npz")
    images = data["x"][: arguments.digits, None].astype(np.float32) / 255
    labels = data["y"]
    samples = [{"image": x[None, None].astype(np.float32) / 255} for x in data["calib"]]

    with tempfile.TemporaryDirectory() as folder:
        built = {t: qcompile.compile(MODEL, t, calibration=samples, output=folder) for t in ("host", "arm-a76")}
        host, arm = (qcompile.load(built[t].path) for t in ("host", "arm-a76"))
        peers = {
            "ONNX Runtime float": session(MODEL),
            "ONNX Runtime int8": session(built["host"].path / "model.qdq.onnx"),
        }

        quiet = not console.is_terminal
        ours = [
            host.run({"image": x[None]})["logits"]
            for x in track(images, "this machine", console=console, disable=quiet, transient=True)
        ]
        rows = [("qcompile, this machine", accuracy(ours, labels), len(ours))]
        few = images[: arguments.emulated]
        emulated = [
            arm.run({"image": x[None]})["logits"]
            for x in track(few, "Cortex-A76", console=console, disable=quiet, transient=True)
        ]
        rows.append((f"qcompile, Cortex-A76 ({arm.engine.name})", accuracy(emulated, labels), len(emulated)))
        for name, peer in peers.items():
            rows.append((name, accuracy([peer.run(None, {"image": x[None]})[0] for x in images], labels), len(images)))
        same = sum(np.array_equal(a, b) for a, b in zip(ours, emulated))
        reference = sum(np.array_equal(host.reference({"image": x[None]})["logits"], y) for x, y in zip(few, ours))

        table = Table(title="accuracy on MNIST test digits")
        for heading in ("", "accuracy", "digits"):
            table.add_column(heading, justify="right" if heading else "left")
        for name, value, count in rows:
            table.add_row(name, f"{value:.4f}", str(count))
        console.print(table)
        console.print(
            f"bit for bit: Cortex-A76 = this machine on {same} of {len(few)} digits, numpy reference = this machine on "
            f"{reference} of {len(few)}",
            highlight=False,
        )

        x = host.quantize({"image": images[0][None]})
        calls = [
            lambda: host.run_integer(x),
            *(lambda p=p: p.run(None, {"image": images[0][None]}) for p in peers.values()),
        ]
        times = [float(np.median(np.concatenate([t.ns for t in turns]))) / 1000 for turns in measure(calls, None, 1.0)]
        console.print(
            f"latency, one thread, median, Python calls included: qcompile {times[0]:.0f} µs"
            + "".join(f", {name} {t:.0f} µs ({t / times[0]:.1f} times ours)" for name, t in zip(peers, times[1:])),
            highlight=False,
        )
        for target, artifact in built.items():
            m, p = artifact.manifest, artifact.manifest["proof"]
            console.print(
                f"{target}: {p['float_instructions']} float instructions in {p['instructions']}, "
                f"{p['undefined_symbols']} undefined symbols, "
                f"{m['code_bytes'] / 1000:.0f} kB code, {m['weights_bytes'] / 1000:.0f} kB weights, "
                f"{m['arena_bytes'] / 1000:.0f} kB arena",
                highlight=False,
            )
    if same != len(few) or reference != len(few):
        raise SystemExit("the targets disagree")


if __name__ == "__main__":
    main()
