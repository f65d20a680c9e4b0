"""The C compiler and the linker: clang and lld inside the `ziglang` package, so nothing else need be installed.

`zig clang` and `zig ld.lld` are called directly rather than `zig cc`: they keep no cache, so compiles may run side by
side and with a read-only home, and they read no files but the ones named.
"""

import os
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path


class ToolError(Exception):
    """The tool is missing or returned an error; the message holds what it printed."""


# Freestanding, position-independent, integer code that never turns its own loops into calls of memcpy
C_FLAGS = (
    "-std=c11",
    "-O2",
    "-ffreestanding",
    "-fno-builtin",
    "-fno-stack-protector",
    "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables",
    "-fvisibility=hidden",
    "-fPIC",
    "-ffunction-sections",
    "-fdata-sections",
    "-Wall",
    "-Wextra",
    "-Werror",
)


@cache
def zig_folder() -> Path:
    """Where the `ziglang` package lies; ToolError where it is not installed."""
    try:
        import ziglang
    except ImportError as error:
        raise ToolError("the C compiler is missing: install the Python package `ziglang`") from error
    return Path(str(ziglang.__file__)).parent


def zig(*arguments: str, folder: Path) -> None:
    """Runs zig with ``arguments`` in ``folder``; ToolError with its message where it fails."""
    program = zig_folder() / ("zig.exe" if os.name == "nt" else "zig")
    try:
        done = subprocess.run(
            [str(program), *arguments],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        raise ToolError(f"the C compiler {program.name} does not start: {error.strerror or error}") from error
    if done.returncode:
        raise ToolError(f"zig {arguments[0]}: {(done.stderr or done.stdout).strip() or f'exit {done.returncode}'}")


def compile_c(folder: Path, source: str, output: str, triple: str, cpu_flags: Sequence[str] = ()) -> None:
    """Compiles the C file ``source`` to the object ``output``, both relative to ``folder``, without a libc."""
    zig(
        "clang",
        "-target",
        triple,
        *cpu_flags,
        *C_FLAGS,
        "-nostdinc",
        "-isystem",
        str(zig_folder() / "lib/include"),
        "-c",
        source,
        "-o",
        output,
        folder=folder,
    )


def link(folder: Path, *arguments: str) -> None:
    """Runs the ELF linker with ``arguments``, file names relative to ``folder``."""
    zig("ld.lld", *arguments, folder=folder)
