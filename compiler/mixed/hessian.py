"""Hessian traces of a torch module's weights, by Hutchinson's method (HAWQ-V2, Dong et al. 2020, section 3.2).

torch is imported where it is used: reading a file of traces does not need it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from qcompile.targets.errors import CompileError

FORMAT = "qcompile hessian trace 1"


@dataclass(frozen=True)
class Trace:
    """Of one weight: `average`, the trace over the number of weights; `error`, its standard error; `shape`; `norms`,
    the sum of squares of each slice along the first axis (the output channels of Conv and Linear)."""

    average: float
    error: float
    shape: tuple[int, ...]
    norms: tuple[float, ...]


class HessianTraces(dict[str, Trace]):
    """{parameter name: Trace}, in the module's order; `save` writes the file that `--sensitivity` reads."""

    def save(self, path: str | Path) -> None:
        traces = {name: asdict(trace) for name, trace in self.items()}
        Path(path).write_text(json.dumps({"format": FORMAT, "traces": traces}, indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> HessianTraces:
        """CompileError where the file is no such file."""
        try:
            content = json.loads(Path(path).read_text())
            if content["format"] != FORMAT:
                raise ValueError(content["format"])
            return cls(
                {
                    name: Trace(float(t["average"]), float(t["error"]), tuple(t["shape"]), tuple(t["norms"]))
                    for name, t in content["traces"].items()
                }
            )
        except OSError as e:
            raise CompileError(f"--sensitivity {path}: {e.strerror}") from e
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise CompileError(
                f"--sensitivity {path}: not a file of Hessian traces; write it with "
                "qcompile.hessian_trace(module, batches, loss).save(path)"
            ) from e


def hessian_trace(
    module: Any,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Any],
    vectors: int = 16,
    seed: int = 0,
) -> HessianTraces:
    """Average Hessian trace of every weight (parameter of two axes or more) of the torch `module`.

    `loss(module, batch)` returns the scalar torch tensor that training would minimise; it is differentiated twice.
    For each batch, `vectors` Rademacher vectors v give v.Hv, whose mean is the trace (Hutchinson); one product with the
    Hessian serves all weights at once, since their parts of v are independent. The module runs in evaluation mode and
    is left as it was. Raises ValueError for no batches, no weights, or a loss that is no finite scalar.
    """
    import torch

    weights: dict[str, Any] = {
        n: p for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad and p.ndim > 1
    }
    tensors = list({id(p): p for p in weights.values()}.values())
    if not tensors:
        raise ValueError("hessian_trace: the module has no weights with requires_grad")
    generator = torch.Generator().manual_seed(seed)
    estimates: list[list[float]] = []
    training = module.training
    module.eval()
    try:
        for batch in batches:
            value = loss(module, batch)
            if value.numel() != 1 or not torch.isfinite(value).all():
                raise ValueError("hessian_trace: loss(module, batch) must return one finite number")
            gradients = torch.autograd.grad(value, tensors, create_graph=True, materialize_grads=True)
            for _ in range(vectors):
                v = [_rademacher(p, generator) for p in tensors]
                products = _hessian_times(gradients, tensors, v)
                estimates.append([float((a * b).sum(dtype=torch.float64)) for a, b in zip(v, products)])
    finally:
        module.train(training)
    if not estimates:
        raise ValueError("hessian_trace: no batches")
    table = np.array(estimates) / [p.numel() for p in tensors]
    error = table.std(0, ddof=1) / np.sqrt(len(table)) if len(table) > 1 else np.zeros(len(tensors))
    index = {id(p): k for k, p in enumerate(tensors)}
    result = HessianTraces()
    for name, p in weights.items():
        k = index[id(p)]
        norms = p.detach().double().flatten(1).square().sum(1).tolist()
        result[name] = Trace(float(table[:, k].mean()), float(error[k]), tuple(p.shape), tuple(norms))
    return result


def _rademacher(like: Any, generator: Any) -> Any:
    import torch

    signs = torch.randint(0, 2, like.shape, generator=generator, dtype=torch.int8)
    return (2 * signs - 1).to(like)


def _hessian_times(gradients: Iterable[Any], tensors: list[Any], v: list[Any]) -> list[Any]:
    """H v; zero where the gradient does not depend on the weights (a loss linear in them)."""
    import torch

    pairs = [(g, b) for g, b in zip(gradients, v) if g.requires_grad]
    if not pairs:
        return [torch.zeros_like(p) for p in tensors]
    found = torch.autograd.grad(
        [g for g, _ in pairs], tensors, [b for _, b in pairs], retain_graph=True, materialize_grads=True
    )
    return list(found)


def floor_of(traces: Mapping[str, Trace]) -> float:
    """What replaces a trace that came out negative or zero (the net is at no minimum, or the estimate is noise): the
    least positive one."""
    return min((t.average for t in traces.values() if t.average > 0), default=1.0)
