"""auto-round's layout of packed weights, as its loader reads it, and back.

For a weight [out, in] at b bits with groups of g: `qweight` int32 [in * b / 32, out], `qzeros` int32 [in / g, out * b /
32], `scales` float16 [in / g, out]. Values lie one after another as a little-endian stream of b-bit fields, along `in`
for the codes and along `out` for the zero points, so that 32 values fill b words, at 3 bits too. `auto_round:auto_gptq`
(symmetric) stores zero points minus one, `auto_round` (asymmetric) as they are.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange

from mopeq_hub.errors import MopeqError
from mopeq_hub.quantization import kernels

_OPTIONS: Any = {"cache": True, "nogil": True}


@dataclass(frozen=True)
class Packed:
    """One packed weight; shapes and dtypes as above."""

    qweight: np.ndarray
    qzeros: np.ndarray
    scales: np.ndarray

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays by the name auto-round gives them within the module."""
        return {"qweight": self.qweight, "qzeros": self.qzeros, "scales": self.scales}


def quantize(weight: np.ndarray, bits: int, group_size: int, symmetric: bool, search: bool) -> Packed:
    """Quantize and pack a weight [out, in], float32, C order.

    Raises MopeqError where a scale does not fit float16, which no trained weight needs.
    """
    if symmetric:
        scales = _stored(kernels.scales_symmetric(weight, group_size, bits, search))
        codes = kernels.codes_symmetric(weight, scales.astype(np.float32), group_size, bits)
        zeros = np.full(scales.shape, (1 << (bits - 1)) - 1, dtype=np.uint8)
    else:
        raw, zeros = kernels.scales_asymmetric(weight, group_size, bits, search)
        scales = _stored(raw)
        codes = kernels.codes_asymmetric(weight, scales.astype(np.float32), zeros, group_size, bits)
    return pack(codes, scales, zeros, bits)


def pack(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, bits: int) -> Packed:
    """Pack codes [out, in] uint8, scales [out, in / g] float16 and zero points as stored [out, in / g] uint8."""
    return Packed(
        qweight=np.ascontiguousarray(_pack_rows(codes, bits).T),
        qzeros=_pack_rows(np.ascontiguousarray(zeros.T), bits),
        scales=np.ascontiguousarray(scales.T),
    )


def dequantize(packed: Packed, bits: int, symmetric: bool) -> np.ndarray:
    """The weight [out, in], float32, that the packed form stands for."""
    groups, rows = packed.scales.shape
    columns = packed.qweight.shape[0] * 32 // bits
    codes = _unpack_rows(np.ascontiguousarray(packed.qweight.T), bits)
    zeros = _unpack_rows(packed.qzeros, bits).T.astype(np.float32) + (1.0 if symmetric else 0.0)
    grouped = codes.reshape(rows, groups, columns // groups).astype(np.float32) - zeros[..., None]
    return (grouped * packed.scales.T.astype(np.float32)[..., None]).reshape(rows, columns)


def _stored(scales: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = scales.astype(np.float16)
    if not np.isfinite(stored).all():
        raise MopeqError("a group of weights is too large for a float16 scale", "the source is damaged; use another")
    return stored


@njit(parallel=True, **_OPTIONS)
def _pack_rows(values: np.ndarray, bits: int) -> np.ndarray:
    """int32 [n, m * bits / 32] of values [n, m], m a multiple of 32."""
    rows, columns = values.shape
    words = np.zeros((rows, columns * bits // 32), dtype=np.uint32)
    for row in prange(rows):
        for column in range(columns):
            position = column * bits
            word = position >> 5
            shift = position & 31
            value = np.uint64(values[row, column]) << np.uint64(shift)
            words[row, word] |= np.uint32(value & np.uint64(0xFFFFFFFF))
            if shift + bits > 32:
                words[row, word + 1] |= np.uint32(value >> np.uint64(32))
    return words.view(np.int32)


@njit(parallel=True, **_OPTIONS)
def _unpack_rows(words: np.ndarray, bits: int) -> np.ndarray:
    """Values [n, m], uint8, of int32 [n, m * bits / 32]."""
    stream = words.view(np.uint32)
    rows = stream.shape[0]
    columns = stream.shape[1] * 32 // bits
    values = np.empty((rows, columns), dtype=np.uint8)
    mask = np.uint64((1 << bits) - 1)
    for row in prange(rows):
        for column in range(columns):
            position = column * bits
            word = position >> 5
            shift = position & 31
            value = np.uint64(stream[row, word]) >> np.uint64(shift)
            if shift + bits > 32:
                value |= np.uint64(stream[row, word + 1]) << np.uint64(32 - shift)
            values[row, column] = np.uint8(value & mask)
    return values
