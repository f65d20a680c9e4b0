"""Runs an ARM artifact under qemu-aarch64 (user mode) on a named core, in one process that serves many runs."""

import contextlib
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import weakref
from functools import cache
from importlib import resources
from pathlib import Path
from typing import IO

import numpy as np
from qcompile.runtime.elf_image import parse_elf
from qcompile.runtime.errors import ArtifactError
from qcompile.runtime.manifest import CpuManifest
from qcompile.runtime.toolchain import ToolError, compile_c, link

_MAX = "max,sme=off,sve=off"  # plain 'max' is slow and has vectors that no target uses


@cache
def qemu_program() -> str | None:
    """The path of qemu-aarch64, or None where it is not installed."""
    return shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")


@cache
def _known_cores(program: str) -> frozenset[str]:
    done = subprocess.run([program, "-cpu", "help"], capture_output=True, text=True, check=False)
    return frozenset(done.stdout.split())


def why_not_qemu(manifest: CpuManifest) -> str | None:
    """Why qemu cannot run the artifact, or None where it can."""
    if manifest.arch != "aarch64":
        return f"only aarch64 is emulated, not {manifest.arch}"
    return None if qemu_program() else "qemu-aarch64 is not installed (on Debian and Ubuntu: apt install qemu-user)"


class QemuEngine:
    """A process of qemu-aarch64 that runs the artifact on ``core`` ('cortex-a76', ...; by default the target's)."""

    name = "qemu"

    def __init__(self, manifest: CpuManifest, core: str | None = None) -> None:
        program = qemu_program()
        reason = why_not_qemu(manifest)
        if reason or not program:
            raise ArtifactError(f"{manifest.folder} cannot be emulated: {reason}")
        self._outputs = manifest.outputs
        self._turn = threading.Lock()
        self._core = core or (manifest.emulation if manifest.emulation in _known_cores(program) else _MAX)
        folder = Path(tempfile.mkdtemp(prefix="qcompile-qemu-"))
        try:
            _build_runner(folder)
            self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (as long as the process)
            self._process = subprocess.Popen(
                [program, "-cpu", _MAX if self._core == "max" else self._core, str(folder / "runner")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
            )
            assert self._process.stdin and self._process.stdout
            self._in, self._out = self._process.stdin, self._process.stdout
            self._finalize = weakref.finalize(self, _end, self._process)
            self._send(_opening(manifest))
            self._receive(4)  # it runs now, so its file may go
        except (ToolError, OSError) as error:
            raise ArtifactError(f"cannot start qemu: {error}") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Integer arrays in the manifest's order, types and shapes, in and out; callers take turns."""
        with self._turn:
            return self._run(inputs)

    def _run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        self._send(b"".join(np.ascontiguousarray(values).tobytes() for values in inputs))
        status = struct.unpack("<i", self._receive(4))[0]
        outputs = [
            np.frombuffer(
                self._receive(int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize),
                tensor.dtype,
            )
            .reshape(tensor.shape)
            .copy()
            for tensor in self._outputs
        ]
        if status:
            raise ArtifactError(f"the model returned error {status}")
        return outputs

    def _send(self, data: bytes) -> None:
        try:
            self._in.write(data)
            self._in.flush()
        except OSError as error:
            raise self._died() from error

    def _receive(self, count: int) -> bytes:
        data = self._out.read(count)
        if len(data) < count:
            raise self._died()
        return data

    def _died(self) -> ArtifactError:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        if code in (-signal.SIGILL, 128 + signal.SIGILL):
            return ArtifactError(f"illegal instruction: the core {self._core} cannot run this artifact")
        return ArtifactError(f"qemu ended with {code} on core {self._core}{': ' + lines[-1] if lines else ''}")


def _build_runner(folder: Path) -> None:
    (folder / "runner.c").write_bytes((resources.files("qcompile.runtime") / "c/runner.c").read_bytes())
    compile_c(folder, "runner.c", "runner.o", "aarch64-linux-gnu")
    link(folder, "-static", "-nostdlib", "-e", "_start", "-o", "runner", "runner.o")


def _opening(manifest: CpuManifest) -> bytes:
    image = parse_elf(manifest.read_library(), manifest.library)
    run = image.exports.get(f"{manifest.name}_run")
    if run is None:
        raise ArtifactError(f"{manifest.library} has no function {manifest.name}_run")
    sizes = [
        int(np.prod(tensor.shape, dtype=np.int64)) * np.dtype(tensor.dtype).itemsize
        for tensor in manifest.inputs + manifest.outputs
    ]
    words = (
        len(image.data),
        len(image.relocations),
        run,
        manifest.arena_bytes,
        len(manifest.inputs),
        len(manifest.outputs),
        *sizes,
        *(word for pair in image.relocations for word in pair),
    )
    return struct.pack(f"<{len(words)}Q", *words) + image.data


def _end(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()
    process.kill()
    process.wait()
