"""qbench: the latency of an artifact, and of its peers in the same run."""

import json
from pathlib import Path

import click
from qcompile.cli.messages import MOST_THREADS, one_line_errors, write_whole
from qcompile.files import output_file


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "--against",
    multiple=True,
    metavar="PEER",
    help="onnxruntime (the QDQ model in the artifact's folder), onnxruntime:MODEL.onnx or "
    "litert:MODEL.tflite; repeatable.",
)
@click.option(
    "--input",
    "input_file",
    type=click.Path(path_type=Path),
    help="npz file whose first sample to run; by default made-up values.",
)
@click.option("--repeat", type=click.IntRange(1), help="Measured calls of each; by default as many as fit --seconds.")
@click.option("--seconds", default=3.0, show_default=True, type=click.FloatRange(0.01), help="Time for each contender.")
@click.option(
    "--threads", default=1, show_default=True, type=click.IntRange(1, MOST_THREADS), help="Threads, of the peers too."
)
@click.option(
    "--profile",
    "with_profile",
    is_flag=True,
    help="Also the time per op, from the same kernels with a time stamp around each.",
)
@click.option("--json", "json_file", metavar="FILE", help="Also write the figures as JSON; '-' for standard output.")
@one_line_errors
def main(
    artifact: Path,
    against: tuple[str, ...],
    input_file: Path | None,
    repeat: int | None,
    seconds: float,
    threads: int,
    with_profile: bool,
    json_file: str | None,
) -> None:
    """Measures the latency of the compiled ARTIFACT folder on this machine.

    Peers run in the same process in turns of a few milliseconds, so that a busy moment slows all alike; a ratio is
    the peer's median over the artifact's: above 1, the artifact is faster.  Quantizing the inputs is not timed.  CPU
    time (with one thread) leaves out what other processes take: see it where the machine is busy.
    """
    if json_file not in (None, "-"):
        output_file(json_file, input_file)
    from qcompile.cli.peers import Peer, open_peer  # late, with all that runs anything: --help starts at once
    from qcompile.cli.profile import print_profile, profile
    from qcompile.cli.timing import integer_inputs, measure, print_report, report_of
    from qcompile.runtime import load
    from qcompile.runtime.native import NativeEngine

    model = load(artifact, threads=threads, backend="native")
    inputs = integer_inputs(model, input_file)
    model.run_integer(inputs)
    engine = model.engine
    assert isinstance(engine, NativeEngine)
    function, arguments = engine.function, engine.arguments
    peers = [open_peer(text, model, inputs, threads) for text in against]
    ours = Peer(model.manifest.name, str(artifact), lambda: function(*arguments))
    samples = measure([contender.call for contender in (ours, *peers)], repeat, seconds)
    report = report_of(model, threads, [ours, *peers], samples, repeat)
    if with_profile:
        report["profile"] = profile(model, inputs, seconds, threads)
    if json_file != "-":
        print_report(report)
        if with_profile:
            print_profile(report["profile"])
    if json_file is not None:
        text = json.dumps(report, indent=2) + "\n"
        if json_file == "-":
            click.echo(text, nl=False)
        else:
            write_whole(Path(json_file), text.encode())


if __name__ == "__main__":
    main()
