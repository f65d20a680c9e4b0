"""The integer operations: type rule, numpy meaning and kernels of each."""
