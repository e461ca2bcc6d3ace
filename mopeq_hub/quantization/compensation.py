"""Error compensation: each column of a weight is rounded, and the columns to come make up for its error.

GPTQ (arXiv 2210.17323): with the Hessian H = X X^T of a layer's inputs X, rounding column i by an error e is best made
up for by taking e times row i of the upper Cholesky factor of H^-1 from the columns behind it. Scales and zero points
are those of the search, fixed beforehand; columns go in the order of falling H_ii, so that the ones that weigh most
are rounded while others can still make up for them.
"""

from typing import Any

import numpy as np
import torch
from numba import njit, prange

from mopeq_hub.kernels.weight import Weight
from mopeq_hub.packing import Packed, pack, quantize, zeros_of

DAMPING = 0.01
"""Added to the diagonal of the Hessian, relative to its mean; as GPTQ has it."""
BLOCK = 128
"""Columns whose errors are handed on together: within a block by a loop, to those behind it by one product."""
_OPTIONS: Any = {"cache": True, "error_model": "numpy", "nogil": True}


class Inverse:
    """The order in which columns are rounded, and the factor by which those to come make up for them."""

    def __init__(self, hessian: torch.Tensor) -> None:
        """hessian: [in, in], symmetric, positive semidefinite."""
        matrix = hessian.double()
        # The diagonal is 0 for inputs that are always zero; their weights decide nothing.
        diagonal = torch.where(matrix.diagonal() == 0, 1.0, matrix.diagonal())
        matrix = matrix.diagonal_scatter(diagonal + DAMPING * diagonal.mean())
        order = diagonal.argsort(descending=True, stable=True)
        # The upper factor U of H^-1 = U^T U is the inverse of the upper R of H = R R^T, which is the lower Cholesky
        # factor with both axes turned round.
        turned = order.flip(0)
        lower = torch.linalg.cholesky(matrix[turned][:, turned])
        inverse = torch.linalg.solve_triangular(lower, torch.eye(len(lower), dtype=lower.dtype), upper=False)
        self.order = order.numpy()
        self.factor = np.ascontiguousarray(inverse.flip(0, 1).float().numpy())


def compensate(weight: Weight, inverse: Inverse, bits: int, group_size: int, symmetric: bool) -> Packed:
    """Quantize and pack a weight [out, in]. Raises MopeqError as `packing.quantize` does."""
    searched = quantize(weight, bits, group_size, symmetric, search=True)
    scales, stored = searched.scales.T, zeros_of(searched, bits)
    of_columns = inverse.order // group_size
    scale = scales.astype(np.float32)[:, of_columns]
    zero = (stored.astype(np.float32) + np.float32(symmetric))[:, of_columns]
    left = weight.float32()[:, inverse.order]
    codes = np.empty(left.shape, dtype=np.uint8)
    for start in range(0, left.shape[1], BLOCK):
        part = slice(start, start + BLOCK)
        errors = np.ascontiguousarray(left[:, part])
        within = np.ascontiguousarray(inverse.factor[part, part])
        codes[:, inverse.order[part]] = _round_block(errors, scale[:, part], zero[:, part], within, bits)
        left[:, start + BLOCK :] -= errors @ inverse.factor[part, start + BLOCK :]
    return pack(codes, np.ascontiguousarray(scales), stored, bits)


@njit(parallel=True, **_OPTIONS)
def _round_block(
    weight: np.ndarray, scales: np.ndarray, zeros: np.ndarray, factor: np.ndarray, bits: int
) -> np.ndarray:
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
