"""What --bits, --budget and their refinements may say."""

import pytest
from qcompile.mixed import BitsOptions, HessianTraces, read_request
from qcompile.mixed.request import parse_width
from qcompile.quantizer import Layer, LayerBits, read_bits
from qcompile.targets import CompileError


@pytest.mark.parametrize(
    ("bits", "expected", "label"),
    [
        (8, LayerBits(), 8),
        ("4", LayerBits(4), 4),
        ("W4A8", LayerBits(4), 4),
        ("w4a4", LayerBits(4, 4), "w4a4"),
        ("w8a8", LayerBits(), 8),
        (3, LayerBits(3), 3),
        ("mixed", "mixed", "mixed"),
    ],
)
def test_widths(bits, expected, label):
    request = read_request(bits)
    assert (request.wanted, request.label) == (expected, label)


def test_a_choice_per_layer(tmp_path):
    given = {"conv1": LayerBits(4)}
    assert read_request(given).wanted == given and read_request(given).label == "custom"
    assert read_request("b.json").wanted.name == "b.json" and read_request(tmp_path / "x").wanted == tmp_path / "x"


def test_budgets():
    assert read_request("mixed", ("size=60%", "loss=0.01")).budgets == {"size": 0.6, "loss": 0.01}
    assert read_request("mixed", {"latency": 0.8, "bops": "50%"}).budgets == {"latency": 0.8, "bops": 0.5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((5,), r"--bits 5 is not supported; choose 8, 4"),
        (("w4a16",), "--bits w4a16 is not supported"),
        ((True,), "--bits True is not supported"),
        (("mixed", ("speed=2",)), "'speed' is unknown; choose size, latency, bops, loss"),
        (("mixed", ("size",)), "not of the form size=60%"),
        (("mixed", ("size=-3%",)), "is no share"),
        (("mixed", ("size=x",)), "is no share"),
        (("mixed", ("size=nan",)), "is no share"),
        (("mixed", ("size=60%", "size=0.5")), "given twice"),
        ((4, ("size=60%",)), "--budget needs --bits mixed"),
        (("mixed", (), BitsOptions(widths="8,5")), "'5' is none of 8, 4, 3, 2"),
        (("mixed", (), BitsOptions(edge="6")), "--bits-edge 6 is unknown"),
        (("mixed", (), BitsOptions(group="16")), "--group 16 is unknown"),
        (("mixed", (), BitsOptions(latency="guess")), "--latency guess is unknown"),
        (("mixed", "size"), "not of the form size=60%"),
        (("mixed", 0.6), "--budget 0.6 is not of the form size=60%"),
        (("mixed", (0.6,)), "not of the form size=60%"),
        (("9" * 5000,), "is not supported; choose 8, 4"),
        (("[" * 100_000,), "is not supported; choose 8, 4"),
        (("mixed", "[" * 100_000), "not of the form size=60%"),
        (("mixed", (), BitsOptions(widths="[" * 100_000)), "is none of 8, 4, 3, 2"),
        (("mixed", (), BitsOptions(edge="²")), "--bits-edge ² is unknown"),
        (("mixed", (), BitsOptions(group="²")), "--group ² is unknown"),
        (("mixed", ("loss=1%",), BitsOptions(sensitivity="t.json")), "without --sensitivity"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(CompileError, match=message) as failure:
        read_request(*arguments)
    assert len(str(failure.value)) < 1000


@pytest.mark.parametrize("budget", ["size=60%", ("size=60%",), {"size": 0.6}, {"size": "60%"}, " SIZE =0.6"])
def test_a_budget_may_be_written_in_several_ways(budget):
    assert read_request("mixed", budget).budgets == {"size": 0.6}
    assert read_request("mixed", "size=60%,latency=0.8").budgets == {"size": 0.6, "latency": 0.8}


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"layers": ' * 50_000, b"\xff\xfe", b"", b"null", b'{"layers": {"y": [[]]}}',
                b'{"layers": {"y": {"weights": {}}}}', b'{"layers": {"y": {"weights": 1e400}}}'],
)  # fmt: skip
def test_files_that_are_none_of_bits_or_traces(content, tmp_path):
    file = tmp_path / "bits.json"
    file.write_bytes(content)
    layer = Layer("y", "MatMul", "w", "x", 32, 32, 4, 1, False, False)
    with pytest.raises(CompileError, match=r"bits\.json"):
        read_bits(file, [layer])
    with pytest.raises(CompileError, match=r"bits\.json"):
        HessianTraces.load(file)


def test_candidates():
    assert BitsOptions().choices() == [LayerBits(8), LayerBits(4), LayerBits(4, 8, 32)]
    assert BitsOptions(group="channel", widths="8,4,w4a4").choices() == [LayerBits(8), LayerBits(4), LayerBits(4, 4)]
    assert BitsOptions(group=64, widths="4,4").choices() == [LayerBits(4, 8, 64)]
    assert parse_width("w4a") is None and parse_width("") is None
