"""The ARM lab: exact instruction counts from qemu-user, cycles estimated by llvm-mca.

The lab's tools (guest.sh, armreport.py, cpu-id.sh) lie in `../shared/armlab` beside this repository, or where
ARMLAB_TOOLS says; `setup.sh` among them installs the rest. A guest program marks regions by syscall(0x7A5A, r), r = 1
... 7; a count belongs to the region that was current. Cycles: each basic block in a steady state on the core's model,
all loads from the first cache, branches foreseen. That is an estimate, good to compare code with code.
"""

from __future__ import annotations

import bisect
import collections
import fcntl
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).resolve().parents[3] / "shared" / "armlab"
WIDTH = 4  # instructions that a core takes in per cycle


@dataclass(frozen=True)
class Core:
    """A core to count on. cpu_id: whose identity the guest sees; mca: LLVM's model for cycles, '' for none."""

    name: str
    target: str
    qemu: str
    cpu_id: str
    mca: str = ""


# neoverse-n1 is the Cortex-A76's pipeline; LLVM's own -mcpu=cortex-a76 is the A57's. neoverse-n2 is the A710's.
CORES = {
    core.name: core
    for core in (
        Core("cortex-a76", "arm-a76", "cortex-a76", "cortex-a76", "neoverse-n1"),
        Core("cortex-a72", "arm-a72", "cortex-a72", "cortex-a72"),
        Core("cortex-a710", "arm-a710", "max,sme=off,sve=off", "cortex-a710", "neoverse-n2"),
    )
}

# of a guest python, not of what it measures
INTERPRETER = re.compile(r"^(python3[.\d]*|libpython.*|_ctypes\..*|libffi\.so.*)$")


@dataclass
class Block:
    """A basic block: its address, how often it ran, its instructions, and cycles a run (0: no model)."""

    address: int
    count: float
    text: tuple[str, ...]
    place: str  # file name, or symbol
    cycles: float = 0.0


@dataclass
class Tally:
    """What ran: instructions and estimated cycles."""

    instructions: float = 0.0
    cycles: float = 0.0
    blocks: list[Block] = field(default_factory=list)

    @staticmethod
    def of(blocks: Iterable[Block]) -> Tally:
        kept = list(blocks)
        return Tally(sum(b.count * len(b.text) for b in kept), sum(b.count * b.cycles for b in kept), kept)


class LabError(SystemExit):
    """The lab is missing or a guest failed; the message says what to do."""


class Lab:
    """The lab on this machine; raises LabError where it is not set up."""

    def __init__(self) -> None:
        self.tools = Path(os.environ.get("ARMLAB_TOOLS", TOOLS))
        self.home = Path(os.environ.get("ARMLAB", Path.home() / ".cache" / "armlab"))
        if not (self.tools / "armreport.py").is_file():
            raise LabError(
                f"the ARM lab's tools are not in {self.tools}: set ARMLAB_TOOLS to the folder with guest.sh, "
                "armreport.py and setup.sh"
            )
        if not (self.home / "armcount.so").is_file() or not (self.home / "root/usr/bin/python3.11").exists():
            raise LabError(f"the ARM lab is not set up in {self.home}: run {self.tools / 'setup.sh'} once (2 minutes)")
        spec = importlib.util.spec_from_file_location("armreport", self.tools / "armreport.py")
        assert spec and spec.loader
        self._report: Any = importlib.util.module_from_spec(spec)
        sys.modules["armreport"] = self._report
        spec.loader.exec_module(self._report)
        self._cycles: dict[tuple[str, tuple[str, ...]], float] = {}

    def run(self, core: Core, peer: str, *arguments: str | Path, identify: bool = False) -> Dump:
        """Runs a guest python script (arguments[0]) with the site of `peer` ('-': none) and counts its regions.

        identify: give the guest the core's own /proc/cpuinfo, which peers read.
        """
        with tempfile.TemporaryDirectory() as folder, self._identity(core, identify):
            out = Path(folder) / "counts"
            done = subprocess.run(
                [str(self.tools / "guest.sh"), "-c", core.qemu, "-p", f"out={out}", peer, *map(str, arguments)],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode or not out.exists():
                lines = (done.stderr or done.stdout).strip().splitlines()
                raise LabError(f"the guest failed on {core.name} ({done.returncode}): {' | '.join(lines[-3:])}")
            return Dump(self, core, *self._report.load(str(out))[:2], done.stdout)

    @contextmanager
    def _identity(self, core: Core, needed: bool) -> Any:
        """The lab has one root: who needs an identity holds it alone."""
        if not needed:
            yield
            return
        with (self.home / ".identity").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            script = str(self.tools / "cpu-id.sh")
            subprocess.run([script, str(self.home / "root"), core.cpu_id], check=True)
            try:
                yield
            finally:
                subprocess.run([script, str(self.home / "root"), "cortex-a76"], check=True)

    def blocks(self, translated: Sequence[tuple[int, list[int], list[int]]], runs: float) -> list[list[Any]]:
        return self._report.blocks(translated, runs)

    def cost(self, core: Core, blocks: list[Block]) -> None:
        """Fills in the cycles of blocks; each distinct text is simulated once."""
        if not core.mca:
            return
        new = list({b.text for b in blocks if (core.mca, b.text) not in self._cycles})
        cycles, _ = self._report.mca([(0, 1, text) for text in new], core.mca, WIDTH)
        self._cycles.update(zip(((core.mca, text) for text in new), cycles))
        for b in blocks:
            b.cycles = self._cycles[core.mca, b.text]


@dataclass
class Dump:
    """Counts of one guest run, by region."""

    lab: Lab
    core: Core
    translated: list[tuple[int, list[int], list[int]]]
    maps: list[tuple[int, int, int, str]]
    output: str  # what the guest printed

    def per_run(self, runs: int, keep: Callable[[str], bool] | None = None) -> Tally:
        """Of one inference, where region 1 held `runs` of them and region 2 twice as many, without the interpreter."""
        wanted = keep or (lambda file: not INTERPRETER.match(file))
        return self._tally(self.translated, runs, lambda at: self.file_of(at)[0], wanted)

    def region(self, number: int, places: Callable[[int], str]) -> Tally:
        """Of everything in a region; places: address -> what the block belongs to."""
        only = [(at, [0, 0, counts[number]], code) for at, counts, code in self.translated]
        return self._tally(only, 1, places, lambda place: True)

    def _tally(
        self, translated: list[Any], runs: int, places: Callable[[int], str], wanted: Callable[[str], bool]
    ) -> Tally:
        translated = [t for t in translated if wanted(places(t[0]))]
        if not any(c[2] != c[1] for _, c, _ in translated):
            return Tally()
        blocks = [Block(at, n, tuple(text), places(at)) for at, n, text in self.lab.blocks(translated, runs)]
        self.lab.cost(self.core, blocks)
        return Tally.of(blocks)

    def file_of(self, address: int) -> tuple[str, int]:
        """(name of the file mapped at an address, offset in it)."""
        for start, end, offset, file in self.maps:
            if start <= address < end:
                return os.path.basename(file), address - start + offset
        return "?", address


class Symbols:
    """Functions of a library by address: artifact/elf's list, with the address that the guest loaded it at."""

    def __init__(self, functions: list[tuple[int, str]], base: int) -> None:
        self._starts, self._names, self._base = [s for s, _ in functions], [n for _, n in functions], base

    def at(self, address: int) -> str:
        k = bisect.bisect_right(self._starts, address - self._base) - 1
        return self._names[k] if k >= 0 else "?"


def by_place(tally: Tally) -> dict[str, Tally]:
    """The same, one for each place, the longest first."""
    groups: dict[str, list[Block]] = collections.defaultdict(list)
    for block in tally.blocks:
        groups[block.place].append(block)
    parts = {place: Tally.of(blocks) for place, blocks in groups.items()}
    return dict(sorted(parts.items(), key=lambda p: -(p[1].cycles or p[1].instructions)))
