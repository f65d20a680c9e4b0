"""Convolutions to few channels compute several neighbouring pixels as channels. The sums stay the same, and lie in the
same order in memory; info["macs"] keeps the products without zeros.

Expects conv2d nodes with constant weights, not yet fused; what follows them is moved before the reshape that makes the
channels pixels again, and a convolution where that cannot be done stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from qcompile.kernels.cpu.linear.folds import fold_weights, folded_pixels
from qcompile.kernels.dialect import OPS, Type
from qcompile.kernels.program import Node, Program
from qcompile.passes.sink_moves import sink_moves
from qcompile.passes.tidy import remove_dead
from qcompile.targets.target import CpuTarget


def fold_pixels(program: Program, target: CpuTarget) -> Program:
    types = program.types()
    folds = {node.name: fold for node in program.nodes if (fold := _fold(node, program.constants, types, target)) > 1}
    if not folds:
        return program
    folded = _folded(program, folds, types)
    readers = folded.readers()
    rounded = {n: f for n, f in folds.items() if all(OPS[r.op].elementwise for r in readers.get(f"{n}_folded", []))}
    return folded if rounded == folds else _folded(program, rounded, types)


def _fold(node: Node, constants: Mapping[str, np.ndarray], types: Mapping[str, Type], target: CpuTarget) -> int:
    if node.op != "conv2d" or node.attrs["groups"] > 1 or not {*node.inputs[1:]} <= set(constants):
        return 1
    weight = constants[node.inputs[1]]
    n, oh, ow, _ = types[node.name].shape
    if node.attrs["dilations"][1] > 1 or weight.shape[2] == 1:
        return 1
    return folded_pixels(target, weight, node.attrs["strides"][1], n * oh, ow)


def _folded(program: Program, folds: Mapping[str, int], types: Mapping[str, Type]) -> Program:
    constants, nodes = dict(program.constants), list[Node]()
    own = dict(program.info.get("macs", {}))
    for node in program.nodes:
        fold = folds.get(node.name, 1)
        if fold == 1:
            nodes.append(node)
            continue
        x, weight, bias = node.inputs
        made = types[node.name]
        name, (sh, sw) = f"{node.name}_folded", node.attrs["strides"]
        constants[f"{name}_weight"] = fold_weights(constants[weight], sw, fold)
        constants[f"{name}_bias"] = np.tile(constants[bias].reshape(-1), fold)
        inputs = (x, f"{name}_weight", f"{name}_bias")
        nodes.append(replace(node, name=name, inputs=inputs, attrs={**node.attrs, "strides": [sh, fold * sw]}))
        nodes.append(Node(node.name, "reshape", (name,), {"shape": list(made.shape)}))
        own[name] = own.get(node.name, made.size * constants[weight][0].size)
    info = {**program.info, "macs": own}
    return remove_dead(sink_moves(replace(program, nodes=nodes, constants=constants, info=info)))


__all__ = ["fold_pixels"]
