"""Runs an ARM artifact on any machine, inside this process, and watches its memory.

Every buffer ends, but for its 64-byte alignment, at the end of a page with nothing mapped after it, and the arena and
the outputs hold junk before each run: code that reads or writes past a buffer, or relies on memory it did not set,
shows here and not on a device.
"""

import mmap
import threading

import numpy as np
import unicorn as uc
from qcompile.runtime.elf_image import parse_elf
from qcompile.runtime.errors import ArtifactError
from qcompile.runtime.manifest import CpuManifest, Tensor
from unicorn import arm64_const as arm

_PAGE = 4096
_ALIGNMENT = 64
_GAP = 1 << 16
_FIRST_ADDRESS = 1 << 20
_STACK_BYTES = 1 << 20
_JUNK = 0xA5
_ENABLE_SIMD = 3 << 20  # CPACR_EL1.FPEN
_CORES = {"cortex-a53": arm.UC_CPU_ARM64_A53, "cortex-a72": arm.UC_CPU_ARM64_A72}  # others have dotprod: 'max'


class UnicornEngine:
    """One emulated core that keeps its translated code between runs; for artifacts that `why_not_unicorn` allows."""

    name = "unicorn"

    def __init__(self, manifest: CpuManifest) -> None:
        self._image = parse_elf(manifest.read_library(), manifest.library)
        self._core = manifest.emulation
        self._engine = uc.Uc(uc.UC_ARCH_ARM64, uc.UC_MODE_ARM)
        self._engine.ctl_set_cpu_model(_CORES.get(manifest.emulation, arm.UC_CPU_ARM64_MAX))
        self._next = _FIRST_ADDRESS
        self._memory: list[mmap.mmap] = []
        self._fault = ""
        self._turn = threading.Lock()
        self._base, code = self._map(len(self._image.data), uc.UC_PROT_ALL)
        code[:] = np.frombuffer(self._image.data, np.uint8)
        for offset, value in self._image.relocations:
            code[offset : offset + 8].view(np.uint64)[0] = self._base + value
        self._return, _ = self._map(_PAGE, uc.UC_PROT_ALL)
        stack, _ = self._map(_STACK_BYTES)
        self._stack_top = stack + _STACK_BYTES
        self._arena_address, self._arena = self._map(manifest.arena_bytes)
        self.inputs, input_table = self._map_tensors(manifest.inputs)
        self.outputs, output_table = self._map_tensors(manifest.outputs)
        self._arguments = (input_table, output_table, self._arena_address)
        try:
            self._run_address = self._base + self._image.exports[f"{manifest.name}_run"]
        except KeyError as error:
            raise ArtifactError(f"{manifest.library} has no function {manifest.name}_run") from error
        self._engine.reg_write(arm.UC_ARM64_REG_CPACR_EL1, _ENABLE_SIMD)
        self._engine.hook_add(uc.UC_HOOK_MEM_INVALID, self._on_fault)

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Integer arrays in the manifest's order, types and shapes, in and out; callers take turns."""
        with self._turn:
            return self._run(inputs)

    def _run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        for buffer, values in zip(self.inputs, inputs):
            buffer[...] = values
        for junk in (self._arena, *(buffer.reshape(-1).view(np.uint8) for buffer in self.outputs)):
            junk[:] = _JUNK
        for register, value in zip((arm.UC_ARM64_REG_X0, arm.UC_ARM64_REG_X1, arm.UC_ARM64_REG_X2), self._arguments):
            self._engine.reg_write(register, value)
        self._engine.reg_write(arm.UC_ARM64_REG_SP, self._stack_top)
        self._engine.reg_write(arm.UC_ARM64_REG_LR, self._return)
        self._fault = ""
        try:
            self._engine.emu_start(self._run_address, self._return)
        except uc.UcError as error:
            raise ArtifactError(self._explain(error)) from error
        status = self._engine.reg_read(arm.UC_ARM64_REG_W0)
        if status:
            raise ArtifactError(f"the model returned error {status - (1 << 32) if status >> 31 else status}")
        return [buffer.copy() for buffer in self.outputs]

    def _map(self, count: int, rights: int = uc.UC_PROT_READ | uc.UC_PROT_WRITE) -> tuple[int, np.ndarray]:
        """(address, bytes) of fresh memory just before the end of a page; code begins at the start of one."""
        size = max(-(-count // _PAGE), 1) * _PAGE
        memory = mmap.mmap(-1, size)
        self._memory.append(memory)
        view = np.frombuffer(memory, np.uint8)
        start = self._next
        self._engine.mem_map_ptr(start, size, rights, view.ctypes.data)
        self._next += size + _GAP
        offset = 0 if rights == uc.UC_PROT_ALL else (size - count) // _ALIGNMENT * _ALIGNMENT
        return start + offset, view[offset : offset + count]

    def _map_tensors(self, tensors: tuple[Tensor, ...]) -> tuple[list[np.ndarray], int]:
        """(arrays that share memory with the core, address of the table of their addresses)."""
        arrays, addresses = [], []
        for tensor in tensors:
            dtype = np.dtype(tensor.dtype)
            address, view = self._map(int(np.prod(tensor.shape, dtype=np.int64)) * dtype.itemsize)
            arrays.append(view.view(dtype).reshape(tensor.shape))
            addresses.append(address)
        table, view = self._map(8 * len(addresses))
        view.view(np.uint64)[:] = addresses
        return arrays, table

    def _on_fault(self, _engine: uc.Uc, access: int, address: int, size: int, _value: int, _data: object) -> bool:
        what = {uc.UC_MEM_READ_UNMAPPED: "reads", uc.UC_MEM_WRITE_UNMAPPED: "writes"}.get(access, "touches")
        self._fault = f"{what} {size} bytes at {address:#x}, outside its buffers"
        return False

    def _explain(self, error: uc.UcError) -> str:
        offset = self._engine.reg_read(arm.UC_ARM64_REG_PC) - self._base
        where = f"{self._image.function_at(offset)} (library offset {offset:#x})"
        if self._fault:
            return f"{where} {self._fault}"
        if error.errno in (uc.UC_ERR_INSN_INVALID, uc.UC_ERR_EXCEPTION):
            return f"{where}: the emulated core ({self._core}) has no such instruction"
        return f"{where}: {error}"
