"""The kit that runs artifacts between guard pages: it must see what it is for."""

import numpy as np
import pytest
from guarded import OutsideBuffers, run_guarded
from qcompile.runtime import load
from sample_artifacts import MULTIPLY, WEIGHTS, build_multiply, build_parallel


def run(folder, *change, x=5):
    source = MULTIPLY.replace(*change) if change else MULTIPLY
    assert not change or source != MULTIPLY
    manifest = load(build_multiply(folder, source=source).path).manifest
    return run_guarded(manifest, [np.full((1, 24), x, np.int8)])[0]


def test_honest_code_passes(tmp_path):
    np.testing.assert_array_equal(run(tmp_path)[0], 5 * np.frombuffer(WEIGHTS, np.int8).astype(np.int32))


def test_threads(tmp_path):
    x = np.arange(4096).astype(np.uint8)
    manifest = load(build_parallel(tmp_path).path).manifest
    np.testing.assert_array_equal(run_guarded(manifest, [x], threads=3)[0], x.astype(np.int32) ** 2)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (("y[i] = products[i]", "y[i] = products[i] + ((volatile int8_t *)x)[i + 48] * 0"), "of input input/x"),
        (("y[i] = products[i]", "y[i] = products[i] + ((volatile int8_t *)x)[i - 24] * 0"), "of input input/x"),
        (("y[i] = products[i]", "y[i] = products[i], ((volatile int32_t *)y)[i - 24] = 1"), "output y"),
        (("y[i] = products[i]", "y[i] = products[i], ((volatile int32_t *)y)[i + 24] = 1"), "output y"),
        (("(int32_t *)arena", "(int32_t *)arena - 8"), "the arena"),
    ],
)
def test_reads_and_writes_outside_of_buffers_are_seen(tmp_path, change, fault):
    with pytest.raises(AssertionError, match=fault):
        run(tmp_path, *change)


def test_the_function_that_leaves_its_buffers_is_named(tmp_path):
    with pytest.raises(OutsideBuffers, match=r"qc_main touches byte \+\d+ of input input/x \(24 bytes\), SIGSEGV"):
        run(tmp_path, "y[i] = products[i]", "y[i] = products[i] + ((volatile int8_t *)x)[i + 4096]")


STACK_READER = 'int32_t old[4096], *p = old; __asm__ volatile("" : "+r"(p)); y[0] = p[9]; return 0;'


@pytest.mark.parametrize(
    "change", [("products[i] = x[i]", "products[i] += x[i]"), ("return 0;", STACK_READER)], ids=["arena", "stack"]
)
def test_results_that_depend_on_old_memory_are_seen(tmp_path, change):
    with pytest.raises(AssertionError, match="depends on what memory held before"):
        run(tmp_path, *change)
