"""The hot loops: group-wise quantization of a weight matrix, round-to-nearest and scale search, compiled by Numba.

Every function takes a weight [out, in] in float32, C order, and a group size that divides `in`, and gives a scale (and
a zero point) for each group; `codes_*` then gives the codes for scales as they will be stored, rounded to float16, so
that what is searched, what is packed and what is dequantized are one thing. Rows are independent and run in parallel.

Symmetric: w ~ s * c with codes c in [-2^(b-1), 2^(b-1) - 1] and a scale of either sign, as auto-round does it: the
largest weight of a group falls on the end of the grid that reaches further. Asymmetric: w ~ s * (c - z), c and z in [0,
2^b - 1].

The search tries several scales for each group. Each candidate gives codes, the codes give the scale that fits them best
by least squares (<c, w> / <c, c>), and the one with the least squared error is kept: an alternating minimisation with
several starts.
"""

from typing import Any

import numpy as np
from numba import njit, prange

_OPTIONS: Any = {
    "cache": True,
    "fastmath": {"contract", "reassoc", "nsz", "arcp"},
    "error_model": "numpy",
    "nogil": True,
}

# Candidate scales relative to round-to-nearest's, which is among them; denser where bell-shaped weights want them.
_SYMMETRIC_STEPS = np.array(
    [0.52, 0.60, 0.66, 0.72, 0.77, 0.82, 0.87, 0.91, 0.95, 1.0, 1.04, 1.07, 1.12], dtype=np.float32
)
_ASYMMETRIC_STEPS = np.array([0.55, 0.65, 0.72, 0.78, 0.83, 0.88, 0.92, 0.96, 1.0], dtype=np.float32)
_TINY = np.float32(6.2e-5)
"""Smallest scale that float16 holds in full precision; a group of smaller weights than that is stored as zeros."""


@njit(inline="always", **_OPTIONS)
def _clamp(value, low, high):  # type: ignore[no-untyped-def]
    return min(max(value, low), high)


@njit(inline="always", **_OPTIONS)
def _extreme(group):  # type: ignore[no-untyped-def]
    """The element of the largest magnitude, with its sign."""
    low = group[0]
    high = group[0]
    for value in group:
        low = min(low, value)
        high = max(high, value)
    return high if high > -low else low


@njit(inline="always", **_OPTIONS)
def _refine_symmetric(group, scale, low, high):  # type: ignore[no-untyped-def]
    """The least-squares scale for the codes that `scale` gives, and the squared error it saves against all-zero
    codes."""
    inverse = np.float32(1.0) / scale
    cross = np.float32(0.0)
    power = np.float32(0.0)
    for value in group:
        code = _clamp(np.rint(value * inverse), low, high)
        cross += code * value
        power += code * code
    if power == 0:
        return scale, np.float32(0.0)
    return cross / power, cross * cross / power


@njit(parallel=True, **_OPTIONS)
def scales_symmetric(weight: np.ndarray, group_size: int, bits: int, search: bool) -> np.ndarray:
    """Scales [out, in / group_size], float32, of the symmetric grid."""
    rows, columns = weight.shape
    groups = columns // group_size
    low = np.float32(-(1 << (bits - 1)))
    high = -low - np.float32(1.0)
    scales = np.empty((rows, groups), dtype=np.float32)
    for row in prange(rows):
        for index in range(groups):
            group = weight[row, index * group_size : (index + 1) * group_size]
            nearest = _extreme(group) / low
            best = nearest
            if search and nearest != 0:
                gain = np.float32(-1.0)
                for step in _SYMMETRIC_STEPS:
                    for sign in (np.float32(1.0), np.float32(-1.0)):
                        scale, saved = _refine_symmetric(group, sign * step * nearest, low, high)
                        if saved > gain:
                            gain = saved
                            best = scale
            scales[row, index] = best if abs(best) >= _TINY else _TINY
    return scales


@njit(parallel=True, **_OPTIONS)
def codes_symmetric(weight: np.ndarray, scales: np.ndarray, group_size: int, bits: int) -> np.ndarray:
    """Unsigned codes [out, in], uint8, c + 2^(b-1), for scales as stored."""
    rows, columns = weight.shape
    low = np.float32(-(1 << (bits - 1)))
    high = -low - np.float32(1.0)
    codes = np.empty((rows, columns), dtype=np.uint8)
    for row in prange(rows):
        for index in range(columns // group_size):
            inverse = np.float32(1.0) / scales[row, index]
            for column in range(index * group_size, (index + 1) * group_size):
                codes[row, column] = np.uint8(_clamp(np.rint(weight[row, column] * inverse), low, high) - low)
    return codes


@njit(inline="always", **_OPTIONS)
def _refine_asymmetric(group, scale, zero, top):  # type: ignore[no-untyped-def]
    """As `_refine_symmetric`, with the zero point held."""
    inverse = np.float32(1.0) / scale
    cross = np.float32(0.0)
    power = np.float32(0.0)
    for value in group:
        code = _clamp(np.rint(value * inverse) + zero, np.float32(0.0), top) - zero
        cross += code * value
        power += code * code
    if power == 0 or cross <= 0:
        return scale, np.float32(0.0)
    return cross / power, cross * cross / power


@njit(parallel=True, **_OPTIONS)
def scales_asymmetric(weight: np.ndarray, group_size: int, bits: int, search: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scales, float32, and zero points, uint8, both [out, in / group_size], of the asymmetric grid."""
    rows, columns = weight.shape
    groups = columns // group_size
    top = np.float32((1 << bits) - 1)
    scales = np.empty((rows, groups), dtype=np.float32)
    zeros = np.empty((rows, groups), dtype=np.uint8)
    for row in prange(rows):
        for index in range(groups):
            group = weight[row, index * group_size : (index + 1) * group_size]
            # The grid must hold zero: the zero point is a code.
            least = np.float32(0.0)
            most = np.float32(0.0)
            for value in group:
                least = min(least, value)
                most = max(most, value)
            nearest = max((most - least) / top, _TINY)
            best = nearest
            best_zero = _clamp(np.rint(-least / nearest), np.float32(0.0), top)
            if search:
                gain = np.float32(-1.0)
                for step in _ASYMMETRIC_STEPS:
                    centre = np.rint(-least / nearest)
                    for shift in range(-1, 2):
                        zero = _clamp(centre + np.float32(shift), np.float32(0.0), top)
                        scale, saved = _refine_asymmetric(group, step * nearest, zero, top)
                        if saved > gain:
                            gain = saved
                            best = scale
                            best_zero = zero
            scales[row, index] = max(best, _TINY)
            zeros[row, index] = np.uint8(best_zero)
    return scales, zeros


@njit(parallel=True, **_OPTIONS)
def codes_asymmetric(
    weight: np.ndarray, scales: np.ndarray, zeros: np.ndarray, group_size: int, bits: int
) -> np.ndarray:
    """Codes [out, in], uint8, for scales as stored."""
    rows, columns = weight.shape
    top = np.float32((1 << bits) - 1)
    codes = np.empty((rows, columns), dtype=np.uint8)
    for row in prange(rows):
        for index in range(columns // group_size):
            inverse = np.float32(1.0) / scales[row, index]
            zero = np.float32(zeros[row, index])
            for column in range(index * group_size, (index + 1) * group_size):
                codes[row, column] = np.uint8(
                    _clamp(np.rint(weight[row, column] * inverse) + zero, np.float32(0.0), top)
                )
    return codes
