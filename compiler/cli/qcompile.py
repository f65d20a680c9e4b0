"""qcompile: an ONNX model in, an integer-only artifact out."""

from __future__ import annotations

import contextlib
import json
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from qcompile.cli.messages import MOST_THREADS, one_line_errors, write_whole
from qcompile.files import existing_file, output_file
from qcompile.targets import CompileError, get_target, target_names

# the switches of QuantizeOptions, whose module is not for --help to import
TECHNIQUES = (
    "equalise",
    "bias-correction",
    "clip-weights",
    "wide-streams",
    "widening",
    "learned-rounding",
    "error-feedback",
)
ONNX_FILE = "give the .onnx file inside it"


def parse_shapes(texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """("x:1x3x224x224", ...) as {"x": (1, 3, 224, 224)}; CompileError where it is written otherwise."""
    shapes = {}
    for text in texts:
        name, _, sizes = text.rpartition(":")
        parts = sizes.split("x")
        if not name or not all(re.fullmatch("0*[1-9][0-9]{0,11}", p) for p in parts):
            raise CompileError(f"--shapes {text!r} is not of the form NAME:1x3x224x224")
        if name in shapes:
            raise CompileError(f"--shapes {name} is given twice")
        shapes[name] = tuple(int(p) for p in parts)
    return shapes


@click.command(context_settings={"max_content_width": 110})
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--target", default="host", show_default=True, help=f"CPU to compile for: {', '.join(target_names())}.")
@click.option(
    "--bits",
    default="8",
    show_default=True,
    metavar="8|4|w4a4|mixed|FILE",
    help="Width of weights, w4a4 of weights and activations; mixed chooses for each layer; FILE is a JSON file of bits "
    "per layer, as --keep writes it (float models only).",
)
@click.option(
    "--budget",
    multiple=True,
    metavar="size=60%",
    help="What --bits mixed must keep to: size, latency or bops (multiplications times bits) of the 8-bit model, or "
    "loss=1% of the output's energy; repeatable. Default: size=60%.",
)
@click.option(
    "--bits-edge",
    default="auto",
    show_default=True,
    metavar="auto|8|4",
    help="Width of the first and last layers' weights where --bits is a number; auto: 8, but fewer, in groups, for "
    "those that hold much of a large network.",
)
@click.option(
    "--group",
    default="auto",
    show_default=True,
    metavar="auto|channel|32|64|128",
    help="Weights that share a multiplier; auto: a channel, and with --bits mixed 32 where that pays.",
)
@click.option(
    "--widths", default="8,4", show_default=True, help="Candidates of --bits mixed, such as 8,4,w4a4 or 8,4,3,2."
)
@click.option(
    "--sensitivity",
    type=click.Path(path_type=Path),
    help="Hessian traces that qcompile.hessian_trace saved, for --bits mixed; default: measured on the samples.",
)
@click.option(
    "--latency",
    default="model",
    show_default=True,
    type=click.Choice(["model", "measured"]),
    help="Time per layer for --bits mixed: from the target's cost model, or measured on this machine.",
)
@click.option(
    "--without",
    multiple=True,
    type=click.Choice(TECHNIQUES),
    help="Switches a technique of the quantizer off; repeatable.",
)
@click.option(
    "--calib",
    type=click.Path(path_type=Path),
    help="npz file with arrays named as the inputs, samples along the first axis (float models only).",
)
@click.option(
    "-o",
    "--output",
    default="build",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder that gets NAME-TARGET/.",
)
@click.option("--name", help="Name of the artifact and of its C functions; default: the model's file name.")
@click.option("--shapes", multiple=True, metavar="NAME:1x3x224x224", help="Fixes dynamic axes of an input; repeatable.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=16000",
    help="Fixes an input to a number, true, false or a JSON list before anything else is done; repeatable.",
)
@click.option(
    "--state",
    "state",
    multiple=True,
    metavar="INPUT:OUTPUT",
    help="The output is the input of the next call, and stays integers between calls; repeatable.",
)
@click.option(
    "--approx",
    default="exact",
    show_default=True,
    type=click.Choice(["exact", "ibert", "pwl"]),
    help="Activations: correctly rounded tables, I-BERT's polynomials or iRNN's straight segments.",
)
@click.option("--keep", is_flag=True, help="Also write bits.json, report.html and the program after each pass (ir/).")
@click.option(
    "--report",
    is_flag=True,
    help="Also write report.html: bits, sensitivity, bytes, time and signal-to-noise ratio of each layer.",
)
@click.option(
    "--threads",
    default=1,
    show_default=True,
    type=click.IntRange(1, MOST_THREADS),
    help="Threads that the artifact will be given; recorded in the manifest as a default for qrun and qbench.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(allow_dash=True),
    help="Write what was done as JSON to this file, or - for standard output.",
)
@click.option("-v", "--verbose", is_flag=True, help="Show the layers and times per stage.")
@one_line_errors
def main(
    model: Path,
    target: str,
    bits: str,
    budget: tuple[str, ...],
    bits_edge: str,
    group: str,
    widths: str,
    sensitivity: Path | None,
    latency: str,
    without: tuple[str, ...],
    calib: Path | None,
    output: Path,
    name: str | None,
    shapes: tuple[str, ...],
    settings: tuple[str, ...],
    state: tuple[str, ...],
    approx: str,
    keep: bool,
    report: bool,
    threads: int,
    json_file: str | None,
    verbose: bool,
) -> None:
    """Compiles the ONNX file MODEL (float, or quantized with Q/DQ pairs) into integer instructions only.

    \b
    qcompile model.onnx --target arm-a76 --calib calib.npz -o build
    qrun build/model-arm-a76 --input x.npz --output y.npz
    """
    get_target(target)
    existing_file(model, folder_hint=ONNX_FILE)
    if calib is not None:
        existing_file(calib, "calibration", "give an npz file")
    if json_file not in (None, "-"):
        output_file(json_file, model, calib, sensitivity)
    if name == "":
        raise CompileError("--name is empty; leave it out for the name of the model's file")
    sizes = parse_shapes(shapes)
    warnings.simplefilter("ignore")
    # late: TVM takes seconds, which --help and the checks above should not
    from qcompile.frontend.fixed_inputs import parse_constants
    from qcompile.mixed import BitsOptions
    from qcompile.pipeline import compile
    from qcompile.quantizer import QuantizeOptions

    switches: dict[str, Any] = {technique.replace("-", "_"): False for technique in without}
    with _progress() as show:
        result = compile(
            model,
            target,
            bits=bits,
            budget=budget,
            calibration=calib,
            output=output,
            shapes=sizes,
            states=state,
            constants=parse_constants(settings),
            name=name,
            approx=approx,
            keep=keep,
            report=report or bool(json_file) or verbose,
            threads=threads,
            options=QuantizeOptions(**switches),
            bits_options=BitsOptions(bits_edge, group, widths, sensitivity, latency),
            progress=show,
        )
    for note in result.notes:
        click.echo(f"note: {note}", err=True)
    if json_file == "-":
        click.echo(json.dumps(result.report, indent=2))
    else:
        if json_file is not None:
            write_whole(Path(json_file), (json.dumps(result.report, indent=2) + "\n").encode())
        from qcompile.cli.summary import print_summary

        print_summary(result.report, verbose)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """A bar that shows the stage, where a person watches."""
    from qcompile.pipeline import STAGES
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=len(STAGES))
        yield lambda stage: bar.update(task, description=stage, completed=STAGES.index(stage))


if __name__ == "__main__":
    main()
