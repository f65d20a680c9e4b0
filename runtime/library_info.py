"""What the library of an artifact says of itself (``NAME_info``), read from its file before any of its code runs."""

import struct
from dataclasses import dataclass

import numpy as np
from qcompile.runtime.elf_image import ElfImage, parse_elf
from qcompile.runtime.errors import ArtifactError
from qcompile.runtime.manifest import ABI_VERSION, DTYPES, MANIFEST, CpuManifest, Tensor

INFO = "qc_static_info"  # what NAME_info returns
_INFO = struct.Struct("<i4xQQQQQiiQQ")  # qc_model_info on 64-bit machines
_TENSOR = struct.Struct("<QiiQiiQi4x")  # qc_tensor_info
_MOST_TENSORS, _LONGEST_NAME, _MOST_AXES = 1 << 16, 1 << 20, 64


@dataclass(frozen=True)
class LibraryInfo:
    """The facts of ``qc_model_info``; scales as float32, [] for plain integers."""

    name: str
    content_hash: str
    arena_bytes: int
    inputs: tuple["TensorFacts", ...]
    outputs: tuple["TensorFacts", ...]


@dataclass(frozen=True)
class TensorFacts:
    """The facts of ``qc_tensor_info``."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scales: tuple[float, ...]
    axis: int
    zero_point: int

    @classmethod
    def of(cls, tensor: Tensor) -> "TensorFacts":
        """The same facts of a manifest's tensor."""
        scales = tensor.scale if isinstance(tensor.scale, list) else [] if tensor.scale is None else [tensor.scale]
        rounded = tuple(float(np.float32(s)) for s in scales)
        return cls(tensor.name, tensor.dtype, tensor.shape, rounded, tensor.axis, tensor.zero_point)


def check_library(manifest: CpuManifest) -> None:
    """Raises ArtifactError where the library is not the one that was written, or says otherwise than the manifest: a
    run would read or write elsewhere than the buffers that the manifest's shapes and types give it, or its numbers
    would mean something else."""
    info = read_info(manifest)
    file = manifest.folder / MANIFEST
    for what, says, is_ in (
        ("name", manifest.name, info.name),
        ("arena_bytes", manifest.arena_bytes, info.arena_bytes),
        ("number of inputs", len(manifest.inputs), len(info.inputs)),
        ("number of outputs", len(manifest.outputs), len(info.outputs)),
    ):
        if says != is_:
            raise ArtifactError(
                f"{file} is damaged: its {what} is {says!r}, the library's {is_!r}; compile the model again"
            )
    for kind, tensors, known in (("input", manifest.inputs, info.inputs), ("output", manifest.outputs, info.outputs)):
        for tensor, facts in zip(tensors, known):
            if TensorFacts.of(tensor) != facts:
                raise ArtifactError(
                    f"{file} is damaged: it has {kind} {TensorFacts.of(tensor)}, the library {facts}; "
                    "compile the model again"
                )
    if manifest.content_hash != info.content_hash:
        raise ArtifactError(f"{file} is damaged: it is not what was written with the library; compile the model again")


def read_info(manifest: CpuManifest) -> LibraryInfo:
    """Reads ``qc_model_info`` from the library's file; ArtifactError where it is not there or makes no sense."""
    image = parse_elf(manifest.read_library(), manifest.library, manifest.arch)
    if f"{manifest.name}_info" not in image.exports:
        raise ArtifactError(f"{manifest.library} has no function {manifest.name}_info")
    try:
        memory = _Memory(image)
        abi, name, _, digest, arena, _, *counts, inputs, outputs = memory.unpack(_INFO, image.objects[INFO])
        if abi != ABI_VERSION or not all(0 <= n <= _MOST_TENSORS for n in counts):
            raise ValueError(f"ABI version {abi}, {counts} tensors")
        ends = [
            tuple(memory.tensor(start + i * _TENSOR.size) for i in range(count))
            for start, count in zip((inputs, outputs), counts)
        ]
        return LibraryInfo(memory.text(name), memory.text(digest), arena, *ends)
    except (KeyError, ValueError, IndexError, struct.error) as error:
        raise ArtifactError(
            f"{manifest.library} is damaged: what {manifest.name}_info returns cannot be read ({error})"
        ) from error


class _Memory:
    """The library as if loaded at address 0."""

    def __init__(self, image: ElfImage) -> None:
        self.data = image.data
        for offset, value in image.relocations:
            struct.pack_into("<Q", self.data, offset, value)

    def unpack(self, form: struct.Struct, at: int) -> tuple:
        return form.unpack_from(self.data, at)

    def text(self, at: int) -> str:
        end = self.data.index(b"\0", at, at + _LONGEST_NAME)
        return self.data[at:end].decode()

    def tensor(self, at: int) -> TensorFacts:
        name, dtype, rank, dims, num_scales, axis, scales, zero_point = self.unpack(_TENSOR, at)
        if not 0 <= rank <= _MOST_AXES or num_scales < 0:
            raise ValueError(f"a tensor of rank {rank} with {num_scales} scales")
        shape = struct.unpack_from(f"<{rank}q", self.data, dims)
        factors = struct.unpack_from(f"<{num_scales}f", self.data, scales)
        return TensorFacts(self.text(name), DTYPES[dtype], shape, factors, axis, zero_point)
