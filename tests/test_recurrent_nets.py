"""Recurrent nets as people make them: trained in torch on rows of digits, exported, compiled; and mnist_lstm."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import qcompile
from machines import need
from model_zoo import MODELS, cases
from qcompile.targets import get_target

torch = pytest.importorskip("torch")
TRAINED, SCORED = 1500, 600
NETS = {"gru": ("GRU", 2, False), "bilstm": ("LSTM", 1, True)}
LOSS = 0.007  # of accuracy, against float
ARM = [("arm-a76", "unicorn", None), ("arm-a72", "qemu", "cortex-a72"), ("arm-a710", "qemu", None)]


class Rows(torch.nn.Module):
    """Reads an image row by row and answers at the end."""

    def __init__(self, kind, layers, both, units=40):
        super().__init__()
        self.cell = getattr(torch.nn, kind)(28, units, layers, batch_first=True, bidirectional=both)
        self.answer = torch.nn.Linear(units * (2 if both else 1), 10)

    def forward(self, x):
        return self.answer(self.cell(x)[0].mean(1))


pytestmark = pytest.mark.filterwarnings("ignore:Exporting a model", "ignore:Converting a tensor")


@pytest.fixture(scope="module")
def digits():
    if not MODELS.exists():
        pytest.skip("no shared models")
    z = cases().npz("mnist_lstm")
    return z["x"][: TRAINED + SCORED].astype(np.float32) / 255, z["y"][: TRAINED + SCORED].astype(np.int64)


def train(net, x, y):
    torch.manual_seed(0)
    torch.set_num_threads(1)
    optimiser = torch.optim.Adam(net.parameters(), 4e-3)
    for _ in range(5):
        for batch in torch.randperm(TRAINED).split(50):
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(torch.tensor(x[batch])), torch.tensor(y[batch])).backward()
            optimiser.step()
    return net.eval()


@pytest.mark.parametrize("name", NETS)
def test_trained_net_keeps_its_accuracy_in_integers(name, digits, tmp_path):
    x, y = digits
    torch.manual_seed(1)
    net = train(Rows(*NETS[name]), x, y)
    file = tmp_path / f"{name}.onnx"
    torch.onnx.export(net, (torch.tensor(x[:1]),), str(file), dynamo=False, input_names=["x"], output_names=["y"])
    assert NETS[name][0] in {n.op_type for n in onnx.load(file).graph.node}
    built = qcompile.compile(file, calibration=[{"x": v[None]} for v in x[:50]], output=tmp_path)
    model, exact = qcompile.load(built.path), ort.InferenceSession(file)
    scored = range(TRAINED, TRAINED + SCORED)
    got = np.concatenate([model.run({"x": x[i : i + 1]})["y"] for i in scored]).argmax(1)
    want = np.concatenate([exact.run(None, {"x": x[i : i + 1]})[0] for i in scored]).argmax(1)
    assert (got == y[TRAINED:]).mean() >= (want == y[TRAINED:]).mean() - LOSS
    assert (got == want).mean() >= 0.985
    feed = model.quantize({"x": x[:1]})
    assert np.array_equal(model.run_integer(feed)["y"], model.reference_integer(feed)["y"])
    arm = qcompile.compile(file, "arm-a76", calibration=[{"x": v[None]} for v in x[:50]], output=tmp_path)
    emulated = qcompile.load(arm.path, backend="unicorn").run_integer(feed)
    assert np.array_equal(emulated["y"], model.run_integer(feed)["y"]), "arm-a76 gives other bits"


def test_mnist_lstm(digits, tmp_path):
    case = cases().CASES["mnist_lstm"]
    inputs, calibration = case.inputs()[:1000], case.calibration()
    built = qcompile.compile(case.model, calibration=calibration, output=tmp_path, name="mnist_lstm")
    model, exact = qcompile.load(built.path), ort.InferenceSession(case.model)
    outputs = [model.run(x) for x in inputs]
    want = [{"probs": exact.run(None, x)[0]} for x in inputs]
    assert case.score(outputs)["accuracy"] >= case.score(want)["accuracy"] - 0.004
    answers = [np.concatenate([o["probs"] for o in part]).argmax(1) for part in (outputs, want)]
    assert (answers[0] == answers[1]).mean() >= 0.995
    feed = model.quantize(inputs[0])
    here = model.run_integer(feed)
    assert np.array_equal(here["probs"], model.reference_integer(feed)["probs"])


@pytest.mark.parametrize(("target", "backend", "core"), ARM)
def test_mnist_lstm_on_arm(digits, tmp_path, target, backend, core):
    need(get_target(target), backend)
    case = cases().CASES["mnist_lstm"]
    arm = qcompile.compile(case.model, target, calibration=case.calibration()[:8], output=tmp_path, name="mnist_lstm")
    model = qcompile.load(arm.path, backend=backend, core=core)
    feed = model.quantize(case.inputs()[0])
    assert np.array_equal(model.run_integer(feed)["probs"], model.reference_integer(feed)["probs"])
