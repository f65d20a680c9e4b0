"""What the compiler knows about one machine."""

from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True)
class Target:
    """A machine to compile for: ``name`` is what the user asked for (it names the artifact folder), ``kind`` says what
    compiles for it (``compiler/backends``)."""

    name: str
    kind: ClassVar[str]

    @property
    def machine(self) -> str:
        """The entry of the table behind ``name``."""
        return self.name


@dataclass(frozen=True)
class CpuTarget(Target):
    """A CPU; sizes are in bytes.

    ``cpu`` is the entry of the table behind ``name``: the two differ only for ``host``.  ``features`` are LLVM feature
    names that kernels may rely on; ``cpuinfo_flags`` are the same facts as Linux spells them in ``/proc/cpuinfo``.
    """

    kind = "cpu"

    arch: str  # 'x86_64' or 'aarch64'
    mcpu: str
    l1: int
    l2: int
    l3: int
    mattr: tuple[str, ...] = ()
    features: frozenset[str] = frozenset()
    cpuinfo_flags: tuple[str, ...] = ()
    unsigned_activations: bool = False  # 8-bit activations are stored as u8 = s8 + 128
    cpu_parts: tuple[str, ...] = ()  # 'implementer:part' of /proc/cpuinfo on ARM
    emulation: str = "max"  # the core that qemu and unicorn stand in with
    cpu: str = ""
    triple: str = field(init=False, default="")

    def __post_init__(self) -> None:
        object.__setattr__(self, "cpu", self.cpu or self.name)
        object.__setattr__(self, "triple", f"{self.arch}-linux-gnu")

    @property
    def machine(self) -> str:
        return self.cpu

    @property
    def llvm(self) -> dict[str, object]:
        """The target as TVM takes it: ``tvm.target.Target(target.llvm)``."""
        return {"kind": "llvm", "mtriple": self.triple, "mcpu": self.mcpu, "mattr": list(self.mattr)}

    @property
    def clang(self) -> list[str]:
        """clang's options for the same code: x86 takes features apart, ARM in one word."""
        features = [("" if feature[0] == "+" else "no", feature[1:]) for feature in self.mattr]
        if self.arch == "x86_64":
            return [f"-march={self.mcpu}", *(f"-m{no and 'no-'}{name}" for no, name in features)]
        return ["-mcpu=" + "+".join([self.mcpu, *(no + name for no, name in features)])]
