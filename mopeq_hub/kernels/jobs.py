"""What threads do with packed weights: a job's pieces one by one, each by the function for its width.

Any number of threads may call the worker with the same job, which counts the pieces that were taken. A job is int64
words: that count, the number of pieces, which kind of job it is, how many threads have come, the words of its kind,
addresses among them, and counters, zeros at first. A function is compiled, or read from the disk, when its kind and
width is first asked for, and called by its address.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from mopeq_hub.kernels import fixed, product
from mopeq_hub.kernels.generate import ROWS, Code, Whole, generated, generated_for, sources_digest
from mopeq_hub.kernels.lanes import F32, I16, I64, bfloat16_bits, exponential, multiply_add
from mopeq_hub.kernels.packed import of_packed
from mopeq_hub.kernels.tile import decoded

WIDTHS = (2, 3, 4, 8)
"""Bits of a code."""
TOGETHER = (4, 1)
"""How many vectors are multiplied by a weight that is unpacked once."""
MATRIX_WORDS = 6
"""A packed matrix in a table: addresses of words, zero points and scales, what is added to zero points, bits, and the
address of its bias, float32, or 0."""
RUN_WORDS = 3
"""Vectors for one expert in a table: the expert's number, the first vector's, and how many of `TOGETHER`."""
HEADER_WORDS = 4
"""Words of a job before those of its kind."""


@dataclass(frozen=True)
class Kind:
    """Of jobs; words: their names, in the order in which a job has them."""

    number: int
    words: tuple[str, ...]

    @property
    def end(self) -> int:
        """Where a job's counters are, in bytes."""
        return 8 * (HEADER_WORDS + len(self.words))


MULTIPLY = Kind(
    0,
    (
        "matrices", "projections", "runs", "rows", "columns", "group", "parts", "inputs", "step", "halves", "products",
        "size", "others", "scratch", "space", "of_one", "of_four", "rounded",
    ),
)  # fmt: skip
"""Products of vectors with matrices. A counter of pieces that are done."""
UNPACK = Kind(1, ("matrices", "rows", "groups", "group", "outputs", "stride", "item", "of_bits"))
"""A matrix unpacked."""
EXPERTS = Kind(
    2,
    (
        "chosen", "numbers", "weights", "weight_size", "count", "inputs", "halves", "hidden", "width", "first",
        "first_group", "first_parts", "of_first", "down", "down_group", "down_parts", "of_down", "narrowed", "widened",
        "total", "scratch", "space", "rounded",
    ),
)  # fmt: skip
"""All that the experts of one token make of its vector. Counters of pieces that are done, and of those of each
expert's gate and up."""

FLOATING, FIXED, UNPACKED, UNPACKED_HALVES = 0, 2, 4, 5
"""Kinds of functions: products with vectors as float32 and in fixed point, for one vector, and the next number for
four; weights unpacked as float32, and as bfloat16."""
_KINDS = {
    FLOATING: lambda bits: product.multiplier(bits, 1),
    FLOATING + 1: lambda bits: product.multiplier(bits, 4),
    FIXED: lambda bits: fixed.multiplier(bits, 1),
    FIXED + 1: lambda bits: fixed.multiplier(bits, 4),
    UNPACKED: lambda bits: product.unpacker(bits, halves=False),
    UNPACKED_HALVES: lambda bits: product.unpacker(bits, halves=True),
}
_MOST_BITS = max(WIDTHS)
_MULTIPLY, _EXPERTS = MULTIPLY.number, EXPERTS.number
_WORDS = 8 * HEADER_WORDS
_MULTIPLY_WORDS, _MULTIPLY_END = len(MULTIPLY.words), MULTIPLY.end
_EXPERTS_WORDS, _EXPERTS_END = len(EXPERTS.words), EXPERTS.end
_UNPACK_WORDS = len(UNPACK.words)
_addresses = np.zeros((len(_KINDS), _MOST_BITS + 1), np.int64)
_OPTIONS: Any = {"error_model": "numpy", "nogil": True}
_function: Any = generated_for(lambda kind, bits: of_packed(bits, _KINDS[kind](bits)))


def functions(kind: int, bits: set[int]) -> int:
    """The address of a table of addresses, by bits, of functions of a kind, in which those for these widths are."""
    for width in bits:
        if not _addresses[kind, width]:
            _addresses[kind, width] = _compiled(kind, width, sources_digest()).address
    return int(_addresses[kind].ctypes.data)


@cache
def _compiled(kind: int, bits: int, sources: str) -> Any:
    # The digest is part of a function, so that compiled code on disk is not used after the generators changed.
    whole = types.int64

    def multiplying(
        words: int, zeros: int, scales: int, offset: int, rows: int, columns: int, group: int, begin: int, groups: int,
        inputs: int, outputs: int, stride: int, halves: int, scratch: int,
    ) -> None:  # fmt: skip
        assert sources
        matrix = (words, zeros, scales, offset, rows, columns, group, begin, groups)
        _function(kind, bits, (*matrix, inputs, outputs, stride, halves, scratch))

    def unpacking(
        words: int, zeros: int, scales: int, offset: int, rows: int, group: int, number: int, outputs: int, stride: int
    ) -> None:
        assert sources
        _function(kind, bits, (words, zeros, scales, offset, rows, group, number, outputs, stride))

    if kind in (UNPACKED, UNPACKED_HALVES):
        return cfunc(types.void(*[whole] * 9), cache=True, error_model="numpy")(unpacking)
    return cfunc(types.void(*[whole] * 14), cache=True, error_model="numpy")(multiplying)


def _read(typingctx: Any, address: Any, count: Any) -> Any:
    """So many neighbouring int64, from an address on."""
    if not isinstance(count, types.IntegerLiteral):
        return None
    kind = types.UniTuple(types.int64, count.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        first = builder.inttoptr(values[0], I64.as_pointer())
        places = [builder.gep(first, [ir.Constant(I64, number)]) for number in range(len(kind))]
        return context.make_tuple(builder, kind, [builder.load(place, typ=I64) for place in places])

    return kind(types.int64, count), codegen


def _count(typingctx: Any, address: Any, number: Any) -> Any:
    """The int64 at an address, to which a number is added, whoever else adds."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        counter = builder.inttoptr(values[0], I64.as_pointer())
        return builder.atomic_rmw("add", counter, values[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


def _jump(typingctx: Any, address: Any, arguments: Any) -> Any:
    """Call the function at an address with a tuple of int64."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64] * len(arguments))
        called = builder.inttoptr(values[0], kind.as_pointer())
        builder.call(called, cgutils.unpack_tuple(builder, values[1]))
        return context.get_dummy_value()

    return types.void(address, arguments), codegen


_words: Any = intrinsic(prefer_literal=True)(_read)
_counted: Any = intrinsic(_count)
_call: Any = intrinsic(_jump)


@generated
def _begin_with_zeros(code: Code, outputs: Whole, vectors: Whole) -> None:
    target = outputs.memory()
    with code.loop(vectors) as vector:
        target.store(vector * 64, code.of(F32, 0.0))


@generated
def _begin_with_bias(code: Code, outputs: Whole, vectors: Whole, bias: Whole) -> None:
    target, source = outputs.memory(), bias.memory()
    with code.loop(vectors) as vector:
        place = vector * 64
        target.store(place, source.load(place, F32))


@generated
def _gate(
    code: Code, narrowed: Whole, stride: Whole, parts: Whole, begin: Whole, count: Whole, up: Whole, target: Whole
) -> None:
    """SiLU(gate) * up of `count` times 16 numbers from `begin` on, each the sum of `parts` that lie `stride` bytes
    apart; up lies so many bytes behind gate."""
    source, output = narrowed.memory(), target.memory()
    with code.loop(count) as turn:
        place = (begin + turn) * 64
        gate, other = code.variable(F32, 0.0), code.variable(F32, 0.0)
        with code.loop(parts) as part:
            gate.set(gate.get() + source.load(place + part * stride, F32))
            other.set(other.get() + source.load(place + part * stride + up, F32))
        output.store(place, gate.get() / (exponential(-gate.get()) + 1.0) * other.get())


@generated
def _add(code: Code, vectors: Whole, source: Whole, target: Whole) -> None:
    given, output = source.memory(), target.memory()
    with code.loop(vectors) as vector:
        place = vector * 64
        output.store(place, given.load(place, F32) + output.load(place, F32))


@generated
def _add_weighed(code: Code, vectors: Whole, source: Whole, weight: Whole, halves: Whole, target: Whole) -> None:
    given, output, weighed = source.memory(), target.memory(), weight.memory()
    factor = code.variable(F32, 0.0)

    def bfloat16() -> None:
        factor.set(decoded(code, weighed.spread(0, I16), types.uint16))

    code.either(halves, bfloat16, lambda: factor.set(weighed.spread(0, F32)))
    with code.loop(vectors) as vector:
        place = vector * 64
        output.store(place, multiply_add(given.load(place, F32), factor.get(), output.load(place, F32)))


@generated
def _round(code: Code, vectors: Whole, source: Whole, target: Whole) -> None:
    """bfloat16 of `vectors` times 16 numbers."""
    given, output = source.memory(), target.memory()
    with code.loop(vectors) as vector:
        output.store(vector * 32, bfloat16_bits(given.load(vector * 64, F32)))


@njit(inline="always", **_OPTIONS)
def _product(
    matrix: int,
    rows: int,
    columns: int,
    group: int,
    part: int,
    parts: int,
    inputs: int,
    count: int,
    target: int,
    stride: int,
    halves: int,
    scratch: int,
    functions: int,
) -> None:
    """One part of `parts`, by groups of inputs, of the product of a matrix in a table with `count` vectors."""
    words, zeros, scales, offset, bits, bias = _words(matrix, MATRIX_WORDS)
    for token in range(count):
        if bias and part == 0:
            _begin_with_bias((target + token * stride, rows // ROWS, bias))
        else:
            _begin_with_zeros((target + token * stride, rows // ROWS))
    groups = columns // group
    begin, end = part * groups // parts, (part + 1) * groups // parts
    (function,) = _words(functions + bits * 8, 1)
    of_matrix = (words, zeros, scales, offset, rows, columns, group, begin, end - begin)
    _call(function, (*of_matrix, inputs, target, stride, halves, scratch))


@njit(inline="always", **_OPTIONS)
def _multiply(job: int, pieces: int) -> None:
    """Who comes last adds up the parts, and rounds products where they are wanted as bfloat16."""
    (
        matrices, projections, runs, rows, columns, group, parts, inputs, step, halves, products, size, others, scratch,
        space, of_one, of_four, rounded,
    ) = _words(job + _WORDS, _MULTIPLY_WORDS)  # fmt: skip
    finished, stride = job + _MULTIPLY_END, projections * rows * 4
    mine = scratch + _counted(job + 24, 1) * space
    while True:
        piece = _counted(job, 1)
        if piece >= pieces:
            return
        part, projection = piece % parts, piece // parts % projections
        expert, first, count = _words(runs + piece // parts // projections * (8 * RUN_WORDS), RUN_WORDS)
        matrix = matrices + (expert * projections + projection) * (8 * MATRIX_WORDS)
        target = (others + (part - 1) * size if part else products) + first * stride + projection * rows * 4
        place, functions = inputs + first * step, of_four if count == 4 else of_one
        _product(
            matrix, rows, columns, group, part, parts, place, count, target, stride, halves, mine, functions
        )  # fmt: skip
        if (parts > 1 or rounded) and _counted(finished, 1) == pieces - 1:
            for other in range(parts - 1):
                _add((size // 64, others + other * size, products))
            if rounded:
                _round((size // 64, products, rounded))


@njit(inline="always", **_OPTIONS)
def _experts(job: int, pieces: int) -> None:
    """A thread takes a part of gate or up of an expert, or of down; for that it waits until gate and up of this expert
    are there, which others have taken before. Who comes last adds up what the experts made."""
    (
        chosen, numbers, weights, weight_size, count, inputs, halves, hidden, width, first, first_group, first_parts,
        of_first, down, down_group, down_parts, of_down, narrowed, widened, total, scratch, space, rounded,
    ) = _words(job + _WORDS, _EXPERTS_WORDS)  # fmt: skip
    finished, done = job + _EXPERTS_END, job + _EXPERTS_END + 8
    mine = scratch + _counted(job + 24, 1) * space
    ready, side = 2 * first_parts, 4 * width
    while True:
        piece = _counted(job, 1)
        if piece >= pieces:
            return
        if piece < chosen * ready:
            part, projection, place = piece % first_parts, piece // first_parts % 2, piece // ready
            (expert,) = _words(numbers + 8 * place, 1)
            if 0 <= expert < count:
                matrix = first + (expert * 2 + projection) * (8 * MATRIX_WORDS)
                target = narrowed + ((part * chosen + place) * 2 + projection) * side
                _product(
                    matrix, width, hidden, first_group, part, first_parts, inputs, 1, target, 0, halves, mine,
                    of_first,
                )  # fmt: skip
            _counted(done + 8 * place, 1)
        else:
            part, place = (piece - chosen * ready) % down_parts, (piece - chosen * ready) // down_parts
            (expert,) = _words(numbers + 8 * place, 1)
            if 0 <= expert < count:
                while _counted(done + 8 * place, 0) < ready:
                    pass
                groups = width // down_group
                begin = part * groups // down_parts * down_group // ROWS
                end = (part + 1) * groups // down_parts * down_group // ROWS
                source, matrix = narrowed + place * 2 * side, down + expert * (8 * MATRIX_WORDS)
                _gate((source, chosen * 2 * side, first_parts, begin, end - begin, side, mine))
                target = widened + (place * down_parts + part) * hidden * 4
                _product(
                    matrix, hidden, width, down_group, part, down_parts, mine, 1, target, 0, 0, mine + side,
                    of_down,
                )  # fmt: skip
        if _counted(finished, 1) == pieces - 1:
            _begin_with_zeros((total, hidden // ROWS))
            for place in range(chosen):
                (expert,) = _words(numbers + 8 * place, 1)
                if 0 <= expert < count:
                    for part in range(down_parts):
                        source = widened + (place * down_parts + part) * hidden * 4
                        weight = weights + weight_size * place
                        _add_weighed((hidden // ROWS, source, weight, 4 - weight_size, total))
            if rounded:
                _round((hidden // ROWS, total, rounded))


@njit(inline="always", **_OPTIONS)
def _unpack(job: int, pieces: int) -> None:
    matrices, rows, groups, group, outputs, stride, item, of_bits = _words(job + _WORDS, _UNPACK_WORDS)
    while True:
        piece = _counted(job, 1)
        if piece >= pieces:
            return
        number, projection = piece % groups, piece // groups
        words, zeros, scales, offset, bits, _ = _words(matrices + projection * (8 * MATRIX_WORDS), MATRIX_WORDS)
        target = outputs + number * group * stride + projection * rows * item
        (function,) = _words(of_bits + bits * 8, 1)
        _call(function, (words, zeros, scales, offset, rows, group, number, target, stride))


@cache
def worker() -> Any:
    """The worker, compiled, as a C function of a job's address; its code lives as long as it does."""
    return _worker(sources_digest())


def _worker(sources: str) -> Any:
    @cfunc(types.void(types.int64), cache=True, error_model="numpy")
    def called(job: int) -> None:
        assert sources
        pieces, kind = _words(job + 8, 2)
        if kind == _MULTIPLY:
            _multiply(job, pieces)
        elif kind == _EXPERTS:
            _experts(job, pieces)
        else:
            _unpack(job, pieces)

    return called
