"""Runs an artifact natively between unreadable pages: a byte read or written outside its buffers is an error.

Inputs, outputs and arena lie flush at the end of their pages, then at the beginning; arena, outputs and stack hold
junk, another one each time. A process of its own makes the run, so that what it touches shows as a message.
"""

import ctypes
import mmap
import os
import pickle
import platform
import signal
import struct
from dataclasses import dataclass

import numpy as np
from elftools.elf.elffile import ELFFile
from qcompile.artifact.elf import functions
from qcompile.runtime.manifest import Manifest
from qcompile.runtime.pool import ThreadPool
from qcompile.runtime.shared_library import open_library

PAGE = mmap.PAGESIZE
ALIGNMENT = 64
JUNK = (0x00, 0xFF, 0xA5)
STACK_BYTES = 1 << 20  # that are painted; less than a thread's stack has
RSP, RIP, ADDRESS = 40 + 15 * 8, 40 + 16 * 8, 16  # where x86-64 Linux has them in ucontext_t and siginfo_t
_LIBC = ctypes.CDLL(None)


class OutsideBuffers(AssertionError):
    """Code touched memory that is not its own."""


@dataclass
class Region:
    """A buffer between two guard pages; slack: what is left of its pages before and behind it."""

    name: str
    address: int
    view: np.ndarray
    slack: tuple[np.ndarray, np.ndarray]
    memory: mmap.mmap

    @classmethod
    def make(cls, name: str, nbytes: int, at_end: bool) -> "Region":
        room = max(-(-nbytes // PAGE), 1) * PAGE
        memory = mmap.mmap(-1, room + 2 * PAGE)
        whole = np.frombuffer(memory, np.uint8)
        base = whole.ctypes.data
        for guard in (base, base + PAGE + room):
            if _LIBC.mprotect(ctypes.c_void_p(guard), PAGE, 0):
                raise OSError("mprotect failed")
        start = PAGE + ((room - nbytes) // ALIGNMENT * ALIGNMENT if at_end else 0)
        slack = whole[PAGE:start], whole[start + nbytes : PAGE + room]
        return cls(name, base + start, whole[start : start + nbytes], slack, memory)


def run_guarded(manifest: Manifest, inputs: list[np.ndarray], threads: int = 1) -> list[np.ndarray]:
    """Integer outputs, the same from each placement and over each junk.

    Raises OutsideBuffers naming function and buffer where the code leaves its buffers; AssertionError where outputs
    depend on what memory held before, or an input changes.
    """
    results = []
    for at_end in (True, False):
        for junk in JUNK if at_end else JUNK[:1]:
            results.append(_in_child(manifest, inputs, threads, at_end, junk))
    for other in results[1:]:
        for tensor, a, b in zip(manifest.outputs, results[0], other):
            assert np.array_equal(a, b), f"{manifest.name}: output {tensor.name} depends on what memory held before"
    return results[0]


def _in_child(manifest: Manifest, inputs: list[np.ndarray], threads: int, at_end: bool, junk: int) -> list[np.ndarray]:
    where = f"{manifest.name} ({manifest.target}), buffers at the {'end' if at_end else 'beginning'} of their pages"
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        try:
            answer = ("done", _run(manifest, inputs, threads, at_end, junk, send))
        except BaseException as error:
            answer = ("failed", f"{type(error).__name__}: {error}")
        _answer(send, *answer)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    kind, value = pickle.loads(data) if data else ("killed", f"killed by signal {status & 127}")
    if kind in ("fault", "killed"):
        raise OutsideBuffers(f"{where}: {value}")
    assert kind == "done", f"{where}: {value}"
    return value


def _answer(pipe: int, kind: str, value: object) -> None:
    data = pickle.dumps((kind, value))
    while data:
        data = data[os.write(pipe, data) :]
    os._exit(0)


def _run(
    manifest: Manifest, inputs: list[np.ndarray], threads: int, at_end: bool, junk: int, pipe: int
) -> list[np.ndarray]:
    library, _ = open_library(manifest.library.read_bytes(), manifest.library.name)
    arena_bytes, init, run = (library[f"{manifest.name}_{word}"] for word in ("arena_bytes", "init", "run"))
    arena_bytes.restype = ctypes.c_size_t
    regions = [Region.make("the arena", arena_bytes(), at_end)]
    for kind, tensors in (("input", manifest.inputs), ("output", manifest.outputs)):
        for tensor in tensors:
            nbytes = int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize
            regions.append(Region.make(f"{kind} {tensor.name}", nbytes, at_end))
    for region in regions:
        for part in (region.view, *region.slack):
            part[:] = junk
    given, made = np.split(np.array(regions, object), [1 + len(inputs)])
    for region, array in zip(given[1:], inputs):
        region.view[:] = np.frombuffer(np.ascontiguousarray(array).tobytes(), np.uint8)
    init.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    pool = ThreadPool(threads) if threads > 1 else None
    init(*(pool.parallel_for_arguments() if pool else (None, None, 1)))
    tables = [(ctypes.c_void_p * len(part))(*(r.address for r in part)) for part in (given[1:], made)]
    _report_faults(manifest, run, regions, pipe)
    _paint_stack(junk)
    status = run(*tables, ctypes.c_void_p(regions[0].address))
    if status:
        raise AssertionError(f"the model returned error {status}")
    for region in regions:
        for side, part in zip(("before", "behind"), region.slack):
            assert (part == junk).all(), f"bytes {side} {region.name} were written"
    for region, array in zip(given[1:], inputs):
        assert region.view.tobytes() == np.ascontiguousarray(array).tobytes(), f"{region.name} was written"
    return [r.view.view(t.dtype).reshape(t.shape).copy() for r, t in zip(made, manifest.outputs)]


def _report_faults(manifest: Manifest, function: ctypes._CFuncPtr, regions: list[Region], pipe: int) -> None:
    """On a fault, says which function touched what, where the machine's signal frames are known."""
    if platform.machine() != "x86_64":
        return
    with manifest.library.open("rb") as file:
        elf = ELFFile(file)
        known = functions(elf)
        entry = next(
            s["st_value"] for s in elf.get_section_by_name(".dynsym").iter_symbols() if s.name == f"{manifest.name}_run"
        )
    base = ctypes.cast(function, ctypes.c_void_p).value - entry

    @ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
    def report(number, info, context):
        address, at = (struct.unpack("<Q", ctypes.string_at(p + o, 8))[0] for p, o in ((info, ADDRESS), (context, RIP)))
        name = next((n for start, n in reversed(known) if start <= at - base), "the code")
        near = min(regions, key=lambda r: abs(address - r.address - len(r.view) / 2))
        place = f"{address - near.address:+d} of {near.name} ({len(near.view)} bytes)"
        _answer(pipe, "fault", f"{name} touches byte {place}, {signal.Signals(number).name}")

    function.keep = report
    action = _sigaction(ctypes.cast(report, ctypes.c_void_p).value)
    for number in (signal.SIGSEGV, signal.SIGBUS):
        _LIBC.sigaction(int(number), action, None)


def _sigaction(handler: int) -> ctypes.Array:
    """glibc's struct sigaction with SA_SIGINFO: handler, mask of 128 bytes, flags."""
    return ctypes.create_string_buffer(struct.pack("<Q128xi4xQ", handler, 4, 0))


def _paint_stack(junk: int) -> None:
    """Fills the stack below the frames that calls from here have in common."""
    if platform.machine() != "x86_64":
        return
    context = ctypes.create_string_buffer(4096)
    _LIBC.getcontext(context)
    top = struct.unpack_from("<Q", context, RSP)[0] - 256
    _LIBC.memset(ctypes.c_void_p(top - STACK_BYTES), junk, ctypes.c_size_t(STACK_BYTES))
