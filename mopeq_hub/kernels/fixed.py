"""Packed weights times vectors in fixed point: whole numbers are multiplied, two at a time, and 32 bits hold their sums.

A vector's numbers are taken as 16-bit integers, with one scale, a power of two, for the inputs that share a scale of
the weight (block floating point): a bfloat16 that is not below a 128th of the block's largest stays exact, and nothing
is off by more than a 32,768th of that. The sum over a block is exact. So there is a multiplication and an addition for
two codes, none of which becomes a float first. Where vectors are float32, `product.py` keeps to that.

A lane holds two codes, 16 bits apart, as they lie in a word (`mopeq_hub/packing.py`); `pairs` says which, and vectors
are laid out alike, once for each width.
"""

from collections.abc import Iterator
from typing import Any

from numba import njit

from mopeq_hub.kernels.generate import ROWS, Code, Memory, Whole, generated
from mopeq_hub.kernels.lanes import F32, I16, I32, Lanes, pair_dot, summed
from mopeq_hub.kernels.packed import CHUNK, PackedRows

LONGEST = 256
"""Inputs of a block; of more, the sums of 8-bit codes would not fit."""
WIDTHS = (2, 3, 4, 8)
"""Bits of a code."""
_LEVELS = 16384.0
"""What the power of two below a block's largest number becomes."""
_EXPONENT = 0x7F800000
"""The bits of a float32's exponent."""
_OPPOSITE = 254 << 23
"""Less the bits of a power of two, those of its inverse."""
_LEAST = 27 << 23
"""The bits of 2^-100; blocks without a larger number are taken for zeros."""
_ROUNDER = 12582912.0
"""1.5 * 2^23: added to a number, its whole part is rounded into the lower bits of the sum."""
_CHUNK_BYTES = 2 * CHUNK
_LAYOUTS = _CHUNK_BYTES * len(WIDTHS)
_BLOCK = 8
"""Bytes of a block's scale and of the sum of its whole numbers, both float32."""


def size_of(columns: int, group: int) -> int:
    """Bytes of one vector: by 32 inputs the layouts of all widths, then by block its scale and sum."""
    return columns // CHUNK * _LAYOUTS + columns // group * _BLOCK


def _order(bits: int) -> list[tuple[int, int]]:
    """Of 32 inputs the two whose codes are multiplied together, as `_pairs` gives them."""
    if bits == 3:
        tens = [(first + k, second + k) for first, second in ((0, 11), (5, 16), (22, 27)) for k in range(5)]
        return [*tens, (10, 21)]
    half = 16 // bits
    return [(2 * half * word + k, 2 * half * word + half + k) for word in range(bits) for k in range(half)]


def _pairs(word: Lanes, bits: int) -> Iterator[Lanes]:
    """The codes of a word, two by two."""
    for place in range(0, 16 // bits * bits, bits):
        yield (word.shifted_down(place) if place else word) & ((1 << bits) - 1) * 0x10001


def _merged(first: Lanes, second: Lanes, third: Lanes) -> Iterator[tuple[Lanes, int]]:
    """The words of 32 3-bit codes as words in which they are 3 bits apart from the start of each half on, and how many
    pairs each holds."""
    upper = 0xFFFF0000
    yield (first & 0x7FFF) | ((second << 15) & upper)
    yield (first.shifted_down(15) & 0x7FFF) | (second & upper)
    yield (third.shifted_down(2) & 0x7FFF) | (third.shifted_down(1) & upper)
    low = (first.shifted_down(30) | (second << 2)) & 7
    yield low | ((second.shifted_down(31) | (third << 1)) << 16)


@generated
def prepare(code: Code, vector: Whole, columns: Whole, group: Whole, target: Whole) -> None:
    """Lay out one vector, float32, for every width; `size_of` bytes."""
    source, output = vector.memory(), target.memory()
    behind = columns // CHUNK * _LAYOUTS
    with code.loop(columns // group) as number:
        first = number * (group // CHUNK)
        largest, total = code.variable(F32, 0.0), code.variable(F32, 0.0)
        with code.loop(group // CHUNK) as part:
            for half in range(2):
                values = source.load((first + part) * (4 * CHUNK) + 64 * half, F32)
                largest.set(largest.get().most(values.most(-values)))
                total.set(total.get() + values)
        power = _largest(largest.get()).bits_as(I32) & _EXPONENT
        inverse = (power > _LEAST).where((code.of(I32, _OPPOSITE) - power).bits_as(F32), 0.0) * _LEVELS
        whole = code.variable(I32, 0)
        with code.loop(group // CHUNK) as part:
            halves = []
            for half in range(2):
                values = source.load((first + part) * (4 * CHUNK) + 64 * half, F32)
                rounded = ((values * inverse).least(_LEVELS * 2 - 1) + _ROUNDER).bits_as(I32).to(I16)
                whole.set(whole.get() + rounded.to(I32))
                halves.append(rounded)
            chunk = halves[0].picked(list(range(CHUNK)), halves[1])
            for layout, bits in enumerate(WIDTHS):
                places = [place for pair in _order(bits) for place in pair]
                output.store((first + part) * _LAYOUTS + layout * _CHUNK_BYTES, chunk.picked(places))
        # What is not a number, or not finite, in a block is so in the products.
        scale = power.bits_as(F32) * (1 / _LEVELS) + summed(total.get()) * 0.0
        sums = summed(whole.get().to(F32))
        both = scale.picked([0, ROWS], sums)
        output.store(behind + number * _BLOCK, both)


def _largest(vector: Lanes) -> Lanes:
    """The largest element, in each of them."""
    step = vector.count // 2
    while step:
        vector = vector.most(vector.picked([index ^ step for index in range(vector.count)]))
        step //= 2
    return vector


def multiplier(bits: int, together: int) -> Any:
    """The function for a width and a number of vectors."""
    @generated
    def multiply(
        code: Code,
        words: Whole,
        zeros: Whole,
        scales: Whole,
        offset: Whole,
        rows: Whole,
        columns: Whole,
        group: Whole,
        begin: Whole,
        groups: Whole,
        inputs: Whole,
        outputs: Whole,
        stride: Whole,
    ) -> None:
        """Add the products with neighbouring vectors as `prepare` lays them out, of `groups` groups of inputs from
        `begin` on, to outputs [together, rows], `stride` bytes apart."""
        weight = PackedRows(code, words.memory(), zeros.memory(), scales.memory(), offset, rows, bits)
        source, target = inputs.memory(), outputs.memory()
        tokens = range(together)
        behind = columns // CHUNK * _LAYOUTS
        size = behind + columns // group * _BLOCK
        layout = WIDTHS.index(bits) * _CHUNK_BYTES
        # As many rows as there are registers for.
        at_once = 2 if together == 1 and bits != 3 else 1
        with code.loop(groups) as turn:
            number = turn + begin
            blocks = [size * token + behind + number * _BLOCK for token in tokens]
            shares = [source.spread(place, F32) for place in blocks]
            wholes = [source.spread(place + 4, F32) for place in blocks]
            with code.loop(rows // CHUNK) as pair:
                first = pair * CHUNK
                apart = weight.zeros_of(number, first)
                for halves in ((0, 1),) if at_once == 2 else ((0,), (1,)):
                    sums = [[code.variable(I32, 0) for _ in tokens] for _ in halves]
                    with code.loop(group // CHUNK) as part:
                        chunk = number * (group // CHUNK) + part
                        if halves[0] == 0:
                            weight.fetch(chunk + group // CHUNK, pair)
                        places = [size * token + chunk * _LAYOUTS + layout for token in tokens]
                        rows_of = [first + half * ROWS for half in halves]
                        if bits == 3:
                            words = [[weight.word(chunk * bits + word, start) for word in range(bits)] for start in rows_of]
                            for number_, merged in enumerate(zip(*(_merged(*each) for each in words), strict=True)):
                                _add(source, places, sums, merged, bits, 20 * number_, 1 if number_ == 3 else 5)
                        else:
                            with code.loop(bits) as word:
                                read = [weight.word(chunk * bits + word, start) for start in rows_of]
                                of_word = [place + word * (64 // bits) for place in places]
                                _add(source, of_word, sums, read, bits, 0, 16 // bits)
                    for of_half, half in zip(sums, halves, strict=True):
                        scale = weight.scale(number, first + half * ROWS)
                        for token, value in enumerate(of_half):
                            centred = value.get().to(F32) - apart[half] * wholes[token]
                            place = (pair * 2 + half) * 64 + stride * token
                            target.store(place, target.load(place, F32) + centred * (scale * shares[token]))

    return multiply


def _add(source, places, sums, words, bits, start, count) -> None:
    pairs = [_pairs(word, bits) for word in words]
    for index in range(count):
        twos = [next(each).bits_as(I16, CHUNK) for each in pairs]
        for token, place in enumerate(places):
            spread = source.spread(place + (start + 4 * index), I32).bits_as(I16, CHUNK)
            for of_half, two in zip(sums, twos, strict=True):
                value = of_half[token]
                value.set(value.get() + pair_dot(two, spread))
