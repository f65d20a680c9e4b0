"""Thin helpers over TVM's TIR builder: typed pointers, vectors of any width, and whole functions.

Vectors are plain TIR expressions. An expression that is used more than once is bound to a name first (`bind`), since
TIR is a tree: what is written twice is computed twice, and grows with every further use.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from qcompile.targets.errors import CompileError
from tvm.ir import Var
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

Expr = Any  # a TIR expression
Argument = Any  # Pointer or a scalar TIR variable
UNBOUNDED = 1 << 30  # length given to buffers behind plain pointers; TIR never checks it
LARGEST_TERM = 4000  # nodes of an expression with all the names in it written out
LARGEST_FUNCTION = 250_000  # nodes of a function


@dataclass(frozen=True)
class Pointer:
    """Memory of elements of one dtype; offsets count elements and may be any int32 expression."""

    buffer: Any
    dtype: str

    def load(self, offset: Expr, lanes: int = 1) -> Expr:
        """`lanes` neighbouring elements as one vector (a scalar for 1)."""
        return self.buffer[offset if lanes == 1 else T.ramp(offset, 1, lanes)]

    def gather(self, offsets: Expr) -> Expr:
        """One element for each lane of `offsets`."""
        return self.buffer[offsets]

    def store(self, offset: Expr, value: Expr) -> None:
        lanes = lanes_of(value)
        T.buffer_store(self.buffer, value, [offset if lanes == 1 else T.ramp(offset, 1, lanes)])

    def address(self, offset: Expr) -> Expr:
        return T.address_of(self.buffer[offset])

    def moved(self, offset: Expr) -> Moved:
        """The same memory from element `offset` on, by adding it to every offset."""
        return Moved(self.buffer, self.dtype, offset)

    def pointed(self, offset: Expr) -> Pointer:
        """The same memory from element `offset` on, by a pointer of its own: x86 then extends no 32-bit sums."""
        return Pointer(T.decl_buffer((UNBOUNDED,), self.dtype, data=T.Bind(self.address(offset))), self.dtype)

    def fresh(self, offset: Expr) -> Pointer:
        """The same memory from element `offset` on by a pointer that LLVM does not know: what loops do not change is
        then loaded where it is used, instead of before the loop into registers that must be kept on the stack."""
        pointer = T.call_llvm_intrin("handle", "llvm.launder.invariant.group", self.address(offset))
        return Pointer(T.decl_buffer((UNBOUNDED,), self.dtype, data=T.Bind(pointer)), self.dtype)

    def as_type(self, dtype: str) -> Pointer:
        """The same memory as elements of another dtype of equal size."""
        return Pointer(T.decl_buffer((UNBOUNDED,), dtype, data=self.buffer.data), dtype)

    def prefetch(self, offset: Expr) -> None:
        """Asks for the cache line of an element that will be read soon, in the second cache."""
        T.evaluate(T.call_llvm_intrin("", "llvm.prefetch", self.address(offset), T.int32(0), T.int32(2), T.int32(1)))


def function(name: str, parameters: Sequence[tuple[str, str]], body: Callable[..., None], noalias: bool = True) -> Any:
    """A PrimFunc `int32 name(...)` that returns 0.

    parameters: (name, dtype) for an int scalar, (name, dtype + "*") for a pointer to such elements. `body` is called
    with one Pointer or variable for each and writes the statements. noalias: no two pointers reach the same written
    memory. Raises CompileError where the function has more than LARGEST_FUNCTION nodes.
    """
    _terms.sizes = {}
    with IRBuilder() as builder, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": noalias})
        T.func_ret(tvm.ir.PrimType("int32"))
        handles = [T.arg(n, T.handle(d[:-1]) if d.endswith("*") else getattr(T, d)()) for n, d in parameters]
        body(
            *[
                Pointer(T.decl_buffer((UNBOUNDED,), d[:-1], data=h), d[:-1]) if d.endswith("*") else h
                for h, (_, d) in zip(handles, parameters)
            ]
        )
        T.Return(T.int32(0))
    made = builder.get()
    if count_nodes(made, {}, LARGEST_FUNCTION) > LARGEST_FUNCTION:
        raise CompileError(f"kernel {name} would have more than {LARGEST_FUNCTION} TIR nodes; split the layer")
    return made


def local(count: int, dtype: str) -> Pointer:
    """An array on the stack; it lives in registers where all its offsets are constants."""
    return Pointer(T.alloc_buffer((count,), dtype, scope="local"), dtype)


@dataclass(frozen=True)
class Moved(Pointer):
    """Memory whose offsets count from element `base` on."""

    base: Expr

    def moved(self, offset: Expr) -> Moved:
        return Moved(self.buffer, self.dtype, self.base + offset)

    def address(self, offset: Expr) -> Expr:
        return super().address(self.base + offset)

    def load(self, offset: Expr, lanes: int = 1) -> Expr:
        return super().load(self.base + offset, lanes)

    def store(self, offset: Expr, value: Expr) -> None:
        super().store(self.base + offset, value)


def aligned_local(count: int, dtype: str, alignment: int = 64) -> Pointer:
    """An array on the stack at a multiple of `alignment` bytes: stack memory begins at one of 16 only, and vectors
    that lie across two cache lines are slow to read back."""
    size = int(re.sub(r"\D", "", dtype)) // 8
    array = local(count + alignment // size, dtype)
    address = T.reinterpret("int64", array.address(0))
    ahead = T.bitwise_and(T.int64(0) - address, T.int64(alignment - 1))
    return Moved(array.buffer, dtype, bind(T.cast(T.truncdiv(ahead, T.int64(size)), "int32")))


def resident(values: Sequence[Expr]) -> Pointer:
    """Vectors of one type in stack memory that each `load` reads anew. An accumulator that begins at one of them is
    then loaded, where LLVM would copy a register that it keeps them in, at the cost of an instruction of the vector
    units."""
    lanes, dtype = lanes_of(values[0]), dtype_of(values[0])
    pointer = Pointer(
        T.alloc_buffer((lanes * len(values),), dtype, scope="local", annotations={"tirx.volatile": True}), dtype
    )
    for i, value in enumerate(values):
        pointer.store(i * lanes, value)
    return pointer


def settle(values: Sequence[Expr]) -> None:
    """A place in the code where these vectors are in registers, and that LLVM's scheduler moves nothing across. Without
    such places it reorders long code until the registers do not suffice. It is no instruction."""
    for value in values:
        T.evaluate(T.call_llvm_intrin("void", "llvm.fake.use", value))


class _Terms(threading.local):
    """Of the function that this thread builds: the size of each named value, by its handle."""

    def __init__(self) -> None:
        self.sizes: dict[int, int] = {}


_terms = _Terms()


def bind(value: Expr) -> Expr:
    """Names a value so that further uses do not compute it again.

    TVM's analyzer writes names out where it can, in its passes and once more when it makes LLVM code, so that a chain
    in which each value is used twice would double with every step: a value that is long with all its names written out
    is pinned.
    """
    size = count_nodes(value, _terms.sizes, LARGEST_FUNCTION)
    if size > LARGEST_TERM:
        return pin(value)
    name = T.Bind(value)
    _terms.sizes[name.__chandle__()] = size
    return name


def pin(value: Expr) -> Expr:
    """Names a value as `bind` does, through a register that TVM's analyzer cannot see into."""
    cell = local(lanes_of(value), dtype_of(value))
    cell.store(0, value)
    return T.Bind(cell.load(0, lanes_of(value)))


def count_nodes(term: Any, sizes: Mapping[int, int], most: int) -> int:
    """Nodes of an expression or a function, where names count as `sizes` says by their handles, and else as one.
    Counting ends soon after `most`."""
    count = 0

    def visit(node: Any) -> Any:
        nonlocal count
        count += sizes.get(node.__chandle__(), 1) if isinstance(node, Var) else 1
        return tvm_ffi.VisitInterrupt(None) if count > most else None

    tvm_ffi.structural_walk(term, visit)
    return count


def dtype_of(value: Expr) -> str:
    """Element dtype of a scalar or vector."""
    return re.sub(r"x\d+$", "", str(value.ty))


def lanes_of(value: Expr) -> int:
    found = re.search(r"x(\d+)$", str(value.ty))
    return int(found.group(1)) if found else 1


def vector_type(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def splat(value: Expr, dtype: str, lanes: int) -> Expr:
    """A vector of equal elements, from a Python int or a scalar expression."""
    scalar = T.IntImm(dtype, value) if isinstance(value, int) else T.cast(value, dtype)
    return scalar if lanes == 1 else T.broadcast(scalar, lanes)


def cast(value: Expr, dtype: str) -> Expr:
    """Elementwise conversion: widens by sign or zero, narrows by dropping high bits."""
    return T.cast(value, vector_type(dtype, lanes_of(value)))


def reinterpret(value: Expr, dtype: str, lanes: int) -> Expr:
    return T.reinterpret(vector_type(dtype, lanes), value)


def flip(x: Expr, dtype: str) -> Expr:
    """8-bit lanes with the top bit inverted: uint8 n as int8 n - 128, and back."""
    n = lanes_of(x)
    return reinterpret(T.bitwise_xor(reinterpret(x, "int8", n), splat(-128, "int8", n)), dtype, n)


def extract(value: Expr, start: int, lanes: int) -> Expr:
    """Lanes start ... start+lanes-1."""
    if lanes == lanes_of(value):
        return value
    return T.Shuffle([value], list(range(start, start + lanes)))


def concat(parts: Sequence[Expr]) -> Expr:
    if len(parts) == 1:
        return parts[0]
    return T.Shuffle(list(parts), list(range(sum(lanes_of(p) for p in parts))))


def shuffle(parts: Sequence[Expr], lanes: Sequence[int]) -> Expr:
    """Any selection of the lanes of the concatenated parts."""
    return T.Shuffle(list(parts), list(lanes))


def by_parts(width: int, operation: Callable[..., Expr], *values: Expr) -> Expr:
    """Applies an operation on vectors of `width` lanes to wider vectors of equal length, part by part."""
    lanes = lanes_of(values[0])
    if lanes <= width:
        return operation(*values)
    names = [bind(v) for v in values]
    return concat([operation(*[extract(v, at, width) for v in names]) for at in range(0, lanes, width)])


def intrinsic(result: str, name: str, *arguments: Expr) -> Expr:
    """A pure LLVM intrinsic; `result` as "int32x4"."""
    return T.call_llvm_pure_intrin(result, name, *arguments)


def store_part(pointer: Pointer, offset: Expr, value: Expr, start: int, lanes: int) -> None:
    """Stores lanes start ... start+lanes-1; four bytes as one word, since LLVM takes such short vectors apart."""
    dtype = dtype_of(value)
    if lanes == 4 and dtype in ("int8", "uint8") and lanes_of(value) % 4 == start % 4 == 0:
        word = extract(reinterpret(value, "int32", lanes_of(value) // 4), start // 4, 1)
        pointer.store(offset, reinterpret(word, dtype, 4))
    else:
        pointer.store(offset, extract(value, start, lanes))


def store_lanes(pointer: Pointer, offset: Expr, value: Expr, valid: int) -> None:
    """Stores the first `valid` lanes, in powers of two: never a byte more."""
    at = 0
    lanes = lanes_of(value)
    if valid >= lanes:
        pointer.store(offset, value)
        return
    value = bind(value)
    while at < valid:
        size = 1 << ((valid - at).bit_length() - 1)
        store_part(pointer, offset + at, value, at, size)
        at += size
