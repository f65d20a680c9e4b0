"""The ops by family; importing this package registers all of them."""
from qcompile.kernels.ops import (  # noqa: F401
    elementwise,
    linear,
    movement,
    norm,
    pool,
    recurrent,
    reduce,
    selection,
    softmax,
    whole,
)
