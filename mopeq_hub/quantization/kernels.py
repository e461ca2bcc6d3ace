"""The hot loops: group-wise quantization of a weight matrix, round-to-nearest and scale search, compiled by Numba.

Every function takes a weight [out, in] in float32, C order, and a group size that divides `in`, and gives a scale (and
a zero point) for each group; `codes_*` then gives the codes for scales as they will be stored, rounded to float16, so
that what is packed is what was meant. Rows are independent and run in parallel.

Symmetric: w ~ s * c with codes c in [-2^(b-1), 2^(b-1) - 1] and a scale of either sign, as auto-round does it: the
largest weight of a group falls on the end of the grid that reaches further. Asymmetric: w ~ s * (c - z) with codes c
and zero point z in [0, 2^b - 1].

The search tries several scales for each group. Each candidate gives codes, the codes give the scale that fits them best
by least squares (<c, w> / <c, c>), and the one with the least squared error is kept: an alternating minimisation with
several starts.

The same weights give the same bytes on every CPU and with any number of threads: arithmetic is strict IEEE (no
fast-math), and the inner loops run over candidates, not over weights, so that they vectorize without a sum being
reordered.
"""

from typing import Any

import numpy as np
from numba import njit, prange

_OPTIONS: Any = {"cache": True, "error_model": "numpy", "nogil": True}

# Candidate scales relative to round-to-nearest's, which is among them; denser where bell-shaped weights want them.
_SYMMETRIC_STEPS = np.array([0.52, 0.60, 0.66, 0.72, 0.77, 0.82, 0.87, 0.91, 0.95, 1.0, 1.04, 1.07, 1.12], np.float32)
_ASYMMETRIC_STEPS = np.array([0.55, 0.65, 0.72, 0.78, 0.83, 0.88, 0.92, 0.96, 1.0], np.float32)
_SYMMETRIC_STARTS = np.concatenate([_SYMMETRIC_STEPS, -_SYMMETRIC_STEPS])
_ASYMMETRIC_STARTS = np.repeat(_ASYMMETRIC_STEPS, 3)
_SHIFTS = np.tile(np.array([-1.0, 0.0, 1.0], np.float32), len(_ASYMMETRIC_STEPS))
"""Of the zero point, for each start."""
_TINY = np.float32(2.0**-24)
"""The smallest scale that float16 holds."""


@njit(inline="always", **_OPTIONS)
def _clamp(value, low, high):  # type: ignore[no-untyped-def]
    return min(max(value, low), high)


@njit(inline="always", **_OPTIONS)
def _fit(group, inverses, zeros, low, high, cross, power):  # type: ignore[no-untyped-def]
    """For each candidate k: <c, w> and <c, c> of the codes c, zero point taken off, that its scale gives the group."""
    cross[:] = np.float32(0.0)
    power[:] = np.float32(0.0)
    for value in group:
        for k in range(len(inverses)):
            code = _clamp(np.rint(value * inverses[k]) + zeros[k], low, high) - zeros[k]
            cross[k] += code * value
            power[k] += code * code


@njit(inline="always", **_OPTIONS)
def _best(cross, power):  # type: ignore[no-untyped-def]
    """The candidate that saves most squared error against all-zero codes (<c, w>^2 / <c, c>), or -1 where none does."""
    found = -1
    gain = np.float32(0.0)
    for k in range(len(cross)):
        if power[k] > 0:
            saved = cross[k] * cross[k] / power[k]
            if saved > gain:
                gain = saved
                found = k
    return found


@njit(parallel=True, **_OPTIONS)
def scales_symmetric(weight: np.ndarray, group_size: int, bits: int, search: bool) -> np.ndarray:
    """Scales [out, in / group_size], float32, of the symmetric grid."""
    rows, columns = weight.shape
    groups = columns // group_size
    low = np.float32(-(1 << (bits - 1)))
    high = -low - np.float32(1.0)
    scales = np.empty((rows, groups), dtype=np.float32)
    for row in prange(rows):
        count = len(_SYMMETRIC_STARTS)
        inverses = np.empty(count, dtype=np.float32)
        zeros = np.zeros(count, dtype=np.float32)
        cross = np.empty(count, dtype=np.float32)
        power = np.empty(count, dtype=np.float32)
        for index in range(groups):
            group = weight[row, index * group_size : (index + 1) * group_size]
            least = group[0]
            most = group[0]
            for value in group:
                least = min(least, value)
                most = max(most, value)
            scale = (most if most > -least else least) / low
            if search and scale != 0:
                for k in range(count):
                    inverses[k] = np.float32(1.0) / (_SYMMETRIC_STARTS[k] * scale)
                _fit(group, inverses, zeros, low, high, cross, power)
                found = _best(cross, power)
                if found >= 0:
                    scale = cross[found] / power[found]
            scales[row, index] = scale if abs(scale) >= _TINY else _TINY
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


@njit(parallel=True, **_OPTIONS)
def scales_asymmetric(weight: np.ndarray, group_size: int, bits: int, search: bool) -> tuple[np.ndarray, np.ndarray]:
    """Scales, float32, and zero points, uint8, both [out, in / group_size], of the asymmetric grid."""
    rows, columns = weight.shape
    groups = columns // group_size
    low = np.float32(0.0)
    top = np.float32((1 << bits) - 1)
    scales = np.empty((rows, groups), dtype=np.float32)
    zero_points = np.empty((rows, groups), dtype=np.uint8)
    for row in prange(rows):
        count = len(_ASYMMETRIC_STARTS)
        inverses = np.empty(count, dtype=np.float32)
        zeros = np.empty(count, dtype=np.float32)
        cross = np.empty(count, dtype=np.float32)
        power = np.empty(count, dtype=np.float32)
        for index in range(groups):
            group = weight[row, index * group_size : (index + 1) * group_size]
            # The grid must hold zero: the zero point is a code.
            least = np.float32(0.0)
            most = np.float32(0.0)
            for value in group:
                least = min(least, value)
                most = max(most, value)
            scale = max((most - least) / top, _TINY)
            centre = np.rint(-least / scale)
            zero = _clamp(centre, low, top)
            if search:
                for k in range(count):
                    inverses[k] = np.float32(1.0) / (_ASYMMETRIC_STARTS[k] * scale)
                    zeros[k] = _clamp(centre + _SHIFTS[k], low, top)
                _fit(group, inverses, zeros, low, top, cross, power)
                found = _best(cross, power)
                if found >= 0 and cross[found] > 0:
                    scale = cross[found] / power[found]
                    zero = zeros[found]
            scales[row, index] = max(scale, _TINY)
            zero_points[row, index] = np.uint8(zero)
    return scales, zero_points


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
                code = np.rint(weight[row, column] * inverse) + zero
                codes[row, column] = np.uint8(_clamp(code, np.float32(0.0), top))
    return codes
