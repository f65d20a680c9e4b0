"""What a layer costs on a CPU: the estimate that tiles are chosen by, and the time to fetch its weights."""

from __future__ import annotations

from qcompile.kernels.cpu.codes import Code
from qcompile.kernels.cpu.isa import get_isa
from qcompile.kernels.cpu.linear.conv import best_tiling
from qcompile.targets import ARCHITECTURES
from qcompile.targets.target import CpuTarget

DEPTHWISE_SHARE = 0.21  # of the peak, as measured on AVX-512 (105 of 500 GMAC/s) and estimated for the A76 (6.7 of 32)


def layer_cycles(
    target: CpuTarget, rows: int, channels: int, k: int, weight_bits: int = 8, group: int = 0, depthwise: bool = False
) -> float:
    """Estimated cycles of a layer of `rows` output pixels, `channels` outputs and `k` products for each.

    weight_bits: 2, 3, 4 or 8; group: elements of K that share a multiplier, 0: none. Weights that do not fit the L2
    cache must come from beyond it each time.
    """
    isa = get_isa(target)
    best = max(dot.macs_a_cycle for dot in isa.dots)
    if depthwise:
        return rows * channels * k / (best * DEPTHWISE_SHARE)
    code = None
    if weight_bits < 8:
        code = Code(weight_bits, group, digits=weight_bits == 4 and not group)
    weight_bytes = channels * k * weight_bits / 8 + (channels * k / group if group else 0)
    fetched = weight_bytes / ARCHITECTURES[target.arch].fetched_bytes if weight_bytes > target.l2 else 0.0
    return max(best_tiling(isa, rows, channels, k, 1, code).cycles, fetched)
