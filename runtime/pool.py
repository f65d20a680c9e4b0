"""Threads for an artifact's parallel loops: started by Python, working in C, where they need no interpreter lock."""

import ctypes
import os
import platform
import shutil
import tempfile
import threading
import weakref
from functools import cache
from importlib import resources
from pathlib import Path

from qcompile.runtime.errors import ArtifactError
from qcompile.runtime.shared_library import open_library
from qcompile.runtime.toolchain import ToolError, compile_c, link

_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}


@cache
def _library() -> ctypes.CDLL:
    """The pool of `c/pool.c`, compiled for this machine: 60 ms, once a process, nothing kept on disk."""
    arch = _MACHINES.get(platform.machine().lower(), "")
    folder = Path(tempfile.mkdtemp(prefix="qcompile-pool-"))
    try:
        (folder / "pool.c").write_bytes((resources.files("qcompile.runtime") / "c/pool.c").read_bytes())
        flags = ["-mno-outline-atomics"] if arch == "aarch64" else []
        compile_c(folder, "pool.c", "pool.o", f"{arch}-linux-gnu", flags)
        link(folder, "-shared", "-nostdlib", "--no-undefined", "-o", "pool.so", "pool.o")
        library, _ = open_library((folder / "pool.so").read_bytes(), "qcompile-pool")
    except (ToolError, OSError) as error:
        raise ArtifactError(f"cannot set up threads ({error}); run with one thread") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    library.pool_bytes.restype = ctypes.c_size_t
    for function in (library.pool_work, library.pool_stop):
        function.restype = None
        function.argtypes = [ctypes.c_void_p]
    return library


class ThreadPool:
    """``threads - 1`` helpers beside the calling thread, no more than there are cores; they sleep between runs.

    One pool serves one caller at a time; the helpers end with it.
    """

    def __init__(self, threads: int) -> None:
        library = _library()
        memory = ctypes.create_string_buffer(library.pool_bytes() + 64)
        address = (ctypes.addressof(memory) + 63) & ~63
        helpers = min(threads, len(os.sched_getaffinity(0))) - 1
        self._arguments = (ctypes.cast(library.pool_parallel_for, ctypes.c_void_p), ctypes.c_void_p(address), threads)
        for _ in range(helpers):
            # the helpers keep the memory alive until they have returned
            threading.Thread(target=_help, args=(library, address, memory), daemon=True).start()
        self._stop = weakref.finalize(self, library.pool_stop, address)

    def parallel_for_arguments(self) -> tuple[ctypes.c_void_p, ctypes.c_void_p, int]:
        """(function, pool, number of threads) as ``NAME_init`` takes them."""
        return self._arguments


def _help(library: ctypes.CDLL, address: int, memory: object) -> None:
    library.pool_work(address)
    del memory
