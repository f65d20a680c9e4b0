"""Runs an artifact on many samples, however they are stacked."""

import sys
from collections.abc import Callable, Iterator

import numpy as np
from qcompile.runtime import ArtifactError, Model, Tensor

Arrays = dict[str, np.ndarray]


def run_samples(model: Model, run: Callable[[Arrays], Arrays], arrays: Arrays) -> Arrays:
    """Runs every sample of ``arrays`` and stacks the outputs; one inference where all have the model's shapes.

    Raises ArtifactError where an input is missing or its shape is neither the model's nor a stack of it.
    """
    missing = [tensor.name for tensor in model.inputs if tensor.name not in arrays]
    if missing:
        raise ArtifactError(f"the input file has no array {missing[0]!r}; it has {', '.join(arrays) or 'none'}")
    forms = {tensor.name: _sample_form(tensor, arrays[tensor.name]) for tensor in model.inputs}
    counts = {count for count, _ in forms.values() if count is not None}
    if not counts:
        return run({name: arrays[name] for name in forms})
    if len(counts) > 1:
        raise ArtifactError(
            "the inputs have different numbers of samples: "
            + ", ".join(f"{name} {count}" for name, (count, _) in forms.items() if count is not None)
        )
    along_batch = any(form == "batch" for _, form in forms.values())
    results = [
        run(
            {
                name: arrays[name] if count is None else arrays[name][i].reshape(_shape(model, name))
                for name, (count, _) in forms.items()
            }
        )
        for i in _progress(counts.pop())
    ]
    joined = {}
    for tensor in model.outputs:
        parts = [result[tensor.name] for result in results]
        join = np.concatenate if along_batch and tensor.shape[:1] == (1,) else np.stack
        joined[tensor.name] = join(parts)
    return joined


def _sample_form(tensor: Tensor, array: np.ndarray) -> tuple[int | None, str]:
    """(number of samples, 'stack' or 'batch'), or (None, 'one') where the array has the model's own shape."""
    if array.shape == tensor.shape:
        return None, "one"
    if array.ndim and array.shape[0] and array.shape[1:] == tensor.shape:
        return array.shape[0], "stack"
    if array.ndim and array.shape[0] and tensor.shape[:1] == (1,) and array.shape[1:] == tensor.shape[1:]:
        return array.shape[0], "batch"
    raise ArtifactError(
        f"input {tensor.name!r} has shape {list(array.shape)}; the model takes {list(tensor.shape)}, "
        "or that with samples in front"
    )


def _shape(model: Model, name: str) -> tuple[int, ...]:
    return next(tensor.shape for tensor in model.inputs if tensor.name == name)


def _progress(count: int) -> Iterator[int]:
    """The numbers of the samples, and how far they are where a person watches."""
    watched = sys.stderr.isatty()
    for i in range(count):
        yield i
        if watched:
            print(f"\rsample {i + 1} of {count}", end="\n" if i + 1 == count else "", file=sys.stderr, flush=True)
