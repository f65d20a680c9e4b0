"""What the linear kernels become: shared functions, equal bytes, inner loops that stay in registers."""

from __future__ import annotations

import re

import numpy as np
import pytest
from kernel_harness import Case
from linear_cases import Cases
from qcompile.kernels.cpu import lower_node
from qcompile.kernels.cpu.compile import assembly, compile_module
from qcompile.kernels.cpu.isa import ISAS, Isa
from qcompile.kernels.cpu.isa.neon import NeonDotprod
from qcompile.kernels.cpu.linear.conv import even_blocks
from qcompile.kernels.cpu.linear.depthwise_walk import choose_walk
from qcompile.kernels.cpu.linear.packing import fold_bias, pack_weights
from qcompile.kernels.cpu.linear.tiles import choose_tiling
from qcompile.kernels.program import Node
from qcompile.targets import TARGETS, CompileError

DOT_PRODUCTS = r"sdot|smmla|smull|vpdpbusd|vpmaddwd"


def requantized(c: Cases, head: tuple) -> Case:
    step, constants = c.requantize(head[0].name, len(head[2]["b"]))
    return c.fuse(head, [step], {}, constants)


def inner_loops(text: str) -> list[list[str]]:
    """The instructions of each loop without branches inside, in assembly text."""
    loops, label, body = [], "", []
    for line in text.splitlines():
        code = re.split(r"//|#", line)[0].strip()
        found = re.match(r"(\.L\w+):", code)
        if found:
            label, body = found.group(1), []
        elif code and not code.startswith("."):
            body.append(code)
            if re.match(r"b\.|cb|j", code) and code.split()[-1] == label:
                loops.append(body)
    return loops


@pytest.mark.parametrize("name", ["arm-a76", "arm-a710", "arm-a72", "x86-avx512vnni", "x86-avxvnni"])
@pytest.mark.parametrize("kind", ["dense", "conv"])
def test_main_loop_has_no_spills(name: str, kind: str) -> None:
    target = TARGETS[name]
    c = Cases(target)
    head = c.dense(128, 768, 768) if kind == "dense" else c.conv((1, 28, 28, 64), 96, (3, 3))
    call = lower_node(requantized(c, head).context(target))[-1]
    loops = inner_loops(assembly({call.kernel.name: call.kernel.build()}, target))
    main = max(loops, key=lambda loop: sum(bool(re.search(DOT_PRODUCTS, i)) for i in loop))
    dots = sum(bool(re.search(DOT_PRODUCTS, i)) for i in main)
    assert dots >= 10
    vectors_on_stack = [i for i in main if re.search(r"\[sp|%rsp", i) and re.search(r"\bq\d+|[xyz]mm", i)]
    assert not vectors_on_stack, main


@pytest.mark.parametrize("name", ["x86-avx512vbmi", "arm-a76"])
def test_layers_that_differ_in_numbers_share_a_kernel(name: str) -> None:
    target = TARGETS[name]
    c = Cases(target)
    cases = [requantized(c, head) for head in (c.dense(64, 320, 192), c.dense(256, 512, 384), c.dense(64, 768, 192))]
    names = {lower_node(case.context(target))[0].kernel.name for case in cases}
    assert len(names) == 1


def test_objects_are_reproducible() -> None:
    target = TARGETS["arm-a76"]
    objects = []
    for _ in range(2):
        c = Cases(target)
        cases = [requantized(c, c.conv((1, 9, 9, 16), 24, (3, 3))), requantized(c, c.dense(4, 16, 8))]
        kernels = {call.kernel.name: call.kernel for case in cases for call in lower_node(case.context(target))}
        objects.append(compile_module({name: kernel.build() for name, kernel in kernels.items()}, target))
    assert objects[0] == objects[1]


@pytest.mark.parametrize("isa", ISAS, ids=repr)
@pytest.mark.parametrize("m", [1, 2, 3, 7, 49, 1000])
@pytest.mark.parametrize("n", [1, 8, 10, 17, 64, 100, 768])
def test_tiling_covers_all_channels(isa: Isa, m: int, n: int) -> None:
    tiling = choose_tiling(isa.dots, m, n, run=36, runs=3)
    panels = tiling.panels(n)
    assert tiling.rows <= m
    assert [first for first, _ in panels] == [sum(c for _, c in panels[:i]) for i in range(len(panels))]
    assert n <= sum(c for _, c in panels) < n + tiling.dot.column_step


def test_packing_keeps_every_weight() -> None:
    weights = np.random.default_rng(0).integers(-127, 128, (37, 3, 29)).astype(np.int8)
    for isa in ISAS:
        tiling = choose_tiling(isa.dots, 64, 37, 29, 3)
        packed = pack_weights(weights, tiling)
        assert np.abs(packed.astype(np.int64)).sum() == np.abs(weights.astype(np.int64)).sum()
        assert packed.size == sum(c for _, c in tiling.panels(37)) * 3 * -(-29 // tiling.dot.group) * tiling.dot.group


def test_folded_bias_may_wrap() -> None:
    weights = np.full((1, 1 << 20), -127, np.int8)
    folded = int(fold_bias(np.zeros(1, np.int32), weights, 128)[0])
    assert (folded - 128 * 127 * (1 << 20)) % 2**32 == 0


def test_weights_computed_at_run_time_are_refused() -> None:
    target = TARGETS["arm-a76"]
    c = Cases(target)
    node, arrays, params = c.dense(2, 4, 4)
    with pytest.raises(CompileError, match="must be constants, w is computed"):
        lower_node(Case(node, arrays | {"w": params.pop("w")}, params).context(target))


def test_a_chain_refuses_what_it_cannot_read() -> None:
    target = TARGETS["arm-a76"]
    c = Cases(target)
    head = c.conv((2, 4, 4, 8), 8, (1, 1))
    step, constants = c.requantize(head[0].name, 8)
    wide = Node(
        "sum",
        "add",
        (step.name, "r"),
        {"x_zero_point": 0, "x_multiplier": 1, "r_zero_point": 0, "r_multiplier": 1, "shift": 1, **c.bounds()},
    )
    case = c.fuse(head, [step, wide], {"r": c.activation((1, 4, 1, 8))}, constants)
    with pytest.raises(CompileError, match="sum: input r int8"):
        lower_node(case.context(target))


@pytest.mark.parametrize(
    ("kernel", "strides", "rows", "largest_cost"),
    [((3, 3), (1, 1), True, 40.0), ((3, 3), (2, 2), True, 50.0), ((1, 21), (1, 1), False, 56.0)],
)
def test_zipped_taps_serve_many_outputs(kernel, strides, rows, largest_cost) -> None:
    """Vector instructions of an output of 16 channels, its rescaling included."""
    dot = NeonDotprod.taps
    walk = choose_walk(dot, kernel, strides, (1, 1), (24, 24), 16)
    assert walk.rows == rows and walk.cost(dot, (24, 24)) <= largest_cost


@pytest.mark.parametrize("tiles, outer, fewest", [(25, 4, 2), (49, 3, 3), (205, 1, 8), (16, 8, 1), (1, 8, 1)])
def test_blocks_are_shared_evenly_by_two_and_four_threads(tiles: int, outer: int, fewest: int) -> None:
    """The busiest thread's share, in tiles, is never more than with the fewest blocks."""

    def busiest(blocks: int, threads: int) -> int:
        size = -(-tiles // blocks)
        work = [min(size, tiles - at) for at in range(0, tiles, size) for _ in range(outer)]
        chunk = -(-len(work) // threads)
        return max(sum(work[at : at + chunk]) for at in range(0, len(work), chunk))

    chosen = even_blocks(tiles, outer, fewest, 1e-4)
    assert fewest <= chosen <= max(tiles, fewest)
    assert sum(busiest(chosen, t) * t for t in (2, 4)) <= sum(busiest(fewest, t) * t for t in (2, 4))
    if (tiles, outer) == (25, 4):
        assert busiest(chosen, 2) == 50, "100 tiles: a half each"
