"""Vector arithmetic for the kernels: LLVM vectors with operators, for code that Numba's own vectorizer would not find.

A `Lanes` stands for one vector during code generation. Operators make instructions; nothing is computed here. Only
generic LLVM operations are used, so that any CPU can run them, and no fast-math flags, so that every CPU gives the same
bits. Some idioms are written as LLVM's instruction selection knows them: `mul_high` becomes pmulhw, `pair_dot` pmaddwd
or vpdpwssd on x86.
"""

from collections.abc import Callable
from functools import cache
from typing import Any, Union

from llvmlite import ir
from numba.core import cgutils
from numba.core.registry import cpu_target

I1, I8, I16, I32, I64 = (ir.IntType(width) for width in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()

_LOG2_E, _LN2_UPPER, _LN2_LOWER = 1.44269504, 0.693359375, -2.12194440e-4
"""The last two together are the logarithm of 2; the first of them has so few digits that products are exact."""
ROUND = 12582912.0
"""1.5 * 2^23: a float32 without bits for a fraction, so that adding it rounds to the nearest whole number."""

Operand = Union["Lanes", int, float]


class Lanes:
    """One vector value; the other operand of an operator may be a number or a scalar LLVM value of the element type."""

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder, self.value = builder, value

    @property
    def element(self) -> ir.Type:
        return self.value.type.element

    @property
    def count(self) -> int:
        return int(self.value.type.count)

    @property
    def _floating(self) -> bool:
        return self.element in (F16, F32, F64)

    def _of(self, value: ir.Value) -> "Lanes":
        return Lanes(self.builder, value)

    def like(self, other: Any) -> "Lanes":
        """`other` as a vector of this one's type."""
        if isinstance(other, Lanes):
            return other
        if isinstance(other, ir.Value):
            return splat(self.builder, other, self.count)
        return constant(self.builder, self.element, other, self.count)

    def __add__(self, other: Operand) -> "Lanes":
        make = self.builder.fadd if self._floating else self.builder.add
        return self._of(make(self.value, self.like(other).value))

    def __sub__(self, other: Operand) -> "Lanes":
        make = self.builder.fsub if self._floating else self.builder.sub
        return self._of(make(self.value, self.like(other).value))

    def __mul__(self, other: Operand) -> "Lanes":
        make = self.builder.fmul if self._floating else self.builder.mul
        return self._of(make(self.value, self.like(other).value))

    def __truediv__(self, other: Operand) -> "Lanes":
        return self._of(self.builder.fdiv(self.value, self.like(other).value))

    def __neg__(self) -> "Lanes":
        return self._of(self.builder.fneg(self.value)) if self._floating else self.like(0) - self

    def __and__(self, other: Operand) -> "Lanes":
        return self._of(self.builder.and_(self.value, self.like(other).value))

    def __or__(self, other: Operand) -> "Lanes":
        return self._of(self.builder.or_(self.value, self.like(other).value))

    def __lshift__(self, other: Operand) -> "Lanes":
        return self._of(self.builder.shl(self.value, self.like(other).value))

    def __rshift__(self, other: Operand) -> "Lanes":
        """Of signed integers."""
        return self._of(self.builder.ashr(self.value, self.like(other).value))

    def shifted_down(self, other: Operand) -> "Lanes":
        """Right shift of unsigned integers."""
        return self._of(self.builder.lshr(self.value, self.like(other).value))

    def __lt__(self, other: Operand) -> "Lanes":
        return self._compare("<", other)

    def __gt__(self, other: Operand) -> "Lanes":
        return self._compare(">", other)

    def _compare(self, sign: str, other: Operand) -> "Lanes":
        make = self.builder.fcmp_ordered if self._floating else self.builder.icmp_signed
        return self._of(make(sign, self.value, self.like(other).value))

    def where(self, yes: "Lanes", no: Operand) -> "Lanes":
        """This one a comparison: `yes` where it holds, else `no`."""
        return self._of(self.builder.select(self.value, yes.value, yes.like(no).value))

    def least(self, other: Operand) -> "Lanes":
        return (self < other).where(self, other)

    def most(self, other: Operand) -> "Lanes":
        return (self > other).where(self, other)

    def between(self, low: Operand, high: Operand) -> "Lanes":
        return self.most(low).least(high)

    def to(self, element: ir.Type) -> "Lanes":
        """The same numbers as another type: integers widen with their sign, floats lose their fraction."""
        kind = ir.VectorType(element, self.count)
        builder, into_float = self.builder, element in (F32, F64)
        if self._floating and into_float:
            make = builder.fpext if element == F64 or self.element == F16 else builder.fptrunc
        elif self._floating:
            make = builder.fptosi
        elif into_float:
            make = builder.sitofp
        else:
            make = builder.sext if element.width > self.element.width else builder.trunc
        return self._of(make(self.value, kind))

    def unsigned_to(self, element: ir.Type) -> "Lanes":
        """A wider integer type, filled with zeros."""
        return self._of(self.builder.zext(self.value, ir.VectorType(element, self.count)))

    def bits_as(self, element: ir.Type, count: int | None = None) -> "Lanes":
        """The same bits read as another type."""
        return self._of(self.builder.bitcast(self.value, ir.VectorType(element, count or self.count)))

    def picked(self, indices: list[int], other: "Lanes | None" = None) -> "Lanes":
        """Elements by number, of this vector and, from `count` on, of the other."""
        mask = ir.Constant(ir.VectorType(I32, len(indices)), indices)
        return self._of(self.builder.shuffle_vector(self.value, (other or self).value, mask))


def constant(builder: ir.IRBuilder, element: ir.Type, number: float, count: int) -> Lanes:
    """A vector of one number."""
    value = float(number) if element in (F32, F64) else int(number)
    return Lanes(builder, ir.Constant(ir.VectorType(element, count), [ir.Constant(element, value)] * count))


def splat(builder: ir.IRBuilder, scalar: ir.Value, count: int) -> Lanes:
    """A vector of one value known when it runs."""
    kind = ir.VectorType(scalar.type, count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, count), [0] * count)
    return Lanes(builder, builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), zeros))


def mul_high(one: Lanes, other: Lanes) -> Lanes:
    """The upper 16 bits of the products of signed 16-bit numbers."""
    return ((one.to(I32) * other.to(I32)) >> 16).to(I16)


def exponential(power: Lanes) -> Lanes:
    """e to a power, float32, within a few units in the last place; powers are taken for what lies nearest between -87
    and 88. A Taylor polynomial of what is left of the power where whole powers of two are taken out of it."""
    power = power.between(-87.0, 88.0)
    shifted = power * _LOG2_E + ROUND
    twos = shifted - ROUND
    rest = power - twos * _LN2_UPPER - twos * _LN2_LOWER
    value = rest * (1 / 5040) + 1 / 720
    for factor in (1 / 120, 1 / 24, 1 / 6, 1 / 2, 1.0, 1.0):
        value = value * rest + factor
    return value * ((shifted.bits_as(I32) + 127) << 23).bits_as(F32)


def multiply_add(one: Lanes, other: Lanes, addend: Lanes) -> Lanes:
    """one * other + addend, float32, rounded once where the CPU has an instruction for it and twice elsewhere: not for
    what has to be the same everywhere."""
    kind = one.value.type
    signature = ir.FunctionType(kind, [kind] * 3)
    function = cgutils.get_or_insert_function(one.builder.module, signature, f"llvm.fmuladd.v{one.count}f32")
    return Lanes(one.builder, one.builder.call(function, [one.value, other.value, addend.value]))


def bfloat16_bits(value: Lanes) -> Lanes:
    """The nearest bfloat16 of float32, as 16-bit integers; ties go to the even one, what is not a number stays so."""
    bits = value.bits_as(I32)
    rounded = (bits + 0x7FFF + (bits.shifted_down(16) & 1)).shifted_down(16)
    return ((bits & 0x7FFFFFFF) > 0x7F800000).where(rounded.like(0x7FC0), rounded).to(I16)


def across(vector: Lanes, combine: Callable[[Lanes, Lanes], Lanes]) -> Lanes:
    """What all elements come to, combined two by two, in each of them; their number is a power of two."""
    step = vector.count // 2
    while step:
        vector = combine(vector, vector.picked([index ^ step for index in range(vector.count)]))
        step //= 2
    return vector


def pair_dot(one: Lanes, other: Lanes) -> Lanes:
    """Sums of the products of neighbouring 16-bit numbers, as half as many 32-bit numbers."""
    products = one.to(I32) * other.to(I32)
    return products.picked(list(range(0, one.count, 2))) + products.picked(list(range(1, one.count, 2)))


@cache
def widens_halves() -> bool:
    """Whether the CPU that code is generated for has an instruction by which float16 becomes float32."""
    return "+f16c" in cpu_target.target_context.codegen().magic_tuple()[2].split(",")


def transposed(rows: list[Lanes]) -> list[Lanes]:
    """A square of n vectors of n elements, n a power of two, with rows and columns exchanged."""
    count = len(rows)
    step = count // 2
    while step:
        halves = [index for index in range(count) if not index & step]
        # Exchange the off-diagonal step x step blocks of each pair of rows.
        first = [index if not index & step else index - step + count for index in range(count)]
        second = [index + step if not index & step else index + count for index in range(count)]
        for index in halves:
            upper, lower = rows[index], rows[index + step]
            rows[index], rows[index + step] = upper.picked(first, lower), upper.picked(second, lower)
        step //= 2
    return rows
