"""Convolutions, dense layers and products of activations, with fused epilogues."""

from qcompile.kernels.cpu.linear.conv import lower_conv2d, lower_dense
from qcompile.kernels.cpu.linear.matmul import lower_matmul

LOWERINGS = {"conv2d": lower_conv2d, "dense": lower_dense, "matmul": lower_matmul}
