"""The integer operations of qcompile.

`arithmetic` holds the rounding rules, `dialect` the registry, `ops/` one family a file: for each op its type
rule and its exact numpy meaning. `cpu/` holds what implements the ops on CPUs; `program` runs whole nets in numpy.
"""
