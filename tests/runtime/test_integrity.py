"""Damaged and hostile artifacts: refused before any of their code runs, never another result."""

import json
import os
import shutil
import zipfile
from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from programs import conv_chain, feeds
from qcompile.artifact import ArtifactSpec, TensorInfo, build_artifact
from qcompile.backends import backend_for, generate
from qcompile.kernels.program import Program
from qcompile.passes import tidy
from qcompile.runtime import ArtifactError, load
from qcompile.runtime.manifest import content_hash, seal
from qcompile.targets import get_target

FLIPS = 150  # bits of each file that are turned, one at a time


@pytest.fixture(scope="module")
def artifact(tmp_path_factory):
    """A convolution with what follows it, and its reference."""
    program, target = conv_chain(), get_target("host")
    lowered = tidy(program)
    for _, run in backend_for(target).passes:
        lowered = run(lowered)
    code, types = generate(lowered, target), program.types()
    inputs = [TensorInfo(n, t.dtype, t.shape, 0.5, 3) for n, t in program.inputs.items()]
    outputs = [TensorInfo(n, types[n].dtype, types[n].shape, 0.25, -5) for n in program.outputs]
    spec = ArtifactSpec(
        "net",
        target,
        code.objects,
        code.weights,
        code.arena_bytes,
        inputs,
        outputs,
        files={"program.npz": program.to_bytes()},
    )
    return build_artifact(spec, tmp_path_factory.mktemp("artifact")).path


SECTION = {"arch": "x86_64", "cpu_flags": ["avx2"], "emulation": "max"}  # what is true of CPUs only


@pytest.fixture
def copy(artifact, tmp_path):
    return shutil.copytree(artifact, tmp_path / "copy")


def edit(folder, sealed, **changes):
    """Changes the manifest; sealed: as somebody would who knows how its hashes are made."""
    file = folder / "manifest.json"
    manifest = {**json.loads(file.read_text()), **changes}
    if sealed:
        manifest["content_hash"] = content_hash(manifest)
        manifest["manifest_sha256"] = seal(manifest)
    file.write_text(json.dumps(manifest))


def tensor(folder, kind, **changes):
    entries = json.loads((folder / "manifest.json").read_text())[kind]
    return {kind: [{**entries[0], **changes}, *entries[1:]]}


@pytest.mark.parametrize("sealed", [False, True], ids=["edited", "sealed"])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("outputs", {"shape": [1]}),
        ("outputs", {"shape": [10**9, 10**9]}),
        ("outputs", {"shape": [-1]}),
        ("outputs", {"shape": [36, 4.5]}),
        ("outputs", {"dtype": "int32"}),
        ("outputs", {"dtype": "float32"}),
        ("outputs", {"dtype": "O"}),
        ("outputs", {"scale": 0}),
        ("outputs", {"scale": float("nan")}),
        ("outputs", {"scale": -0.25}),
        ("outputs", {"scale": 10**400}),
        ("outputs", {"scale": [10**400] * 36}),
        ("outputs", {"scale": 1e300}),
        ("outputs", {"scale": 0.5}),
        ("outputs", {"scale": [0.25, 0.25]}),
        ("outputs", {"zero_point": 10**30}),
        ("outputs", {"zero_point": 200}),
        ("outputs", {"zero_point": -4}),
        ("outputs", {"zero_point": True}),
        ("outputs", {"name": "z"}),
        ("outputs", {"name": None}),
        ("inputs", {"shape": [1, 12, 3, 4]}),
        ("inputs", {"scale": 0.25}),
        ("inputs", {"dtype": "uint8"}),
    ],
)
def test_tensors_that_are_not_the_librarys_are_refused(copy, kind, changes, sealed):
    edit(copy, sealed, **tensor(copy, kind, **changes))
    with pytest.raises(ArtifactError, match=r"manifest.json is damaged"):
        load(copy)


@pytest.mark.parametrize("sealed", [False, True], ids=["edited", "sealed"])
@pytest.mark.parametrize(
    "changes",
    [
        {"inputs": []},
        {"outputs": []},
        {"arena_bytes": 0},
        {"arena_bytes": -1},
        {"arena_bytes": 1 << 60},
        {"arena_bytes": True},
        {"states": [["x", "y"]]},
        {"states": [["x"]]},
        {"states": 3},
        {"cpu": {**SECTION, "cpu_flags": [1]}},
        {"files": {"../x": "0"}},
        {"files": ["program.npz"]},
        {"name": "../net"},
        {"name": "other"},
        {"library": "/etc/passwd"},
        {"inputs": [[]]},
        {"outputs": {}},
        {"cpu": {**SECTION, "emulation": "cortex-a53"}},
        {"cpu": {}},
        {"cpu": 3},
        {"machine": "x86-avx2"},
    ],
)
def test_facts_that_are_not_the_librarys_are_refused(copy, changes, sealed):
    edit(copy, sealed, **changes)
    with pytest.raises(ArtifactError, match=r"manifest.json is damaged"):
        load(copy)


@pytest.mark.parametrize(
    "changes",
    [
        {"library_bytes": 7},
        {"code_bytes": 7},
        {"proof": {"float_instructions": 1}},
        {"library_sha256": ""},
        {"more": 1},
    ],
    ids=lambda c: next(iter(c)),
)
def test_facts_known_after_linking_are_refused_too(copy, changes):
    edit(copy, False, **changes)
    with pytest.raises(ArtifactError, match=r"manifest.json is damaged"):
        load(copy)


def test_a_library_replaced_after_the_check_does_not_run(copy, tmp_path, monkeypatch):
    """As when a compile ends while the artifact is being loaded: the buffers are those of the other model."""
    from qcompile.runtime import cpu as module
    from sample_artifacts import build_multiply

    other = (build_multiply(tmp_path).path / "libmultiply.so").read_bytes()
    check = module.check_library

    def check_and_replace(manifest):
        check(manifest)
        (copy / "libnet.so").write_bytes(other)

    monkeypatch.setattr(module, "check_library", check_and_replace)
    with pytest.raises(ArtifactError, match=r"libnet.so is damaged: its SHA-256 is not the one"):
        load(copy)


@pytest.mark.parametrize("x", [[[1], [2, 3]], None, "words", [[object()] * 4]], ids=lambda x: str(x)[:7])
def test_inputs_that_are_no_arrays_are_refused(artifact, x):
    model = load(artifact)
    for run in (model.run, model.run_integer, model.reference):
        with pytest.raises(ArtifactError, match=r"input 'x' (is no array|has shape)"):
            run({"x": x})


@pytest.mark.parametrize("depth", [*range(940, 1001, 3), 3000])
def test_nesting_at_the_limit_of_recursion_is_refused(copy, depth):
    """What is just read may be too deep to be written again, as its hash needs."""
    file = copy / "manifest.json"
    file.write_text(f'{file.read_text().rstrip()[:-1]}, "more": {"[" * depth}{"]" * depth}}}')
    with pytest.raises(ArtifactError, match=r"manifest.json is damaged"):
        load(copy)


def test_a_second_input_is_refused(copy):
    entries = json.loads((copy / "manifest.json").read_text())["inputs"]
    edit(copy, True, inputs=[*entries, {**entries[0], "name": "more"}])
    with pytest.raises(ArtifactError, match=r"number of inputs is 2, the library's 1"):
        load(copy)


def test_a_library_of_another_model_is_refused(copy, tmp_path):
    """Its hash in the manifest put right."""
    import hashlib

    from sample_artifacts import build_multiply

    other = (build_multiply(tmp_path).path / "libmultiply.so").read_bytes()
    (copy / "libnet.so").write_bytes(other)
    edit(copy, True, library_sha256=hashlib.sha256(other).hexdigest())
    with pytest.raises(ArtifactError, match="has no function net_info"):
        load(copy)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "[" * 100_000, '{"a":' * 50_000, '{"name": "net"}', "\x00", "NaN"],
    ids=lambda t: f"{t[:8]!r} of {len(t)}",
)
def test_text_that_is_no_manifest_is_refused(copy, text):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"manifest.json is damaged"):
        load(copy)


@pytest.mark.parametrize("file", ["manifest.json", "libnet.so", "program.npz"])
def test_a_flipped_bit_never_changes_a_result(artifact, copy, file):
    """Refused, or the same numbers: from the code and from the reference."""
    x = feeds(conv_chain())
    model = load(artifact)
    want, real = model.run_integer(x), model.run(x)
    rng, data = np.random.default_rng(7), (artifact / file).read_bytes()
    refused = 0
    for at in rng.choice(8 * len(data), FLIPS, replace=False):
        damaged = bytearray(data)
        damaged[at // 8] ^= 1 << (at % 8)
        (copy / file).write_bytes(damaged)
        try:
            model = load(copy)
            results = model.run_integer(x), model.reference_integer(x)
        except ArtifactError as error:
            assert file in str(error) or "manifest.json" in str(error)
            refused += 1
            continue
        for result in results:
            for name, values in want.items():
                np.testing.assert_array_equal(result[name], values, err_msg=f"bit {at} of {file}")
        for name, values in real.items():
            np.testing.assert_array_equal(model.run(x)[name], values, err_msg=f"bit {at} of {file}")
    assert refused >= FLIPS * (1 if file != "manifest.json" else 0.5)


def test_files_that_end_early_are_refused(artifact, copy):
    x = feeds(conv_chain())
    for file in ("manifest.json", "libnet.so", "program.npz"):
        data = (artifact / file).read_bytes()
        for end in np.linspace(0, len(data) - 2, 9).astype(int):
            (copy / file).write_bytes(data[:end])
            with pytest.raises(ArtifactError, match=file):
                load(copy).reference_integer(x)
        (copy / file).write_bytes(data)
    os.remove(copy / "program.npz")
    with pytest.raises(ArtifactError, match=r"cannot read .*program.npz"):
        load(copy).reference_integer(x)


def test_bytes_of_no_program_are_refused():
    """Whatever is turned, cut or put together: a ValueError, or a program whose types fit."""
    data = conv_chain().to_bytes()
    rng = np.random.default_rng(3)
    for _ in range(FLIPS):
        damaged = bytearray(data)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[at] = rng.integers(256)
        try:
            Program.load(bytes(damaged[: rng.integers(len(data))] if rng.random() < 0.3 else damaged)).types()
        except ValueError as error:
            assert "not a stored program" in str(error)


def changed(**parts):
    """The bytes of a stored program with other entries, or with another text."""
    out, data = BytesIO(), conv_chain().to_bytes()
    with zipfile.ZipFile(BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, parts.get(name, old.read(name)))
    return out.getvalue()


def with_text(change):
    text = json.loads(bytes(np.load(BytesIO(conv_chain().to_bytes()))["program"]))
    change(text)
    entry = BytesIO()
    np.save(entry, np.frombuffer(json.dumps(text).encode(), np.uint8))
    return changed(**{"program.npy": entry.getvalue()})


def saved(array):
    entry = BytesIO()
    np.save(entry, array, allow_pickle=True)
    return entry.getvalue()


def huge():
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 50,)})
    return header.getvalue() + b"x"


@pytest.mark.parametrize(
    "make",
    [
        lambda: changed(**{"c0.npy": saved(np.array([{}], object))}),
        lambda: changed(**{"c0.npy": saved(np.ones(3))}),
        lambda: changed(**{"c0.npy": huge()}),
        lambda: changed(**{"program.npy": saved(np.frombuffer(b"[" * 99999, "u1"))}),
        lambda: with_text(lambda d: d["nodes"][0].update(op="exec")),
        lambda: with_text(lambda d: d["nodes"].reverse()),
        lambda: with_text(lambda d: d["nodes"][0].update(inputs=["x"])),
        lambda: with_text(lambda d: d.pop("info")),
        lambda: with_text(lambda d: d["nodes"][0]["attrs"].update(surprise=1)),
        lambda: with_text(lambda d: d["nodes"].append(d["nodes"][0])),
        lambda: with_text(lambda d: d.update(outputs=["q"])),
        lambda: with_text(lambda d: d["inputs"].update(x=[[1, -6, 6, 4], "int8"])),
        lambda: with_text(lambda d: d["inputs"].update(x=[[1, 1 << 40, 1 << 40, 4], "int8"])),
        lambda: with_text(lambda d: d["inputs"].update(x=[[1, 6, 6, 4], "float32"])),
    ],
)
def test_hostile_programs_are_refused(make):
    with pytest.raises(ValueError, match="not a stored program"):
        Program.load(make())


def test_a_compressed_program_is_refused():
    out = BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        new.writestr("program.npy", saved(np.zeros(1 << 24, np.uint8)))
    with pytest.raises(ValueError, match=r"program.npy is compressed"):
        Program.load(out.getvalue())


def test_a_program_of_another_model_is_refused(artifact, copy):
    import hashlib

    other = replace(conv_chain(), outputs=["c"]).to_bytes()
    (copy / "program.npz").write_bytes(other)
    files = {"program.npz": hashlib.sha256(other).hexdigest()}
    edit(copy, True, files=files)
    with pytest.raises(ArtifactError, match=r"manifest.json is damaged: it is not what was written with the library"):
        load(copy)
