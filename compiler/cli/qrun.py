"""qrun: runs an artifact on the samples of an npz file."""

from pathlib import Path

import click
from qcompile.cli.messages import one_line_errors, write_whole


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option("--input", "input_file", required=True, type=click.Path(path_type=Path),
              help="npz file with one array per input: one inference, or samples along the first axis.")
@click.option("--output", "output_file", required=True, type=click.Path(path_type=Path),
              help="npz file to write, one array per output.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(1), help="Threads of one inference.")
@click.option("--backend", default="auto", show_default=True, metavar="auto|native|unicorn|qemu",
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
    from collections.abc import Callable  # late, with all that runs anything: --help starts at once

    from qcompile.cli.samples import Arrays, run_samples
    from qcompile.npz import npz_bytes, read_npz
    from qcompile.runtime import ArtifactError, load

    if core and backend != "qemu":
        raise ArtifactError("--core needs --backend qemu")
    model = load(artifact, threads=threads, backend=backend, core=core)
    runs: dict[tuple[bool, bool], Callable[[Arrays], Arrays]] = {
        (False, False): model.run, (True, False): model.run_integer,
        (False, True): model.reference, (True, True): model.reference_integer}
    outputs = run_samples(model, runs[integer, reference], read_npz(input_file))
    write_whole(output_file, npz_bytes(outputs))

if __name__ == "__main__":
    main()
