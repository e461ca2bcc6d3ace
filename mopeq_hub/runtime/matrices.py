"""Packed matrices of one shape in a table that the kernels read, and what is computed with them."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from mopeq_hub.errors import MopeqError
from mopeq_hub.kernels.packed import CHUNK
from mopeq_hub.kernels.product import (
    BFLOAT16,
    COMBINE,
    FLOAT32,
    MATRIX_WORDS,
    MULTIPLY,
    TOGETHER,
    UNPACK,
    WIDTHS,
)
from mopeq_hub.packing import PARTS
from mopeq_hub.runtime.threads import work

DTYPES = dict(zip(PARTS, (torch.int32, torch.int32, torch.float16), strict=True))
"""Of packed tensors, by their names in a module."""
_PIECES = 4
"""For each thread."""
_FEW_HALVES, _FEW = 24, 96
"""Vectors from which on unpacking a weight pays, where torch multiplies bfloat16 and where it multiplies float32: `make
bench SECTIONS=runtime` measures both ways."""
_KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16}


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
        self._words = torch.tensor(words, dtype=torch.int64)
        self._one = torch.ones(1)
        self._address, self._address_of_one = self._words.data_ptr(), self._one.data_ptr()

    @property
    def outputs(self) -> int:
        """Numbers that an expert's projections make of one vector."""
        return self.projections * self.rows

    def multiply(self, vectors: torch.Tensor, runs: torch.Tensor, made: int, step: int = 1) -> torch.Tensor:
        """Products [made, projections * rows], float32.

        vectors: float32 [n, columns]. runs: int64 [m, 3], by run an expert, the number of its first vector and of its
        product, and how many it has, one of `TOGETHER`. step: 0 where all are made of the first vector.
        """
        products = torch.empty(made, self.outputs)
        count = len(runs) * self.projections
        size = self._rows_of_a_piece(count)
        work(
            MULTIPLY,
            count * -(-self.rows // size),
            *(self._address, self.projections, runs.data_ptr(), self.rows, self.columns, self.group),
            *(vectors.data_ptr(), step * self.columns * 4, self._address_of_one, products.data_ptr(), size),
        )
        return products

    def combine(self, vectors: torch.Tensor, runs: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
        """The sum [rows], float32, of each run's one vector, float32 [m, columns], times its expert's matrix and its
        factor, float32 [m]."""
        total = torch.empty(self.rows)
        size = self._rows_of_a_piece(1)
        work(
            COMBINE,
            -(-self.rows // size),
            *(self._address, runs.data_ptr(), len(runs), self.rows, self.columns, self.group),
            *(vectors.data_ptr(), factors.data_ptr(), total.data_ptr(), size),
        )
        return total

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
        work(
            UNPACK,
            groups * self.projections,
            *(matrices, self.rows, groups, self.group),
            *(buffer.data_ptr(), self.outputs * buffer.element_size(), _KINDS[dtype]),
        )
        return buffer.view(self.columns, self.outputs)

    def _rows_of_a_piece(self, products: int) -> int:
        """How many output rows of one of so many products a thread takes at a time: as many as lie beside each other,
        so that memory is read in long lines, but so few that every thread has several pieces."""
        pieces = -(-_PIECES * torch.get_num_threads() // max(1, products))
        return max(CHUNK, -(-self.rows // pieces // CHUNK) * CHUNK)


def few(dtype: torch.dtype) -> int:
    """Up to how many vectors of this dtype are multiplied by packed weights; for more, these are unpacked and torch
    multiplies."""
    return _FEW_HALVES if _product_dtype(dtype) == torch.bfloat16 else _FEW


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


_buffers = threading.local()


def _buffer(size: int, dtype: torch.dtype) -> torch.Tensor:
    """A flat buffer of this thread's, made once for the largest weight."""
    kept: dict[str, torch.Tensor] = _buffers.__dict__
    name = str(dtype)
    if name not in kept or kept[name].numel() < size:
        kept[name] = torch.empty(size, dtype=dtype)
    return kept[name][:size]


@cache
def _multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions by which oneDNN multiplies bfloat16; elsewhere float32 is faster."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
