"""Random ONNX graphs against every promise of the compiler: `make fuzz`.

`build` grows a graph, `operators` draw its nodes, `generate` makes a case of a seed, `check` compiles and compares it,
`workers` run each case in a process of its own, `minimise` makes a failure small, `report` counts.
"""
