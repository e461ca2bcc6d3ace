"""Packed weights for tests: random codes, scales and zero points of every width and both grids."""

import numpy as np
import torch

from mopeq_hub.packing import dequantize, pack
from mopeq_hub.runtime.matrices import PackedMatrix


def random_matrix(
    rows: int, columns: int, bits: int, group: int = 32, symmetric: bool = True, bias: bool = False, seed: int = 0
) -> tuple[PackedMatrix, torch.Tensor]:
    """A packed weight, and what it stands for [rows, columns], float32."""
    generator = np.random.default_rng(seed)
    shape = (rows, columns // group)
    codes = generator.integers(0, 1 << bits, (rows, columns), np.uint8)
    scales = generator.uniform(-0.02, 0.02, shape).astype(np.float16)
    middle = np.full(shape, (1 << (bits - 1)) - 1, np.uint8)
    zeros = middle if symmetric else generator.integers(0, 1 << bits, shape, np.uint8)
    packed = pack(codes, scales, zeros, bits)
    qweight, qzeros, stored = (torch.from_numpy(value) for value in packed.tensors().values())
    shift = torch.from_numpy(generator.standard_normal(rows).astype(np.float32)) if bias else None
    matrix = PackedMatrix(qweight, qzeros, stored, shift, int(symmetric))
    return matrix, torch.from_numpy(dequantize(packed, bits, symmetric))


def product(vectors: torch.Tensor, made: tuple[PackedMatrix, torch.Tensor]) -> torch.Tensor:
    """Of vectors [n, columns] with a weight as `random_matrix` makes it, its bias added: [n, rows]."""
    matrix, weight = made
    return torch.nn.functional.linear(vectors, weight, matrix.bias)


def fixed_point_error(vectors: torch.Tensor, weight: torch.Tensor, group: int) -> torch.Tensor:
    """How far products of vectors [n, columns] in fixed point may be off, float64 [n, rows]: each number of a block is
    off by half of what stands for one, 2^-15 of the power of two below the block's largest; and float32's rounding."""
    largest = vectors.float().abs().view(len(vectors), -1, group).amax(-1).double()
    blocks = weight.double().abs().view(len(weight), -1, group).sum(-1)
    return largest / 2**15 @ blocks.T + 4e-7 * (vectors.double() @ weight.double().T).abs().amax() + 1e-6


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, of the largest value."""
    return float((found.float() - expected.float()).abs().max() / expected.abs().max())
