"""Plans of small networks: what is measured, what is chosen, and what is refused."""

import numpy as np
import pytest
from qcompile.backends import backend_for
from qcompile.frontend import Graph, normalise_graph
from qcompile.mixed import BitsOptions, Plan, layer_noise, make_plan, page, plan_report, read_request
from qcompile.mixed.plan import tied
from qcompile.mixed.probe import Probe, observed
from qcompile.mixed.rounding import narrow_data, round_weights
from qcompile.pipeline import layer_builder
from qcompile.quantizer import (
    LayerBits,
    QuantizeOptions,
    bits_json,
    find_layers,
    load_calibration,
    quantize_graph,
    stored_bytes,
)
from qcompile.quantizer.prepare import prepare
from qcompile.targets import CompileError, get_target
from small_models import model

RNG = np.random.default_rng(0)
WIDE = LayerBits()


def values(*shape, scale=0.3):
    return (RNG.standard_normal(shape) * scale).astype(np.float32)


@pytest.fixture(scope="module")
def net():
    """Two convolutions, one of them depthwise, a residual sum, and two products behind a pooling; softmax."""
    proto = model(
        ("Conv", ["x", "w1", "b1"], ["c1"], {"pads": [1, 1, 1, 1]}),
        ("Relu", ["c1"], ["r1"], {}),
        ("Conv", ["r1", "wd"], ["d"], {"pads": [1, 1, 1, 1], "group": 32}),
        ("Conv", ["d", "w2", "b2"], ["c2"], {}),
        ("Add", ["c2", "r1"], ["s"], {}),
        ("GlobalAveragePool", ["s"], ["g"], {}),
        ("Flatten", ["g"], ["f"], {}),
        ("MatMul", ["f", "w3"], ["m3"], {}),
        ("Add", ["m3", "b3"], ["a3"], {}),
        ("Relu", ["a3"], ["r3"], {}),
        ("Gemm", ["r3", "w4", "b4"], ["l"], {"transB": 1}),
        ("Softmax", ["l"], ["y"], {"axis": -1}),
        inputs={"x": [1, 3, 8, 8]},
        constants={
            "w1": values(32, 3, 3, 3),
            "b1": values(32),
            "wd": values(32, 1, 3, 3),
            "w2": values(32, 32, 1, 1),
            "b2": values(32),
            "w3": values(32, 64),
            "b3": values(64),
            "w4": values(10, 64),
            "b4": values(10),
        },
    )
    graph = Graph(proto)
    normalise_graph(graph)
    prepare(graph)
    return graph


@pytest.fixture(scope="module")
def data(net):
    return load_calibration([{"x": values(1, 3, 8, 8, scale=1.0)} for _ in range(12)], net)


def plan_of(net, data, bits="mixed", budget=(), options=None, notes=None):
    request, backend = read_request(bits, budget, options or BitsOptions()), backend_for(get_target("arm-a76"))
    return make_plan(
        net, data, request, QuantizeOptions(), backend, layer_builder("arm-a76"), [] if notes is None else notes
    )


def test_a_probe_changes_one_layer_at_a_time(net, data):
    layers = find_layers(net)
    narrow = LayerBits(4, 4)
    rounded = round_weights(net, layers, [[WIDE, LayerBits(4), narrow]] * len(layers), data.samples, QuantizeOptions())
    probe = Probe(net, layers, data.samples, narrow_data(net, layers, 4, data.samples))
    assert observed(net) == ["l"] and probe.loss({}) == 0
    names = [x.name for x in layers if not x.depthwise]
    for name in names:
        losses = [probe.loss({name: rounded[name, b]}) for b in (WIDE, LayerBits(4))]
        assert 0 < 20 * losses[0] < losses[1] < 0.1
        assert probe.loss({name: rounded[name, narrow]}, [name]) > losses[1]
    assert probe.loss({}) == 0
    every = probe.loss({n: rounded[n, LayerBits(4)] for n in names})
    alone = sum(probe.loss({n: rounded[n, LayerBits(4)]}) for n in names)
    assert 0.5 < every / alone < 2


def test_the_graph_stays_as_it_is(net, data):
    before = net.to_model().SerializeToString()
    plan_of(net, data, budget=("size=70%",), options=BitsOptions(widths="8,4,w4a4"))
    assert net.to_model().SerializeToString() == before
    assert net.twin().to_model().SerializeToString() == before


@pytest.mark.parametrize("budget", [{"size": 0.6}, {"bops": 0.7}, {"size": 0.8, "bops": 0.75}])
def test_budgets_are_kept(net, data, budget):
    plan = plan_of(net, data, budget=budget)
    layers = plan.layers
    size = sum(stored_bytes(x, plan.bits[x.name]) for x in layers) / sum(stored_bytes(x, WIDE) for x in layers)
    bops = sum(x.macs * plan.bits[x.name].weights for x in layers) / sum(8 * x.macs for x in layers)
    actual = {"size": size, "bops": bops}
    assert all(actual[n] <= share for n, share in budget.items())
    assert all(plan.summary[n] == pytest.approx(v, abs=1e-4) for n, v in actual.items())
    assert plan.bits[next(x.name for x in layers if x.depthwise)] == WIDE
    assert plan.label == "mixed" and 0 < plan.summary["measured_loss"] < 0.1
    for points in plan.fronts.values():
        losses = [p["loss"] for p in points]
        assert losses == sorted(losses, reverse=True) and len(points) > 1


def test_a_loss_budget_is_met_by_measurement(net, data):
    plans = [plan_of(net, data, budget={"loss": share}) for share in (0.02, 0.002, 0.0003)]
    for plan, share in zip(plans, (0.02, 0.002, 0.0003)):
        assert plan.summary["measured_loss"] <= share
    sizes = [plan.summary["size"] for plan in plans]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_what_cannot_be_reached_says_what_can(net, data):
    with pytest.raises(CompileError, match=r"--budget size=40% cannot be reached: the least is (\d+\.\d+)%") as refused:
        plan_of(net, data, budget=("size=40%",))
    least = str(refused.value).split("least is ")[1].split("%")[0]
    plan_of(net, data, budget=(f"size={least}%",))
    with pytest.raises(CompileError, match=r"--budget loss=1e-06% cannot be reached: the least is"):
        plan_of(net, data, budget=("loss=0.000001%",))
    with pytest.raises(CompileError, match=r"--budget latency=30% cannot be reached: the least is \d"):
        plan_of(net, data, budget=("latency=30%",))
    with pytest.raises(CompileError, match="no float output"):
        whole = Graph(model(("ArgMax", ["x"], ["y"], {}), dtypes={"y": 7}))
        observed(whole)
    with pytest.raises(CompileError, match="no layers with constant weights"):
        relu = Graph(model(("Relu", ["x"], ["y"], {})))
        normalise_graph(relu)
        plan_of(relu, load_calibration(None, relu))


def test_layers_may_be_denied_8_bits(net, data):
    plan = plan_of(net, data, budget={"size": 0.9}, options=BitsOptions(widths="4"))
    assert {plan.bits[x.name].weights for x in plan.layers if not x.depthwise} == {4}
    assert {plan.bits[x.name] for x in plan.layers if x.depthwise} == {WIDE}


def test_without_a_budget_sixty_percent_and_a_note(net, data):
    notes = []
    assert plan_of(net, data, notes=notes).summary["size"] <= 0.6 and "size=60%" in notes[0]


def test_choices_without_measuring(net, data, tmp_path):
    names = [x.name for x in find_layers(net)]
    assert plan_of(net, data, 8).bits == dict.fromkeys(names, WIDE)
    assert plan_of(net, data, "w4a4").bits[names[2]] == LayerBits(4, 4)
    own = {names[2]: LayerBits(4, 8, 32)}
    chosen = plan_of(net, data, own).bits
    assert chosen == {n: own.get(n, WIDE) for n in names}
    (tmp_path / "bits.json").write_text(bits_json(chosen))
    again = plan_of(net, data, tmp_path / "bits.json")
    assert again.bits == chosen and again.label == "custom" and set(again.times) == set(names)
    with pytest.raises(CompileError, match="no layer 'conv9'"):
        plan_of(net, data, {"conv9": WIDE})


def test_layers_that_read_one_tensor_agree(net, data):
    """So do layers behind the two inputs of a sum."""
    proto = model(
        ("MatMul", ["x", "wa"], ["a"], {}),
        ("MatMul", ["x", "wb"], ["b"], {}),
        ("Add", ["a", "b"], ["s"], {}),
        ("MatMul", ["a", "wc"], ["c"], {}),
        ("MatMul", ["b", "wd"], ["d"], {}),
        ("MatMul", ["s", "we"], ["e"], {}),
        ("Concat", ["c", "d", "e"], ["y"], {"axis": -1}),
        constants={n: values(8, 8) for n in ("wa", "wb", "wc", "wd", "we")},
    )
    graph = Graph(proto)
    normalise_graph(graph)
    layers = find_layers(graph)
    assert [{layers[i].weight for i in group} for group in tied(graph, layers)] == [{"wa", "wb"}, {"wc", "wd"}]


def test_noise_is_that_of_the_quantized_layers(net, data):
    noise = {}
    for weights in (8, 4):
        plan = plan_of(net, data, weights)
        quantized = net.twin()
        quantize_graph(quantized, data, QuantizeOptions(bits=plan.bits, learned_rounding=False))
        noise[weights] = layer_noise(net, quantized, plan.layers, data.samples)
        assert set(noise[weights]) == {*plan.bits, ""}
    assert all(25 < v < 60 for v in noise[8].values())
    assert plan.bits["the_c2"].weights == 4 and 10 < noise[4]["the_c2"] < noise[8]["the_c2"] - 10
    assert noise[4][""] < noise[8][""] and noise[4]["the_c1"] == noise[8]["the_c1"]


def test_rescaled_channels_are_no_noise():
    """A convolution whose channels the quantizer divides by factors keeps its ratio."""
    names = {"x": [1, 8, 6, 6]}
    w, v = values(8, 8, 1, 1), values(8, 8, 1, 1)
    factors = 2.0 ** np.arange(-4, 4)

    def two(first, second):
        graph = Graph(
            model(
                ("Conv", ["x", "w"], ["c"], {}),
                ("Relu", ["c"], ["r"], {}),
                ("Conv", ["r", "v"], ["y"], {}),
                inputs=names,
                constants={"w": first.astype(np.float32), "v": second.astype(np.float32)},
            )
        )
        normalise_graph(graph)
        return graph

    exact = two(w, v)
    rescaled = two(w * factors[:, None, None, None], v / factors[:, None, None])
    noisy = two((w + values(*w.shape, scale=0.003)) * factors[:, None, None, None], v / factors[:, None, None])
    samples = [{"x": values(1, 8, 6, 6, scale=1)} for _ in range(4)]
    layers = find_layers(exact)
    clean = layer_noise(exact, rescaled, layers, samples)
    assert all(v > 100 for v in clean.values())
    first = layer_noise(exact, noisy, layers, samples)[layers[0].name]
    assert 35 < first < 45


def test_a_table_loses_by_its_rows(data):
    """Embedding tables are layers: 4 bits in groups lose more than 8, and less than 4 bits a row."""
    graph = Graph(
        model(
            ("Gather", ["table", "ids"], ["e"], {}),
            ("MatMul", ["e", "w"], ["y"], {}),
            inputs={"ids": [1, 6]},
            dtypes={"ids": 7},
            constants={"table": values(50, 64) * np.exp(values(50, 64)), "w": values(64, 8)},
        )
    )
    normalise_graph(graph)
    layers = find_layers(graph)
    samples = load_calibration([{"ids": RNG.integers(0, 50, (1, 6))} for _ in range(4)], graph).samples
    widths = [WIDE, LayerBits(4, 8, 32), LayerBits(4)]
    rounded = round_weights(graph, layers, [widths] * 2, samples, QuantizeOptions())
    probe = Probe(graph, layers, samples)
    losses = [probe.loss({layers[0].name: rounded[layers[0].name, b]}) for b in widths]
    assert layers[0].table and 0 < losses[0] < losses[1] < losses[2] < 0.05


def test_traces_decide_where_they_are_given(net, data):
    from qcompile.mixed.hessian import HessianTraces, Trace

    layers = find_layers(net)
    for precious in ("w2", "w3"):
        traces = HessianTraces()
        for x in layers:
            w = net.constants[x.weight]
            norms = tuple(np.square(w, dtype=float).reshape(len(w), -1).sum(1))
            traces[x.weight] = Trace(1.0 if x.weight == precious else 1e-6, 0.0, w.shape, norms)
        plan = plan_of(net, data, budget={"size": 0.8}, options=BitsOptions(sensitivity=traces))
        chosen = {x.weight: plan.bits[x.name].weights for x in layers}
        assert chosen[precious] == 8 and min(chosen.values()) == 4
        assert plan.summary["measure"].startswith("Hessian trace")


def test_the_page_is_whole(net, data):
    plan = plan_of(net, data, budget={"size": 0.7})
    facts = {
        "name": "<net>", "target": "host", "machine": "x", "tool_version": "1", "bits": "mixed", "weights_bytes": 5,
        "code_bytes": 6, "arena_bytes": 7, "macs": 8, "proof": {"float_instructions": 0}, "notes": ["a & b"],
        "agreement_db": {"y": 33.25}, "agreement_of": "samples",
    }  # fmt: skip
    text = page({**facts, **plan_report(plan, {plan.layers[0].name: 31.5, "": 28.25})})
    assert "&lt;net&gt;" in text and "a &amp; b" in text and text.count("<svg") == 2 and text.count("<polyline") == 2
    assert "31.5" in text and "28.25 dB" in text and "33.2 dB" in text and "http" not in text and "src=" not in text
    plain = page({**facts, **plan_report(Plan(), None)})
    assert "<svg" not in plain and "<table" not in plain
