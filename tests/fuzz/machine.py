"""Runs a native artifact between unreadable pages, on memory and a stack that are painted before."""

from __future__ import annotations

import ctypes
import mmap
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from qcompile.runtime.shared_library import open_library
from qcompile.runtime.toolchain import compile_c, link
from qcompile.targets import get_target

PAGE = mmap.PAGESIZE
ALIGNMENT = 64
CANARY = 0x5C
FILLS = (0x00, 0xAA, 0xFF)
NO_ACCESS = 0
PAINT = """
__attribute__((visibility("default"))) void paint(int value);
void paint(int value) {
    volatile unsigned char room[200000];
    for (int i = 0; i < 200000; i++) room[i] = (unsigned char)value;
}
"""
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Guarded:
    """`count` bytes between two pages that cannot be touched: they begin right after the one (`at_end` False), or end,
    but for their alignment, right before the other."""

    def __init__(self, count: int, at_end: bool) -> None:
        size = max(-(-count // PAGE), 1) * PAGE
        self.memory = mmap.mmap(-1, size + 2 * PAGE)
        whole = np.frombuffer(self.memory, np.uint8)
        base = whole.ctypes.data
        for guard in (base, base + PAGE + size):
            if _libc.mprotect(guard, PAGE, NO_ACCESS):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.room = whole[PAGE : PAGE + size]
        start = (size - count) // ALIGNMENT * ALIGNMENT if at_end else 0
        self.inside = slice(start, start + count)
        self.bytes = self.room[self.inside]

    def fill(self, value: int) -> None:
        self.room[:] = CANARY
        self.bytes[:] = value

    def untouched(self) -> bool:
        """Whether every byte around the buffer is what it was."""
        outside = np.ones(self.room.size, bool)
        outside[self.inside] = False
        return bool((self.room[outside] == CANARY).all())


@cache
def painter() -> Any:
    """A C function that writes one value over the stack below it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "paint.c").write_text(PAINT)
        compile_c(folder, "paint.c", "paint.o", get_target("host").triple)
        link(folder, "-shared", "-o", "paint.so", "paint.o")
        library, _ = open_library((folder / "paint.so").read_bytes(), "paint")
    return library.paint


def run_guarded(model: Any, codes: dict[str, np.ndarray]) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """(how, outputs) of runs whose buffers lie at either end of their pages, each on differently painted memory.

    A byte read or written beyond a page ends the process; one written within the page raises AssertionError.
    """
    manifest = model.manifest
    library, close = open_library(manifest.library.read_bytes(), manifest.library.name)
    function = library[f"{manifest.name}_run"]
    library[f"{manifest.name}_init"](None, None, 1)
    paint = painter()
    for at_end, fill in ((False, FILLS[0]), (True, FILLS[1]), (True, FILLS[2])):
        inputs = [Guarded(_bytes(t), at_end) for t in model.inputs]
        outputs = [Guarded(_bytes(t), at_end) for t in model.outputs]
        arena = Guarded(manifest.arena_bytes, at_end)
        for room in (*inputs, *outputs, arena):
            room.fill(fill)
        for room, tensor in zip(inputs, model.inputs):
            room.bytes[:] = np.ascontiguousarray(codes[tensor.name]).reshape(-1).view(np.uint8)
        arguments = _pointers(inputs), _pointers(outputs), ctypes.c_void_p(arena.bytes.ctypes.data)
        paint(fill)
        status = function(*arguments)
        how = f"{'end' if at_end else 'start'} of its pages, filled with {fill:#04x}"
        assert status == 0, f"the model returned error {status}"
        touched = [r for r in (*inputs, *outputs, arena) if not r.untouched()]
        assert not touched, f"bytes beside a buffer were written ({how})"
        for room, tensor in zip(inputs, model.inputs):
            given = np.ascontiguousarray(codes[tensor.name]).reshape(-1).view(np.uint8)
            assert np.array_equal(room.bytes, given), f"the input {tensor.name} was written to ({how})"
        yield how, {t.name: r.bytes.view(t.dtype).reshape(t.shape).copy() for t, r in zip(model.outputs, outputs)}
    close()


def _bytes(tensor: Any) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize


def _pointers(rooms: list[Guarded]) -> Any:
    return (ctypes.c_void_p * len(rooms))(*(r.bytes.ctypes.data for r in rooms))
