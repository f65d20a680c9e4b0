"""python -m fuzz: random graphs against the compiler; prints its seeds, and what it found."""

from __future__ import annotations

import argparse
import datetime
import itertools
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from fuzz import report
from fuzz.case import Case, load
from fuzz.check import FINDINGS, LOW, Result

ENOUGH = 2  # small graphs of one kind and place
ROOT = Path(__file__).resolve().parents[2]


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--graphs", type=int, default=1000, help="how many")
    parser.add_argument("--seed", type=int, help="the first seed; default: of the day")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="end after so long")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for each compile and each run")
    parser.add_argument("--resume", action="store_true", help="leave out the seeds that the results file has")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz", help="results and failing graphs")
    parser.add_argument("--keep", action="store_true", help="also write what is minimised to tests/regressions")
    parser.add_argument("--no-minimise", action="store_true", help="keep failing graphs as they are")
    parser.add_argument("--report", action="store_true", help="only print the figures of the results file")
    parser.add_argument("--rerun", action="store_true", help="only try again what failed in the results file")
    parser.add_argument("--low", action="store_true", help="also minimise graphs at 8 bits with samples that are noisy")
    parser.add_argument("case", nargs="*", type=Path, help="run these .onnx files instead of seeds")
    return parser.parse_args(arguments)


def targets() -> list[str]:
    """Those that this machine runs, itself or by an emulator."""
    import shutil

    from qcompile.targets import get_target, supports

    from fuzz.generate import TARGETS

    found = []
    for name in TARGETS:
        target = get_target(name)
        emulated = target.arch == "aarch64" and ("i8mm" not in target.features or shutil.which("qemu-aarch64"))
        if supports(target) or emulated:
            found.append(name)
    return found


def seeds(options: argparse.Namespace, done: set[int]) -> Iterator[int]:
    end = time.monotonic() + 60 * options.minutes
    for seed in itertools.count(options.seed):
        if seed >= options.seed + options.graphs or time.monotonic() > end:
            return
        if seed not in done:
            yield seed


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    results = options.folder / "results.jsonl"
    if options.report:
        print(report.figures(report.read(results)))
        return 0
    if options.seed is None:
        options.seed = int(datetime.datetime.now(datetime.UTC).strftime("%Y%m%d")) * 10_000
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from fuzz.workers import run_cases, warm

    available = targets()
    print(f"seeds from {options.seed}, targets {', '.join(available)}", flush=True)
    warm(available)
    if options.case:
        return _cases(options, [load(path) for path in options.case])
    old = report.read(results)
    if not options.resume and not options.rerun and results.exists():
        results.unlink()
        old = []
    began, failing = time.monotonic(), options.folder / "cases"
    rows, makers = old, ((s, partial(_make, s, available)) for s in seeds(options, {r["seed"] for r in old}))
    if options.rerun:
        failed = [(r["seed"], failing / f"{r['seed']}.onnx") for r in old if r["kind"] in FINDINGS]
        rows, makers = [], ((s, partial(load, path)) for s, path in failed if path.exists())
        results = options.folder / "rerun.jsonl"
        results.unlink(missing_ok=True)
    alike: Counter[str] = Counter()
    for seed, result in run_cases(makers, options.jobs, options.limit, failing):
        path = failing / f"{seed}.onnx"
        case = load(path) if path.exists() else None
        rows.append(report.row(seed, result, case.options if case else {}))
        report.append(results, rows[-1])
        if worth(options, case, result):
            print(f"seed {seed}: {result.kind}: {result.where}: {result.reason[:200]}", flush=True)
            alike[signature := f"{result.kind} {result.where}"] += 1
            if case is not None and not options.no_minimise and alike[signature] <= ENOUGH:
                _minimise(options, case, result)
        elif not options.rerun and not _noisy(case, result):
            for file in (path, path.with_suffix(".npz")):
                file.unlink(missing_ok=True)
    rate = len(rows) / max(time.monotonic() - began, 1e-9)
    print(f"{report.figures(rows)}\n\n{rate:.2f} graphs a second; seeds from {options.seed}; results in {results}")
    return int(report.is_hard(rows))


def _noisy(case: Case | None, result: Result) -> bool:
    return result.kind == LOW and case is not None and str(case.options["bits"]) == "8" and case.options["calibrated"]


def worth(options: argparse.Namespace, case: Case | None, result: Result) -> bool:
    """Whether it is to be made small: a finding, or noise where that is asked for."""
    return result.kind in FINDINGS or (options.low and _noisy(case, result))


def _make(seed: int, available: list[str]) -> Case:
    from fuzz.generate import generate

    return generate(seed, available)


def _cases(options: argparse.Namespace, cases: list[Case]) -> int:
    from fuzz.workers import run_cases

    makers: list[tuple[int, Callable[[], Case]]] = [(i, lambda c=c: c) for i, c in enumerate(cases)]  # type: ignore[misc]
    rows = []
    for i, result in run_cases(makers, options.jobs, options.limit):
        rows.append(report.row(i, result, cases[i].options))
        print(f"{cases[i].name}: {result.kind}: {result.where}: {result.reason[:300]} {result.decibels}", flush=True)
        if worth(options, cases[i], result) and not options.no_minimise:
            _minimise(options, cases[i], result)
    return int(report.is_hard(rows))


def _minimise(options: argparse.Namespace, case: Case, result: Result) -> None:
    from fuzz.minimise import minimise

    small = minimise(case, result, options.limit)
    folders = [options.folder / "minimised", *([ROOT / "tests" / "regressions"] if options.keep else [])]
    for folder in folders:
        path = small.save(folder)
    nodes = ", ".join(n.op_type for n in small.model.graph.node)
    print(f"  {path}: {nodes}; {small.options}", flush=True)
    report.append(
        options.folder / "findings.jsonl",
        {"name": small.name, "kind": result.kind, "where": result.where, "reason": result.reason, "nodes": nodes},
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
