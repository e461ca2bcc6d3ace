"""The sum of a weight's squares, straight from the mapped file, at the speed of memory."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange

from mopeq_hub.kernels.generate import OPTIONS, Code, Memory, Whole, generated, sources_digest
from mopeq_hub.kernels.lanes import F32, F64
from mopeq_hub.kernels.tile import decoded
from mopeq_hub.kernels.weight import ROWS, STORED, Weight


@generated
def _squares(
    code: Code, raw: Memory, start: Whole, chunks: Whole, factors: Memory, first: Whole, step: Whole, sums: Memory
) -> None:
    """sums [16], float64: of the squares of every 16th of the neighbouring numbers from byte `start` on.

    factors: of the first 16 numbers at `first`, of the next ones `step` further each.
    """
    size = raw.kind.bitwidth // 8
    total = code.variable(F64, 0.0)
    with code.loop(chunks) as chunk:
        value = decoded(code, raw.load(start + chunk * (ROWS * size), ir.IntType(raw.kind.bitwidth)), raw.kind)
        if size == 1:
            value = value * factors.spread((first + chunk * step) * 4, F32)
        exact = value.to(F64)
        total.set(total.get() + exact * exact)
    sums.store(0, total.get())


def _compiled(sources: str) -> Any:
    @njit(parallel=True, **OPTIONS)
    def sum_of_squares(
        raw: np.ndarray, stride: int, by_rows: int, shape: tuple[int, int], factors: np.ndarray
    ) -> float:
        assert sources
        rows, columns = shape
        lines, length = (rows, columns) if by_rows else (columns, rows)
        blocks = -(-columns // ROWS)
        sums = np.empty((lines, ROWS), np.float64)
        for line in prange(lines):
            first, step = (line // ROWS * blocks, 1) if by_rows else (line // ROWS, blocks)
            _squares((raw, line * stride, length // ROWS, factors, first, step, sums[line]))
        total = 0.0
        # In order, so that the number of threads changes nothing.
        for line in range(lines):
            for lane in range(ROWS):
                total += sums[line, lane]
        return total

    return sum_of_squares


_sum_of_squares = _compiled(sources_digest())


def sum_of_squares(weight: Weight) -> float:
    """||W||_F^2 in float64, the same on every CPU and with any number of threads; not finite where a weight is not."""
    rows, columns = weight.shape
    if (columns if weight.by_rows else rows) % ROWS:
        whole = np.pad(weight.float32(), ((0, 0), (0, -columns % ROWS)))
        weight = Weight(whole)
    return float(_sum_of_squares(weight.first, weight.stride, int(weight.by_rows), weight.shape, weight.factors))


def all_finite(values: np.ndarray, dtype: str) -> bool:
    """Whether no number of an array that stands for safetensors' `dtype` is NaN or infinite."""
    if dtype == "F8_E4M3":
        # Without its factors, which are a tensor of their own.
        return not bool(((values & 0x7F) == 0x7F).any())
    if dtype in STORED and values.size:
        lines = values.reshape(-1, values.shape[-1]) if values.ndim else values.reshape(1, 1)
        return bool(np.isfinite(sum_of_squares(Weight(lines))))
    return not np.issubdtype(values.dtype, np.floating) or bool(np.isfinite(values).all())
