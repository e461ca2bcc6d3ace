"""Packed weights times vectors in fixed point: whole numbers are multiplied, and 32 bits hold their sums.

A vector's numbers are taken as 16-bit integers, with one scale, a power of two, for the inputs that share a scale of
the weight (block floating point): a bfloat16 that is not below a 128th of the block's largest stays exact, and nothing
is off by more than a 32,768th of that. The sum over a block is exact. So there is a multiplication and an addition for
two codes, none of which becomes a float first. Where vectors are float32, `product.py` keeps to that.

A lane holds two codes, 16 bits apart, as they lie in a word (`mopeq_hub/packing.py`); vectors are laid out alike.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from numba import types

from mopeq_hub.kernels.generate import ROWS, Code, Count, Memory, Variable, Whole
from mopeq_hub.kernels.lanes import F32, I16, I32, ROUND, Lanes, across, multiply_add, pair_dot
from mopeq_hub.kernels.packed import CHUNK, PackedRows
from mopeq_hub.kernels.tile import decoded

LONGEST = 256
"""Inputs of a block; of more, the sums of 8-bit codes would not fit."""
_LEVELS = 16384.0
"""What the power of two below a block's largest number becomes."""
_EXPONENT = 0x7F800000
"""The bits of a float32's exponent."""
_OPPOSITE = 254 << 23
"""Less the bits of a power of two, those of its inverse."""
_LEAST = 27 << 23
"""The bits of 2^-100; blocks without a larger number are taken for zeros."""
_CHUNK_BYTES, _BLOCK_BYTES = 2 * CHUNK, 8
"""Of the numbers of 32 inputs; of a block's scale and the sum of its whole numbers, float32."""


def room(columns: int, group: int) -> int:
    """Bytes that a vector takes."""
    return columns // CHUNK * _CHUNK_BYTES + columns // group * _BLOCK_BYTES


def multiplier(bits: int, together: int) -> Callable[..., None]:
    """What generates the function for a width and a number of vectors."""
    # As many of 32 rows at once as there are registers for.
    shares = ((0, 1),) if together == 1 and bits != 3 else ((0,), (1,))

    def multiply(
        weight: PackedRows,
        columns: Whole,
        group: Whole,
        begin: Whole,
        groups: Whole,
        inputs: Whole,
        outputs: Whole,
        stride: Whole,
        halves: Whole,
        scratch: Whole,
    ) -> None:
        """Add the products with neighbouring vectors, of `groups` groups of inputs from `begin` on, to outputs
        [together, rows], `stride` bytes apart.

        inputs: [together, columns], bfloat16 where `halves` is not 0, else float32. scratch: `together * room` bytes.
        """
        code, rows = weight.code, weight.rows
        vectors = _Vectors(code, scratch.memory(), columns, group, bits)
        target, tokens = outputs.memory(), range(together)
        with code.loop(together) as vector, code.loop(groups) as turn:
            filled, given = turn + begin, inputs.memory()
            code.either(
                halves,
                lambda: vectors.fill(given, I16, vector, filled),
                lambda: vectors.fill(given, F32, vector, filled),
            )
        with code.loop(groups) as turn:
            number = turn + begin
            factors = [vectors.factor(token, number) for token in tokens]
            totals = [vectors.total(token, number) for token in tokens]
            with code.loop(rows // CHUNK) as pair:
                first = pair * CHUNK
                middles = weight.zeros_of(number, first)
                for share in shares:
                    starts = [first + half * ROWS for half in share]
                    sums = [[code.variable(I32, 0) for _ in tokens] for _ in share]
                    with code.loop(group // CHUNK) as part:
                        chunk = number * (group // CHUNK) + part
                        if share[0] == 0:
                            weight.fetch(chunk + group // CHUNK, pair)
                        _add_chunk(weight, chunk, starts, vectors, sums)
                    for half, start, of_rows in zip(share, starts, sums, strict=True):
                        scale = weight.scale(number, start)
                        for token, value in enumerate(of_rows):
                            centred = value.get().to(F32) - middles[half] * totals[token]
                            place = start * 4 + stride * token
                            target.store(place, multiply_add(centred, scale * factors[token], target.load(place, F32)))

    return multiply


@dataclass(frozen=True)
class _Vectors:
    """Neighbouring vectors in fixed point, laid out for a width, as they lie in memory."""

    code: Code
    memory: Memory
    columns: Whole
    group: Whole
    bits: int

    def place(self, token: Count, chunk: Whole) -> Whole:
        """Where a vector's numbers for 32 inputs are."""
        return self._start(token) + chunk * _CHUNK_BYTES

    def factor(self, token: Count, block: Whole) -> Lanes:
        """What a whole number of a block stands for."""
        return self.memory.spread(self._block(token, block), F32)

    def total(self, token: Count, block: Whole) -> Lanes:
        """The sum of a block's whole numbers."""
        return self.memory.spread(self._block(token, block) + 4, F32)

    def fill(self, given: Memory, element: Any, token: Count, block: Whole) -> None:
        """Lay out a block of a vector of given ones [tokens, columns], float32 or, by their bits, bfloat16."""
        size = 4 if element == F32 else 2
        start, chunks = (self.columns * token + block * self.group) * size, self.group // CHUNK

        def numbers(part: Whole) -> list[Lanes]:
            read = [given.load(start + part * (CHUNK * size) + half * ROWS * size, element) for half in range(2)]
            return read if element == F32 else [decoded(self.code, each, types.uint16) for each in read]

        largest, total = self.code.variable(F32, 0.0), self.code.variable(F32, 0.0)
        with self.code.loop(chunks) as part:
            for each in numbers(part):
                largest.set(largest.get().most(each.most(-each)))
                total.set(total.get() + each)
        power = across(largest.get(), Lanes.most).bits_as(I32) & _EXPONENT
        inverse = (power > _LEAST).where((self.code.of(I32, _OPPOSITE) - power).bits_as(F32), 0.0) * _LEVELS
        whole = self.code.variable(I32, 0)
        order = [number for pair in _order(self.bits) for number in pair]
        with self.code.loop(chunks) as part:
            scaled = [(each * inverse).least(_LEVELS * 2 - 1) for each in numbers(part)]
            rounded = [(each + ROUND).bits_as(I32).to(I16) for each in scaled]
            whole.set(whole.get() + rounded[0].to(I32) + rounded[1].to(I32))
            place = self.place(token, block * chunks + part)
            self.memory.store(place, rounded[0].picked(list(range(CHUNK)), rounded[1]).picked(order))
        # What is not a number, or not finite, in a block is so in the products.
        factor = power.bits_as(F32) * (1 / _LEVELS) + across(total.get(), Lanes.__add__) * 0.0
        totals = across(whole.get().to(F32), Lanes.__add__)
        self.memory.store(self._block(token, block), factor.picked([0, ROWS], totals))

    def _start(self, token: Count) -> Whole:
        return (self.columns // CHUNK * _CHUNK_BYTES + self.columns // self.group * _BLOCK_BYTES) * token

    def _block(self, token: Count, block: Whole) -> Whole:
        return self._start(token) + self.columns // CHUNK * _CHUNK_BYTES + block * _BLOCK_BYTES


def _add_chunk(
    weight: PackedRows, chunk: Whole, starts: Sequence[Whole], vectors: _Vectors, sums: Sequence[Sequence[Variable]]
) -> None:
    """Add the products for 32 inputs to sums, by 16 rows and by vector."""
    bits, places = weight.bits, [vectors.place(token, chunk) for token in range(len(sums[0]))]

    def add(words: Sequence[Lanes], pairs: int, begin: Count) -> None:
        for pair in range(pairs):
            codes = [_codes(word, bits, pair).bits_as(I16, CHUNK) for word in words]
            for token, place in enumerate(places):
                numbers = vectors.memory.spread(place + begin + 4 * pair, I32).bits_as(I16, CHUNK)
                for of_rows, each in zip(sums, codes, strict=True):
                    of_rows[token].set(of_rows[token].get() + pair_dot(each, numbers))

    if bits == 3:
        merged = [_merged(*(weight.word(chunk * bits + word, start) for word in range(bits))) for start in starts]
        for number, words in enumerate(zip(*merged, strict=True)):
            add(words, 5 if number < bits else 1, 20 * number)
    else:
        with weight.code.loop(bits) as word:
            add([weight.word(chunk * bits + word, start) for start in starts], 16 // bits, word * (64 // bits))


def _codes(word: Lanes, bits: int, pair: int) -> Lanes:
    """Two codes of a word, 16 bits apart."""
    return (word.shifted_down(pair * bits) if pair else word) & ((1 << bits) - 1) * 0x10001


def _merged(first: Lanes, second: Lanes, third: Lanes) -> Iterator[Lanes]:
    """The words of 32 3-bit codes as words in which they are 3 bits apart from the start of each half on: of five pairs
    thrice, then of one."""
    yield _halves(first, second << 15)
    yield _halves(first.shifted_down(15), second)
    yield _halves(third.shifted_down(2), third.shifted_down(1))
    yield _halves(first.shifted_down(30) | (second << 2), second.shifted_down(15) | (third << 17))


def _halves(lower: Lanes, upper: Lanes) -> Lanes:
    """The lower halves of some lanes and the upper halves of others."""
    order = [number + (CHUNK if number % 2 else 0) for number in range(CHUNK)]
    return lower.bits_as(I16, CHUNK).picked(order, upper.bits_as(I16, CHUNK)).bits_as(I32, ROWS)


def _order(bits: int) -> list[tuple[int, int]]:
    """Which of 32 inputs are multiplied together, in the order in which their codes are taken."""
    if bits == 3:
        fives = [(first + pair, second + pair) for first, second in ((0, 11), (5, 16), (22, 27)) for pair in range(5)]
        return [*fives, (10, 21)]
    half = 16 // bits
    return [(2 * half * word + pair, 2 * half * word + half + pair) for word in range(bits) for pair in range(half)]
