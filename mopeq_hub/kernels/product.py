"""Packed weights times vectors without unpacking them to memory, many weights at once; and packed weights unpacked, for
products with many vectors.

A worker does what is left of a job, piece by piece; any number of threads may call it with the same job, which counts
the pieces that were taken. A job is int64 words: that count, the number of pieces, and what a piece is made by,
addresses among it (`mopeq_hub/runtime/matrices.py` writes them). For a group of inputs

    sum_i s (c_i - z) x_i = s (2^b sum_i (1 + c_i / 2^b) x_i - (2^b + z) sum_i x_i),

since 1 + c / 2^b is what codes are turned into most quickly. Sums are float32. Vectors in fixed point are multiplied by
`fixed.py`.
"""

from functools import cache
from typing import Any

from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

from mopeq_hub.kernels import fixed
from mopeq_hub.kernels.fixed import WIDTHS
from mopeq_hub.kernels.generate import ROWS, Code, Count, Memory, Whole, generated, sources_digest
from mopeq_hub.kernels.lanes import F32, I16, I32, I64, Lanes, multiply_add, summed
from mopeq_hub.kernels.packed import CHUNK, PackedRows

TOGETHER = (4, 1)
"""How many vectors are multiplied by a weight that is unpacked once."""
FLOAT32, BFLOAT16 = 0, 1
"""What a weight can be unpacked to."""
MATRIX_WORDS = 6
"""A packed matrix in a table: addresses of words, zero points and scales, what is added to zero points, bits, and the
address of its bias, float32, or 0."""
RUN_WORDS = 3
"""Vectors for one expert in a table: the expert's number, the first vector's, and how many of `TOGETHER`."""

_OPTIONS: Any = {"error_model": "numpy", "nogil": True}


def _read(typingctx: Any, address: Any) -> Any:
    """The int64 at an address."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(builder.inttoptr(values[0], I64.as_pointer()), typ=I64)

    return types.int64(types.int64), codegen


def _count(typingctx: Any, address: Any) -> Any:
    """The int64 at an address, which is one more afterwards, whoever else counts."""

    def codegen(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        counter = builder.inttoptr(values[0], I64.as_pointer())
        return builder.atomic_rmw("add", counter, ir.Constant(I64, 1), "seq_cst")

    return types.int64(types.int64), codegen


_word: Any = intrinsic(_read)
_taken: Any = intrinsic(_count)


def _multiplier(bits: int, together: int) -> Any:
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
        """Add the products with neighbouring vectors of inputs [together, columns], of `groups` groups of inputs from
        `begin` on, to outputs [together, rows], `stride` bytes apart."""
        weight = PackedRows(code, words.memory(), zeros.memory(), scales.memory(), offset, rows, bits)
        source, target, levels = inputs.memory(), outputs.memory(), float(1 << bits)
        tokens = range(together)
        # An addition waits for the one before it, and four that do not wait for each other keep a core busy: for one
        # vector those of 16 rows and even or odd inputs.
        apart = 2 if together == 1 else 1
        with code.loop(groups) as turn:
            number = turn + begin
            wholes = [summed(_total(code, source, (columns * token + number * group) * 4, group)) for token in tokens]
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


def _unpacker(bits: int, kind: int) -> Any:
    @generated
    def unpack(
        code: Code,
        words: Whole,
        zeros: Whole,
        scales: Whole,
        offset: Whole,
        rows: Whole,
        group: Whole,
        number: Whole,
        outputs: Whole,
        stride: Whole,
    ) -> None:
        """Write the weights of one group of inputs: outputs [group, rows], `stride` bytes apart, of this kind."""
        weight = PackedRows(code, words.memory(), zeros.memory(), scales.memory(), offset, rows, bits)
        target, levels = outputs.memory(), float(1 << bits)
        size = 2 if kind == BFLOAT16 else 4
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
                        target.store(place, _bfloat16(value) if kind == BFLOAT16 else value)

    return unpack


def _bfloat16(value: Lanes) -> Lanes:
    """The bits of the nearest bfloat16 of finite numbers."""
    bits = value.bits_as(I32)
    return (bits + 0x7FFF + (bits.shifted_down(16) & 1)).shifted_down(16).to(I16)


def _by_bits(functions: dict[int, Any]) -> Any:
    """The compiled function of a width and a tuple of arguments."""
    two, three, four, eight = (functions[bits] for bits in (2, 3, 4, 8))

    @njit(**_OPTIONS)
    def chosen(bits: int, arguments: Any) -> None:
        if bits == 2:
            two(arguments)
        elif bits == 3:
            three(arguments)
        elif bits == 4:
            four(arguments)
        else:
            eight(arguments)

    return chosen


_multiply_1, _multiply_4 = (_by_bits({bits: _multiplier(bits, together) for bits in WIDTHS}) for together in (1, 4))
_fixed_1, _fixed_4 = (_by_bits({bits: fixed.multiplier(bits, together) for bits in WIDTHS}) for together in (1, 4))
_unpack_float32 = _by_bits({bits: _unpacker(bits, FLOAT32) for bits in WIDTHS})
_unpack_bfloat16 = _by_bits({bits: _unpacker(bits, BFLOAT16) for bits in WIDTHS})


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


@njit(inline="always", **_OPTIONS)
def _multiply(job: int) -> None:
    pieces, matrices, projections, runs = _word(job + 8), _word(job + 24), _word(job + 32), _word(job + 40)
    rows, columns, group = _word(job + 48), _word(job + 56), _word(job + 64)
    inputs, step, is_fixed = _word(job + 72), _word(job + 80), _word(job + 88)
    outputs, size, parts = _word(job + 96), _word(job + 104), _word(job + 112)
    groups, stride = columns // group, projections * rows * 4
    while True:
        piece = _taken(job)
        if piece >= pieces:
            return
        part, projection = piece % parts, piece // parts % projections
        run = runs + piece // parts // projections * (8 * RUN_WORDS)
        expert, first, count = _word(run), _word(run + 8), _word(run + 16)
        matrix = matrices + (expert * projections + projection) * (8 * MATRIX_WORDS)
        words, zeros, scales = _word(matrix), _word(matrix + 8), _word(matrix + 16)
        offset, bits, bias = _word(matrix + 24), _word(matrix + 32), _word(matrix + 40)
        target, place = outputs + part * size + first * stride + projection * rows * 4, inputs + first * step
        for token in range(count):
            if bias and part == 0:
                _begin_with_bias((target + token * stride, rows // ROWS, bias))
            else:
                _begin_with_zeros((target + token * stride, rows // ROWS))
        begin = part * groups // parts
        end = (part + 1) * groups // parts
        arguments = (words, zeros, scales, offset, rows, columns, group, begin, end - begin, place, target, stride)
        if is_fixed:
            if count == 4:
                _fixed_4(bits, arguments)
            else:
                _fixed_1(bits, arguments)
        elif count == 4:
            _multiply_4(bits, arguments)
        else:
            _multiply_1(bits, arguments)


@njit(inline="always", **_OPTIONS)
def _unpack(job: int) -> None:
    pieces, matrices, rows, groups = _word(job + 8), _word(job + 24), _word(job + 32), _word(job + 40)
    group, outputs, stride, kind = _word(job + 48), _word(job + 56), _word(job + 64), _word(job + 72)
    while True:
        piece = _taken(job)
        if piece >= pieces:
            return
        number, projection = piece % groups, piece // groups
        matrix = matrices + projection * (8 * MATRIX_WORDS)
        size = 2 if kind == BFLOAT16 else 4
        target = outputs + number * group * stride + projection * rows * size
        words, zeros, scales, offset = _word(matrix), _word(matrix + 8), _word(matrix + 16), _word(matrix + 24)
        arguments = (words, zeros, scales, offset, rows, group, number, target, stride)
        if kind == BFLOAT16:
            _unpack_bfloat16(_word(matrix + 32), arguments)
        else:
            _unpack_float32(_word(matrix + 32), arguments)


@njit(inline="always", **_OPTIONS)
def _prepare(job: int) -> None:
    pieces, inputs, columns, group = _word(job + 8), _word(job + 24), _word(job + 32), _word(job + 40)
    outputs, size = _word(job + 48), _word(job + 56)
    while True:
        piece = _taken(job)
        if piece >= pieces:
            return
        fixed.prepare((inputs + piece * columns * 4, columns, group, outputs + piece * size))


MULTIPLY, UNPACK, PREPARE = 0, 1, 2
"""What a worker does."""


@njit(inline="always", **_OPTIONS)
def _work(job: int) -> None:
    kind = _word(job + 16)
    if kind == MULTIPLY:
        _multiply(job)
    elif kind == UNPACK:
        _unpack(job)
    else:
        _prepare(job)


def _compiled(sources: str) -> Any:
    # The digest is part of the function, so that compiled code on disk is not used after the generators changed.
    @cfunc(types.void(types.int64), cache=True, error_model="numpy")
    def called(job: int) -> None:
        assert sources
        _work(job)

    return called


@cache
def worker() -> Any:
    """The worker, compiled, as a C function of a job's address; its code lives as long as it does."""
    return _compiled(sources_digest())
