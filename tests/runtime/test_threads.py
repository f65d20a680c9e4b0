"""Threads that share a model, and streams that may not be shared."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from qcompile.artifact import build_artifact
from qcompile.runtime import ArtifactError, load
from sample_artifacts import MULTIPLY, WEIGHTS, build_multiply, build_parallel, multiply_spec

W = np.frombuffer(WEIGHTS, np.int8).astype(np.int32)
# long enough for two callers to be inside at once
SLOW = MULTIPLY.replace(
    "for (int i = 0; i < 24; i++) products[i] = x[i] * w[i];",
    "for (volatile int n = 0; n < 20000; n++) for (int i = 0; i < 24; i++) products[i] = x[i] * w[i];",
)


def answers(model, x):
    return model.run_integer({"input/x": np.full((1, 24), x, np.int8)})["y"][0]


@pytest.mark.parametrize("target", ["host", "arm-a76"])
def test_threads_share_a_model(tmp_path, target):
    assert SLOW != MULTIPLY
    model = load(build_multiply(tmp_path, target, SLOW if target == "host" else MULTIPLY).path)
    answers(model, 0)
    values = list(range(-60, 60)) if target == "host" else list(range(-8, 8))
    with ThreadPoolExecutor(8) as pool:
        for x, y in zip(values, pool.map(lambda x: answers(model, x), values)):
            np.testing.assert_array_equal(y, x * W, err_msg=f"the call with {x}")


def test_threads_share_a_model_of_several_threads(tmp_path):
    model = load(build_parallel(tmp_path).path, threads=2)
    starts = list(range(24))
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(lambda s: model.run_integer({"x": (np.arange(4096) + s).astype(np.uint8)})["y"], starts)
        for s, y in zip(starts, results):
            np.testing.assert_array_equal(y, (np.arange(4096) + s).astype(np.uint8).astype(np.int32) ** 2)


def stateful(tmp_path):
    """An artifact whose input comes back as the state's next value."""
    spec = multiply_spec(tmp_path)
    state = replace(spec.inputs[0], name="state"), replace(spec.inputs[0], name="next")
    copying = MULTIPLY.replace("return 0;", "for (int i = 0; i < 24; i++) ((int8_t *)out[1])[i] = x[i]; return 0;")
    spec = replace(
        multiply_spec(tmp_path, source=copying),
        inputs=[*spec.inputs, state[0]],
        outputs=[*spec.outputs, state[1]],
        states=[("state", "next")],
    )
    return build_artifact(spec, tmp_path / "build").path


def test_a_stream_belongs_to_a_thread(tmp_path):
    stream = load(stateful(tmp_path)).stream()
    x = {"input/x": np.full((1, 24), 3, np.int8)}
    stream.run_integer(x)
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(ArtifactError, match="belongs to another thread; make a stream for each"):
            pool.submit(stream.run_integer, x).result()
        np.testing.assert_array_equal(stream.run_integer(x)["y"][0], 3 * W)
        stream.reset()
        np.testing.assert_array_equal(pool.submit(stream.run_integer, x).result()["y"][0], 3 * W)
        with pytest.raises(ArtifactError, match="belongs to another thread"):
            stream.run_integer(x)
    stream.reset()
    with pytest.raises(ArtifactError, match="no input 'typo'"):
        stream.run({**x, "typo": np.zeros(3)})


def test_a_stream_is_not_reset_while_it_runs(tmp_path, monkeypatch):
    stream = load(stateful(tmp_path)).stream()
    run, inside, go_on = stream.model.run_integer, threading.Event(), threading.Event()

    def slow(inputs):
        inside.set()
        assert go_on.wait(30)
        return run(inputs)

    monkeypatch.setattr(stream.model, "run_integer", slow)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(stream.run_integer, {"input/x": np.full((1, 24), 3, np.int8)})
        assert inside.wait(30)
        for use in (stream.reset, lambda: stream.run_integer({"input/x": np.zeros((1, 24), np.int8)})):
            with pytest.raises(ArtifactError, match="still runs"):
                use()
        go_on.set()
        np.testing.assert_array_equal(call.result()["y"][0], 3 * W)
    stream.reset()
