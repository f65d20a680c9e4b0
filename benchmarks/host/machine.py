"""This machine: its name, and how fast it can go at all: dot products out of the first cache, reads out of memory."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from qcompile.kernels.cpu.builder import T, bind, cast, function, local, splat
from qcompile.kernels.cpu.compile import compile_module
from qcompile.kernels.cpu.isa import get_isa
from qcompile.kernels.cpu.isa.dot import Dot
from qcompile.runtime.native import aligned_empty
from qcompile.runtime.shared_library import open_library
from qcompile.runtime.toolchain import link
from qcompile.targets import CpuTarget

STEPS = 400_000  # of the dot loop: a few milliseconds, far more than it takes to call it
READ_BYTES = 1 << 28  # more than any cache holds
PIECES = 4  # independent sums of the reading loop
DISTRIBUTIONS = ("qcompile", "onnxruntime", "ai-edge-litert", "torch", "apache-tvm", "numpy")


def threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))


def describe() -> dict[str, Any]:
    """CPU, memory, system, and versions of what is compared."""
    info = Path("/proc/cpuinfo").read_text(errors="replace") if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*:\s*(.*)$", info, re.MULTILINE)
    family = [re.search(rf"^{k}\s*:\s*(\d+)$", info, re.MULTILINE) for k in ("cpu family", "model")]
    return {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "family_model": "/".join(f[1] for f in family if f),
        "arch": platform.machine(),
        "threads": threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()}, Python {platform.python_version()}",
        "versions": {name: v for name in DISTRIBUTIONS if (v := _version(name))},
    }


def ceilings(target: CpuTarget, counts: list[int]) -> dict[str, dict[str, float]]:
    """count of threads -> {"gmacs_per_s": of dot products, "read_gb_per_s": of memory}, the best of several tries."""
    loops = _dot_loops(target)
    best = max(loops, key=lambda loop: _rate(loop, 1, 0.01))  # which tile keeps this CPU's multipliers busiest
    memory = np.ones(READ_BYTES, np.uint8)  # zeros would all be one page
    return {
        str(n): {
            "gmacs_per_s": round(_rate(best, n, n) / 1e9, 1),
            "read_gb_per_s": round(_rate(_reader(target, memory, n), n, 0.5) / 1e9, 2),
        }
        for n in counts
    }


Loop = tuple[Callable[[int], object], float]  # call(thread), and what one call gets done


def _rate(loop: Loop, count: int, seconds: float) -> float:
    """What `count` threads together get done in a second, in the best of the rounds that fit into `seconds`."""
    call, amount = loop
    best, deadline = float("inf"), time.perf_counter() + seconds
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(call, range(count)))
        while True:
            before = time.perf_counter()
            list(pool.map(call, range(count)))
            after = time.perf_counter()
            best = min(best, after - before)
            if after > deadline:
                return amount * count / best


def _dot_loops(target: CpuTarget) -> list[Loop]:
    """One loop for each tile of the target's best dot product; operands stay in the first cache."""
    dot = get_isa(target).dots[0]
    shapes = [(r, c) for r, c in dot.tiles if r > 1]
    dtype = "uint8" if target.unsigned_activations else "int8"
    library = _library({f"dot_{r}x{c}": _dot_loop(dot, r, c, dtype) for r, c in shapes}, target)
    loops = []
    for r, c in shapes:
        entry = library[f"dot_{r}x{c}"]
        groups = dot.groups_a_step(dot.tile(r, c))
        x, w = (aligned_empty((4096,), "uint8") for _ in range(2))
        macs = STEPS * r * c * groups * dot.group

        def call(_: int, entry: Any = entry, x: np.ndarray = x, w: np.ndarray = w) -> None:
            y = aligned_empty((4096,), "int32")
            entry(*(ctypes.c_void_p(a.ctypes.data) for a in (x, w, y)), STEPS)

        loops.append((call, macs))
    return loops


def _dot_loop(dot: Dot, rows: int, columns: int, dtype: str) -> Any:
    tile = dot.tile(rows, columns)
    groups = dot.groups_a_step(tile)

    def body(x, w, y, steps) -> None:
        acc = dot.start(tile)
        with T.serial(0, steps) as step:
            turn = bind(T.bitwise_and(step, 1))  # two sets of operands: no product can be moved out of the loop
            k = groups * dot.group
            pixels = [x.moved((i * 2 + turn) * k) for i in range(rows)]
            dot.step(tile, acc, pixels, w.moved(turn * columns * k), groups)
        for i, row in enumerate(dot.finish(tile, acc)):
            for j, vector in enumerate(row):
                y.store(i * columns + j * dot.lanes, vector)

    return function(
        f"dot_{rows}x{columns}", [("x", dtype + "*"), ("w", "int8*"), ("y", "int32*"), ("steps", "int32")], body
    )


def _reader(target: CpuTarget, memory: np.ndarray, count: int) -> Loop:
    """Every thread adds up its own part of `memory`."""
    lanes = get_isa(target).lanes

    def body(x, y, steps) -> None:
        sums = local(PIECES * lanes, "int32")
        for p in range(PIECES):
            sums.store(p * lanes, splat(0, "int32", lanes))
        with T.serial(0, steps) as i:
            for p in range(PIECES):
                at = (i * PIECES + p) * lanes
                sums.store(p * lanes, sums.load(p * lanes, lanes) + cast(x.load(at, lanes), "int32"))
        for p in range(PIECES):
            y.store(p * lanes, sums.load(p * lanes, lanes))

    entry = _library({"read": function("read", [("x", "int32*"), ("y", "int32*"), ("steps", "int32")], body)}, target)[
        "read"
    ]
    part = memory.size // count
    steps = part // (PIECES * lanes * 4)

    def call(thread: int) -> None:
        out = aligned_empty((PIECES * lanes,), "int32")
        entry(ctypes.c_void_p(memory.ctypes.data + thread * part), ctypes.c_void_p(out.ctypes.data), steps)

    return call, steps * PIECES * lanes * 4


def _library(functions: dict[str, Any], target: CpuTarget) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "loops.o").write_bytes(compile_module(functions, target))
        link(Path(folder), "-shared", "-nostdlib", "-o", "loops.so", "loops.o")
        return open_library((Path(folder) / "loops.so").read_bytes(), "loops")[0]


@cache
def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


__all__ = ["ceilings", "describe", "threads"]
