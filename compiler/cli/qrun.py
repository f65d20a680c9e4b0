"""qrun: runs an artifact on the samples of an npz file."""

from collections.abc import Callable, Iterator
from pathlib import Path

import click
import numpy as np
from qcompile.cli.messages import one_line_errors, read_npz, write_npz
from qcompile.runtime import ArtifactError, Model, Tensor, load
from qcompile.runtime.model import BACKENDS
from rich.console import Console
from rich.progress import track

Arrays = dict[str, np.ndarray]


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--input", "input_file", required=True, type=click.Path(path_type=Path),
              help="npz file with one array per input: one inference, or samples along the first axis.")
@click.option("--output", "output_file", required=True, type=click.Path(path_type=Path),
              help="npz file to write, one array per output.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads of one inference.")
@click.option("--backend", default="auto", show_default=True, type=click.Choice(BACKENDS),
              help="Where to run: this machine, or an ARM emulator.")
@click.option("--core", help="The core that qemu stands in for, such as cortex-a72.")
@click.option("--integer", is_flag=True, help="Take and return the integers themselves, without scales.")
@click.option("--reference", is_flag=True, help="Run the numpy meaning of the model instead of its code.")
@one_line_errors
def main(artifact: Path, input_file: Path, output_file: Path, threads: int, backend: str, core: str | None,
         integer: bool, reference: bool) -> None:
    """Runs the compiled ARTIFACT folder on the inputs of an npz file and writes its outputs to another.

    Arrays have the model's shapes for one inference.  With one more axis in front, or more samples along a batch
    axis of 1, every sample is run and the outputs are stacked the same way.
    """
    if core and backend != "qemu":
        raise ArtifactError("--core needs --backend qemu")
    model = load(artifact, threads=threads, backend=backend, core=core)
    runs: dict[tuple[bool, bool], Callable[[Arrays], Arrays]] = {
        (False, False): model.run, (True, False): model.run_integer,
        (False, True): model.reference, (True, True): model.reference_integer}
    outputs = run_samples(model, runs[integer, reference], read_npz(input_file))
    write_npz(output_file, outputs)


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
        raise ArtifactError("the inputs have different numbers of samples: " + ", ".join(
            f"{name} {count}" for name, (count, _) in forms.items() if count is not None))
    along_batch = any(form == "batch" for _, form in forms.values())
    results = [run({name: arrays[name] if count is None else arrays[name][i].reshape(_shape(model, name))
                    for name, (count, _) in forms.items()}) for i in _progress(counts.pop())]
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
    raise ArtifactError(f"input {tensor.name!r} has shape {list(array.shape)}; the model takes {list(tensor.shape)}, "
                        "or that with samples in front")


def _shape(model: Model, name: str) -> tuple[int, ...]:
    return next(tensor.shape for tensor in model.inputs if tensor.name == name)


def _progress(count: int) -> Iterator[int]:
    console = Console(stderr=True)
    yield from track(range(count), "samples", console=console, disable=not console.is_terminal, transient=True)


if __name__ == "__main__":
    main()
