"""Scale and zero point of the 16 groups of a tile at once: by search, or round-to-nearest's.

The search is an alternating minimisation with several starts. Each start is a scale; it gives codes for two zero
points, the codes give the scale that fits them best by least squares, <c, w> / <c, c>, and the start whose codes save
most error, <c, w>^2 / <c, c>, wins. A negative scale with zero point z is a positive one with top - z, so the symmetric
grid, too, is two zero points: those beside the middle. With an importance h of each input channel the products are
weighted by it.

It runs on 16-bit integers: weights relative to the group's largest, products of which only the upper half is kept. That
decides which codes win; the scale they win with is their least-squares scale. Integer sums have no order.
"""

from collections.abc import Callable
from typing import Any

from mopeq_hub.kernels.generate import Code, Count, Memory, Whole, generated
from mopeq_hub.kernels.lanes import F32, F64, I16, I32, ROUND, Lanes, mul_high, pair_dot
from mopeq_hub.kernels.weight import ROWS

STARTS = {
    2: (0.75, 0.60, 0.89, 0.68, 0.50, 0.82, 1.00, 0.64),
    3: (0.88, 0.78, 0.98, 0.70, 0.83, 0.93, 1.05, 0.74, 1.00),
    4: (0.95, 1.01, 0.90, 1.10, 0.86, 0.98, 0.93, 1.04, 1.00),
    8: (1.00, 0.995, 1.003, 0.99, 0.985, 0.98, 0.96, 0.997),
}
"""Scales to start from, relative to round-to-nearest's, by bits, of the symmetric grid. Chosen greedily: each lowers
the error of Gaussian, heavy-tailed and trained weights most beside those before it; round-to-nearest's own is among
them."""
ASYMMETRIC_STARTS = {
    2: (0.64, 0.54, 0.74, 0.60, 0.68, 0.50, 0.82, 0.58, 1.00),
    3: (0.86, 0.80, 0.92, 0.76, 0.98, 0.84, 0.88, 0.72, 1.00),
    4: (0.96, 0.92, 1.02, 0.98, 1.06, 0.94, 0.90, 1.00),
    8: (1.00, 0.995, 1.003, 0.99, 0.985, 0.98, 0.997, 1.006),
}
_UNIT = 32767.0
"""A group's largest weight in fixed-point numbers."""
_IMPORTANCE_UNIT = 16383.0
"""A group's largest importance in fixed-point numbers."""
_LEAST = 2.0**-100
"""Groups without a larger weight are taken for zeros."""


@generated
def fix(code: Code, tile: Memory, group: Whole, extremes: Memory, fixed: Memory) -> None:
    """The tile as fixed-point numbers, neighbouring columns side by side: fixed [group / 2, 16, 2], int16."""
    unit = code.of(F32, _UNIT) / extremes.load(8 * ROWS, F32).most(_LEAST)
    _fix_pairs(code, group, fixed, lambda column: tile.load(column * (4 * ROWS), F32) * unit)


@generated
def fix_weighted(
    code: Code, tile: Memory, group: Whole, importance: Memory, column: Whole, fixed: Memory, ratio: Memory
) -> None:
    """Weight times importance, and importance, in the same form, behind the weights in `fixed`.

    importance: float32, of this group from number `column` on. ratio [16], float32: what turns <c, hw> / <c, hc> of
    these numbers into a scale.
    """

    def important(number: Whole) -> Lanes:
        return importance.spread((column + number) * 4, F32)

    def weighted(number: Whole) -> Lanes:
        return tile.load(number * (4 * ROWS), F32) * important(number)

    largest, heaviest = code.variable(F32, _LEAST), code.variable(F32, _LEAST)
    with code.loop(group) as number:
        value = weighted(number)
        largest.set(largest.get().most(value).most(-value))
        heaviest.set(heaviest.get().most(important(number)))
    unit = code.of(F32, _UNIT) / largest.get()
    importance_unit = code.of(F32, _IMPORTANCE_UNIT) / heaviest.get()
    _fix_pairs(code, group, fixed, lambda number: weighted(number) * unit, group * (2 * ROWS))
    _fix_pairs(code, group, fixed, lambda number: important(number) * importance_unit, group * (4 * ROWS))
    ratio.store(0, importance_unit / unit)


def _fix_pairs(code: Code, group: Whole, fixed: Memory, value: Callable[[Whole], Lanes], start: Count = 0) -> None:
    with code.loop(group // 2) as pair:
        first = (value(pair * 2) + ROUND).bits_as(I32)
        second = (value(pair * 2 + 1) + ROUND).bits_as(I32)
        fixed.store(pair * (4 * ROWS) + start, (first & 0xFFFF) | (second << 16))


def _search(
    code: Code,
    weighted: bool,
    fixed: Memory,
    group: Whole,
    extremes: Memory,
    ratio: Memory,
    starts: Memory,
    count: Whole,
    bits: Whole,
    symmetric: Whole,
    scales: Memory,
    zeros: Memory,
) -> None:
    """Scales [16], float32, and zero points [16], int32, of the best of `count` starts, which are given as 1 / r.

    Weighted only up to 4 bits: squares of wider codes do not fit 16 bits.
    """
    least, most, largest = (extremes.load(4 * ROWS * number, F32) for number in range(3))
    largest = largest.most(_LEAST)
    half, top = _middle_and_top(code, bits)
    mirrored = symmetric.lanes() > 0
    base = mirrored.where(largest / half.to(F32), ((most - least) / top.to(F32)).most(_LEAST))
    zero = mirrored.where(half - 1, (-least / base).to(I32).between(0, top - 1))
    ranges = [(_twice(-zero - shift), _twice(top - zero - shift)) for shift in (0, 1)]
    # The upper half of a product with the inverse is a code with this many bits behind the point.
    fraction = (13 - bits).lanes(I16, 2 * ROWS)
    rounding = code.of(I16, 1, 2 * ROWS) << (12 - bits).lanes(I16, 2 * ROWS)
    inverse_of_base = largest / base / (top + 1).to(F32) * (2.0**29 / _UNIT)

    best_cross, best_power = code.variable(F64, 0.0), code.variable(F64, 1.0)
    best_shift = code.variable(I32, 0)
    with code.loop(count) as start:
        step = starts.spread(start * 4, F32)
        inverse = _twice(((inverse_of_base * step).least(_UNIT) + ROUND).bits_as(I32))
        sums = [(code.variable(I32, 0), code.variable(I32, 0)) for _ in ranges]
        with code.loop(group // 2) as pair:
            place = pair * (4 * ROWS)
            weight = product = fixed.load(place, I16, 2 * ROWS)
            nearest = (mul_high(weight, inverse) + rounding) >> fraction
            if weighted:
                product = fixed.load(place + group * (2 * ROWS), I16, 2 * ROWS)
                importance = fixed.load(place + group * (4 * ROWS), I16, 2 * ROWS)
            for (low, high), (cross, power) in zip(ranges, sums, strict=True):
                codes = nearest.between(low, high)
                cross.set(cross.get() + pair_dot(codes, product))
                squares = pair_dot(codes * codes, importance) if weighted else pair_dot(codes, codes)
                power.set(power.get() + squares)
        for shift, (cross, power) in enumerate(sums):
            across, along = cross.get().to(F64).most(0.0), power.get().to(F64)
            better = across * across * best_power.get() > best_cross.get() * best_cross.get() * along
            best_cross.set(better.where(across, best_cross.get()))
            best_power.set(better.where(along, best_power.get()))
            best_shift.set(better.where(code.of(I32, shift), best_shift.get()))

    scale = (best_cross.get() / best_power.get()).to(F32)
    scale = scale * (ratio.load(0, F32) if weighted else largest * (1 / _UNIT))
    scales.store(0, mirrored.where((best_shift.get() < 1).where(-scale, scale), scale))
    zeros.store(0, mirrored.where(half, zero + best_shift.get()))


@generated
def search(code: Code, *arguments: Any) -> None:
    _search(code, False, *arguments)


@generated
def search_weighted(code: Code, *arguments: Any) -> None:
    _search(code, True, *arguments)


@generated
def refit(
    code: Code,
    tile: Memory,
    group: Whole,
    importance: Memory,
    column: Whole,
    bits: Whole,
    scales: Memory,
    zeros: Memory,
) -> None:
    """Replace each scale by the least-squares scale, weighted, of the codes that it gives, in float32.

    In fixed-point numbers small importances are coarse: good enough to choose by, not to scale by. 8-bit codes are
    chosen without importances; only this regards them.
    """
    scale, zero = scales.load(0, F32), zeros.load(0, I32)
    _, top = _middle_and_top(code, bits)
    low, high = (-zero).to(F32), (top - zero).to(F32)
    inverse = code.of(F32, 1.0) / scale
    cross, power = code.variable(F32, 0.0), code.variable(F32, 0.0)
    with code.loop(group) as number:
        weight = tile.load(number * (4 * ROWS), F32)
        codes = ((weight * inverse).between(low, high) + ROUND) - ROUND
        heavy = codes * importance.spread((column + number) * 4, F32)
        cross.set(cross.get() + heavy * weight)
        power.set(power.get() + heavy * codes)
    # All codes are zero where all weights are.
    fitted = cross.get() / power.get()
    scales.store(0, (power.get() > 0.0).where(fitted, scale))


@generated
def nearest(code: Code, extremes: Memory, bits: Whole, symmetric: Whole, scales: Memory, zeros: Memory) -> None:
    """Scales [16], float32, and zero points [16], int32, of round-to-nearest."""
    least, most = extremes.load(0, F32), extremes.load(4 * ROWS, F32)
    half, top = _middle_and_top(code, bits)
    mirrored = symmetric.lanes() > 0
    # The end of the grid that reaches further, the negative one, faces the largest weight.
    farthest = (most > -least).where(-most, -least)
    spread = ((most - least) / top.to(F32)).most(_LEAST)
    zero = ((-least / spread + ROUND).bits_as(I32) & 0xFFFF).between(0, top)
    scales.store(0, mirrored.where(farthest / half.to(F32), spread))
    zeros.store(0, mirrored.where(half, zero))


def _middle_and_top(code: Code, bits: Whole) -> tuple[Lanes, Lanes]:
    """2^(b-1) and 2^b - 1."""
    top = code.of(I32, 2) << (bits + -1).lanes()
    return top.shifted_down(1), top - 1


def _twice(number: Lanes) -> Lanes:
    """Each 32-bit number as two 16-bit ones."""
    return ((number & 0xFFFF) | (number << 16)).bits_as(I16, 2 * ROWS)
