"""Runs an artifact on this machine's own CPU."""

import ctypes
import platform
import re
import threading
import weakref
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from pathlib import Path

import numpy as np
from qcompile.runtime.errors import ArtifactError
from qcompile.runtime.manifest import CpuManifest
from qcompile.runtime.pool import ThreadPool
from qcompile.runtime.shared_library import open_library

_ALIGNMENT = 64


@cache
def _machine() -> tuple[str, frozenset[str]]:
    """(architecture, CPU flags that every core has) of this machine."""
    name = platform.machine().lower()
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        text = ""
    cores = [frozenset(core.split()) for core in re.findall(r"^(?:flags|Features)\s*:\s*(.*)$", text, re.MULTILINE)]
    common = frozenset.intersection(*cores) if cores else frozenset()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name), common


def why_not_native(manifest: CpuManifest) -> str | None:
    """Why this machine cannot run the artifact itself, or None where it can."""
    arch, flags = _machine()
    if platform.system() != "Linux":
        return f"it is a Linux library and this is {platform.system()}"
    if arch != manifest.arch:
        return f"it is for {manifest.arch} and this machine is {arch}"
    missing = [flag for flag in manifest.cpu_flags if flag not in flags]
    return f"this CPU lacks {', '.join(missing)}" if missing else None


def aligned_empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """An uninitialised array that begins on a 64-byte boundary."""
    count = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    raw = np.empty(count + _ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + count].view(dtype).reshape(shape)


class Buffers:
    """Inputs, outputs and arena of one caller, and the arguments of ``NAME_run`` that point to them."""

    def __init__(self, manifest: CpuManifest, arena_bytes: int) -> None:
        self.inputs = [aligned_empty(tensor.shape, tensor.dtype) for tensor in manifest.inputs]
        self.outputs = [aligned_empty(tensor.shape, tensor.dtype) for tensor in manifest.outputs]
        self._arena = aligned_empty((max(arena_bytes, 1),), "uint8")
        self.arguments = (_pointers(self.inputs), _pointers(self.outputs), ctypes.c_void_p(self._arena.ctypes.data))


class NativeEngine:
    """The library loaded into this process. Callers side by side have buffers of their own, which are kept for later
    ones; with several threads to a call they take turns, since the library is lent one pool.

    ``inputs``, ``outputs`` and ``arguments`` are those of the first caller, for what times ``function`` itself.
    """

    name = "native"

    def __init__(self, manifest: CpuManifest, threads: int) -> None:
        reason = why_not_native(manifest)
        if reason:
            raise ArtifactError(f"{manifest.folder} cannot run natively: {reason}")
        try:
            library, close = open_library(manifest.read_library(), manifest.library.name)
            weakref.finalize(self, close).atexit = False
            self.function = library[f"{manifest.name}_run"]
            arena_bytes = library[f"{manifest.name}_arena_bytes"]
            init = library[f"{manifest.name}_init"]
        except (OSError, AttributeError) as error:
            raise ArtifactError(f"cannot load {manifest.library}: {error}") from error
        arena_bytes.restype = ctypes.c_size_t
        self.manifest, self.threads, self._arena_bytes = manifest, threads, arena_bytes()
        first = Buffers(manifest, self._arena_bytes)
        self.inputs, self.outputs, self.arguments = first.inputs, first.outputs, first.arguments
        self._idle = [first]
        self._pool = ThreadPool(threads) if threads > 1 else None
        self._turn: AbstractContextManager = threading.Lock() if self._pool else nullcontext()
        init.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
        init(*(self._pool.parallel_for_arguments() if self._pool else (None, None, 1)))
        self.function.restype = ctypes.c_int

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Integer arrays in the manifest's order, types and shapes, in and out."""
        try:
            buffers = self._idle.pop()  # of a list, which threads may share
        except IndexError:
            buffers = Buffers(self.manifest, self._arena_bytes)
        try:
            for buffer, values in zip(buffers.inputs, inputs):
                buffer[...] = values
            with self._turn:
                status = self.function(*buffers.arguments)
            if status:
                raise ArtifactError(f"the model returned error {status}")
            return [buffer.copy() for buffer in buffers.outputs]
        finally:
            self._idle.append(buffers)


def _pointers(arrays: list[np.ndarray]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
