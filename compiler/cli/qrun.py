"""qrun: runs an artifact on the samples of an npz file; needs numpy only, as what runs on a device may."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from qcompile.cli.messages import MOST_THREADS, one_line_errors, write_whole
from qcompile.files import output_file

DESCRIPTION = """Runs the compiled ARTIFACT folder on the inputs of an npz file and writes its outputs to another.
Arrays have the model's shapes for one inference. With one more axis in front, or more samples along a batch axis of 1,
every sample is run and the outputs are stacked the same way."""


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {MOST_THREADS}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("qrun", description=DESCRIPTION, allow_abbrev=False)
    parser.add_argument("artifact", metavar="ARTIFACT", type=Path)
    parser.add_argument(
        "--input",
        metavar="FILE",
        required=True,
        type=Path,
        help="npz file with one array per input: one inference, or samples along the first axis",
    )
    parser.add_argument(
        "--output", metavar="FILE", required=True, type=Path, help="npz file to write, one array per output"
    )
    parser.add_argument("--threads", metavar="N", default=1, type=_count, help="threads of one inference (default: 1)")
    parser.add_argument(
        "--backend",
        default="auto",
        metavar="auto|native|unicorn|qemu",
        help="where to run: this machine, or an ARM emulator (default: auto)",
    )
    parser.add_argument("--core", metavar="NAME", help="the core that qemu stands in for, such as cortex-a72")
    parser.add_argument(
        "--integer", action="store_true", help="take and return the integers themselves, without scales"
    )
    parser.add_argument(
        "--reference", action="store_true", help="run the numpy meaning of the model instead of its code"
    )
    return parser


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command with ``arguments``, the process's own where there are none."""
    given = _parser().parse_args(arguments)
    from qcompile.cli.samples import run_samples  # late, with all that runs anything: --help starts at once
    from qcompile.npz import npz_bytes, read_npz
    from qcompile.runtime import ArtifactError, load

    output_file(given.output, given.input)
    if given.core is not None and given.backend != "qemu":
        raise ArtifactError("--core needs --backend qemu")
    model = load(given.artifact, threads=given.threads, backend=given.backend, core=given.core)
    runs = {
        (False, False): model.run,
        (True, False): model.run_integer,
        (False, True): model.reference,
        (True, True): model.reference_integer,
    }
    outputs = run_samples(model, runs[given.integer, given.reference], read_npz(given.input))
    write_whole(given.output, npz_bytes(outputs))


if __name__ == "__main__":
    main()
