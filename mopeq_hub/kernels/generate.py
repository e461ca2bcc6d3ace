"""Functions for Numba whose code is written in vectors: what a generator works with, and how it becomes a function.

A generator is called once, at compile time, with a handle for each argument: `Memory` for an array, `Whole` for an
integer. What it does with them becomes instructions. Numba compiles such a function into its caller; its cache on disk
follows the caller's file alone, so callers take `sources_digest` into their own identity.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Union

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from mopeq_hub.kernels.lanes import F32, I8, I32, I64, Lanes, constant, splat
from mopeq_hub.kernels.weight import ROWS

OPTIONS: Any = {"cache": True, "error_model": "numpy", "nogil": True}
"""Of every compiled function: code kept on disk, no fast-math, other threads run meanwhile."""

Count = Union["Whole", int]


class Whole:
    """A 64-bit integer that is known when it runs."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    def _of(self, other: Count) -> ir.Value:
        return other.value if isinstance(other, Whole) else ir.Constant(I64, other)

    def __add__(self, other: Count) -> "Whole":
        return Whole(self.builder, self.builder.add(self.value, self._of(other)))

    def __rsub__(self, other: int) -> "Whole":
        return Whole(self.builder, self.builder.sub(self._of(other), self.value))

    def __mul__(self, other: Count) -> "Whole":
        return Whole(self.builder, self.builder.mul(self.value, self._of(other)))

    def __floordiv__(self, other: Count) -> "Whole":
        """Of numbers that are not negative."""
        return Whole(self.builder, self.builder.udiv(self.value, self._of(other)))

    def memory(self) -> "Memory":
        """What lies at this address."""
        return Memory(self.builder, self.builder.inttoptr(self.value, I8.as_pointer()), None)

    def lanes(self, element: ir.Type = I32, count: int = ROWS) -> Lanes:
        """The number in every lane."""
        scalar = self.builder.sitofp(self.value, F32) if element == F32 else self.builder.trunc(self.value, element)
        return splat(self.builder, scalar, count)


class Memory:
    """An array's data, addressed in bytes."""

    def __init__(self, builder: ir.IRBuilder, pointer: ir.Value, kind: Any) -> None:
        self.builder, self._pointer = builder, pointer
        self.kind = kind

    def load(self, place: Count, element: ir.Type, count: int = ROWS) -> Lanes:
        kind = ir.VectorType(element, count)
        return Lanes(self.builder, self.builder.load(self._address(place, kind), align=1, typ=kind))

    def spread(self, place: Count, element: ir.Type) -> Lanes:
        """The one number there in every lane."""
        return splat(self.builder, self.builder.load(self._address(place, element), align=1, typ=element), ROWS)

    def store(self, place: Count, vector: Lanes) -> None:
        self.builder.store(vector.value, self._address(place, vector.value.type), align=1)

    def fetch(self, place: Count) -> None:
        """Have the cache line there come, which is read soon."""
        address = self._address(place, I8)
        signature = ir.FunctionType(ir.VoidType(), [address.type, *[I32] * 3])
        prefetch = cgutils.get_or_insert_function(self.builder.module, signature, "llvm.prefetch.p0")
        self.builder.call(prefetch, [address, *(ir.Constant(I32, number) for number in (0, 3, 1))])

    def same(self, place: Count, other: Count, size: int) -> Whole:
        """1 where so many bytes are the same in both places, else 0."""
        whole = ir.IntType(8 * size)
        one, two = (self.builder.load(self._address(each, whole), align=1, typ=whole) for each in (place, other))
        return Whole(self.builder, self.builder.zext(self.builder.icmp_unsigned("==", one, two), I64))

    def _address(self, place: Count, kind: ir.Type) -> ir.Value:
        base = self.builder.bitcast(self._pointer, I8.as_pointer())
        offset = place.value if isinstance(place, Whole) else ir.Constant(I64, place)
        return self.builder.bitcast(self.builder.gep(base, [offset]), kind.as_pointer())


class Variable:
    """A vector that a loop changes; LLVM keeps it in registers."""

    def __init__(self, builder: ir.IRBuilder, first: Lanes) -> None:
        self._builder, self._kind = builder, first.value.type
        self._slot = cgutils.alloca_once(builder, first.value.type)
        self.set(first)

    def get(self) -> Lanes:
        return Lanes(self._builder, self._builder.load(self._slot, typ=self._kind))

    def set(self, vector: Lanes) -> None:
        self._builder.store(vector.value, self._slot)


class Code:
    """What is being generated."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.builder = builder

    def of(self, element: ir.Type, number: float, count: int = ROWS) -> Lanes:
        return constant(self.builder, element, number, count)

    def each(self, element: ir.Type, numbers: list[int]) -> Lanes:
        """A vector of these numbers."""
        kind = ir.VectorType(element, len(numbers))
        return Lanes(self.builder, ir.Constant(kind, [ir.Constant(element, number) for number in numbers]))

    def variable(self, element: ir.Type, number: float) -> Variable:
        return Variable(self.builder, self.of(element, number))

    @contextmanager
    def loop(self, count: Count) -> Iterator[Whole]:
        """What is generated in it runs `count` times; gives the number of the turn."""
        times = count.value if isinstance(count, Whole) else ir.Constant(I64, count)
        with cgutils.for_range(self.builder, times) as turn:
            yield Whole(self.builder, turn.index)

    def either(self, flag: Whole, yes: Callable[[], None], no: Callable[[], None]) -> None:
        """What `yes` generates runs where the flag is not zero, what `no` does where it is."""
        with self.builder.if_else(self.builder.icmp_signed("!=", flag.value, ir.Constant(I64, 0))) as (then, other):
            with then:
                yes()
            with other:
                no()


def generated(generate: Callable[..., None]) -> Any:
    """The function for Numba: it takes one tuple, of arrays and int64, that becomes the generator's arguments."""

    @intrinsic
    def function(typingctx: Any, arguments: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            generate(Code(builder), *_handles(context, builder, arguments, values[0]))
            return context.get_dummy_value()

        return types.void(arguments), codegen

    return function


def generated_for(choose: Callable[..., Callable[..., None]]) -> Any:
    """The functions for Numba that `choose` has generators for, by two whole numbers that are known when a function is
    compiled: it takes these and a tuple as `generated` functions do. Code on disk is found again by the numbers."""

    @intrinsic(prefer_literal=True)
    def function(typingctx: Any, one: Any, other: Any, arguments: Any) -> Any:
        if not (isinstance(one, types.IntegerLiteral) and isinstance(other, types.IntegerLiteral)):
            return None
        generate = choose(one.literal_value, other.literal_value)

        def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            generate(Code(builder), *_handles(context, builder, arguments, values[2]))
            return context.get_dummy_value()

        return types.void(one, other, arguments), codegen

    return function


def _handles(context: Any, builder: Any, kinds: Any, values: Any) -> list[Memory | Whole]:
    handles: list[Memory | Whole] = []
    for kind, value in zip(kinds.types, cgutils.unpack_tuple(builder, values), strict=True):
        if isinstance(kind, types.Array):
            handles.append(Memory(builder, context.make_array(kind)(context, builder, value).data, kind.dtype))
        else:
            handles.append(Whole(builder, value))
    return handles


@cache
def sources_digest() -> str:
    """SHA-256, in hex, of this room's files."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
