"""What qcompile prints of the artifact that it made."""

from __future__ import annotations

from typing import Any

from qcompile.cli.tables import add_row, new_table, print_tables
from qcompile.targets.errors import shorten
from rich.table import Table


def print_summary(r: dict[str, Any], verbose: bool) -> None:
    table = new_table("", "")
    proof = r["proof"]
    rows = [
        ("artifact", r["path"]),
        ("ops", f"{r['ops']} in {r['kernel_calls']} calls of {r['kernels']} kernels"),
        ("weights", f"{r['weights_bytes']:,} bytes"),
        ("code", f"{r['code_bytes']:,} bytes"),
        ("arena", f"{r['arena_bytes']:,} bytes"),
        ("MACs", f"{r['macs']:,}"),
        (
            "proof",
            f"{proof['float_instructions']} float instructions in {proof['instructions']:,}, "
            f"{proof['undefined_symbols']} undefined symbols",
        ),
    ]
    if r["agreement_db"]:
        rows.append(("signal to noise", _agreement(r["agreement_db"], r["agreement_of"])))
    if r["mixed"]:
        shares = ", ".join(f"{n} {100 * r['mixed'][n]:.1f} %" for n in ("size", "latency", "bops"))
        rows.insert(
            1, ("mixed bits", f"{shares} of 8 bits; loses {100 * r['mixed']['measured_loss']:.3g} % of the energy")
        )
    if verbose:
        rows += [(f"time: {k}", f"{v:.2f} s") for k, v in r["seconds"].items()]
    for label, value in rows:
        add_row(table, label, str(value))
    if verbose and r["layers"]:
        print_tables(_layer_table(r), "")
    print_tables(table)


def _agreement(ratios: dict[str, float], inputs: str) -> str:
    """Of the noisiest output beside the model itself, and on what it was measured."""
    name = min(ratios, key=lambda n: ratios[n])
    which = "" if len(ratios) == 1 else f" ('{shorten(name, 40)}', the least of {len(ratios)} outputs)"
    made_up = "; ranges and this figure are of made-up inputs: give --calib" if inputs != "samples" else ""
    return f"{ratios[name]:.1f} dB{which}, on {inputs}{made_up}"


def _layer_table(r: dict[str, Any]) -> Table:
    table = new_table("layer", "op", "bits", ">bytes", f">{r['time_unit']}", ">sensitivity", ">SNR, dB")
    for x in r["layers"]:
        figures = (f"{x['bytes']:,}", _figure(x["time"], ",.1f"), _figure(x["sensitivity"], ".2g"))
        add_row(table, x["name"], x["op"], x["bits"], *figures, _figure(x["snr_db"], ".1f"))
    return table


def _figure(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
