"""Grouped convolutions with few channels a group become ones of fewer, wider groups, whose weights have zeros where a
channel belongs to another group. The sums stay the same; info["macs"] keeps the products without zeros.

Expects conv2d nodes with constant weights, not yet fused. Depthwise convolutions have kernels of their own and stay.
"""

from __future__ import annotations

from dataclasses import replace

from qcompile.kernels.cpu.linear.groups import merge_weights, merged_groups
from qcompile.kernels.program import Node, Program
from qcompile.targets.target import CpuTarget


def merge_groups(program: Program, target: CpuTarget) -> Program:
    types, constants, nodes = program.types(), dict(program.constants), list[Node]()
    own = dict(program.info.get("macs", {}))
    for node in program.nodes:
        groups = node.attrs["groups"] if node.op == "conv2d" else 1
        weight = constants.get(node.inputs[1]) if groups > 1 else None
        if weight is not None and not groups == types[node.inputs[0]].shape[-1] == len(weight):
            _, oh, ow, _ = types[node.name].shape
            contiguous = node.attrs["dilations"][1] == 1 or weight.shape[2] == 1
            merged = merged_groups(target, weight, groups, oh * ow, contiguous)
            if merged > 1:
                name = f"{node.name}_merged"
                while name in types or name in constants:
                    name += "_"
                constants[name] = merge_weights(weight, groups, merged)
                own[node.name] = types[node.name].size * weight[0].size
                inputs = (node.inputs[0], name, *node.inputs[2:])
                node = replace(node, inputs=inputs, attrs={**node.attrs, "groups": groups // merged})
        nodes.append(node)
    return replace(program, nodes=nodes, constants=constants, info={**program.info, "macs": own})


__all__ = ["merge_groups"]
