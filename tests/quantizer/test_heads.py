"""Detection heads: boxes in pixels beside scores in 0..1 in one output, in the forms of known detectors."""

from __future__ import annotations

import io

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import qcompile
from accuracy import both, decibels
from qcompile.frontend import load_model, normalise
from small_models import model

torch = pytest.importorskip("torch")

SIZE, CLASSES, STRIDES = 64, 5, (8, 16)
LEAST = {"boxes": 30.0, "scores": 25.0}
SAMPLES = 6


def backbone(channels):
    """Two feature maps."""
    conv = torch.nn.Conv2d
    return torch.nn.ModuleList([
        torch.nn.Sequential(conv(3, channels, 3, 4, 1), torch.nn.SiLU(), conv(channels, channels, 3, 2, 1),
                            torch.nn.SiLU()),
        torch.nn.Sequential(conv(channels, channels, 3, 2, 1), torch.nn.SiLU())])  # fmt: skip


def centres():
    """Centre points and strides of all cells: [2, cells] and [1, cells]."""
    points, strides = [], []
    for s in STRIDES:
        n = SIZE // s
        y, x = torch.meshgrid(torch.arange(n) + 0.5, torch.arange(n) + 0.5, indexing="ij")
        points.append(torch.stack([x.reshape(-1), y.reshape(-1)]))
        strides.append(torch.full((1, n * n), float(s)))
    return torch.cat(points, 1), torch.cat(strides, 1)


class Net(torch.nn.Module):
    def __init__(self, outs):
        super().__init__()
        self.features = backbone(16)
        self.heads = torch.nn.ModuleList([torch.nn.Conv2d(16, outs, 1) for _ in STRIDES])
        for head in self.heads:
            head.weight.data *= 3

    def maps(self, x):
        found = []
        for block, head in zip(self.features, self.heads):
            x = block(x)
            found.append(head(x))
        return found


class Anchored(Net):
    """YOLOv5: three anchors a cell, xy, wh and scores of each level in one Concat, the levels in another."""

    def __init__(self):
        super().__init__(3 * (5 + CLASSES))

    def forward(self, x):
        found = []
        for s, m in zip(STRIDES, self.maps(x)):
            n = SIZE // s
            m = m.view(1, 3, 5 + CLASSES, n, n).permute(0, 1, 3, 4, 2).contiguous()
            xy, wh, conf = m.sigmoid().split((2, 2, 1 + CLASSES), 4)
            y, x_ = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
            grid = torch.stack([x_, y], -1).float() - 0.5
            anchors = torch.tensor([[10.0, 13], [16, 30], [33, 23]]).view(1, 3, 1, 1, 2)
            y_ = torch.cat([(xy * 2 + grid) * s, (wh * 2) ** 2 * anchors, conf], 4)
            found.append(y_.view(1, 3 * n * n, 5 + CLASSES))
        return torch.cat(found, 1)


class Distances(Net):
    """YOLOv8: a distribution of distances to the sides, softmax and a fixed product; [1, 4 + classes, cells]."""

    def __init__(self, transposed=False):
        super().__init__(4 * 8 + CLASSES)
        self.transposed = transposed

    def decoded(self, x):
        flat = torch.cat([m.flatten(2) for m in self.maps(x)], 2)
        box, cls = flat.split((32, CLASSES), 1)
        project = torch.arange(8.0).view(1, 8, 1, 1)
        distance = (box.view(1, 4, 8, -1).transpose(2, 1).softmax(1) * project).sum(1)
        points, strides = centres()
        lt, rb = distance.chunk(2, 1)
        first, second = points - lt, points + rb
        return torch.cat([(first + second) / 2, second - first], 1) * strides, cls.sigmoid()

    def forward(self, x):
        y = torch.cat(self.decoded(x), 1)
        return y.transpose(1, 2) if self.transposed else y


class Scaled(Distances):
    """Strides multiply after the Concat of boxes and scores, by ones where the scores are."""

    def forward(self, x):
        boxes, scores = self.decoded(x)
        strides = centres()[1]
        factors = torch.cat([strides.expand(4, -1), torch.ones(CLASSES, strides.shape[1])])
        return torch.cat([boxes / strides, scores], 1) * factors


class Decoded(Net):
    """YOLOX: sums and exponentials of slices, stacked again; objectness and classes kept apart until the end."""

    def __init__(self):
        super().__init__(5 + CLASSES)

    def forward(self, x):
        maps = [torch.cat([m[:, :4], m[:, 4:].sigmoid()], 1) for m in self.maps(x)]
        y = torch.cat([m.flatten(2) for m in maps], 2).permute(0, 2, 1)
        points, strides = (t.t() for t in centres())
        return torch.cat([(y[..., :2] + points) * strides, (0.5 * y[..., 2:4]).exp() * strides, y[..., 4:]], -1)


class Normalised(Net):
    """SSD and RT-DETR: boxes and scores of classes, boxes multiplied by the image's size, then joined."""

    def __init__(self):
        super().__init__(4 + CLASSES)

    def forward(self, x):
        y = torch.cat([m.flatten(2) for m in self.maps(x)], 2).transpose(1, 2)
        boxes = y[..., :4].sigmoid() * torch.tensor([640.0, 480, 640, 480])
        return torch.cat([boxes, y[..., 4:].softmax(-1)], -1)


class Chosen(Distances):
    """The best 50 rows chosen by index, box and score side by side: [1, 6, cells] with the class as a number."""

    def forward(self, x):
        boxes, scores = self.decoded(x)
        best, label = scores.max(1, keepdim=True)
        return torch.cat([boxes, best, label.float()], 1)[..., ::2].transpose(1, 2)


def exported(net):
    buffer = io.BytesIO()
    with torch.no_grad():
        torch.onnx.export(net.eval(), (torch.zeros(1, 3, SIZE, SIZE),), buffer, opset_version=17, dynamo=False,
                          input_names=["images"], output_names=["detections"])  # fmt: skip
    return normalise(load_model(onnx.load_from_string(buffer.getvalue())))


HEADS = {
    "anchored": (Anchored, -1, [(0, 4), (4, 5 + CLASSES)]),
    "distances": (Distances, 1, [(0, 4), (4, 4 + CLASSES)]),
    "transposed": (lambda: Distances(True), 2, [(0, 4), (4, 4 + CLASSES)]),
    "scaled": (Scaled, 1, [(0, 4), (4, 4 + CLASSES)]),
    "decoded": (Decoded, 2, [(0, 4), (4, 5 + CLASSES)]),
    "normalised": (Normalised, 2, [(0, 4), (4, 4 + CLASSES)]),
    "chosen": (Chosen, 2, [(0, 4), (4, 5)]),
}


def images(rng, count=SAMPLES):
    return [{"images": rng.standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)} for _ in range(count)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("head", HEADS)
def test_boxes_and_scores_each_keep_their_precision(head):
    maker, axis, parts = HEADS[head]
    torch.manual_seed(1)
    samples = images(np.random.default_rng(1))
    exact, actual = (side["detections"] for side in both(exported(maker()), samples, samples[:2]))
    assert exact.shape == actual.shape
    for (name, least), (low, high) in zip(LEAST.items(), parts):
        rows = np.arange(low, high)
        index = axis if axis < 0 else axis + 1
        ratio = decibels(np.take(exact, rows, index), np.take(actual, rows, index))
        assert ratio > least, f"{head}: {name} at {ratio:.1f} dB"


@pytest.mark.filterwarnings("ignore")
def test_the_artifact_says_each_rows_scale_and_gives_the_one_output(tmp_path):
    torch.manual_seed(1)
    samples, net = images(np.random.default_rng(1)), exported(Distances())
    made = qcompile.compile(net, calibration=samples, output=tmp_path, name="head")
    loaded = qcompile.load(made.path)
    (output,) = loaded.outputs
    assert (output.name, output.axis, len(set(output.scale)), len(output.scale)) == ("detections", 1, 2, 4 + CLASSES)
    assert "9 scales along axis 1" in (made.path / "head.h").read_text()
    got = loaded.run(samples[0])["detections"]
    assert np.array_equal(got, loaded.reference(samples[0])["detections"])
    session = ort.InferenceSession(net.SerializeToString(), providers=["CPUExecutionProvider"])
    (exact,) = session.run(None, samples[0])
    assert decibels(exact[:, :4], got[:, :4]) > LEAST["boxes"] and decibels(exact[:, 4:], got[:, 4:]) > LEAST["scores"]
    session = ort.InferenceSession(str(made.path / "model.qdq.onnx"), providers=["CPUExecutionProvider"])
    (yardstick,) = session.run(None, samples[0])
    assert decibels(exact[:, 4:], yardstick[:, 4:]) > LEAST["scores"]


FLATTENED = [("Reshape", ["m", "s"], ["r"], {}), ("Transpose", ["r"], ["y"], {"perm": [0, 2, 1]})]


@pytest.mark.parametrize("behind", [[], FLATTENED])
def test_channels_of_unlike_ranges_in_one_layer(behind):
    """Boxes in pixels and scores that one convolution makes: all scores were 0."""
    rng = np.random.default_rng(6)
    weight = rng.standard_normal((8, 4, 1, 1)).astype(np.float32)
    weight[:4] *= 300
    constants = {"w": weight, "b": np.zeros(8, np.float32)} | ({"s": np.array([1, 8, 64])} if behind else {})
    net = model(("Conv", ["x", "w", "b"], ["m" if behind else "y"], {}), *behind, inputs={"x": [1, 4, 8, 8]},
                constants=constants)  # fmt: skip
    feeds = [{"x": rng.standard_normal((1, 4, 8, 8)).astype(np.float32)} for _ in range(8)]
    exact, actual = both(net, feeds)
    columns = (..., slice(4, 8)) if behind else (slice(None), slice(None), slice(4, 8))
    assert decibels(exact["y"], actual["y"]) > 30 and decibels(exact["y"][columns], actual["y"][columns]) > 30
