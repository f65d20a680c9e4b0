"""Brings any accepted ONNX model into one form: static shapes, opset 21, folded constants, operators by their names.

The passes run in the order in which they stand here: `first`, PASSES until nothing changes, LAST.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import onnx
from onnx import NodeProto
from qcompile.frontend.accept import check_parameters, check_supported
from qcompile.frontend.attributes import check_attributes
from qcompile.frontend.blocks import expand_blocks, float_blocks, fold_blocked_quantize
from qcompile.frontend.channel_grids import single_scales
from qcompile.frontend.control_flow import CONTROL_FLOW, choose, refuse_control_flow, unroll
from qcompile.frontend.dynamic import expand_dynamic
from qcompile.frontend.expand_contrib import expand_contrib
from qcompile.frontend.expand_functions import expand_functions
from qcompile.frontend.expand_norms import expand_group_norm
from qcompile.frontend.expand_operators import expand_operators, finite_masks
from qcompile.frontend.extra_outputs import constant_outputs, expand_extra_outputs, plain_outputs
from qcompile.frontend.fake_quantize import fuse_fake_quantize
from qcompile.frontend.fixed_rows import fix_rows
from qcompile.frontend.fold_constants import fold_constant_nodes, fold_constants
from qcompile.frontend.fold_pads import fold_pads
from qcompile.frontend.fold_scales import (
    batch_norm_to_affine,
    fold_before_conv,
    fold_into_linear,
    hoist_matmul_factors,
    merge_scalar_factors,
)
from qcompile.frontend.fuse_activations import fuse_activations
from qcompile.frontend.fuse_norms import fuse_norms
from qcompile.frontend.fuse_softmax import fuse_softmax
from qcompile.frontend.graph import Graph, name_nodes
from qcompile.frontend.hoist_dequantize import hoist_dequantize
from qcompile.frontend.limits import plain_limits
from qcompile.frontend.masks import masks_apart
from qcompile.frontend.narrow_types import clip_before_quantize, widen_types
from qcompile.frontend.opset import TARGET, upgrade_opset
from qcompile.frontend.precision import single_precision
from qcompile.frontend.qonnx import expand_quant
from qcompile.frontend.qoperators import expand_qoperators
from qcompile.frontend.recurrent import fold_zeros, plain_recurrent
from qcompile.frontend.recurrent_dynamic import expand_dynamic_lstm
from qcompile.frontend.shapes import check_static, fix_input_shapes, infer_shapes
from qcompile.frontend.simplify import (
    explicit_reshapes,
    merge_transposes,
    move_into_weights,
    plain_gemm,
    remove_no_ops,
    unflatten_gemm,
)
from qcompile.frontend.weight_only import expand_weight_only
from qcompile.frontend.whole_inputs import whole_inputs

Pass = Callable[[Graph], object]


def first(shapes: Mapping[str, tuple[int, ...]] | None, notes: list[str]) -> list[Pass]:
    """From what tools write to operators of one opset with known shapes: once, in this order."""
    return [
        single_precision,  # float16, bfloat16 and float64: float32
        partial(fix_input_shapes, shapes=shapes, notes=notes),  # dynamic axes: the sizes that are given
        partial(plain_outputs, notes=notes),  # an output that is an input by name: a name of its own
        expand_quant,  # QONNX's Quant: QuantizeLinear, DequantizeLinear
        check_attributes,  # what means nothing is refused, before anything reads it
        resolve_control_flow,  # If, Loop, Scan: their bodies, whose nodes are of the model's opset
        fold_before_old_softmax,  # old softmaxes need the rank of what they read
        infer_shapes,
        upgrade_opset,  # opset 7 to 20: 21
        fold_constant_nodes,  # Constant: an initializer
        check_attributes,  # of the operators as they are now called
        expand_extra_outputs,  # Mean, InvStdDev, masks, statistics: nodes beside the operator
        expand_weight_only,  # MatMulNBits and the like: DequantizeLinear of codes
        expand_contrib,  # ONNX Runtime's own operators: those of ONNX
        expand_qoperators,  # QLinearConv and the like: Q/DQ pairs
        partial(expand_dynamic, notes=notes),  # dynamically quantized activations: floats
        partial(expand_dynamic_lstm, notes=notes),
        expand_functions,  # operators with a body: the body
        resolve_control_flow,  # of these bodies
        partial(fix_rows, notes=notes),  # NonMaxSuppression: as many rows as it can select
        hoist_dequantize,  # DequantizeLinear in front of the movement of codes
        widen_types,  # 2 and 4 bits: 8
        fuse_fake_quantize,  # Div, Round, Clip, Mul: a Q/DQ pair
        partial(float_weights, notes=notes),  # a model that is not quantized: weights in blocks as floats
    ]


PASSES: list[Pass] = [  # again and again, until nothing changes
    fold_constants,  # what depends on constants and shapes only becomes an initializer
    plain_recurrent,  # LSTM, GRU, RNN: one direction a node, time first
    fold_zeros,  # products with zeros
    fuse_fake_quantize,  # Div, Round, Clip, Mul: a Q/DQ pair
    single_scales,  # activations with scales per channel: factors, and one scale
    clip_before_quantize,  # Clip of codes: Clip of reals
    fold_blocked_quantize,  # weights quantized in blocks: their codes
    remove_no_ops,  # Identity, Dropout, Casts and Reshapes without effect
    explicit_reshapes,  # Reshape targets without 0 and -1
    merge_transposes,  # Transpose of Transpose, Reshape of Reshape
    move_into_weights,  # Transpose of a dequantized weight
    plain_gemm,  # Gemm without alpha, beta, transA
    unflatten_gemm,  # Reshape, Gemm, Reshape: MatMul and Add
    plain_limits,  # infinite ones of Clip, Max and Min: none
    finite_masks,  # -inf: a large number
    masks_apart,  # sums of masks and biases: added to the scores one after the other
    expand_operators,  # CumSum, Einsum, LRN, ...: what they are made of
    expand_group_norm,  # GroupNormalization: InstanceNormalization of groups, Mul, Add
    fuse_norms,  # LayerNormalization, InstanceNormalization, RMSNormalization
    fuse_softmax,  # exp(x) / sum(exp(x)): Softmax, and LogSoftmax
    fuse_activations,  # Gelu, HardSwish, HardSigmoid, Mish
    batch_norm_to_affine,  # BatchNormalization: Mul and Add
    fold_into_linear,  # Mul, Add after a layer: its weights and bias
    fold_before_conv,  # Mul, Add before a convolution: its weights and bias
    fold_pads,  # Pad of zeros before a convolution: its pads
    hoist_matmul_factors,  # scalar factors of attention operands: behind the MatMul
    merge_scalar_factors,  # factors of factors
]

LAST: list[Pass] = [
    whole_inputs,  # float inputs that hold whole numbers: int32
    expand_blocks,  # weights in blocks: rows of a block each
    constant_outputs,  # an output that is a constant: an Identity of it
    infer_shapes,
    check_supported,  # what has no converter is refused
    check_static,  # so is what has no static shape
    check_parameters,  # and computed scales
    lambda graph: name_nodes(graph.nodes),  # each node has a name of its own
]
ROUNDS = 12
SOFTMAX_OF_ROWS = 13  # the opset in which Softmax came to run along one axis


def normalise(
    model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]] | None = None, notes: list[str] | None = None
) -> onnx.ModelProto:
    """The model in normal form; computes what `model` computes, up to float rounding.

    `shapes` fixes dynamic axes: {input name: full shape}. `notes` receives remarks for the user. The result has opset
    21 (23 where RMSNormalization occurs), no inputs that repeat initializers, and a static shape for every tensor.
    Raises CompileError where shapes stay unknown or a constant expression cannot be evaluated.
    """
    graph = Graph(model)
    normalise_graph(graph, shapes, notes)
    return graph.to_model()


def normalise_graph(
    graph: Graph, shapes: Mapping[str, tuple[int, ...]] | None = None, notes: list[str] | None = None
) -> None:
    """`normalise` in place."""
    with _without_collections():
        for run in first(shapes, [] if notes is None else notes):
            run(graph)
        for _ in range(ROUNDS):
            graph.changed = False
            for run in PASSES:
                run(graph)
            if not graph.changed:
                break
        for run in LAST:
            run(graph)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Python's garbage collector would walk all maps of a large graph again and again (a third of the time), for
    cycles that these do not have."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def resolve_control_flow(graph: Graph) -> None:
    """Unroll, folding what conditions and trip counts depend on, until nothing is left."""
    while found := [n for n in graph.nodes if n.op_type in CONTROL_FLOW]:
        fold_constants(graph)
        unroll(graph)
        if all(any(n is m for m in graph.nodes) for n in found) and not choose(graph):
            refuse_control_flow(graph)


def fold_before_old_softmax(graph: Graph) -> None:
    """Fold constants where Softmax runs over several axes."""
    if graph.opsets.get("", TARGET) < SOFTMAX_OF_ROWS:
        fold_constants(graph)


def float_weights(graph: Graph, notes: list[str]) -> None:
    """`float_blocks` of a model without quantized activations."""
    if not is_quantized(graph):
        float_blocks(graph, notes)


def is_quantized(graph: Graph) -> bool:
    """Whether activations are already quantized: a QuantizeLinear, a QLinear or an integer operator occurs, or nothing
    is computed at all."""
    if graph.nodes and all(n.op_type == "DequantizeLinear" for n in graph.nodes):
        return True
    return any(_is_integer_sum(graph, n) for n in graph.nodes) or any(
        (n.op_type == "QuantizeLinear" and n.input[0] not in graph.constants)
        or n.op_type.startswith("QLinear")
        or n.op_type in ("ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
        for n in graph.nodes
    )


def _is_integer_sum(graph: Graph, node: NodeProto) -> bool:
    """Whether a node casts the product of dequantized operands to integers: what `expand_dynamic` makes."""
    product = graph.producer(node.input[0], "Conv", "MatMul") if node.op_type == "Cast" else None
    if product is None or graph.is_float(node.output[0]):
        return False
    return graph.producer(product.input[0], "DequantizeLinear") is not None
