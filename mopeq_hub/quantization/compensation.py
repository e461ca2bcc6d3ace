"""Error compensation: each column of a weight is rounded, and the columns to come make up for its error.

GPTQ (arXiv 2210.17323): with the Hessian H = X X^T of a layer's inputs X, rounding column i by an error e is best made
up for by taking e times row i of the upper Cholesky factor of H^-1 from the columns behind it. Scales and zero points are
those of the search, fixed beforehand; columns go in the order of falling H_ii, so that the ones that weigh most are
rounded while others can still make up for them.
"""

from typing import Any

import numpy as np
from numba import njit, prange

from mopeq_hub.quantization import kernels
from mopeq_hub.quantization.packing import Packed, pack

DAMPING = 0.01
"""Added to the diagonal of the Hessian, relative to its mean; as GPTQ has it."""
BLOCK = 128
"""Columns whose errors are handed on together: within a block by a loop, to those behind it by one product."""
_OPTIONS: Any = {"cache": True, "error_model": "numpy", "nogil": True}


class Inverse:
    """The order in which columns are rounded, and the factor by which those to come make up for them."""

    def __init__(self, hessian: np.ndarray) -> None:
        """hessian: [in, in], symmetric, positive semidefinite, float32 or float64."""
        matrix = hessian.astype(np.float64)
        diagonal = np.diagonal(matrix).copy()
        # Inputs that are always zero; their weights decide nothing.
        diagonal[diagonal == 0] = 1.0
        self.order = np.argsort(-diagonal, kind="stable")
        np.fill_diagonal(matrix, diagonal + DAMPING * diagonal.mean())
        ordered = matrix[np.ix_(self.order, self.order)]
        # The upper factor U of H^-1 = U^T U, from the lower one of H with both axes turned round.
        lower = np.linalg.cholesky(ordered[::-1, ::-1])
        self.factor = np.ascontiguousarray(np.linalg.inv(lower)[::-1, ::-1], dtype=np.float32)


def compensate(weight: np.ndarray, inverse: Inverse, bits: int, group_size: int, symmetric: bool) -> Packed:
    """Quantize and pack a weight [out, in], float32, C order."""
    if symmetric:
        found = kernels.scales_symmetric(weight, group_size, bits, True)
        zeros = np.full(found.shape, 1 << (bits - 1), dtype=np.uint8)
    else:
        found, zeros = kernels.scales_asymmetric(weight, group_size, bits, True)
    scales = found.astype(np.float16)
    groups = inverse.order // group_size
    left = np.ascontiguousarray(weight[:, inverse.order])
    codes = np.empty(weight.shape, dtype=np.uint8)
    for start in range(0, weight.shape[1], BLOCK):
        end = min(start + BLOCK, weight.shape[1])
        of_columns = groups[start:end]
        part = np.ascontiguousarray(left[:, start:end])
        factor = np.ascontiguousarray(inverse.factor[start:end, start:end])
        codes[:, inverse.order[start:end]] = _round_block(
            part, scales[:, of_columns].astype(np.float32), zeros[:, of_columns].astype(np.float32), factor, bits
        )
        left[:, end:] -= part @ inverse.factor[start:end, end:]
    return pack(codes, scales, zeros - np.uint8(1) if symmetric else zeros, bits)


@njit(parallel=True, **_OPTIONS)
def _round_block(weight: np.ndarray, scales: np.ndarray, zeros: np.ndarray, factor: np.ndarray, bits: int) -> np.ndarray:
    """Codes [out, n], uint8, of a block of columns; `weight` [out, n] becomes the errors, each over its U_ii."""
    rows, columns = weight.shape
    top = np.float32((1 << bits) - 1)
    codes = np.empty((rows, columns), dtype=np.uint8)
    for row in prange(rows):
        for i in range(columns):
            scale = scales[row, i]
            zero = zeros[row, i]
            code = min(max(np.rint(weight[row, i] / scale) + zero, np.float32(0.0)), top)
            codes[row, i] = np.uint8(code)
            error = (weight[row, i] - scale * (code - zero)) / factor[i, i]
            for j in range(i + 1, columns):
                weight[row, j] -= error * factor[i, j]
            weight[row, i] = error
    return codes
