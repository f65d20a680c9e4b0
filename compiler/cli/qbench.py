"""qbench: the latency of an artifact, and of its peers in the same run."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
from qcompile.cli.messages import one_line_errors, read_npz, write_whole
from qcompile.cli.peers import Peer, open_peer
from qcompile.cli.profile import print_profile, profile
from qcompile.runtime import ArtifactError, Model, Tensor, load
from qcompile.runtime.native import NativeEngine
from rich.console import Console
from rich.table import Table

_TURN_NS = 5_000_000  # how long one contender runs before the next takes its turn


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--against", multiple=True, metavar="PEER",
              help="onnxruntime (the QDQ model in the artifact's folder), onnxruntime:MODEL.onnx or "
                   "litert:MODEL.tflite; repeatable.")
@click.option("--input", "input_file", type=click.Path(path_type=Path),
              help="npz file whose first sample to run; by default made-up values.")
@click.option("--repeat", type=click.IntRange(1), help="Measured calls of each; by default as many as fit --seconds.")
@click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(0.01), help="Time for each contender.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads, of the peers too.")
@click.option("--profile", "with_profile", is_flag=True,
              help="Also the time per op, from the same kernels with a time stamp around each.")
@click.option("--json", "json_file", metavar="FILE", help="Also write the figures as JSON; '-' for standard output.")
@one_line_errors
def main(artifact: Path, against: tuple[str, ...], input_file: Path | None, repeat: int | None, seconds: float,
         threads: int, with_profile: bool, json_file: str | None) -> None:
    """Measures the latency of the compiled ARTIFACT folder on this machine.

    Peers run in the same process in turns of a few milliseconds, so that a busy moment slows all alike; a ratio is
    the peer's median over the artifact's: above 1, the artifact is faster.  Quantizing the inputs is not timed.  CPU
    time (with one thread) leaves out what other processes take: see it where the machine is busy.
    """
    model = load(artifact, threads=threads, backend="native")
    inputs = _inputs(model, input_file)
    model.run_integer(inputs)
    engine = model.engine
    assert isinstance(engine, NativeEngine)
    function, arguments = engine.function, engine.arguments
    peers = [open_peer(text, model, inputs, threads) for text in against]
    ours = Peer(model.manifest.name, str(artifact), lambda: function(*arguments))
    samples = measure([contender.call for contender in (ours, *peers)], repeat, seconds)
    report = _report(model, threads, [ours, *peers], samples, repeat)
    if with_profile:
        report["profile"] = profile(model, inputs, seconds, threads)
    if json_file != "-":
        _print(report)
        if with_profile:
            print_profile(report["profile"])
    if json_file:
        text = json.dumps(report, indent=2) + "\n"
        if json_file == "-":
            click.echo(text, nl=False)
        else:
            write_whole(Path(json_file), text.encode())


@dataclass(frozen=True)
class Turn:
    """ns: of each call; cpu_ns: CPU time of the calling thread for one call, which leaves out interruptions."""

    ns: np.ndarray
    cpu_ns: float


def measure(calls: list[Callable[[], object]], repeat: int | None, seconds: float) -> list[list[Turn]]:
    """Times each of ``calls`` in turns: ``repeat`` calls of each at least, else as many turns as fit into ``seconds``
    for each.

    A turn's first call finds the caches full of the others' data; where a turn has more calls, it is left out.
    """
    samples: list[list[Turn]] = [[] for _ in calls]
    deadline = time.perf_counter() + seconds * len(calls)
    while (min(sum(len(turn.ns) for turn in turns) for turns in samples) < repeat if repeat
           else not samples[0] or time.perf_counter() < deadline):
        for call, kept in zip(calls, samples):
            kept.append(_turn(call))
    return samples


def _turn(call: Callable[[], object]) -> Turn:
    clock = time.perf_counter_ns
    times = []
    end, cpu = clock() + _TURN_NS, time.thread_time_ns()
    while True:
        before = clock()
        call()
        after = clock()
        times.append(after - before)
        if after >= end:
            cpu = time.thread_time_ns() - cpu
            return Turn(np.array(times[1:] if len(times) > 3 else times), cpu / len(times))


def _inputs(model: Model, file: Path | None) -> dict[str, np.ndarray]:
    """The artifact's integers: the first sample of ``file``, else made up, with ones for ids and masks."""
    if file is None:
        random = np.random.default_rng(0)
        return {tensor.name: _made_up(tensor, random) for tensor in model.inputs}
    arrays = read_npz(file)
    for tensor in model.inputs:
        array = arrays.get(tensor.name)
        if array is None:
            raise ArtifactError(f"{file} has no array {tensor.name!r}")
        if array.shape != tensor.shape and array.ndim and len(array):
            sample = array[0]
            arrays[tensor.name] = sample.reshape(tensor.shape) if sample.size == math.prod(tensor.shape) else array
    return model.quantize({tensor.name: arrays[tensor.name] for tensor in model.inputs})


def _made_up(tensor: Tensor, random: np.random.Generator) -> np.ndarray:
    if tensor.scale is None:
        return np.ones(tensor.shape, tensor.dtype)
    limits = np.iinfo(tensor.dtype)
    return random.integers(limits.min, limits.max, tensor.shape, tensor.dtype, endpoint=True)


def _statistics(turns: list[Turn], repeat: int | None, threads: int) -> dict[str, float]:
    microseconds = np.concatenate([turn.ns for turn in turns])[:repeat] / 1000
    cpu = {"cpu_us": round(float(np.median([turn.cpu_ns for turn in turns])) / 1000, 3)} if threads == 1 else {}
    return {"median_us": round(float(np.median(microseconds)), 3), "min_us": round(float(microseconds.min()), 3),
            "p95_us": round(float(np.percentile(microseconds, 95)), 3), **cpu, "calls": len(microseconds)}


def _spread(own: list[Turn], peer: list[Turn]) -> list[float]:
    """Quartiles of the ratio, taken turn by turn: how far it moves with the state of the machine."""
    ratios = [np.median(theirs.ns) / np.median(ours.ns) for ours, theirs in zip(own, peer)]
    return [round(float(q), 4) for q in np.percentile(ratios, (25, 75))]


def _report(model: Model, threads: int, contenders: list[Peer], samples: list[list[Turn]],
            repeat: int | None) -> dict[str, Any]:
    own, *others = (_statistics(turns, repeat, threads) for turns in samples)
    peers = [{"name": peer.name, "model": peer.model, **figures,
              "ratio": round(figures["median_us"] / own["median_us"], 4),
              "ratio_quartiles": _spread(samples[0], turns)}
             for peer, figures, turns in zip(contenders[1:], others, samples[1:])]
    return {"name": model.manifest.name, "target": model.manifest.target, "cpu": model.manifest.cpu,
            "threads": threads, **own, "peers": peers}


def _print(report: dict[str, Any]) -> None:
    table = Table(title=f"{report['name']} on {report['cpu']}, {report['threads']} thread(s), microseconds")
    times = [key for key in ("median_us", "min_us", "p95_us", "cpu_us") if key in report]
    for heading in ("", *(key.removesuffix("_us") for key in times), "calls", "ratio", "quartiles"):
        table.add_column(heading, justify="right" if heading else "left", overflow="fold")
    for row, label in ((report, "qcompile"), *((peer, f"{peer['name']}: {Path(peer['model']).name}")
                                               for peer in report["peers"])):
        table.add_row(label, *(f"{row[key]:.1f}" for key in times), str(row["calls"]),
                      *([f"{row['ratio']:.2f}", "{:.2f} to {:.2f}".format(*row["ratio_quartiles"])]
                        if "ratio" in row else ["", ""]))
    Console().print(table)


if __name__ == "__main__":
    main()
