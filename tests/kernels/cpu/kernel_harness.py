"""Runs lowered nodes on this machine or on an emulated ARM core, with memory that ends where buffers do.

Every buffer ends 64 to 127 bytes (the slack that kernels may read, and alignment) before memory that is not mapped, and
canaries behind it show writes past its end.
"""
from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import unicorn as uc
from qcompile.kernels.cpu import lower_node
from qcompile.kernels.cpu.compile import compile_module
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import SLACK_BYTES, Buffer, Constant, KernelCall, NodeContext, Workspace
from qcompile.kernels.program import Node, evaluate_node, infer_node
from qcompile.runtime.elf_image import read_elf
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
extern launch_t __TVMBackendParallelLaunch __attribute__((weak, visibility("default")));
__attribute__((visibility("default"))) int test_start(void) {{
  if (&__TVMBackendParallelLaunch) __TVMBackendParallelLaunch = launch;
  return 0;
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
    link(folder, "-shared", "-o", "libkernels.so", *(f"k{i}.o" for i in range(len(objects))), "launcher.o")
    return folder / "libkernels.so"


class Native:
    """This machine."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))
        self._maps: list[mmap.mmap] = []
        self.call("test_start", [])

    def allocate(self, nbytes: int) -> tuple[int, np.ndarray]:
        room = (nbytes + SLACK_BYTES + PAGE - 1) // PAGE * PAGE
        memory = mmap.mmap(-1, room + PAGE)
        self._maps.append(memory)
        view = np.frombuffer(memory, np.uint8)
        base = view.ctypes.data
        if ctypes.CDLL(None).mprotect(ctypes.c_void_p(base + room), PAGE, 0):
            raise OSError("mprotect failed")
        start = (room - nbytes - SLACK_BYTES) // 64 * 64
        return base + start, view[start:room]

    def call(self, name: str, arguments: Sequence[int | tuple[int]]) -> None:
        values = [ctypes.c_void_p(a[0]) if isinstance(a, tuple) else ctypes.c_int32(a) for a in arguments]
        assert getattr(self._library, name)(*values) == 0

    def release(self) -> None:
        self._maps.clear()


class Emulated:
    """An ARM core."""

    CORES = {"cortex-a53": arm.UC_CPU_ARM64_A53, "cortex-a72": arm.UC_CPU_ARM64_A72}

    def __init__(self, library: Path, target: Target) -> None:
        image = read_elf(library)
        self._engine = uc.Uc(uc.UC_ARCH_ARM64, uc.UC_MODE_ARM)
        self._engine.ctl_set_cpu_model(self.CORES.get(target.emulation, arm.UC_CPU_ARM64_MAX))
        self._base, self._stack, self._heap = 1 << 20, 1 << 28, 1 << 30
        self._engine.mem_map(self._base, (len(image.data) + PAGE - 1) // PAGE * PAGE)
        data = bytearray(image.data)
        for offset, value in image.relocations:
            data[offset:offset + 8] = (self._base + value).to_bytes(8, "little")
        self._engine.mem_write(self._base, bytes(data))
        self._engine.mem_map(self._stack - (1 << 20), 1 << 20)
        self._return = 1 << 29
        self._engine.mem_map(self._return, PAGE)
        self._exports = image.exports
        self._next, self._blocks = self._heap, []
        self._engine.reg_write(arm.UC_ARM64_REG_CPACR_EL1, 3 << 20)
        self.call("test_start", [])

    def allocate(self, nbytes: int) -> tuple[int, np.ndarray]:
        room = (nbytes + SLACK_BYTES + PAGE - 1) // PAGE * PAGE
        memory = mmap.mmap(-1, room)
        view = np.frombuffer(memory, np.uint8)
        self._engine.mem_map_ptr(self._next, room, uc.UC_PROT_READ | uc.UC_PROT_WRITE, view.ctypes.data)
        self._blocks.append((self._next, room, memory))
        start = (room - nbytes - SLACK_BYTES) // 64 * 64
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
            raise AssertionError(f"{name}: {error} at {self._engine.reg_read(arm.UC_ARM64_REG_PC) - self._base:#x}") from error
        assert self._engine.reg_read(arm.UC_ARM64_REG_W0) == 0

    def release(self) -> None:
        for address, size, _ in self._blocks:
            self._engine.mem_unmap(address, size)
        self._blocks, self._next = [], self._heap


def run_calls(machine: Native | Emulated, calls: Sequence[KernelCall], arrays: dict[str, np.ndarray], result: str, out: Type) -> np.ndarray:
    """Runs the calls of a node on `arrays` (by tensor name); returns the tensor `result`."""
    placed: dict[object, tuple[int, np.ndarray]] = {}

    def place(key: object, data: np.ndarray | int) -> tuple[int, np.ndarray]:
        if key not in placed:
            nbytes = data if isinstance(data, int) else data.nbytes
            address, view = machine.allocate(nbytes)
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
                    data = arrays[name] if name in arrays else out.nbytes
                    arguments.append((place(("buffer", name), data)[0] + offset,))
                case Workspace(key, nbytes):
                    arguments.append((place(("workspace", key), nbytes)[0],))
                case Constant(array):
                    arguments.append((place(("constant", id(array)), array)[0],))
                case _:
                    arguments.append(operand)
        machine.call(call.kernel.name, arguments)
    for key, (_, view) in placed.items():
        nbytes = {"buffer": lambda k: arrays[k[1]].nbytes if k[1] in arrays else out.nbytes}.get(key[0], lambda k: None)(key)
        if nbytes is not None:
            assert (view[nbytes:] == CANARY).all(), f"a kernel wrote past the end of {key[1]}"
    got = placed["buffer", result][1][:out.nbytes].copy().view(out.dtype).reshape(out.shape)
    machine.release()
    return got


def check_cases(cases: Sequence[Case], target: Target, folder: Path) -> dict[str, int]:
    """Compiles all cases into one library and compares each with numpy, bit for bit; returns counts."""
    contexts = [case.context(target) for case in cases]
    calls = [lower_node(ctx) for ctx in contexts]
    kernels = {call.kernel.name: call.kernel for node in calls for call in node}
    data = compile_module({name: kernel.build() for name, kernel in kernels.items()}, target)
    library = link_library([data], folder, target)
    machine = Native(library) if target.arch == "x86_64" else Emulated(library, target)
    for case, ctx, node_calls in zip(cases, contexts, calls):
        got = run_calls(machine, node_calls, case.arrays, case.node.name, ctx.out)
        want = case.expected()
        if not np.array_equal(got, want):
            at = tuple(int(i[0]) for i in np.nonzero(got != want))
            raise AssertionError(f"{case.node.name} on {target.name}: {np.sum(got != want)} of {want.size} differ, first at {at}: got "
                                 f"{got[at]}, want {want[at]}; kernels {[c.kernel.name for c in node_calls]}, node {case.node}")
    return {"cases": len(cases), "kernels": len(kernels), "bytes": len(data)}
