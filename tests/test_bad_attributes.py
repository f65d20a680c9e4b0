"""Attributes that mean nothing: refused within a moment by one line that names the node and the attribute."""

import time

import numpy as np
import pytest
import qcompile
import qcompile.pipeline  # what it imports is no part of the moment that a refusal may take
from onnx import TensorProto, helper
from small_models import model, value

SECONDS = 1.0
IMAGE = {"x": [1, 4, 8, 8]}


def one(op, *reads, inputs=None, outputs=("y",), opset=17, constants=None, **attributes):
    net = model((op, ["x", *reads], list(outputs), attributes), inputs=inputs, outputs=outputs[:1], opset=opset,
                constants=constants)  # fmt: skip
    return net


def conv(op="Conv", weight=(4, 4, 3, 3), shape=(1, 4, 8, 8), **attributes):
    return one(op, "w", inputs={"x": list(shape)}, constants={"w": np.ones(weight, np.float32)}, **attributes)


def pool(op="MaxPool", **attributes):
    return one(op, inputs=IMAGE, **({"kernel_shape": [2, 2]} | attributes))


def lstm(op="LSTM", gates=4, w=(1, 16, 8), r=(1, 16, 4), **attributes):
    constants = {"w": np.ones(w, np.float32), "r": np.ones(r, np.float32)}
    return one(op, "w", "r", inputs={"x": [5, 1, 8]}, constants=constants, **attributes)


def sliced(starts, ends, axes, steps):
    numbers = {n: np.array(v, np.int64) for n, v in zip(("s", "e", "a", "t"), (starts, ends, axes, steps))}
    return one("Slice", *numbers, inputs=IMAGE, constants=numbers)


def indexed(op, *arrays, inputs=None, **attributes):
    numbers = {f"i{k}": np.array(a, np.int64) for k, a in enumerate(arrays)}
    return one(op, *numbers, inputs=inputs, constants=numbers, **attributes)


def split(parts, axis=0, shape=(8, 4)):
    outputs = tuple(f"y{k}" for k in range(len(parts))) or ("y0",)
    return one("Split", "p", inputs={"x": list(shape)}, outputs=outputs, axis=axis,
               constants={"p": np.array(parts, np.int64)})  # fmt: skip


def nested_loops(count):
    """`count` steps of `count` steps."""

    def body(nodes, prefix, constants=()):
        ends = [value(f"{prefix}i", [], TensorProto.INT64), value(f"{prefix}c", [], TensorProto.BOOL)]
        return helper.make_graph(nodes, prefix, [*ends, value(f"{prefix}v", [1, 8])],
                                 [value(f"{prefix}d", [], TensorProto.BOOL), value(f"{prefix}w", [1, 8])])  # fmt: skip

    same = lambda p: helper.make_node("Identity", [f"{p}c"], [f"{p}d"])  # noqa: E731
    inner = body([same("b"), helper.make_node("Relu", ["bv"], ["bw"])], "b")
    loop = helper.make_node("Loop", ["n", "go", "av"], ["aw"], body=inner, name="inner")
    outer = body([same("a"), loop], "a")
    return model(("Loop", ["n", "go", "x"], ["y"], {"body": outer}),
                 constants={"n": np.int64(count), "go": np.bool_(True)})  # fmt: skip


BAD = {
    "group -1": (conv(group=-1), ["group"]),
    "group that divides no channels": (conv(group=3), ["group"]),
    "dilation 2^40": (conv(dilations=[2**40, 2**40]), ["dilations"]),
    "dilation 0": (conv(dilations=[0, 1]), ["dilations"]),
    "negative strides": (conv(strides=[-1, 1]), ["strides"]),
    "stride 2^40": (conv(strides=[2**40, 1]), ["strides"]),
    "strides of another rank": (conv(strides=[1]), ["strides"]),
    "negative pads": (conv(pads=[-1, 0, 0, 0]), ["pads"]),
    "pads of another rank": (conv(pads=[1, 1]), ["pads"]),
    "pads 2^40": (conv(pads=[2**40, 0, 0, 0]), ["pads"]),
    "kernel_shape against weights": (conv(kernel_shape=[5, 5]), ["kernel_shape"]),
    "auto_pad unknown": (conv(auto_pad="SAME"), ["auto_pad"]),
    "auto_pad with pads": (conv(auto_pad="SAME_UPPER", pads=[1, 1, 1, 1]), ["auto_pad"]),
    "kernel larger than the image": (conv(weight=(4, 4, 9, 9)), ["kernel"]),
    "weights of another rank": (conv(weight=(4, 4, 3)), ["the_y"]),
    "transposed: group -1": (conv("ConvTranspose", group=-1), ["group"]),
    "transposed: dilation 2^40": (conv("ConvTranspose", dilations=[2**40, 1]), ["dilations"]),
    "transposed: output_padding": (conv("ConvTranspose", output_padding=[3, 3]), ["output_padding"]),
    "transposed: pads beyond the result": (conv("ConvTranspose", pads=[20, 0, 20, 0]), ["pads"]),
    "pool: pads larger than the kernel": (pool(pads=[2, 2, 2, 2]), ["pads"]),
    "pool: negative strides": (pool(strides=[-2, -2]), ["strides"]),
    "pool: kernel of another rank": (pool(kernel_shape=[2]), ["kernel_shape"]),
    "pool: kernel 0": (pool(kernel_shape=[0, 2]), ["kernel_shape"]),
    "pool: dilation 2^40": (pool(dilations=[2**40, 1]), ["dilations"]),
    "average pool: pads": (pool("AveragePool", pads=[5, 5, 5, 5]), ["pads"]),
    "pool: auto_pad with pads": (pool(auto_pad="SAME_LOWER", pads=[1, 1, 1, 1]), ["auto_pad"]),
    "split sizes below 0": (split([10, -2]), ["split"]),
    "split sizes of another sum": (split([4, 3]), ["split"]),
    "split axis": (split([4, 4], axis=5), ["axis"]),
    "LSTM: hidden_size against weights": (lstm(hidden_size=5), ["hidden_size"]),
    "LSTM: negative hidden_size": (lstm(hidden_size=-4), ["hidden_size"]),
    "LSTM: direction": (lstm(hidden_size=4, direction="sideways"), ["direction"]),
    "LSTM: gates against weights": (lstm(w=(1, 12, 8), hidden_size=4), ["hidden_size"]),
    "LSTM: weights of another input": (lstm(w=(1, 16, 9), hidden_size=4), ["'w'"]),
    "GRU: hidden_size against weights": (lstm("GRU", w=(1, 12, 8), r=(1, 12, 4), hidden_size=3), ["hidden_size"]),
    "RNN: hidden_size against weights": (lstm("RNN", w=(1, 4, 8), r=(1, 4, 4), hidden_size=3), ["hidden_size"]),
    "loops in loops": (nested_loops(512), ["steps"]),
    "softmax axis": (one("Softmax", axis=-3), ["axis"]),
    "concat axis": (one("Concat", "x", axis=4), ["axis"]),
    "gather axis": (indexed("Gather", [0], axis=-5), ["axis"]),
    "flatten axis": (one("Flatten", axis=7), ["axis"]),
    "layer norm axis": (one("LayerNormalization", "g", axis=3, constants={"g": np.ones(8, np.float32)}), ["axis"]),
    "argmax axis": (one("ArgMax", axis=2), ["axis"]),
    "perm that repeats": (one("Transpose", perm=[0, 0]), ["perm"]),
    "perm out of range": (one("Transpose", perm=[0, 5]), ["perm"]),
    "perm of another rank": (one("Transpose", perm=[0]), ["perm"]),
    "reduce: repeated axes": (one("ReduceMean", axes=[1, 1]), ["axes"]),
    "reduce: axes out of range": (one("ReduceMean", axes=[7]), ["axes"]),
    "reduce: the same axis twice": (indexed("ReduceSum", [1, -1]), ["axes"]),
    "squeeze: axis longer than 1": (indexed("Squeeze", [1]), ["axes"]),
    "squeeze: repeated axes": (indexed("Squeeze", [0, 0]), ["axes"]),
    "unsqueeze: repeated axes": (indexed("Unsqueeze", [1, 1]), ["axes"]),
    "unsqueeze: axes out of range": (indexed("Unsqueeze", [9]), ["axes"]),
    "reshape with two -1": (indexed("Reshape", [-1, -1]), ["shape"]),
    "reshape with -2": (indexed("Reshape", [-2, 4]), ["shape"]),
    "reshape: 0 behind the rank": (indexed("Reshape", [1, 8, 0]), ["shape"]),
    "slice steps of 0": (sliced([0], [4], [1], [0]), ["steps"]),
    "slice axes out of range": (sliced([0], [4], [9], [1]), ["axes"]),
    "slice: repeated axes": (sliced([0, 0], [4, 4], [1, 1], [1, 1]), ["axes"]),
    "slice of unequal lists": (sliced([0, 0], [4], [1], [1]), ["starts"]),
    "expand to an unlike shape": (indexed("Expand", [3, 7]), ["the_y"]),
    "tile repeats of another rank": (indexed("Tile", [2]), ["repeats"]),
    "tile repeats below 0": (indexed("Tile", [1, -1]), ["repeats"]),
    "pad of another rank": (indexed("Pad", [1, 1]), ["pads"]),
    "pad mode": (indexed("Pad", [0, 1, 0, 1], mode="mirror"), ["mode"]),
    "reflect more than there is": (indexed("Pad", [0, 9, 0, 9], mode="reflect"), ["pads"]),
    "depth to space": (one("DepthToSpace", inputs=IMAGE, blocksize=3), ["blocksize"]),
    "space to depth": (one("SpaceToDepth", inputs=IMAGE, blocksize=0), ["blocksize"]),
    "NaN epsilon": (one("InstanceNormalization", "g", "g", inputs=IMAGE, epsilon=float("nan"),
                        constants={"g": np.ones(4, np.float32)}), ["epsilon"]),
    "negative epsilon": (one("LayerNormalization", "g", epsilon=-1.0, constants={"g": np.ones(8, np.float32)}),
                         ["epsilon"]),
    "infinite alpha": (one("LeakyRelu", alpha=float("inf")), ["alpha"]),
    "NaN alpha": (one("Elu", alpha=float("nan")), ["alpha"]),
    "group norm groups": (one("GroupNormalization", "g", "g", inputs=IMAGE, num_groups=3, opset=21,
                              constants={"g": np.ones(4, np.float32)}), ["num_groups"]),
    "unknown attribute": (one("Relu", slope=2.0), ["slope"]),
    "attribute of another type": (one("Softmax", axis=1.5), ["axis"]),
    "resize mode": (indexed("Resize", mode="sharp", inputs=IMAGE), ["mode"]),
    "shift direction": (one("BitShift", "x", direction="UP"), ["direction"]),
    "scatter reduction": (one("ScatterND", "i", "x", constants={"i": np.zeros((1, 1), np.int64)}, reduction="xor"),
                          ["reduction"]),
    "batch_dims below 0": (one("GatherND", "i", constants={"i": np.zeros((1, 1), np.int64)}, batch_dims=-2),
                           ["batch_dims"]),
    "GatherND beyond the end": (one("GatherND", "i", constants={"i": np.full((1, 1), 7, np.int64)}), ["'i'"]),
    "GatherElements beyond the end": (one("GatherElements", "i", constants={"i": np.full((1, 1), 7, np.int64)}, axis=0),
                                      ["'i'"]),
    "num_outputs": (one("Split", outputs=("a", "y"), num_outputs=5, opset=18), ["num_outputs"]),
    "no list of axes": (one("ReduceSum", "i", constants={"i": np.zeros((1, 1), np.int64)}), ["'i'"]),
    "norm of other channels": (one("InstanceNormalization", "g", "g", inputs=IMAGE,
                                   constants={"g": np.ones(5, np.float32)}), ["'g'"]),
    "element type": (one("Cast", to=99), ["to"]),
    "flag": (one("ReduceMean", keepdims=7), ["keepdims"]),
    "left out": (one("Min", ""), ["input 1"]),
    "eye of no matrix": (one("EyeLike", inputs=IMAGE), ["input"]),
    "scales along no axis": (one("QuantizeLinear", "s", constants={"s": np.ones(3, np.float32)}, axis=5), ["axis"]),
    "scales of another axis": (one("QuantizeLinear", "s", constants={"s": np.ones(3, np.float32)}, axis=1), ["'s'"]),
    "sequences along no axis": (indexed("ReverseSequence", [1], batch_axis=5), ["batch_axis"]),
    "gemm of unlike sizes": (one("Gemm", "w", constants={"w": np.ones((9, 4), np.float32)}), []),
    "reshape to another count": (indexed("Reshape", [3, 3]), []),
    "opset 0": (model(("Relu", ["x"], ["y"], {}), opset=0), ["opset 0"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_refused_by_name_in_a_moment(name: str, tmp_path) -> None:
    net, words = BAD[name]
    begin = time.process_time()
    with pytest.raises(qcompile.CompileError) as failure:
        qcompile.compile(net, output=tmp_path / "out")
    message = str(failure.value)
    assert not isinstance(failure.value, qcompile.targets.Defect), message
    assert time.process_time() - begin < SECONDS and "\n" not in message, message
    assert all(word in message for word in words), message
    assert ("the_" in message or "inner" in message or "opset" in message) and not (tmp_path / "out").exists(), message
