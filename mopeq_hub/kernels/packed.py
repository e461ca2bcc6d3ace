"""A packed weight as generated code reads it: codes, scales and zero points, 16 output rows at a time, a lane each.

Codes are read in auto-round's layout (`mopeq_hub/packing.py`): a word holds neighbouring inputs of one output, and
words of neighbouring outputs are neighbours, so that one load gives each lane a word.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from numba import types

from mopeq_hub.kernels.generate import ROWS, Code, Count, Memory, Variable, Whole
from mopeq_hub.kernels.lanes import F32, I16, I32, Lanes
from mopeq_hub.kernels.tile import decoded

CHUNK = 32
"""Inputs that fill whole words at every width; outputs whose zero points do."""
_MANTISSA = 23
_ONE = 0x3F800000
"""The bits of 1.0."""


@dataclass
class PackedRows:
    """A packed weight [rows, inputs] at `bits` bits by its three tensors; offset: what is to be added to zero points as
    they are stored. Made where a function begins."""

    code: Code
    words: Memory
    zeros: Memory
    scales: Memory
    offset: Whole
    rows: Whole
    bits: int

    def __post_init__(self) -> None:
        self._first_zeros = self._unpacked_zeros(0)

    def fractions(self, chunk: Whole, row: Whole) -> Iterator[Lanes]:
        """Of 16 rows from `row` on, by the 32 inputs of this chunk: 1 + c / 2^b, float32, for a code c.

        Moved to the upper end of the mantissa of 1.0, a code is a float after two instructions; converted, after three.
        """
        words = [self.word(chunk * self.bits + word, row) for word in range(self.bits)]
        return (self._fraction(words, number) for number in range(CHUNK))

    def word(self, number: Count, row: Whole) -> Lanes:
        """Of 16 rows, the word of this number."""
        return self.words.load((row + self.rows * number) * 4, I32)

    def _fraction(self, words: list[Lanes], number: int) -> Lanes:
        word, start = divmod(number * self.bits, 32)
        place = _MANTISSA - self.bits
        moved = words[word]
        if start + self.bits > 32:
            moved = (moved.shifted_down(start) | (words[word + 1] << (32 - start))) << place
        elif start > place:
            moved = moved.shifted_down(start - place)
        elif start < place:
            moved = moved << (place - start)
        return ((moved & (((1 << self.bits) - 1) << place)) | _ONE).bits_as(F32)

    def fetch(self, chunk: Whole, share: Whole) -> None:
        """Have a share of the words for a chunk come, of shares as there are for 32 rows each.

        Words are read row by row of them, 32 outputs at a time, from places that lie apart, more than a CPU guesses. So
        they are fetched beforehand in the order in which they lie, which is how memory is read most quickly.
        """
        size = self.bits * 4 * CHUNK
        for line in range(2 * self.bits):
            self.words.fetch(chunk * (self.rows * (4 * self.bits)) + share * size + 64 * line)

    def scale(self, group: Whole, row: Whole) -> Lanes:
        """Scales of 16 rows, float32."""
        return decoded(self.code, self.scales.load((row + group * self.rows) * 2, I16), types.int16)

    def zeros_of(self, group: Whole, row: Whole) -> list[Lanes]:
        """Zero points of 32 rows from `row` on, a multiple of 32, float32, as two vectors."""
        first = (group * (self.rows // CHUNK) + row // CHUNK) * (4 * self.bits)
        if 32 % self.bits == 0:
            return self._unpacked_zeros(first)
        found = [Variable(self.code.builder, each) for each in self._first_zeros]

        def unpack() -> None:
            for variable, value in zip(found, self._unpacked_zeros(first), strict=True):
                variable.set(value)

        # Those that lie across words take long; on a symmetric grid all are like the first.
        self.code.either(self.zeros.same(first, 0, 4 * self.bits), lambda: None, unpack)
        return [variable.get() for variable in found]

    def _unpacked_zeros(self, place: Count) -> list[Lanes]:
        words = self.zeros.load(place, I32, self.bits)
        return [self._zeros(words, half * ROWS) for half in range(2)]

    def _zeros(self, words: Lanes, first: int) -> Lanes:
        starts = [(first + lane) * self.bits for lane in range(ROWS)]
        place = self.code.each(I32, [start % 32 for start in starts])
        value = words.picked([start // 32 for start in starts]).shifted_down(place)
        if any(start % 32 + self.bits > 32 for start in starts):
            # What lies in the next word; moved once and then again, since by 32 places at once is not defined.
            upper = words.picked([min(start // 32 + 1, self.bits - 1) for start in starts])
            value = value | ((upper << (self.code.of(I32, 31) - place)) << 1)
        return ((value & ((1 << self.bits) - 1)) + self.offset.lanes()).to(F32)


def of_packed(bits: int, generate: Callable[..., None]) -> Callable[..., None]:
    """What generates a function of a packed weight, as addresses and numbers, and of other arguments, where `generate`
    takes the weight as one."""

    def of_arguments(
        code: Code, words: Whole, zeros: Whole, scales: Whole, offset: Whole, rows: Whole, *others: Whole
    ) -> None:
        weight = PackedRows(code, words.memory(), zeros.memory(), scales.memory(), offset, rows, bits)
        generate(weight, *others)

    return of_arguments
