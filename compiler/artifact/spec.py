"""What the compiler hands over to be linked into one artifact."""

import hashlib
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from qcompile.runtime.manifest import DTYPES
from qcompile.targets import CompileError, CpuTarget

# Words that C or C++ keeps for itself, of those that a model might be called
_KEYWORDS = (
    "alignas alignof and asm auto bool break case catch char class compl concept const continue default delete do "
    "double else enum explicit export extern false float for friend goto if inline int long main mutable namespace new "
    "not operator or private protected public register requires restrict return short signed sizeof static struct "
    "switch template this thread_local throw true try typedef typeid typename union unsigned using virtual void "
    "volatile while xor"
)


LEAST_SCALE, LARGEST_SCALE = 2.0**-149, (2 - 2.0**-23) * 2.0**127  # of float32
LONGEST_KEY = 65_000  # bytes of the name of an input or output
LONGEST_NAME = 100  # bytes, in identifiers and file names, of which file systems take 255


def c_prefix(text: str, fallback: str = "model") -> str:
    """``text`` (a file or tensor name) as the beginning of C identifiers: 'My net-v2' becomes 'My_net_v2'. What is
    long is cut, and ends with a hash of the whole."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    word = re.sub(r"_+", "_", re.sub(r"\W", "_", plain)).strip("_") or fallback
    if word[0].isdigit() or word.startswith("qc_"):  # qc_ is ours
        word = f"{fallback}_{word}"
    if len(word) > LONGEST_NAME:
        word = f"{word[: LONGEST_NAME - 13]}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return word


def folder_name(text: str) -> str:
    """``text`` as the name of a folder: itself where it consists of letters, digits, '_', '.' and '-'."""
    plain = re.fullmatch(r"\w[\w.-]*", text) and len(text.encode()) <= LONGEST_NAME
    return text if plain else c_prefix(text)


def c_variables(texts: Iterable[str], taken: Iterable[str] = ()) -> list[str]:
    """A C identifier for each of ``texts``, all of them different and none of them in ``taken``."""
    used, words = set(taken), []
    for text in texts:
        base = word = c_identifier(text, "tensor")
        number = 1
        while word in used:
            number += 1
            word = f"{base}_{number}"
        used.add(word)
        words.append(word)
    return words


def c_identifier(text: str, fallback: str = "model") -> str:
    """``text`` as a whole C and C++ identifier: as ``c_prefix``, and no keyword ('float' becomes 'float_')."""
    word = c_prefix(text, fallback)
    return f"{word}_" if word in _KEYWORDS.split() else word


@dataclass(frozen=True)
class TensorInfo:
    """One input or output: ``dtype`` a numpy integer name, ``shape`` fixed sizes, real = scale * (q - zero_point).

    ``scale`` is None for plain integers (ids, masks, labels), a float for the whole tensor, or a list of one float
    per index of ``axis``. ``declared`` is the type that the model gives it, which the loader takes and returns: of
    floats, or of integers that ``dtype`` holds.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    scale: float | list[float] | None = None
    zero_point: int = 0
    axis: int = 0
    declared: str = ""

    @property
    def scales(self) -> list[float]:
        """The scales as a list, empty for plain integers."""
        if self.scale is None:
            return []
        return [float(s) for s in self.scale] if isinstance(self.scale, list | tuple) else [float(self.scale)]

    def to_manifest(self) -> dict[str, object]:
        """The entry of ``manifest.json``."""
        scale = self.scales if isinstance(self.scale, list | tuple) else self.scale and float(self.scale)
        entry: dict[str, object] = {
            "name": self.name,
            "dtype": self.dtype,
            "shape": [int(n) for n in self.shape],
            "scale": scale,
            "zero_point": int(self.zero_point),
        }
        entry |= {"declared": self.declared} if self.declared else {}
        return {**entry, "axis": self.axis} if isinstance(scale, list) else entry


@dataclass(frozen=True)
class ArtifactSpec:
    """One compiled model before linking.

    ``objects`` are what the target's backend emitted, and will link. For CPUs these are relocatable ELF files, which
    together define ``int32_t qc_main(const void *const *inputs, void *const *outputs, uint8_t *arena, const uint8_t
    *weights)`` and, if they have parallel loops, the slot ``__TVMBackendParallelLaunch``.  ``weights`` may be read up
    to 64 bytes past its end, ``arena_bytes`` is exact.
    ``states`` are (input, output) of one type that go from call to call.
    ``extra`` adds keys to the manifest, ``files`` adds files (relative name -> bytes) to the folder.
    """

    name: str
    target: CpuTarget
    objects: list[bytes]
    weights: bytes
    arena_bytes: int
    inputs: list[TensorInfo]
    outputs: list[TensorInfo]
    macs: int = 0
    extra: dict[str, object] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    states: list[tuple[str, str]] = field(default_factory=list)

    def check(self) -> None:
        """Raises CompileError where the parts cannot make an artifact."""
        if not self.objects:
            raise CompileError(f"{self.name}: no code to link")
        for kind, tensors in (("input", self.inputs), ("output", self.outputs)):
            if not tensors:
                raise CompileError(f"{self.name}: the model has no {kind}s")
            _check_names(kind, [tensor.name for tensor in tensors])
            for tensor in tensors:
                _check_tensor(kind, tensor)
        for name in self.files:
            if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)*", name):
                raise CompileError(f"{name!r} is not a file name inside the artifact folder")


def _check_names(kind: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise CompileError(f"two {kind}s are called {name!r}")
        if "\0" in name or len(name.encode()) > LONGEST_KEY:
            raise CompileError(
                f"{kind} {name!r}: names of inputs and outputs are C strings and members of npz files; "
                f"rename it, without null characters and with at most {LONGEST_KEY} bytes"
            )
        seen.add(name)


def _check_tensor(kind: str, tensor: TensorInfo) -> None:
    where = f"{kind} {tensor.name!r}"
    if tensor.dtype not in DTYPES:
        raise CompileError(f"{where} has type {tensor.dtype}; an artifact takes and returns {', '.join(DTYPES)}")
    if any(int(size) < 1 for size in tensor.shape):
        raise CompileError(f"{where} has shape {list(tensor.shape)}; every size must be known and at least 1")
    for scale in tensor.scales:
        if not LEAST_SCALE <= scale <= LARGEST_SCALE:
            raise CompileError(
                f"{where} has scale {scale:g}; scales must be positive and finite in float32: "
                "let the model bound its values"
            )
    if isinstance(tensor.scale, list | tuple) and not (
        0 <= tensor.axis < len(tensor.shape) and len(tensor.scales) == tensor.shape[tensor.axis]
    ):
        raise CompileError(f"{where} has {len(tensor.scales)} scales along axis {tensor.axis} of {list(tensor.shape)}")
