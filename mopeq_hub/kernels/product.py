"""Packed weights times vectors without unpacking them to memory, many weights at once; and packed weights unpacked, for
products with many vectors.

For a group of inputs

    sum_i s (c_i - z) x_i = s (2^b sum_i (1 + c_i / 2^b) x_i - (2^b + z) sum_i x_i),

since 1 + c / 2^b is what codes are turned into most quickly. Sums are float32.
"""

from collections.abc import Callable

from mopeq_hub.kernels.generate import ROWS, Code, Count, Memory, Whole
from mopeq_hub.kernels.lanes import F32, Lanes, across, bfloat16_bits, multiply_add
from mopeq_hub.kernels.packed import CHUNK, PackedRows


def multiplier(bits: int, together: int) -> Callable[..., None]:
    """What generates the function for a width and a number of vectors."""

    def multiply(
        weight: PackedRows,
        columns: Whole,
        group: Whole,
        begin: Whole,
        groups: Whole,
        inputs: Whole,
        outputs: Whole,
        stride: Whole,
        *_: Whole,
    ) -> None:
        """Add the products with neighbouring vectors of inputs [together, columns], of `groups` groups of inputs from
        `begin` on, to outputs [together, rows], `stride` bytes apart."""
        code, rows = weight.code, weight.rows
        source, target, levels = inputs.memory(), outputs.memory(), float(1 << bits)
        tokens = range(together)
        # An addition waits for the one before it, and four that do not wait for each other keep a core busy: for one
        # vector those of 16 rows and even or odd inputs.
        apart = 2 if together == 1 else 1
        with code.loop(groups) as turn:
            number = turn + begin
            wholes = [
                across(_total(code, source, (columns * token + number * group) * 4, group), Lanes.__add__)
                for token in tokens
            ]
            with code.loop(rows // CHUNK) as pair:
                first = pair * CHUNK
                sums = [[[code.variable(F32, 0.0) for _ in range(apart)] for _ in tokens] for _ in range(2)]
                with code.loop(group // CHUNK) as part:
                    chunk = number * (group // CHUNK) + part
                    weight.fetch(chunk + group // CHUNK, pair)
                    places = [(columns * token + chunk * CHUNK) * 4 for token in tokens]
                    for half, each in enumerate(sums):
                        for index, fraction in enumerate(weight.fractions(chunk, first + half * ROWS)):
                            for of_token, place in zip(each, places, strict=True):
                                value = of_token[index % apart]
                                spread = source.spread(place + 4 * index, F32)
                                value.set(multiply_add(fraction, spread, value.get()))
                for half, zero in enumerate(weight.zeros_of(number, first)):
                    scale = weight.scale(number, first + half * ROWS)
                    for token, (values, whole) in enumerate(zip(sums[half], wholes, strict=True)):
                        total = values[0].get() + values[1].get() if apart == 2 else values[0].get()
                        centred = total * levels - (zero + levels) * whole
                        place = (pair * 2 + half) * 64 + stride * token
                        target.store(place, multiply_add(centred, scale, target.load(place, F32)))

    return multiply


def _total(code: Code, source: Memory, place: Count, count: Whole) -> Lanes:
    """Sums of every 16th of so many neighbouring numbers, a multiple of 32."""
    total = code.variable(F32, 0.0)
    with code.loop(count // CHUNK) as chunk:
        first = chunk * (CHUNK * 4) + place
        total.set(total.get() + source.load(first, F32) + source.load(first + 64, F32))
    return total.get()


def unpacker(bits: int, halves: bool) -> Callable[..., None]:
    """What generates the function for a width, for bfloat16 or float32."""

    def unpack(
        weight: PackedRows,
        group: Whole,
        number: Whole,
        outputs: Whole,
        stride: Whole,
    ) -> None:
        """Write the weights of one group of inputs: outputs [group, rows], `stride` bytes apart."""
        code, rows = weight.code, weight.rows
        target, levels = outputs.memory(), float(1 << bits)
        size = 2 if halves else 4
        with code.loop(rows // CHUNK) as block:
            row = block * CHUNK
            for half, zero in enumerate(weight.zeros_of(number, row)):
                lane = row + 16 * half
                scale = weight.scale(number, lane)
                with code.loop(group // CHUNK) as part:
                    fractions = weight.fractions(number * (group // CHUNK) + part, lane)
                    for index, fraction in enumerate(fractions):
                        value = (fraction * levels - (zero + levels)) * scale
                        place = (part * CHUNK + index) * stride + lane * size
                        target.store(place, bfloat16_bits(value) if halves else value)

    return unpack
