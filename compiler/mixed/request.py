"""What a user may ask for: `--bits`, `--budget`, `--widths`, `--bits-edge`, `--group`, as values."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qcompile.mixed.hessian import HessianTraces
from qcompile.quantizer.bits import ACTIVATION_BITS, FINE_GROUP, GROUPS, WEIGHT_BITS, LayerBits
from qcompile.targets.errors import CompileError

MIXED = "mixed"
BUDGETS = ("size", "latency", "bops", "loss")
Bits = int | str | Path | Mapping[str, LayerBits]
Budget = str | Iterable[str] | Mapping[str, float | str]


@dataclass(frozen=True)
class BitsOptions:
    """Refinements of `bits`.

    edge: "auto", or the weights' bits of the first and last layers. group: "auto", "channel" (0), 32, 64 or 128:
    weights that share a multiplier. widths: candidates for bits="mixed", as "8,4" or "8,4,w4a4". sensitivity: Hessian
    traces, or the path of a file of them; None measures on calibration data. latency: "model", the target's cost
    model, or "measured", on this machine.
    """

    edge: str | int = "auto"
    group: str | int = "auto"
    widths: str = "8,4"
    sensitivity: str | Path | HessianTraces | None = None
    latency: str = "model"

    @property
    def edge_bits(self) -> int | None:
        """None: auto."""
        if str(self.edge) == "auto":
            return None
        if str(self.edge) not in map(str, WEIGHT_BITS):
            raise CompileError(f"--bits-edge {self.edge} is unknown; choose auto, 8, 4, 3 or 2")
        return int(self.edge)

    @property
    def groups(self) -> tuple[int, ...]:
        """The groups to choose among; the first is what uniform bits take."""
        if str(self.group) == "auto":
            return 0, FINE_GROUP
        if str(self.group) in ("channel", "0"):
            return (0,)
        if str(self.group) in map(str, GROUPS):
            return (int(self.group),)
        raise CompileError(f"--group {self.group} is unknown; choose auto, channel, 32, 64 or 128")

    def choices(self) -> list[LayerBits]:
        """The candidates of mixed bits: each width, with each group where weights have fewer than 8 bits."""
        found = []
        for text in str(self.widths).split(","):
            width = parse_width(text)
            if width is None:
                raise CompileError(f"--widths {self.widths}: {text!r} is none of 8, 4, 3, 2, w4a8, w4a4, ...")
            for group in self.groups if width.weights < 8 else (0,):
                found.append(LayerBits(width.weights, width.activations, group))
        return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Request:
    """What was asked for: `wanted` (see `parse_bits`), `budgets` by name, `options`; `label`, what the manifest calls
    it: 8, 4, "w4a4", "mixed", or "custom" for a choice per layer."""

    wanted: LayerBits | Path | Mapping[str, LayerBits] | str
    budgets: Mapping[str, float]
    options: BitsOptions
    label: int | str


def read_request(bits: Bits, budget: Budget = (), options: BitsOptions | None = None) -> Request:
    """Checks everything that can be checked without the model; CompileError names the option."""
    wanted, budgets, options = parse_bits(bits), parse_budgets(budget), options or BitsOptions()
    mixed = isinstance(wanted, str)
    if budgets and not mixed:
        raise CompileError("--budget needs --bits mixed: with other bits there is nothing to choose")
    if options.latency not in ("model", "measured"):
        raise CompileError(f"--latency {options.latency} is unknown; choose model or measured")
    if options.sensitivity is not None and "loss" in budgets:
        raise CompileError("--budget loss is measured on the outputs: give it without --sensitivity")
    _ = options.edge_bits, options.choices()
    if isinstance(wanted, LayerBits):
        suffix = f"a{wanted.activations}"
        label: int | str = wanted.weights if wanted.activations == 8 else f"w{wanted.weights}{suffix}"
    else:
        label = MIXED if mixed else "custom"
    return Request(wanted, budgets, options, label)


def parse_width(text: object) -> LayerBits | None:
    """8, "4", "w4a8" as LayerBits; None where it is no width."""
    match = re.fullmatch(r"w?([0-9]{1,2})(?:a([0-9]{1,2}))?", str(text).strip().lower())
    if match is None or isinstance(text, bool):
        return None
    weights, activations = int(match[1]), int(match[2] or 8)
    return LayerBits(weights, activations) if weights in WEIGHT_BITS and activations in ACTIVATION_BITS else None


def parse_bits(bits: Bits) -> LayerBits | Path | Mapping[str, LayerBits] | str:
    """A uniform width, a file, a mapping by layer, or MIXED. CompileError where it is none of these."""
    if isinstance(bits, Mapping):
        return bits
    width = parse_width(bits)
    if width is not None:
        return width
    if isinstance(bits, str) and bits.strip().lower() == MIXED:
        return MIXED
    if isinstance(bits, os.PathLike) or (isinstance(bits, str) and (bits.endswith(".json") or os.path.isfile(bits))):
        return Path(bits)
    raise CompileError(
        f"--bits {bits} is not supported; choose 8, 4, 3, 2, w4a8, w4a4, w8a8, mixed or a JSON file of bits per layer"
    )


def parse_budgets(budgets: Budget) -> dict[str, float]:
    """ "size=60%", several of these, or {"size": 0.6} as {"size": 0.6}: shares of the 8-bit model, of the output's
    energy for loss. Several in one text are separated by commas."""
    if isinstance(budgets, str):
        budgets = [text for text in budgets.split(",") if text.strip()]
    if not isinstance(budgets, Iterable):
        raise CompileError(f"--budget {budgets!r} is not of the form size=60%, latency=80%, bops=50% or loss=1%")
    pairs = budgets.items() if isinstance(budgets, Mapping) else (_split(text) for text in budgets)
    found: dict[str, float] = {}
    for name, value in pairs:
        if name not in BUDGETS:
            raise CompileError(f"--budget {name}={value}: {name!r} is unknown; choose {', '.join(BUDGETS)}")
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = -1.0
        if not 0 < share < float("inf"):
            raise CompileError(f"--budget {name}={value} is no share; write {name}=60% or {name}=0.6")
        if name in found:
            raise CompileError(f"--budget {name} is given twice")
        found[name] = share
    return found


def _split(text: str) -> tuple[str, str]:
    name, equals, value = str(text).partition("=")
    if not equals:
        raise CompileError(f"--budget {text!r} is not of the form size=60%, latency=80%, bops=50% or loss=1%")
    return name.strip().lower(), value
