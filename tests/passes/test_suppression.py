"""NonMaxSuppression on integers selects what ONNX Runtime selects, in its order; rows that are left are -1."""

import numpy as np
import onnxruntime as ort
import pytest
import qcompile
from accuracy import program_of, quantized, run_program
from onnx import TensorProto
from qcompile.targets.errors import CompileError
from small_models import model

COUNT = 30


def constants(most=12, overlap=0.4, least=0.2):
    return {"most": np.array([most], np.int64), "overlap": np.float32([overlap]), "least": np.float32([least])}


def net(*further, images=1, classes=2, outputs=("rows",), inputs=None, known=None, **attrs):
    given = {"boxes": [images, COUNT, 4], "scores": [images, classes, COUNT]}
    return model(
        ("NonMaxSuppression", ["boxes", "scores", *constants()], ["rows"], attrs),
        *further,
        inputs=given if inputs is None else inputs,
        outputs=outputs,
        constants={**constants(), **(known or {})},
        dtypes=dict.fromkeys(outputs, TensorProto.INT64) if outputs == ("rows",) else {},
    )


def feed_of(rng, images, classes, centers):
    """Boxes of pixels around a few places, and scores."""
    places = rng.uniform(50, 590, (images, 6, 2))[:, rng.integers(0, 6, COUNT)]
    sizes = rng.uniform(50, 90, (images, COUNT, 2))
    middle = places + rng.normal(0, 5, places.shape)
    ends = [middle, sizes] if centers else [middle - sizes / 2, middle + sizes / 2]
    boxes = np.concatenate(ends, -1)
    if not centers:  # corners in any order
        boxes[:, ::3] = boxes[:, ::3][..., [2, 1, 0, 3]]
    scores = rng.uniform(0, 1, (images, classes, COUNT))
    return {"boxes": boxes.astype(np.float32), "scores": scores.astype(np.float32)}


def on_grids(program, feed):
    """The numbers that the program's inputs can hold."""
    made = {}
    for name, value in feed.items():
        scale, zero = program.info["inputs"][name][:2]
        assert program.inputs[name].dtype == "int16"
        made[name] = np.float32((np.clip(np.rint(value / scale) + zero, -32768, 32767) - zero) * scale)
    return made


def run_float(made, feed):
    return ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)


@pytest.mark.parametrize("centers", [0, 1])
@pytest.mark.parametrize("images, classes", [(1, 1), (2, 3)])
def test_selected_rows(centers, images, classes):
    rng = np.random.default_rng([centers, classes])
    made = net(images=images, classes=classes, center_point_box=centers)
    samples = [feed_of(rng, images, classes, centers) for _ in range(8)]
    notes = []
    program = program_of(quantized(made, samples, notes))
    assert any("gives" in n and "rows" in n for n in notes)
    for sample in samples:
        feed = on_grids(program, sample)
        (want,) = run_float(made, feed)
        got = run_program(program, feed)["rows"]
        assert got.shape == (images * classes * 12, 3)
        np.testing.assert_array_equal(got[: len(want)], want)
        assert len(want) < len(got)
        assert (got[len(want) :] == -1).all()


def test_boxes_and_scores_of_one_image():
    """As detectors are exported: numbers of boxes, then what they choose; 0 where nothing is chosen."""
    rng = np.random.default_rng(7)
    made = net(
        ("Gather", ["rows", "two"], ["column"], {"axis": 1}),
        ("Squeeze", ["column", "one"], ["numbers"], {}),
        ("Gather", ["all_boxes", "numbers"], ["chosen"], {"axis": 0}),
        ("Transpose", ["scores"], ["turned"], {"perm": [0, 2, 1]}),
        ("Slice", ["rows", "zero", "two", "one", "two"], ["pairs"], {}),
        ("GatherND", ["turned", "pairs"], ["confidence"], {}),
        ("Squeeze", ["boxes", "zero"], ["all_boxes"], {}),
        outputs=("chosen", "confidence"),
        known={"two": np.array([2], np.int64), "one": np.array([1], np.int64), "zero": np.array([0], np.int64)},
    )
    order = ["all_boxes", "rows", "column", "numbers", "chosen", "turned", "pairs", "confidence"]
    nodes = sorted(made.graph.node, key=lambda n: order.index(n.output[0]))
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    samples = [feed_of(rng, 1, 2, 0) for _ in range(8)]
    program = program_of(quantized(made, samples))
    for sample in samples:
        feed = on_grids(program, sample)
        want = dict(zip(("chosen", "confidence"), run_float(made, feed)))
        got = run_program(program, feed)
        for name, value in want.items():
            np.testing.assert_allclose(got[name][: len(value)], value, atol=np.abs(value).max() / 200)
            assert not got[name][len(value) :].any()


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"most": np.array([0], np.int64)}, "max_output_boxes_per_class is 0; it would select no box"),
        ({"overlap": np.float32([1.5])}, "'iou_threshold' is 1.5; it lies in"),
    ],
)
def test_senseless_parameters_are_refused(changed, said, tmp_path):
    with pytest.raises(CompileError, match=f"NonMaxSuppression 'the_rows'.*{said}"):
        qcompile.compile(net(known=changed), output=tmp_path, name="n")


def test_a_computed_number_of_boxes_is_refused(tmp_path):
    made = model(
        ("NonMaxSuppression", ["boxes", "scores", "most"], ["rows"], {}),
        inputs={"boxes": [1, COUNT, 4], "scores": [1, 2, COUNT], "most": [1]},
        dtypes={"rows": TensorProto.INT64, "most": TensorProto.INT64},
        outputs=("rows",),
    )
    with pytest.raises(CompileError, match=r"max_output_boxes_per_class 'most' is computed.*--set"):
        qcompile.compile(made, output=tmp_path, name="n")


@pytest.mark.parametrize("shapes", [([1, 6, 3], [1, 1, 6]), ([1, 6, 4], [1, 1, 7]), ([2, 6, 4], [1, 1, 6])])
def test_shapes_that_do_not_fit_are_refused(shapes, tmp_path):
    with pytest.raises(CompileError, match=r"NonMaxSuppression 'the_rows'.*boxes and scores have shapes"):
        qcompile.compile(net(inputs=dict(zip(("boxes", "scores"), shapes))), output=tmp_path, name="n")
