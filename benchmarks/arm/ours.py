"""Our side: a program compiled for an ARM core, run in the lab, counted as a whole and call by call."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from elftools.elf.elffile import ELFFile
from qcompile.artifact import ArtifactSpec, TensorInfo
from qcompile.artifact.elf import functions, symbols
from qcompile.artifact.linker import link_library
from qcompile.backends import backend_for, generate
from qcompile.codegen.emit_c import Generated, ListedCall, compile_main, main_source
from qcompile.kernels.cpu import head_op
from qcompile.kernels.dialect import Type
from qcompile.kernels.lowering import NodeContext
from qcompile.kernels.program import Node, Program
from qcompile.statistics import macs_by_node
from qcompile.targets import CpuTarget, get_target

from arm.lab import Core, Lab, Symbols, Tally, by_place
from arm.nets import Net

NAME = "measured"
WINDOW = 6  # calls that one run can tell apart
RUNS = 2

_MARKS = f"""
static volatile int32_t qc_window;
static void qc_mark(int32_t call) {{
    int32_t region = call - qc_window;
    register long x8 __asm__("x8") = 0x7A5A;
    register long x0 __asm__("x0") = region >= 0 && region < {WINDOW} ? region + 1 : 7;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8) : "memory");
}}
"""


@dataclass
class Call:
    """One kernel call of an inference; macs: those of its node, given to the node's costliest call."""

    node: str
    op: str
    kernel: str
    tally: Tally
    macs: int = 0


@dataclass
class Measured:
    """Counts of one inference; equal: the outputs are the numpy meaning's, bit for bit."""

    total: Tally
    equal: bool
    calls: list[Call] = field(default_factory=list)
    kernels: dict[str, Tally] = field(default_factory=dict)


def measure(lab: Lab, net: Net, core: Core, calls: bool = False) -> Measured:
    """One inference of `net` compiled for the core's target; calls: also each kernel call by itself."""
    return measure_program(lab, net.program, net.arrays("integers"), net.arrays("outputs"), core, calls)


def measure_program(
    lab: Lab, program: Program, inputs: list[np.ndarray], outputs: list[np.ndarray], core: Core, calls: bool = False
) -> Measured:
    target = get_target(core.target)
    reference_types = program.types()
    for _, run in backend_for(target).passes:
        program = run(program)
    code = generate(program, target)
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(lab, core, Path(folder), inputs, outputs, code.arena_bytes)
        borders = (
            [_tensor(n, t) for n, t in program.inputs.items()],
            [_tensor(n, reference_types[n]) for n in dict.fromkeys(program.outputs)],
        )
        spec = ArtifactSpec(NAME, target, code.objects, code.weights, code.arena_bytes, *borders)
        dump, base = bench.run(link_library(spec)[0])
        symbol = Symbols(bench.functions, base)
        total = dump.per_run(RUNS)
        for block in total.blocks:
            block.place = symbol.at(block.address)
        measured = Measured(total, bench.equal(), kernels=by_place(total))
        if calls:
            marked = replace(spec, objects=_marked_objects(code, target))
            measured.calls = _calls(bench, link_library(marked)[0], code.listing, _heads(program, target))
    return measured


def _tensor(name: str, type_: Any) -> TensorInfo:
    return TensorInfo(name, type_.dtype, type_.shape, None, 0)


def _marked_objects(code: Generated, target: CpuTarget) -> list[bytes]:
    """`code.objects` with a qc_main that marks each call of `code.listing`."""
    statements = [s for k, call in enumerate(code.listing) for s in (f"qc_mark({k});", call.code)]
    source = main_source([*code.declarations, _MARKS], [*statements, "qc_mark(-1);"])
    return [*code.objects[:-1], compile_main(source, target)]


def _heads(program: Program, target: CpuTarget) -> dict[str, tuple[str, int]]:
    """node -> (kind of op, MACs)."""
    types, macs = program.types(), macs_by_node(program)
    return {n.name: (_kind(n, types, target), macs[n.name]) for n in program.nodes}


def _kind(node: Node, types: dict[str, Type], target: CpuTarget) -> str:
    """The op that names the node's kernel; convolutions with one filter a channel are depthwise."""
    op = head_op(NodeContext(node, types, {}, types[node.name], target))
    head = node.body[0] if node.body else node
    if op == "conv2d" and head.attrs["groups"] == types[head.inputs[0]].shape[-1] > 1:
        return "depthwise"
    return op


def _calls(bench: _Bench, library: bytes, listing: list[ListedCall], heads: dict[str, tuple[str, int]]) -> list[Call]:
    calls: list[Call] = []
    for first in range(0, len(listing), WINDOW):
        dump, base = bench.run(library, first)
        symbol = Symbols(bench.functions, base)
        for k, listed in enumerate(listing[first : first + WINDOW]):
            tally = dump.region(k + 1, symbol.at)
            tally = Tally.of(b for b in tally.blocks if b.place not in ("qc_main", "qc_mark", "?"))
            calls.append(Call(listed.node, heads.get(listed.node, ("border", 0))[0], listed.kernel, tally))
    for node in {c.node for c in calls}:
        best = max((c for c in calls if c.node == node), key=lambda c: c.tally.cycles or c.tally.instructions)
        best.macs = heads.get(node, ("", 0))[1]
    return calls


@dataclass
class _Bench:
    """Runs libraries of one program in the lab."""

    lab: Lab
    core: Core
    folder: Path
    inputs: list[np.ndarray]
    outputs: list[np.ndarray]
    arena_bytes: int
    functions: list[tuple[int, str]] = field(default_factory=list)

    def run(self, library: bytes, window: int = -1) -> tuple[Any, int]:
        """(dump, address that the library was loaded at)."""
        file = self.folder / "lib.so"
        file.write_bytes(library)
        with file.open("rb") as f:
            elf = ELFFile(f)
            self.functions = functions(elf)
            offsets = {s.name: s["st_value"] for s in symbols(elf, ".symtab")}
        plan = {
            "library": str(file),
            "run": f"{NAME}_run",
            "run_offset": offsets[f"{NAME}_run"],
            "window": window,
            "window_offset": offsets.get("qc_window", 0),
            "runs": RUNS,
            "arena_bytes": self.arena_bytes,
            "inputs": [],
            "outputs": [(str(self.folder / f"y{i}"), y.nbytes) for i, y in enumerate(self.outputs)],
        }
        for i, x in enumerate(self.inputs):
            (self.folder / f"x{i}").write_bytes(np.ascontiguousarray(x).tobytes())
            plan["inputs"].append((str(self.folder / f"x{i}"), x.nbytes))
        (self.folder / "plan.json").write_text(json.dumps(plan))
        dump = self.lab.run(self.core, "-", Path(__file__).with_name("guest_artifact.py"), self.folder / "plan.json")
        return dump, int(dump.output.split()[-1])

    def equal(self) -> bool:
        return all((self.folder / f"y{i}").read_bytes() == y.tobytes() for i, y in enumerate(self.outputs))
