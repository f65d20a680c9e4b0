"""Every artifact that a test runs natively runs between guard pages too."""

import weakref

import numpy as np
import pytest
from guarded import run_guarded
from qcompile.runtime.native import NativeEngine


@pytest.fixture(autouse=True)
def guard_pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test's first run of each engine is made again by `run_guarded`, which must return the same integers.

    Tests that give the engine damaged artifacts on purpose, or replace it, are marked `unguarded`.
    """
    if request.node.get_closest_marker("unguarded"):
        return
    run, seen = NativeEngine.run, weakref.WeakSet()

    def guarded_run(engine, inputs):
        outputs = run(engine, inputs)
        if engine not in seen:
            seen.add(engine)
            manifest = engine.manifest
            for tensor, a, b in zip(manifest.outputs, outputs, run_guarded(manifest, inputs, engine.threads)):
                assert np.array_equal(a, b), f"{manifest.name}: output {tensor.name} differs between guard pages"
        return outputs

    monkeypatch.setattr(NativeEngine, "run", guarded_run)
