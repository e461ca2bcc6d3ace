"""From scales and zero points to what is stored: float16 scales, codes for them, and words of packed codes."""

from typing import Any

from numba import types

from mopeq_hub.kernels.generate import Code, Memory, Whole, generated
from mopeq_hub.kernels.lanes import F32, I8, I16, I32, ROUND, Lanes
from mopeq_hub.kernels.tile import decoded
from mopeq_hub.kernels.weight import ROWS

_TINY = 2.0**-24
"""The smallest scale that float16 holds."""


def _packer(bits: int) -> Any:
    """The function that packs a tile at this width."""

    @generated
    def pack(
        code: Code,
        tile: Memory,
        group: Whole,
        scales: Memory,
        zeros: Memory,
        column: Whole,
        row: Whole,
        rows: Whole,
        words: Memory,
        stored_scales: Memory,
        stored_zeros: Memory,
        largest: Memory,
    ) -> None:
        """Put the tile's codes, b bits each, to words[column * b / 32, row] and on, and its scales, as float16, and
        zero points to [column / group, row]. `rows` are those of the whole weight; largest [16], float32, remembers the
        largest scale seen.
        """
        exact = scales.load(0, F32)
        largest.store(0, largest.load(0, F32).most(exact).most(-exact))
        scale, zero = _rounded_to_half(exact), zeros.load(0, I32)
        place = Whole(code.builder, code.builder.udiv(column.value, group.value)) * rows + row
        stored_scales.store(place * 2, scale)
        stored_zeros.store(place, zero.to(I8))

        inverse = code.of(F32, 1.0) / decoded(code, scale, types.int16)
        offset = zero.to(F32)
        low, high = -offset, -offset + float((1 << bits) - 1)
        with code.loop(group // 32) as chunk:
            packed = [code.of(I32, 0) for _ in range(bits)]
            for number in range(32):
                weight = tile.load((chunk * 32 + number) * (4 * ROWS), F32)
                value = (weight * inverse).between(low, high)
                field = (value + (offset + ROUND)).bits_as(I32) & ((1 << bits) - 1)
                word, shift = divmod(number * bits, 32)
                packed[word] = packed[word] | (field << shift)
                if shift + bits > 32:
                    packed[word + 1] = packed[word + 1] | field.shifted_down(32 - shift)
            first = (column + chunk * 32) // 32 * bits
            for word, value in enumerate(packed):
                words.store(((first + word) * rows + row) * 4, value)

    return pack


def _rounded_to_half(number: Lanes) -> Lanes:
    """The bits of the nearest float16 that is not zero."""
    bits = number.bits_as(I32)
    magnitude = (bits & 0x7FFFFFFF).bits_as(F32).most(_TINY)
    kept = magnitude.bits_as(I32)
    normal = (kept + 0x0FFF + (kept.shifted_down(13) & 1)).shifted_down(13) - (112 << 10)
    # One half has its last bit where float16's smallest numbers have theirs.
    small = (magnitude + 0.5).bits_as(I32) - 0x3F000000
    half = (magnitude < 2.0**-14).where(small, normal)
    return (half | (bits.shifted_down(31) << 15)).to(I16)


pack_2, pack_3, pack_4, pack_8 = (_packer(bits) for bits in (2, 3, 4, 8))
