"""Packed matrices of one shape in a table that the kernels read, and what is computed with them."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from mopeq_hub.errors import MopeqError
from mopeq_hub.kernels import jobs
from mopeq_hub.kernels.fixed import LONGEST, room
from mopeq_hub.kernels.jobs import EXPERTS, MATRIX_WORDS, MULTIPLY, TOGETHER, UNPACK, WIDTHS, worker
from mopeq_hub.packing import PARTS
from mopeq_hub.runtime.threads import Job

DTYPES = dict(zip(PARTS, (torch.int32, torch.int32, torch.float16), strict=True))
"""Of packed tensors, by their names in a module."""
_PIECES, _LEAST = 16, 1 << 18
"""In how many pieces products are computed at least, where they have that many weights each; whatever the number of
threads, so that these do not change the order of sums."""
_FEW_NATIVE, _FEW_FIXED, _FEW = 24, 256, 32
"""Vectors from which on unpacking a weight pays: where torch multiplies them as bfloat16; where they are in fixed
point, or not, and torch multiplies float32. `make bench SECTIONS=runtime` measures all ways."""
_UNPACKED = {torch.float32: jobs.UNPACKED, torch.bfloat16: jobs.UNPACKED_HALVES}


@dataclass(frozen=True)
class PackedMatrix:
    """One packed weight [rows, columns] in auto-round's layout (`mopeq_hub/packing.py` has the shapes).

    bias: [rows], None where there is none. offset: what is added to zero points as they are stored.
    """

    qweight: torch.Tensor
    qzeros: torch.Tensor
    scales: torch.Tensor
    bias: torch.Tensor | None
    offset: int

    def check(self, rows: int, columns: int, name: str) -> None:
        """Raises MopeqError where its tensors are not those of a weight [rows, columns] at a width that is known."""
        bits, groups = self.bits(columns), self.scales.shape[0]
        expected = ((columns * bits // 32, rows), (groups, rows * bits // 32), (groups, rows))
        tensors = (self.qweight, self.qzeros, self.scales)
        fits = tuple(tuple(tensor.shape) for tensor in tensors) == expected
        fits = fits and tuple(tensor.dtype for tensor in tensors) == tuple(DTYPES.values())
        fits = fits and all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in tensors)
        if not (fits and bits in WIDTHS and groups and columns % (32 * groups) == 0 and rows % 32 == 0):
            raise MopeqError(
                f"the packed tensors of {name} are not those of a weight [{rows}, {columns}]",
                "the files are damaged or of another kind; get them again",
            )

    def bits(self, columns: int) -> int:
        return self.qweight.shape[0] * 32 // columns

    def words(self, columns: int) -> list[int]:
        """Its row of a table."""
        bias = self.bias.data_ptr() if self.bias is not None else 0
        tensors = (self.qweight, self.qzeros, self.scales)
        return [*(tensor.data_ptr() for tensor in tensors), self.offset, self.bits(columns), bias]


class Table:
    """Matrices [experts, projections] of one shape [rows, columns] and group size."""

    def __init__(self, matrices: Sequence[Sequence[PackedMatrix]], rows: int, columns: int) -> None:
        self.experts, self.projections = len(matrices), len(matrices[0])
        self.rows, self.columns = rows, columns
        self.group = columns // matrices[0][0].scales.shape[0]
        # The kernels go by addresses; what lies there is kept.
        self._matrices = matrices
        words = [matrix.words(columns) for expert in matrices for matrix in expert]
        self._bits = {matrix.bits(columns) for expert in matrices for matrix in expert}
        self._words = torch.tensor(words, dtype=torch.int64)
        self._address = self._words.data_ptr()
        self._room = room(columns, self.group)
        self._of_one: dict[torch.dtype, tuple[int, int, Job]] = {}

    @property
    def outputs(self) -> int:
        """Numbers that an expert's projections make of one vector."""
        return self.projections * self.rows

    def multiply(
        self, vectors: torch.Tensor, runs: torch.Tensor, made: int, step: int = 1, fixed: bool = False
    ) -> torch.Tensor:
        """Products [made, projections * rows], float32.

        vectors: [n, columns], floats. runs: int64 [m, 3], by run an expert, the number of its first vector and of its
        product, and how many it has, one of `TOGETHER`. step: 0 where all are made of the first vector. fixed: whether
        vectors may be rounded to 16 bits, each relative to the largest of its group (`mopeq_hub/kernels/fixed.py`), as
        those of a model in bfloat16 or float16 are rounded anyway; faster.
        """
        fixed = self._fixed(fixed)
        inputs = _as_given(vectors, fixed)
        products = torch.empty(made, self.outputs)
        others, space, job = self._job(len(runs), products.nbytes, inputs.dtype, step, fixed, max(TOGETHER))
        buffer = _bytes(others + torch.get_num_threads() * space)
        job.run(
            runs=runs.data_ptr(),
            inputs=inputs.data_ptr(),
            products=products.data_ptr(),
            others=buffer,
            scratch=buffer + others,
        )
        return products

    def of_one(self, vector: torch.Tensor) -> torch.Tensor:
        """Products [..., projections * rows] of one vector [..., columns], in its dtype, with the first expert's
        matrices; quicker to call than `multiply`, and fixed point where `is_fixed` says so."""
        dtype, size = vector.dtype, 4 * self.outputs
        rounds, fixed = dtype == torch.bfloat16, self._fixed(is_fixed(dtype))
        inputs = _as_given(vector, fixed)
        if dtype not in self._of_one:
            self._of_one[dtype] = self._job(1, size, inputs.dtype, 1, fixed, 1)
        others, space, job = self._of_one[dtype]
        products = vector.new_empty((*vector.shape[:-1], self.outputs), dtype=dtype if rounds else torch.float32)
        buffer, made = _bytes(size + others + torch.get_num_threads() * space), products.data_ptr()
        job.run(
            runs=_ALONE.data_ptr(),
            inputs=inputs.data_ptr(),
            products=buffer if rounds else made,
            rounded=made if rounds else 0,
            others=buffer + size,
            scratch=buffer + size + others,
        )
        return products if products.dtype == dtype else products.to(dtype)

    def _job(
        self, runs: int, size: int, given: torch.dtype, step: int, fixed: bool, together: int
    ) -> tuple[int, int, Job]:
        """Products of so many runs of up to `together` vectors, `size` bytes of them: what else they need, bytes in all
        and bytes for each thread, and the job."""
        parts = self._parts(runs * self.projections)
        space, halves = together * self._room, given == torch.bfloat16
        job = Job(
            MULTIPLY,
            runs * self.projections * parts,
            counters=1,
            matrices=self._address,
            projections=self.projections,
            rows=self.rows,
            columns=self.columns,
            group=self.group,
            parts=parts,
            step=step * self.columns * (2 if halves else 4),
            halves=halves,
            size=size,
            space=space,
            of_one=self._functions(fixed, 1),
            of_four=self._functions(fixed, 4),
        )
        return (parts - 1) * size, space, job

    def compile_for(self, dtype: torch.dtype) -> None:
        """Have all functions that compute with vectors of this dtype compiled."""
        worker()
        for together in TOGETHER:
            self._functions(self._fixed(is_fixed(dtype)), together)
        jobs.functions(_UNPACKED[_product_dtype(dtype)], self._bits)

    def _fixed(self, wanted: bool) -> bool:
        return wanted and self.group <= LONGEST

    def _functions(self, fixed: bool, together: int) -> int:
        """The address of the functions for its widths and so many vectors."""
        return jobs.functions((jobs.FIXED if fixed else jobs.FLOATING) + (together > 1), self._bits)

    def _parts(self, products: int) -> int:
        """In how many parts, by groups of inputs, each of so many products is computed."""
        most = min(self.columns // self.group, self.rows * self.columns // _LEAST)
        return max(1, min(most, _PIECES // max(1, products)))

    def product(self, vectors: torch.Tensor, expert: int = 0) -> torch.Tensor:
        """Products [n, projections * rows] of vectors [n, columns] with one expert's matrices, unpacked for torch:
        bfloat16 of bfloat16 where the CPU multiplies it, else float32."""
        dtype = _product_dtype(vectors.dtype)
        products = vectors.to(dtype) @ self._unpacked(expert, dtype)
        biases = [matrix.bias for matrix in self._matrices[expert] if matrix.bias is not None]
        return products.add_(torch.cat(biases)) if biases else products

    def _unpacked(self, expert: int, dtype: torch.dtype) -> torch.Tensor:
        """An expert's weights [columns, projections * rows], until the next that this thread unpacks."""
        buffer = _buffer(self.columns * self.outputs, dtype)
        groups = self.columns // self.group
        matrices = self._address + expert * self.projections * MATRIX_WORDS * 8
        Job(
            UNPACK,
            groups * self.projections,
            matrices=matrices,
            rows=self.rows,
            groups=groups,
            group=self.group,
            outputs=buffer.data_ptr(),
            stride=self.outputs * buffer.element_size(),
            item=buffer.element_size(),
            of_bits=jobs.functions(_UNPACKED[dtype], self._bits),
        ).run()
        return buffer.view(self.columns, self.outputs)


class Experts:
    """What the experts of one token make of its vector, in one region of threads: down of SiLU(gate) * up."""

    def __init__(self, first: Table, down: Table) -> None:
        """first: gate and up, [width, hidden] each. down: [hidden, width]."""
        self.first, self.down = first, down
        self._jobs: dict[tuple[torch.dtype, int], tuple[tuple[int, ...], int, Job]] = {}

    def __call__(self, vector: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The weighted sum of what experts make, like the vector.

        vector: hidden numbers, floats; fixed point where `is_fixed` says so. chosen: k whole numbers; those that no
        expert has stand for none. weights: k floats.
        """
        dtype = vector.dtype
        sizes, space, job = self._job(dtype, chosen.numel())
        halved = dtype == torch.bfloat16
        inputs = _as_given(vector, self.first._fixed(is_fixed(dtype)))
        chosen, weights = chosen.contiguous(), weights.contiguous()
        if chosen.dtype != torch.int64:
            chosen = chosen.long()
        if weights.dtype not in (torch.float32, torch.bfloat16):
            weights = weights.float()
        narrowed, widened, total = sizes
        made = vector.new_empty(vector.shape, dtype=dtype if halved else torch.float32)
        buffer = _bytes(narrowed + widened + total + torch.get_num_threads() * space)
        target = made.data_ptr()
        job.run(
            numbers=chosen.data_ptr(),
            weights=weights.data_ptr(),
            weight_size=weights.element_size(),
            inputs=inputs.data_ptr(),
            halves=inputs.dtype == torch.bfloat16,
            narrowed=buffer,
            widened=buffer + narrowed,
            total=buffer + narrowed + widened if halved else target,
            rounded=target if halved else 0,
            scratch=buffer + narrowed + widened + total,
        )
        return made if made.dtype == dtype else made.to(dtype)

    def _job(self, dtype: torch.dtype, count: int) -> tuple[tuple[int, ...], int, Job]:
        """For vectors of a dtype and so many experts: bytes that are needed for what lies between, and for each thread,
        and the job."""
        if (dtype, count) in self._jobs:
            return self._jobs[dtype, count]
        first, down, fixed = self.first, self.down, is_fixed(dtype)
        first_parts, down_parts = first._parts(2 * count), down._parts(count)
        space = 4 * first.rows + max(first._room, down._room)
        job = Job(
            EXPERTS,
            count * (2 * first_parts + down_parts),
            counters=1 + count,
            chosen=count,
            count=first.experts,
            hidden=down.rows,
            width=first.rows,
            first=first._address,
            first_group=first.group,
            first_parts=first_parts,
            of_first=first._functions(first._fixed(fixed), 1),
            down=down._address,
            down_group=down.group,
            down_parts=down_parts,
            of_down=down._functions(down._fixed(fixed), 1),
            space=space,
        )
        sizes = (4 * first_parts * count * 2 * first.rows, 4 * down_parts * count * down.rows, 4 * down.rows)
        return self._jobs.setdefault((dtype, count), (sizes, space, job))


def _as_given(vectors: torch.Tensor, fixed: bool) -> torch.Tensor:
    """Vectors as the kernels read them: bfloat16 where they make fixed point of it, else float32."""
    return (vectors if fixed and vectors.dtype == torch.bfloat16 else vectors.float()).contiguous()


def is_fixed(dtype: torch.dtype) -> bool:
    """Whether vectors of this dtype are given to the kernels in fixed point: where it has rounded them more already."""
    return dtype in (torch.bfloat16, torch.float16)


def few(dtype: torch.dtype) -> int:
    """Up to how many vectors of this dtype are multiplied by packed weights; for more, these are unpacked and torch
    multiplies."""
    if _product_dtype(dtype) == torch.bfloat16:
        return _FEW_NATIVE
    return _FEW_FIXED if is_fixed(dtype) else _FEW


def _product_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which dtype torch multiplies vectors of this one: bfloat16 where the CPU can, else float32."""
    return torch.bfloat16 if dtype == torch.bfloat16 and _multiplies_bfloat16() else torch.float32


def runs_of(expert: int, first: int, count: int) -> list[tuple[int, int, int]]:
    """The runs of an expert's neighbouring vectors."""
    runs = []
    for size in TOGETHER:
        while count >= size:
            runs.append((expert, first, size))
            first, count = first + size, count - size
    return runs


_ALONE = torch.tensor(runs_of(0, 0, 1))
_buffers = threading.local()


def _buffer(size: int, dtype: torch.dtype) -> torch.Tensor:
    """A flat buffer of this thread's, made once for the largest weight."""
    kept: dict[torch.dtype, torch.Tensor] = _buffers.__dict__.setdefault("kept", {})
    if dtype not in kept or kept[dtype].numel() < size:
        kept[dtype] = torch.empty(size, dtype=dtype)
    return kept[dtype][:size]


def _bytes(size: int) -> int:
    """The address of so many bytes of this thread's, others than those of `_buffer`."""
    kept: dict[str, int] = _buffers.__dict__
    if kept.get("size", 0) < size:
        _buffers.bytes = torch.empty(size, dtype=torch.uint8)
        kept["size"], kept["address"] = size, _buffers.bytes.data_ptr()
    return kept["address"]


@cache
def _multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions by which oneDNN multiplies bfloat16; elsewhere float32 is faster."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
