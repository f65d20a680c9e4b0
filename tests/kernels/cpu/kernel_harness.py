"""Runs lowered nodes on this machine or on an emulated ARM core, with memory that begins or ends where buffers do.

Each case runs twice: every buffer begins right behind a page that is not mapped, then every buffer ends 64 to 127 bytes
(the slack that kernels may read, and alignment) before one; canaries behind it show writes past its end.
"""

from __future__ import annotations

import ctypes
import mmap
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import unicorn as uc
from qcompile.codegen.kernel_table import KernelTable
from qcompile.kernels.cpu import lower_node
from qcompile.kernels.cpu.compile import compile_module
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import SLACK_BYTES, Buffer, Constant, KernelCall, NodeContext, Workspace
from qcompile.kernels.program import Node, evaluate_node, infer_node
from qcompile.runtime.elf_image import parse_elf
from qcompile.runtime.toolchain import compile_c, link
from qcompile.targets import Target
from unicorn import arm64_const as arm

PAGE = 4096
CANARY = 0xC3
THREADS = 3

# the runtime's part of parallel loops, one task after the other
LAUNCHER = f"""
typedef struct {{ void *sync; int num_task; }} env_t;
typedef int (*lambda_t)(int, env_t *, void *);
typedef int (*launch_t)(lambda_t, void *, int);
static int launch(lambda_t run, void *data, int n) {{
  env_t env = {{0, {THREADS}}};
  (void)n;
  for (int i = 0; i < {THREADS}; i++) {{ int e = run(i, &env, data); if (e) return e; }}
  return 0;
}}
/* LLVM may turn loops into calls of these; as in the runtime's shim */
void *memset(void *to, int value, unsigned long n) {{ char *p = to; while (n--) *p++ = (char)value; return to; }}
void *memcpy(void *to, const void *from, unsigned long n) {{
  char *p = to; const char *q = from; while (n--) *p++ = *q++; return to;
}}
extern launch_t __TVMBackendParallelLaunch __attribute__((weak, visibility("default")));
__attribute__((visibility("default"))) int test_start(void) {{
  if (&__TVMBackendParallelLaunch) __TVMBackendParallelLaunch = launch;
  return 0;
}}
"""

# a program for qemu-aarch64: runs one function at a time on a heap that it reads before and writes back after
QEMU_HEAP = 1 << 36
QEMU_HEAP_BYTES = 1 << 24
QEMU_ARGUMENTS = 24
RUNNER = f"""
typedef unsigned long u64;
typedef long (*kernel_t)({", ".join(["u64"] * QEMU_ARGUMENTS)});
EXTERNS
static const kernel_t table[] = {{ TABLE }};
static long call(long n, long a, long b, long c, long d, long e, long f) {{
  register long x8 __asm__("x8") = n; register long x0 __asm__("x0") = a; register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c; register long x3 __asm__("x3") = d; register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
  return x0;
}}
static void transfer(long syscall, long file, char *at, u64 count) {{
  while (count) {{
    long done = call(syscall, file, (long)at, (long)count, 0, 0, 0);
    if (done <= 0) call(94, 0, 0, 0, 0, 0, 0);
    at += done; count -= (u64)done;
  }}
}}
void _start(void) {{
  u64 a[2 + {QEMU_ARGUMENTS}];
  char *heap = (char *){QEMU_HEAP}UL;
  call(222, (long)heap, {QEMU_HEAP_BYTES}, 3, 0x32, -1, 0);
  for (;;) {{
    transfer(63, 0, (char *)a, sizeof a);
    transfer(63, 0, heap, a[1]);
    table[a[0]]({", ".join(f"a[{i + 2}]" for i in range(QEMU_ARGUMENTS))});
    transfer(64, 1, heap, a[1]);
  }}
}}
"""


@dataclass
class Case:
    """One node with its inputs; `constants` are known at compile time."""

    node: Node
    arrays: dict[str, np.ndarray]
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def expected(self) -> np.ndarray:
        return evaluate_node(self.node, self.arrays | self.constants)

    def context(self, target: Target) -> NodeContext:
        types = {n: Type(a.shape, str(a.dtype)) for n, a in (self.arrays | self.constants).items()}
        return NodeContext(self.node, types, self.constants, infer_node(self.node, types), target)


def link_library(objects: Sequence[bytes], folder: Path, target: Target) -> Path:
    """A shared library of the objects and the launcher."""
    for i, data in enumerate(objects):
        (folder / f"k{i}.o").write_bytes(data)
    (folder / "launcher.c").write_text(LAUNCHER)
    compile_c(folder, "launcher.c", "launcher.o", target.triple)
    link(
        folder,
        "-shared",
        "--no-undefined",
        "-Bsymbolic",
        "-o",
        "libkernels.so",
        *(f"k{i}.o" for i in range(len(objects))),
        "launcher.o",
    )
    return folder / "libkernels.so"


def guarded_bytes(nbytes: int) -> int:
    """Whole pages for a buffer and the slack behind it."""
    return (nbytes + SLACK_BYTES + PAGE - 1) // PAGE * PAGE


def place_in(room: int, nbytes: int, at_end: bool) -> int:
    """Where a buffer begins in its pages: as near to their end as its alignment lets it, or where they begin."""
    return (room - nbytes - SLACK_BYTES) // 64 * 64 if at_end else 0


class Native:
    """This machine."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._maps: list[mmap.mmap] = []
        self.call("test_start", [])

    def allocate(self, nbytes: int, at_end: bool) -> tuple[int, np.ndarray]:
        room = guarded_bytes(nbytes)
        memory = mmap.mmap(-1, room + 2 * PAGE)
        self._maps.append(memory)
        view = np.frombuffer(memory, np.uint8)
        base = view.ctypes.data
        for guard in (base, base + PAGE + room):
            if ctypes.CDLL(None).mprotect(ctypes.c_void_p(guard), PAGE, 0):
                raise OSError("mprotect failed")
        start = PAGE + place_in(room, nbytes, at_end)
        return base + start, view[start : PAGE + room]

    def call(self, name: str, arguments: Sequence[int | tuple[int]]) -> None:
        values = [ctypes.c_void_p(a[0]) if isinstance(a, tuple) else ctypes.c_int32(a) for a in arguments]
        assert getattr(self._library, name)(*values) == 0

    def release(self) -> None:
        self._maps.clear()


CORES = {"cortex-a53": arm.UC_CPU_ARM64_A53, "cortex-a72": arm.UC_CPU_ARM64_A72}  # others have dotprod


class Emulated:
    """An ARM core."""

    def __init__(self, library: Path, target: Target) -> None:
        image = parse_elf(library.read_bytes(), library)
        self._engine = uc.Uc(uc.UC_ARCH_ARM64, uc.UC_MODE_ARM)
        self._engine.ctl_set_cpu_model(CORES.get(target.emulation, arm.UC_CPU_ARM64_MAX))
        self._base, self._stack, self._heap = 1 << 20, 1 << 28, 1 << 30
        self._engine.mem_map(self._base, (len(image.data) + PAGE - 1) // PAGE * PAGE)
        data = bytearray(image.data)
        for offset, value in image.relocations:
            data[offset : offset + 8] = (self._base + value).to_bytes(8, "little")
        self._engine.mem_write(self._base, bytes(data))
        self._engine.mem_map(self._stack - (1 << 20), 1 << 20)
        self._return = 1 << 29
        self._engine.mem_map(self._return, PAGE)
        self._exports = image.exports
        self._next, self._blocks = self._heap, []
        self._engine.reg_write(arm.UC_ARM64_REG_CPACR_EL1, 3 << 20)
        self.call("test_start", [])

    def allocate(self, nbytes: int, at_end: bool) -> tuple[int, np.ndarray]:
        room = guarded_bytes(nbytes)
        memory = mmap.mmap(-1, room)
        view = np.frombuffer(memory, np.uint8)
        self._engine.mem_map_ptr(self._next, room, uc.UC_PROT_READ | uc.UC_PROT_WRITE, view.ctypes.data)
        self._blocks.append((self._next, room, memory))
        start = place_in(room, nbytes, at_end)
        address = self._next + start
        self._next += room + PAGE
        return address, view[start:]

    def call(self, name: str, arguments: Sequence[int | tuple[int]]) -> None:
        values = [a[0] if isinstance(a, tuple) else a & 0xFFFFFFFF for a in arguments]
        for i, value in enumerate(values[:8]):
            self._engine.reg_write(arm.UC_ARM64_REG_X0 + i, value)
        stack = self._stack - 4096
        # AAPCS64: arguments beyond eight lie on the stack, 8 bytes each
        self._engine.mem_write(stack, b"".join(v.to_bytes(8, "little") for v in values[8:]))
        self._engine.reg_write(arm.UC_ARM64_REG_SP, stack)
        self._engine.reg_write(arm.UC_ARM64_REG_LR, self._return)
        try:
            self._engine.emu_start(self._base + self._exports[name], self._return)
        except uc.UcError as error:
            raise AssertionError(
                f"{name}: {error} at {self._engine.reg_read(arm.UC_ARM64_REG_PC) - self._base:#x}"
            ) from error
        assert self._engine.reg_read(arm.UC_ARM64_REG_W0) == 0

    def release(self) -> None:
        for address, size, _ in self._blocks:
            self._engine.mem_unmap(address, size)
        self._blocks, self._next = [], self._heap


class Qemu:
    """An ARM core in a process of qemu-aarch64, for what unicorn lacks (i8mm). Canaries alone guard its memory."""

    def __init__(self, objects: Sequence[bytes], names: Sequence[str], folder: Path, target: Target) -> None:
        self._index = {name: i for i, name in enumerate([*names, "test_start"])}
        for i, data in enumerate(objects):
            (folder / f"k{i}.o").write_bytes(data)
        externs = "".join(f"extern long {name}();\n" for name in self._index)
        source = RUNNER.replace("EXTERNS", externs).replace(
            "TABLE", ", ".join(f"(kernel_t){name}" for name in self._index)
        )
        (folder / "launcher.c").write_text(LAUNCHER)
        (folder / "runner.c").write_text(source)
        for name in ("launcher", "runner"):
            compile_c(folder, f"{name}.c", f"{name}.o", target.triple, ("-Wno-error",))
        link(
            folder,
            "-static",
            "-nostdlib",
            "-e",
            "_start",
            "-o",
            "runner",
            *(f"k{i}.o" for i in range(len(objects))),
            "launcher.o",
            "runner.o",
        )
        core = "max,sme=off,sve=off" if target.emulation == "max" else target.emulation
        self._process = subprocess.Popen(
            ["qemu-aarch64", "-cpu", core, str(folder / "runner")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._heap, self._used = np.zeros(QEMU_HEAP_BYTES, np.uint8), 0
        self.call("test_start", [])

    def allocate(self, nbytes: int, at_end: bool) -> tuple[int, np.ndarray]:
        start, self._used = self._used, self._used + (nbytes + 2 * SLACK_BYTES + 63) // 64 * 64
        return QEMU_HEAP + start, self._heap[start : self._used]

    def call(self, name: str, arguments: Sequence[int | tuple[int]]) -> None:
        values = [a[0] if isinstance(a, tuple) else a & 0xFFFFFFFF for a in arguments]
        head = np.zeros(2 + QEMU_ARGUMENTS, np.uint64)
        head[:2], head[2 : 2 + len(values)] = (self._index[name], self._used), values
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(head.tobytes() + self._heap[: self._used].tobytes())
        self._process.stdin.flush()
        back = self._process.stdout.read(self._used)
        assert len(back) == self._used, f"{name}: the emulated core stopped ({self._process.wait()})"
        self._heap[: self._used] = np.frombuffer(back, np.uint8)

    def release(self) -> None:
        self._used = 0

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


def run_calls(
    machine: Native | Emulated | Qemu,
    calls: Sequence[KernelCall],
    arrays: dict[str, np.ndarray],
    result: str,
    out: Type,
    at_end: bool = True,
) -> np.ndarray:
    """Runs the calls of a node on `arrays` (by tensor name), in buffers at the end or at the beginning of their memory;
    returns the tensor `result`."""
    placed: dict[object, tuple[int, np.ndarray]] = {}

    def place(key: object, data: np.ndarray | int) -> tuple[int, np.ndarray]:
        if key not in placed:
            nbytes = data if isinstance(data, int) else data.nbytes
            address, view = machine.allocate(nbytes, at_end)
            view[:] = CANARY
            if not isinstance(data, int):
                view[:nbytes] = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
            placed[key] = (address, view)
        return placed[key]

    for call in calls:
        arguments: list[int | tuple[int]] = []
        for operand in call.operands:
            match operand:
                case Buffer(name, offset):
                    data = arrays.get(name, out.nbytes)
                    arguments.append((place(("buffer", name), data)[0] + offset,))
                case Workspace(key, nbytes):
                    arguments.append((place(("workspace", key), nbytes)[0],))
                case Constant(array):
                    arguments.append((place(("constant", id(array)), array)[0],))
                case _:
                    arguments.append(operand)
        machine.call(call.kernel.name, arguments)
    for key, (_, view) in placed.items():
        nbytes = {"buffer": lambda k: arrays[k[1]].nbytes if k[1] in arrays else out.nbytes}.get(
            key[0], lambda k: None
        )(key)
        if nbytes is not None:
            assert (view[nbytes:] == CANARY).all(), f"a kernel wrote past the end of {key[1]}"
    got = placed["buffer", result][1][: out.nbytes].copy().view(out.dtype).reshape(out.shape)
    machine.release()
    return got


def check_cases(cases: Sequence[Case], target: Target, folder: Path) -> dict[str, int]:
    """Compiles all cases into one library and compares each with numpy, bit for bit; returns counts."""
    contexts = [case.context(target) for case in cases]
    calls = [lower_node(ctx) for ctx in contexts]
    kernels = KernelTable(target, check=True)
    for call in (call for node in calls for call in node):
        kernels.add(call.kernel)
    data = compile_module(kernels.functions(), target)
    machine: Native | Emulated | Qemu
    if target.arch == "x86_64":
        machine = Native(link_library([data], folder, target))
    elif "i8mm" in target.features:
        machine = Qemu([data], kernels.names(), folder, target)
    else:
        machine = Emulated(link_library([data], folder, target), target)
    for case, ctx, node_calls in zip(cases, contexts, calls):
        want = case.expected()
        for at_end in (False, True):
            got = run_calls(machine, node_calls, case.arrays, case.node.name, ctx.out, at_end)
            if not np.array_equal(got, want):
                at = tuple(int(i[0]) for i in np.nonzero(got != want))
                raise AssertionError(
                    f"{case.node.name} on {target.name}: {np.sum(got != want)} of {want.size} differ, first at {at}: "
                    f"got {got[at]}, want {want[at]}; kernels {[c.kernel.name for c in node_calls]}, node {case.node}"
                )
    if isinstance(machine, Qemu):
        machine.close()
    return {"cases": len(cases), "kernels": len(kernels.names()), "bytes": len(data)}
