"""A loaded artifact."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from qcompile.runtime.borders import as_array, as_integers, check_shape, dequantize, quantize
from qcompile.runtime.errors import ArtifactError
from qcompile.runtime.manifest import Manifest, Tensor, read_manifest
from qcompile.runtime.stream import Stream

OPENERS = {"cpu": "qcompile.runtime.cpu"}  # kind of machine -> module with open_engine
PROGRAM = "program.npz"


class Engine(Protocol):
    """What runs the code: integer arrays in the manifest's order, in and out."""

    name: str

    def run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """One inference."""


class Model:
    """An artifact ready to run; ``load`` makes it.

    ``inputs`` and ``outputs`` describe the tensors, ``arena_bytes`` the scratch memory, ``engine.name`` says what
    runs it: 'native', 'unicorn' or 'qemu'.  Threads may share a model: each call has buffers of its own, or, emulated
    or with several threads to a call, waits for its turn.
    """

    def __init__(self, manifest: Manifest, engine: Engine) -> None:
        self.manifest = manifest
        self.engine = engine
        self._program: Any = None

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Name, dtype, shape, scale and zero point of each input."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Name, dtype, shape, scale and zero point of each output."""
        return self.manifest.outputs

    @property
    def arena_bytes(self) -> int:
        """Bytes of scratch memory of one run."""
        return self.manifest.arena_bytes

    def run(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Real numbers in and out: float arrays are quantized, quantized outputs returned as float32.

        Integer inputs (ids, masks, or values already quantized) are taken as they are; outputs that have no scale
        stay integers.  Shapes are the model's.  Raises ArtifactError where an input is missing, unknown, of another
        shape, NaN, or an integer out of range.
        """
        return self.dequantize(self.run_integer(self.quantize(inputs)))

    def run_integer(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The integers themselves: arrays of the types and shapes of ``inputs`` in, of ``outputs`` out."""
        arrays = self._in_order(inputs)
        values = [as_integers(tensor, array) for tensor, array in zip(self.inputs, arrays)]
        return {tensor.name: array for tensor, array in zip(self.outputs, self.engine.run(values))}

    def reference(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """As ``run``, by the numpy meaning of the same program: the same bits, slowly."""
        return self.dequantize(self.reference_integer(self.quantize(inputs)))

    def reference_integer(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """As ``run_integer``, by the numpy meaning of the same program."""
        arrays = self._in_order(inputs)
        program = self._load_program()
        values = [as_integers(tensor, array) for tensor, array in zip(self.inputs, arrays)]
        results = program.run(dict(zip(program.inputs, values)))
        return {tensor.name: results[name] for tensor, name in zip(self.outputs, program.outputs)}

    def stream(self, start: Mapping[str, Any] | None = None) -> Stream:
        """Calls that hand their states (``--state`` of the compiler) to the next as integers, from ``start`` or zeros.

        Raises ArtifactError for a model without states.
        """
        return Stream(self, start)

    def quantize(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The integers that ``run`` gives to the model."""
        return {
            tensor.name: self.quantize_one(tensor, array) for tensor, array in zip(self.inputs, self._in_order(inputs))
        }

    @staticmethod
    def quantize_one(tensor: Tensor, array: np.ndarray) -> np.ndarray:
        """The integers of one input."""
        check_shape(tensor, array)
        return quantize(tensor, array) if array.dtype.kind == "f" else as_integers(tensor, array)

    def dequantize(self, outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The real numbers that integer outputs stand for."""
        return {tensor.name: dequantize(tensor, outputs[tensor.name]) for tensor in self.outputs}

    @staticmethod
    def dequantize_one(tensor: Tensor, array: np.ndarray) -> np.ndarray:
        """The real numbers of one output."""
        return dequantize(tensor, array)

    def _in_order(self, inputs: Mapping[str, Any]) -> list[np.ndarray]:
        names = [tensor.name for tensor in self.inputs]
        for name in inputs:
            if name not in names:
                raise ArtifactError(f"the model has no input {name!r}; its inputs are {', '.join(names)}")
        for name in names:
            if name not in inputs:
                raise ArtifactError(f"input {name!r} is missing")
        arrays = [as_array(name, inputs[name]) for name in names]
        for tensor, array in zip(self.inputs, arrays):
            check_shape(tensor, array)
        return arrays

    def _load_program(self) -> Any:
        if self._program is None:
            data = self.manifest.read_file(PROGRAM)
            from qcompile.kernels.program import Program  # only where asked for: running needs no compiler

            try:
                program = Program.load(data)
                known = program.types()
                ends = (
                    [(t.shape, t.dtype) for t in program.inputs.values()],
                    [(known[name].shape, known[name].dtype) for name in program.outputs],
                )
            except ValueError as error:
                raise ArtifactError(f"{self.manifest.folder / PROGRAM} is damaged: {error}") from error
            if ends != tuple([(t.shape, t.dtype) for t in tensors] for tensors in (self.inputs, self.outputs)):
                raise ArtifactError(f"{self.manifest.folder / PROGRAM} is of another model; compile the model again")
            self._program = program
        return self._program


def load(path: str | Path, threads: int = 1, backend: str = "auto", core: str | None = None) -> Model:
    """Loads the artifact folder ``path``.

    ``backend`` says what runs it: for CPUs 'native', 'unicorn' (ARM, in this process), 'qemu' (ARM, needs qemu-aarch64,
    on ``core``, such as 'cortex-a72') or 'auto': native where this machine has the instructions, else emulated.
    ``threads`` counts the calling thread; emulators use one.  Raises ArtifactError where the artifact is damaged or
    cannot run here.
    """
    if threads < 1:
        raise ArtifactError(f"threads must be at least 1, not {threads}")
    manifest = read_manifest(path)
    opener = import_module(OPENERS[manifest.kind])
    return Model(manifest, opener.open_engine(manifest, threads, backend, core))
