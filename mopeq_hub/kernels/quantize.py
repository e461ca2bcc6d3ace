"""The hot loop: group-wise quantization of a weight matrix straight from the mapped file, packed as it is written.

A tile is 16 output rows of one group. It is read once, in whatever dtype the file has, into float32 with one output row
a lane; scale and zero point are chosen for the 16 rows at once; the codes are packed and go to their final place. No
other copy of the weight exists. Blocks of rows run in parallel.

The grid: w ~ s * (c - z) with codes c in [0, top], top = 2^b - 1. Symmetric quantization has z = 2^(b-1) and a scale of
either sign, as auto-round does it, so that the end of the grid that reaches further can face the largest weight.

The same weights give the same bytes on every CPU and with any number of threads: sums are of integers, and float
arithmetic is strict IEEE, lane by lane.
"""

from typing import Any

import numpy as np
from numba import njit, prange

from mopeq_hub.kernels.generate import OPTIONS, sources_digest
from mopeq_hub.kernels.pack import pack_2, pack_3, pack_4, pack_8
from mopeq_hub.kernels.search import fix, fix_weighted, nearest, refit, search, search_weighted
from mopeq_hub.kernels.tile import load_tile
from mopeq_hub.kernels.weight import ROWS


def _compiled(sources: str) -> Any:
    """The driver. `sources` is part of it, so that compiled code on disk is not used after the generators changed."""

    @njit(parallel=True, **OPTIONS)
    def quantize(
        raw: np.ndarray,
        stride: int,
        by_rows: int,
        shape: tuple[int, int],
        factors: np.ndarray,
        importance: np.ndarray,
        starts: np.ndarray,
        group: int,
        bits: int,
        symmetric: int,
        words: np.ndarray,
        scales: np.ndarray,
        zeros: np.ndarray,
    ) -> tuple[float, float]:
        assert sources
        rows, columns = shape
        blocks = rows // ROWS
        largest = np.zeros(blocks, np.float32)
        largest_scale = np.zeros((blocks, ROWS), np.float32)
        for block in prange(blocks):
            tile = np.empty((group, ROWS), np.float32)
            fixed = np.empty((3, group, ROWS), np.int16)
            extremes = np.empty((3, ROWS), np.float32)
            ratio = np.empty(ROWS, np.float32)
            scale = np.empty(ROWS, np.float32)
            zero = np.empty(ROWS, np.int32)
            row = block * ROWS
            for column in range(0, columns, group):
                line, place = (row, column) if by_rows else (column, row)
                start = line * stride + place * raw.itemsize
                place = block * (columns // ROWS) + column // ROWS
                load_tile((raw, start, stride, by_rows, group, factors, place, tile, extremes))
                for lane in range(ROWS):
                    # A comparison with NaN is false.
                    if not extremes[2, lane] <= largest[block]:
                        largest[block] = extremes[2, lane] if extremes[2, lane] < np.inf else np.inf
                if len(starts) == 0:
                    nearest((extremes, bits, symmetric, scale, zero))
                else:
                    fix((tile, group, extremes, fixed))
                    settings = (starts, len(starts), bits, symmetric, scale, zero)
                    if len(importance) and bits <= 4:
                        fix_weighted((tile, group, importance, column, fixed, ratio))
                        search_weighted((fixed, group, extremes, ratio, *settings))
                    else:
                        search((fixed, group, extremes, ratio, *settings))
                    if len(importance):
                        refit((tile, group, importance, column, bits, scale, zero))
                chosen = (tile, group, scale, zero)
                target = (column, row, rows, words, scales, zeros, largest_scale[block])
                if bits == 2:
                    pack_2((*chosen, *target))
                elif bits == 3:
                    pack_3((*chosen, *target))
                elif bits == 4:
                    pack_4((*chosen, *target))
                else:
                    pack_8((*chosen, *target))
        return largest.max(), largest_scale.max()

    return quantize


quantize = _compiled(sources_digest())
"""quantize(raw, stride, by_rows, (out, in), factors, importance, starts, group, bits, symmetric, words, scales, zeros)

Quantizes and packs a weight [out, in], both multiples of 32, `in` of the group size too.

raw: one element, the weight's first, in the dtype it is stored as: uint16 (bfloat16), int16 (float16), float32 or uint8
(float8 e4m3). stride: bytes from one output row to the next where by_rows, else from one input column to the next; the
other axis has neighbours. factors [out / 16, in / 16], float32: what float8 is multiplied by. importance [in], float32:
of each input channel in the squared error; empty where all count alike. starts, float32: 1 / r of each scale to try;
empty for round-to-nearest. Filled are words [in * bits / 32, out] int32, scales [in / group, out] uint16 (float16's
bits) and zeros [in / group, out] uint8. Returns the largest magnitude among the weights, infinite where one is not
finite, and among the scales.
"""
