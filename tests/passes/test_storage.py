"""unsigned_activations: uint8 inside, int8 at the border, the same numbers."""

import numpy as np
import pytest
from programs import LIMITS, NETS, conv_chain, feeds, from_float, rescaled
from qcompile.kernels.dialect import OPS, Type
from qcompile.kernels.ops.selection import REDUCTIONS
from qcompile.kernels.ops.whole import FUNCTIONS
from qcompile.kernels.program import Node, Program
from qcompile.passes.storage import plain_arguments, unsigned_activations
from qcompile.passes.tidy import tidy

ELSEWHERE = {"interpolate", "log_softmax", "lstm", "gru", "rnn", "resize_linear"}  # compared by tests of their kernels


def check_same(program, high=None):
    """The changed program, after checking that outputs agree and that quantities inside are unsigned."""
    changed = unsigned_activations(program)
    before, after = program.types(), changed.types()
    for seed in range(3):
        x = feeds(program, seed, high)
        want, got = program.run(x), changed.run(x)
        for old, new in zip(program.outputs, changed.outputs):
            assert before[old] == after[new]
            np.testing.assert_array_equal(got[new], want[old], err_msg=old)
    for node in changed.nodes:
        op = OPS[node.op]
        for position, name in enumerate(node.inputs):
            argument = op.arguments[min(position, len(op.arguments) - 1)]
            if argument not in op.parameters and argument not in plain_arguments(node) and node.op != "cast":
                assert after[name].dtype != "int8", f"{node.name} reads {name} as int8"
    return changed


def test_chain():
    changed = check_same(tidy(conv_chain()))
    assert changed.constants["w"].dtype == np.int8, "weights stay signed"
    assert any(n.op == "cast" and n.attrs == {"offset": 128, "dtype": "uint8"} for n in changed.nodes), (
        "the input is moved once"
    )


@pytest.mark.parametrize("outputs", [("y", "t"), ("r", "y"), ("t", "r")], ids=lambda o: "+".join(o))
def test_outputs_that_are_read_inside_as_well(outputs):
    check_same(conv_chain(outputs))


def one_op(op, inputs, attrs, constants=None):
    return Program(
        {n: Type(*t) for n, t in inputs.items()},
        ["y"],
        constants or {},
        [Node("y", op, (*inputs, *(constants or {})), attrs)],
    )


X = {"x": ((2, 6, 6, 4), "int8")}
PAIR = {"x": ((2, 3, 8), "int8"), "z": ((2, 3, 8), "int8")}
ROW = {"outer": (4, 6, 5)}
CASES = {
    "requantize": one_op("requantize", X, rescaled(shift=1, x_zero_point=9), {"m": np.array([2**30], np.int32)}),
    "prelu": one_op(
        "prelu",
        X,
        rescaled(shift=1, x_zero_point=-7),
        {"m": np.array([2**30], np.int32), "n": np.array([2**27], np.int32)},
    ),
    "add": one_op(
        "add",
        PAIR,
        {"x_zero_point": 4, "x_multiplier": 99, "r_zero_point": -9, "r_multiplier": 33, "shift": 7, **LIMITS},
    ),
    "mul": one_op(
        "mul", PAIR, {"r_zero_point": -9, **rescaled(shift=6, x_zero_point=4)}, {"m": np.array([2**30], np.int32)}
    ),
    "matmul": one_op(
        "matmul",
        {"a": ((2, 3, 8), "int8"), "b": ((2, 5, 8), "int8")},
        {"transpose_b": True, "a_zero_point": 5, "b_zero_point": -6},
    ),
    "pad": one_op("pad", X, {"before": [0, 1, 0, 0], "after": [0, 0, 2, 0], "mode": "constant", "value": -17}),
    "reflect": one_op("pad", X, {"before": [0, 1, 0, 0], "after": [0, 0, 2, 0], "mode": "reflect", "value": 0}),
    "max_pool2d": one_op(
        "max_pool2d", X, {"kernel": [3, 3], "strides": [2, 2], "dilations": [1, 1], "pads": [1, 1, 1, 1]}
    ),
    "sum_pool2d": one_op(
        "sum_pool2d", X, {"kernel": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "x_zero_point": 11}
    ),
    "reduce_sum": one_op("reduce_sum", {"x": ((4, 6, 5), "int8")}, {"x_zero_point": 11}),
    "reduce_max": one_op("reduce_max", {"x": ((4, 6, 5), "int8")}, {"minimum": True}),
    "argmax": one_op("argmax", {"x": ((4, 6, 5), "int8")}, {"minimum": False, "last": True}),
    "where": one_op("where", {"c": ((2, 3, 8), "int8")} | PAIR, {}),
    "slice": one_op("slice", X, {"begin": [0, 5, 0, 1], "end": [2, -7, 6, 4], "step": [1, -2, 3, 1]}),
    "concat": one_op("concat", PAIR, {"axis": 1}),
    "narrow": one_op("cast", {"x": ((2, 3), "int16")}, {"offset": -3, "dtype": "int8"}),
    "widen": one_op("cast", {"x": ((2, 3), "int8")}, {"offset": 3, "dtype": "int16"}),
    "layer_norm": one_op(
        "layer_norm",
        {"x": ((3, 16), "int8")},
        {"x_zero_point": 2, "epsilon": 9, "rms": False, "per_row": False, "shift": 8, **LIMITS},
        {"g": np.full(16, 2**9, np.int16), "b": np.arange(16, dtype=np.int32) * 50},
    ),
    "softmax": one_op(
        "softmax",
        {"x": ((3, 16), "int8"), "mask": ((3, 16), "int8")},
        {"multiplier": 2**30, "shift": 1, "pre": 6, "numerator": 32765 * 2**15, "out_shift": 6, **LIMITS},
    ),
    "grid_sample": one_op(
        "grid_sample",
        {"x": ((2, 5, 6, 3), "int8"), "grid": ((2, 4, 4, 2), "int16")},
        {
            "multipliers": [300, 250],
            "offsets": [30, -20],
            "shift": 16,
            "fraction": 4,
            "padding": "zeros",
            "corners": False,
            "x_zero_point": -7,
        },
        {"table": np.stack([np.arange(16, 0, -1), np.arange(16)], 1).astype(np.int16)},
    ),
    "non_max_suppression": one_op(
        "non_max_suppression",
        {"boxes": ((2, 9, 4), "int8"), "scores": ((2, 3, 9), "int8")},
        {
            "most": 4,
            "overlap_multiplier": 1 << 24,
            "limit": 5,
            "centers": False,
            "boxes_zero_point": 3,
            "scores_zero_point": -9,
        },
    ),
    "top_k": one_op("top_k", {"x": ((4, 6), "int8")}, {"k": 3, "minimum": False}),
    "take": one_op("take", {"x": ((4, 6), "int8"), "indices": ((5,), "int8")}, {"axis": 0}),
    "transpose": one_op("transpose", X, {"axes": [3, 1, 0, 2]}),
    "reshape": one_op("reshape", X, {"shape": [12, 24]}),
    "broadcast": one_op("broadcast", {"x": ((1, 6), "int8")}, {"shape": [4, 6]}),
    **{
        f"scatter {how}": one_op(
            "scatter",
            {"x": ((4, 6), "int8"), "numbers": ((3,), "int32"), "updates": ((3, 6), "int8")},
            {"reduction": how},
        )
        for how in REDUCTIONS
    },
    **{
        f"{f} to {dtype}": one_op("whole", PAIR, {"function": f, "dtype": dtype})
        for f in FUNCTIONS
        for dtype in ("int8", "int32")
    },
    **{
        f"{f} of int32": one_op("whole", {n: ((2, 9), "int32") for n in "xr"}, {"function": f, "dtype": "int8"})
        for f in FUNCTIONS
    },
}


def test_every_op_of_activations_has_a_case():
    of_sums = {op for op in OPS if op.startswith(("requantize_word", "add_residual", "add_sums", "bias_add"))}
    in_nets = {n.op for net in NETS for n in tidy(from_float(NETS[net]())).nodes} | {n.op for n in conv_chain().nodes}
    missing = set(OPS) - {p.nodes[0].op for p in CASES.values()} - in_nets - of_sums
    assert missing <= ELSEWHERE, missing


@pytest.mark.parametrize("op", CASES)
def test_every_kind_of_op(op):
    check_same(CASES[op])


@pytest.mark.parametrize("net", NETS)
def test_networks(net):
    check_same(tidy(from_float(NETS[net]())), high=2 if net == "attention" else None)
