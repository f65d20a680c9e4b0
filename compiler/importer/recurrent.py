"""LSTM, GRU and RNN, in the plain form of `frontend.recurrent`, as one opaque Relax op with a tuple of results."""

from __future__ import annotations

from functools import cache
from typing import Any

import tvm
from qcompile.importer.converters import Converter
from tvm import relax
from tvm.ir import Op, register_op_attr

RECURRENT = "qcompile.recurrent"
ARGUMENTS = ("x", "weight", "recurrent", "bias", "lengths", "hidden", "cell")
RANGES = ("hidden_range", "cell_range", "input_range")  # what the quantizer saw of it, empty where nobody looked


@cache
def _register() -> None:
    """Makes the op known to Relax: x [T, N, I], recurrent weights [1, G*H, H] -> (Y, Y_h, Y_c)."""

    def infer(call: Any, _builder: Any) -> Any:
        steps, rows, _ = (int(i) for i in call.args[0].ty.shape)
        units = int(call.args[2].ty.shape[2])
        state = relax.TensorType((1, rows, units), "float32")
        return tvm.ir.TupleType([relax.TensorType((steps, 1, rows, units), "float32"), state, state])

    register_op_attr(RECURRENT, "FInferType", infer)
    register_op_attr(RECURRENT, "FPurity", True)


class _Recurrent(Converter):
    @classmethod
    def convert(cls, bb: Any, inputs: Any, attr: dict, params: Any) -> Any:
        _register()
        given = dict(zip(ARGUMENTS, (inputs[i] for i in range(len(ARGUMENTS)))))
        attrs = {
            "cell": cls.__name__,
            "arguments": [name for name, value in given.items() if value is not None],
            "activations": [a.decode() if isinstance(a, bytes) else a for a in attr.get("activations", ())],
            "alpha": [repr(float(a)) for a in attr.get("activation_alpha", ())],
            "beta": [repr(float(a)) for a in attr.get("activation_beta", ())],
            "clip": repr(float(attr.get("clip", 0.0))),
            "reverse": _text(attr.get("direction", "forward")) == "reverse",
            "reset_after": bool(attr.get("linear_before_reset", 0)),
            **{name: attr.get("metadata", {}).get(f"qcompile.{name}", "") for name in RANGES},
        }
        arguments = [value for value in given.values() if value is not None]
        return relax.Call(Op.get(RECURRENT), arguments, tvm.ir.make_node("ir.DictAttrs", **attrs))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class LSTM(_Recurrent):
    """Gates i, o, f, c."""


class GRU(_Recurrent):
    """Gates z, r, h."""


class RNN(_Recurrent):
    """One gate."""


OPERATORS = (LSTM, GRU, RNN)
