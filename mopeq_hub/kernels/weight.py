"""A weight matrix where it lies: in a mapped file, or in memory."""

from dataclasses import dataclass, field

import numpy as np

ROWS = 16
"""Lanes of a vector of 32-bit numbers: the output rows of a tile, and what shares a factor of float8."""
STORED = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F8_E4M3": np.uint8}
"""The dtype that stands for one of safetensors' in an array; NumPy knows no bfloat16 and no float8."""
_NO_FACTORS = np.ones((1, 1), np.float32)


@dataclass(frozen=True)
class Weight:
    """Numbers [out, in], by rows or by columns one after another, in a dtype of STORED.

    factors [out / 16, in / 16], float32: what float8 is multiplied by.
    """

    values: np.ndarray
    factors: np.ndarray = field(default_factory=lambda: _NO_FACTORS)

    def __post_init__(self) -> None:
        if self.values.dtype not in STORED.values() or self.values.ndim != 2:
            raise ValueError(f"a weight of {self.values.ndim} dimensions in {self.values.dtype}")
        if self.values.dtype == np.uint8 and self.factors.shape != tuple(-(-n // ROWS) for n in self.values.shape):
            raise ValueError(f"factors of shape {self.factors.shape} for a weight of {self.values.shape}")
        if self.values.itemsize not in self.values.strides:
            object.__setattr__(self, "values", np.ascontiguousarray(self.values))

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.values.shape
        return rows, columns

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    @property
    def by_rows(self) -> bool:
        """Whether the inputs of one output are neighbours."""
        return self.values.strides[1] == self.values.itemsize

    @property
    def stride(self) -> int:
        """Bytes between rows where it lies by rows, else between columns."""
        return self.values.strides[0 if self.by_rows else 1]

    @property
    def first(self) -> np.ndarray:
        """One element, where the weight begins: kernels are compiled once a dtype, not once a layout.

        float16 comes as int16, since Numba has no float16 on a CPU.
        """
        one = np.lib.stride_tricks.as_strided(self.values, (1,), (self.values.itemsize,))
        one = one.view(np.int16) if one.dtype == np.float16 else one
        one.flags.writeable = False
        return one

    def float32(self) -> np.ndarray:
        """The numbers [out, in], float32, C order, as a copy."""
        if self.values.dtype == np.uint16:
            return (self.values.astype(np.uint32, order="C") << 16).view(np.float32)
        if self.values.dtype == np.uint8:
            rows, columns = self.shape
            factors = self.factors.repeat(ROWS, 0).repeat(ROWS, 1)[:rows, :columns]
            return np.ascontiguousarray(_E4M3[self.values] * factors)
        return self.values.astype(np.float32, order="C")

    def bfloat16(self) -> np.ndarray:
        """The nearest bfloat16 of each number [out, in], as uint16."""
        bits = self.float32().view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _e4m3_numbers() -> np.ndarray:
    """The 256 numbers of float8 e4m3, in the order of their bits: sign, four bits of exponent, three of mantissa."""
    bits = np.arange(256)
    exponent, mantissa = (bits >> 3) & 15, bits & 7
    magnitude = np.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    magnitude[(bits & 127) == 127] = np.nan
    return np.where(bits & 128, -magnitude, magnitude).astype(np.float32)


_E4M3 = _e4m3_numbers()
