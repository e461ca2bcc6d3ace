"""A tile of the weight, read from the mapped file in whatever dtype it has there: float32, one output row a lane."""

from typing import Any

from llvmlite import ir
from numba import types

from mopeq_hub.kernels.generate import Code, Memory, Whole, generated
from mopeq_hub.kernels.lanes import F16, F32, I32, Lanes, transposed, widens_halves
from mopeq_hub.kernels.weight import ROWS

_INFINITY = 0x7F800000


def decoded(code: Code, raw: Lanes, kind: Any) -> Lanes:
    """float32 of stored numbers: uint16 stands for bfloat16, int16 for float16, uint8 for float8 e4m3.

    What is not finite in the file is not finite here. float16 is widened by an instruction where the CPU has one, all
    others by integers.
    """
    if kind == types.float32:
        return raw.bits_as(F32)
    if kind == types.int16 and widens_halves():
        return raw.bits_as(F16).to(F32)
    bits = raw.unsigned_to(I32)
    if kind == types.uint16:
        return (bits << 16).bits_as(F32)
    # float16 ends with infinity and NaN, e4m3 with NaN alone.
    width, mantissa, bias, last = (16, 10, 15, 0x7C00) if kind == types.int16 else (8, 3, 7, 0x7F)
    magnitude = bits & ((1 << (width - 1)) - 1)
    # A power of two moves the exponent's bias to float32's, and makes subnormal numbers right too.
    value = (magnitude << (23 - mantissa)).bits_as(F32) * 2.0 ** (127 - bias)
    value = (magnitude < last).where(value, code.of(I32, _INFINITY, raw.count).bits_as(F32))
    return (value.bits_as(I32) | (bits.shifted_down(width - 1) << 31)).bits_as(F32)


@generated
def load_tile(
    code: Code,
    raw: Memory,
    start: Whole,
    stride: Whole,
    by_rows: Whole,
    group: Whole,
    factors: Memory,
    block: Whole,
    tile: Memory,
    extremes: Memory,
) -> None:
    """Fill tile [group, 16], float32, from the bytes at `start`: 16 rows `stride` bytes apart if by_rows, else as many
    columns.

    factors: of each 16 columns, from number `block` on; float8 is multiplied by them. extremes [3, 16], float32: the
    least and the largest value of each row, zero included, and the largest magnitude.
    """
    size = raw.kind.bitwidth // 8
    stored = ir.IntType(raw.kind.bitwidth)
    least, most, largest = code.variable(F32, 0.0), code.variable(F32, 0.0), code.variable(I32, 0)

    def read(place: Whole, columns: Whole) -> Lanes:
        value = decoded(code, raw.load(place, stored), raw.kind)
        return value * factors.spread((block + columns) * 4, F32) if size == 1 else value

    def keep(column: Whole, value: Lanes) -> None:
        tile.store(column * (4 * ROWS), value)
        least.set(least.get().least(value))
        most.set(most.get().most(value))
        # As integers, so that NaN counts for more than infinity instead of for nothing.
        largest.set(largest.get().most(value.bits_as(I32) & 0x7FFFFFFF))

    def across() -> None:
        with code.loop(group // ROWS) as columns:
            first = start + columns * (ROWS * size)
            rows = [read(first + stride * row, columns) for row in range(ROWS)]
            for number, value in enumerate(transposed(rows)):
                keep(columns * ROWS + number, value)

    def along() -> None:
        with code.loop(group) as column:
            keep(column, read(start + column * stride, column // ROWS))

    code.either(by_rows, across, along)
    for number, variable in enumerate((least, most, largest)):
        extremes.store(4 * ROWS * number, variable.get())
