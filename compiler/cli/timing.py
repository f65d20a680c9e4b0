"""The latency of an artifact and its peers, measured in turns, and the table of it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from qcompile.cli.peers import Peer
from qcompile.cli.tables import add_row, new_table, print_tables
from qcompile.npz import read_npz
from qcompile.runtime import ArtifactError, Model, Tensor

_TURN_NS = 5_000_000  # how long one contender runs before the next takes its turn


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
    while (
        min(sum(len(turn.ns) for turn in turns) for turns in samples) < repeat
        if repeat
        else not samples[0] or time.perf_counter() < deadline
    ):
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


def integer_inputs(model: Model, file: Path | None) -> dict[str, np.ndarray]:
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
    return {
        "median_us": round(float(np.median(microseconds)), 3),
        "min_us": round(float(microseconds.min()), 3),
        "p95_us": round(float(np.percentile(microseconds, 95)), 3),
        **cpu,
        "calls": len(microseconds),
    }


def _spread(own: list[Turn], peer: list[Turn]) -> list[float]:
    """Quartiles of the ratio, taken turn by turn: how far it moves with the state of the machine."""
    ratios = [np.median(theirs.ns) / np.median(ours.ns) for ours, theirs in zip(own, peer)]
    return [round(float(q), 4) for q in np.percentile(ratios, (25, 75))]


def report_of(
    model: Model, threads: int, contenders: list[Peer], samples: list[list[Turn]], repeat: int | None
) -> dict[str, Any]:
    own, *others = (_statistics(turns, repeat, threads) for turns in samples)
    peers = [
        {
            "name": peer.name,
            "model": peer.model,
            **figures,
            "ratio": round(figures["median_us"] / own["median_us"], 4),
            "ratio_quartiles": _spread(samples[0], turns),
        }
        for peer, figures, turns in zip(contenders[1:], others, samples[1:])
    ]
    return {
        "name": model.manifest.name,
        "target": model.manifest.target,
        "cpu": model.manifest.machine,
        "threads": threads,
        **own,
        "peers": peers,
    }


def print_report(report: dict[str, Any]) -> None:
    """A row for the artifact and for each of its peers."""
    times = [key for key in ("median_us", "min_us", "p95_us", "cpu_us") if key in report]
    table = new_table(
        "",
        *(f">{key.removesuffix('_us')}" for key in times),
        ">calls",
        ">ratio",
        ">quartiles",
        title=f"{report['name']} on {report['cpu']}, {report['threads']} thread(s), microseconds",
    )
    for row, label in (
        (report, "qcompile"),
        *((peer, f"{peer['name']}: {Path(peer['model']).name}") for peer in report["peers"]),
    ):
        add_row(
            table,
            label,
            *(f"{row[key]:.1f}" for key in times),
            str(row["calls"]),
            *(
                [f"{row['ratio']:.2f}", "{:.2f} to {:.2f}".format(*row["ratio_quartiles"])]
                if "ratio" in row
                else ["", ""]
            ),
        )
    print_tables(table)
