"""Rows of small numbers packed one after another into 32-bit words, and back."""

from typing import Any

import numpy as np
from numba import njit, prange

_OPTIONS: Any = {"cache": True, "nogil": True}


@njit(parallel=True, **_OPTIONS)
def pack_rows(values: np.ndarray, bits: int) -> np.ndarray:
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
def unpack_rows(words: np.ndarray, bits: int) -> np.ndarray:
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
