"""Weights of a few bits: found from their values, stored in fewer bytes, the same results to the bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kernel_harness import Case, check_cases
from linear_cases import Cases
from qcompile.kernels.cpu import lower_node
from qcompile.kernels.cpu.codes import MULTIPLIER_LIMIT, Code, common_factor, encode, find_code, find_table_code
from qcompile.kernels.cpu.isa import ISAS, Isa
from qcompile.kernels.cpu.linear.conv import best_tiling
from qcompile.kernels.cpu.linear.packing import pack_codes
from qcompile.kernels.lowering import Constant
from qcompile.kernels.program import Node
from qcompile.targets import TARGETS, Target

KINDS = ("2", "3", "4", "full", "groups", "zeros")


def coded_weights(shape: tuple[int, ...], kind: str, group: int = 32, seed: int = 0) -> np.ndarray:
    """int8 [..., K]: 2, 3 or 4 bits, 4 bits with -8, groups along K with multipliers, and with zeros of their own."""
    rng = np.random.default_rng(seed)
    if kind in ("2", "3", "4", "full"):
        middle = 8 if kind == "full" else 1 << (int(kind) - 1)
        w = rng.integers(1 - middle, middle, shape)
        w.flat[0] = -8 if kind == "full" else middle - 1
        w.flat[-1] = 1 - middle
        return w.astype(np.int8)
    blocks = (*shape[:-1], shape[-1] // group)
    if kind == "groups":
        m = rng.integers(1, MULTIPLIER_LIMIT + 1, blocks)
        q = rng.integers(-7, 8, (*blocks, group))
        q[..., 0], q[..., 1] = 7, -7
    else:
        m, z = rng.integers(1, 9, blocks), rng.integers(0, 16, blocks)
        q = rng.integers(0, 16, (*blocks, group)) - z[..., None]
        q[..., 0], q[..., 1] = -z, 15 - z
    return (q * m[..., None]).astype(np.int8).reshape(shape)


@pytest.mark.parametrize("kind", KINDS)
def test_a_code_is_found_and_gives_the_weights_back(kind: str) -> None:
    w = coded_weights((5, 3, 128), kind)
    coded = find_code(w)
    assert coded is not None
    assert np.array_equal(coded.decoded(), w)
    assert coded.code.bits == (4 if kind in ("full", "groups", "zeros") else int(kind))
    assert coded.code.group == (32 if kind in ("groups", "zeros") else 0)
    assert coded.code.zeros == (kind == "zeros")
    assert coded.code.digits == (kind in ("4", "groups"))


@pytest.mark.parametrize("group", [32, 64, 128])
def test_the_longest_groups_are_found(group: int) -> None:
    coded = find_code(coded_weights((4, 1, 512), "groups", group))
    assert coded is not None and coded.code.group == group


def test_eight_bits_and_odd_runs_have_no_code() -> None:
    rng = np.random.default_rng(1)
    assert find_code(rng.integers(-127, 128, (8, 1, 128)).astype(np.int8)) is None
    assert find_code(coded_weights((8, 1, 128), "groups").reshape(-1, 1, 16)) is None


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_planes_hold_every_bit(bits: int) -> None:
    values = np.random.default_rng(2).integers(0, 1 << bits, 8 * 16 * 3).astype(np.uint8)
    stored = encode(values, Code(bits), 16)
    assert stored.size == values.size * bits // 8
    bit_of = np.unpackbits(stored[:, None], axis=1).sum()
    assert bit_of == np.unpackbits(values[:, None], axis=1).sum()


@pytest.mark.parametrize("isa", ISAS, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_bytes_are_what_the_bits_need(isa: Isa, kind: str) -> None:
    n, k = 256, 1024
    coded = find_code(coded_weights((n, 1, k), kind))
    assert coded is not None
    tiling = best_tiling(isa, 64, n, k, 1, coded.code)
    if tiling.code is None:
        assert tiling.dot in isa.digit_dots
        return
    shares = n * k // 32 * (("groups", "zeros").index(kind) + 1) if coded.code.group else 0
    assert pack_codes(coded, tiling).size == n * k * coded.code.bits // 8 + shares


def with_code(head: tuple, kind: str, group: int = 32) -> Case:
    node, arrays, constants = head
    w = constants["w"]
    constants["w"] = coded_weights(w.shape, kind, group, seed=w.size)
    return Case(node, arrays, constants)


@pytest.mark.parametrize("kind", KINDS)
def test_dense(target: Target, kind: str, tmp_path: Path) -> None:
    c = Cases(target)
    shapes = ((1, 1024, 40), (1, 64, 10), (2, 128, 128), (5, 96, 64), (9, 160, 48), (130, 64, 96), (64, 512, 33))
    ragged = ((3, 33, 17), (31, 130, 49), (1, 4100, 16)) if kind not in ("groups", "zeros") else ((1, 8192, 16),)
    cases = [with_code(c.dense(m, k, n), kind) for m, k, n in (*shapes, *ragged)]
    cases.append(with_code(c.dense(4, 1024, 33, edges=True), kind, 128))
    check_cases(cases, target, tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_conv(target: Target, kind: str, tmp_path: Path) -> None:
    c = Cases(target)
    table = (
        (32, 48, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1),
        (32, 17, (1, 1), (2, 2), (1, 1), (0, 0, 0, 0), 1),
        (64, 16, (3, 1), (1, 1), (2, 1), (2, 0, 2, 0), 1),
        (64, 32, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 2),
        (32, 16, (3, 3), (1, 1), (1, 2), (1, 2, 1, 2), 1),
    )
    cases = [with_code(c.conv((2, 7, 9, channels), *rest), kind) for channels, *rest in table]
    if kind == "4":
        cases += [with_code(c.conv((1, 9, 9, 3), 20, (5, 5), (2, 2)), kind)]
    check_cases(cases, target, tmp_path)


@pytest.mark.parametrize("isa", ISAS, ids=repr)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [4096, 40960])
def test_no_panel_is_larger_than_the_stack_may_be(isa: Isa, kind: str, k: int) -> None:
    coded = find_code(coded_weights((32, 1, k), kind))
    assert coded is not None
    for rows in (1, 12, 300):
        tiling = best_tiling(isa, rows, 32, k, 1, coded.code)
        assert tiling.code is None or tiling.inline or tiling.panel_bytes(k, 1) <= 1 << 17


@pytest.mark.parametrize("kind", ["2", "zeros"])
def test_long_sums_of_codes(target: Target, kind: str, tmp_path: Path) -> None:
    check_cases([with_code(Cases(target).dense(12, 20480, 20), kind)], target, tmp_path)


def test_half_the_bytes_reach_the_artifact() -> None:
    target = TARGETS["arm-a76"]
    case = with_code(Cases(target).dense(64, 512, 512), "4")
    sizes = [o.array.nbytes for o in lower_node(case.context(target))[0].operands if isinstance(o, Constant)]
    assert max(sizes) == 512 * 512 // 2


@pytest.mark.parametrize("group", [32, 64, 128])
def test_rows_of_a_coded_table(target: Target, group: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(group)
    cases = []
    for dtype, limit in (("int16", 255), ("int8", 15)):
        m = rng.integers(1, limit + 1, (40, 384 // group))
        q = rng.integers(-8, 8, (40, 384 // group, group))
        q[..., 0], q[..., 1] = 7, -8
        x = np.ascontiguousarray((q * m[..., None]).reshape(40, 384).astype(dtype))
        assert find_table_code(x) is not None
        for index in ("int32", "int64"):
            ids = rng.integers(0, 40, (3, 5)).astype(index)
            ids.flat[:3] = -5, 40, np.iinfo(index).max
            node = Node(f"take_{dtype}_{index}", "take", (f"x_{dtype}", f"i_{dtype}_{index}"), {"axis": 0})
            cases.append(Case(node, {f"i_{dtype}_{index}": ids}, {f"x_{dtype}": x}))
    check_cases(cases, target, tmp_path)
    stored = [o.array.nbytes for o in lower_node(cases[0].context(target))[0].operands if isinstance(o, Constant)]
    assert sum(stored) == 40 * (384 // 2 + 384 // group)


@pytest.mark.parametrize("bits", ["2", "4", "full"])
def test_codes_on_a_finer_grid(target: Target, bits: str, tmp_path: Path) -> None:
    """Weights of few bits times one number are stored without it."""
    c, cases = Cases(target), []
    heads = [c.dense(m, k, n) for m, k, n in ((1, 256, 40), (5, 33, 17), (70, 128, 64))]
    heads += [c.conv((1, 7, 9, 16), 24, (3, 3), pads=(1, 1, 1, 1)), c.conv((2, 5, 5, 32), 32, (3, 3), groups=2)]
    for node, arrays, constants in heads:
        w = coded_weights(constants["w"].shape, bits, seed=len(cases))
        w = (w * (18 if bits == "4" else 13)).astype(np.int8)
        assert common_factor(w) > 1
        cases.append(Case(node, arrays, constants | {"w": w}))
    check_cases(cases, target, tmp_path)
    stored = [o.array.nbytes for o in lower_node(cases[2].context(target))[0].operands if isinstance(o, Constant)]
    assert sum(stored) < 64 * 128 * 0.75, "not packed"
