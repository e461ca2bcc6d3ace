"""auto-round's layout of packed weights, as its loader reads it, and back.

For a weight [out, in] at b bits with groups of g: `qweight` int32 [in * b / 32, out], `qzeros` int32 [in / g, out * b /
32], `scales` float16 [in / g, out]. Values lie one after another as a little-endian stream of b-bit fields, along `in`
for the codes and along `out` for the zero points, so that 32 values fill b words, at 3 bits too. `auto_round:auto_gptq`
(symmetric) stores zero points minus one, `auto_round` (asymmetric) as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mopeq_hub.errors import MopeqError
from mopeq_hub.kernels.weight import Weight

if TYPE_CHECKING:
    import torch

_FLOAT16_END = 65520.0
"""From here on the nearest float16 is infinite."""
PARTS = ("qweight", "qzeros", "scales")
"""What auto-round calls the tensors of a packed weight within its module."""


@dataclass(frozen=True)
class Packed:
    """One packed weight; shapes and dtypes as above."""

    qweight: np.ndarray
    qzeros: np.ndarray
    scales: np.ndarray

    @classmethod
    def of(cls, module: str, get: Callable[[str], np.ndarray]) -> "Packed":
        """The weight of a module; `get` gives its tensors by their names."""
        return cls(*(get(f"{module}.{part}") for part in PARTS))

    def tensors(self) -> dict[str, np.ndarray]:
        """The arrays by `PARTS`."""
        return {part: getattr(self, part) for part in PARTS}


def quantize(
    weight: Weight,
    bits: int,
    group_size: int,
    symmetric: bool,
    search: bool,
    importance: np.ndarray | None = None,
    gpu: "torch.device | None" = None,
) -> Packed:
    """Quantize and pack a weight [out, in].

    importance [in], float32, not negative: of each input channel in the squared error that the search makes least.
    gpu: the device to do it on; None for the CPU.
    Raises MopeqError where a weight is not finite, or a scale does not fit float16, which no trained weight needs.
    """
    rows, columns = weight.shape
    groups = columns // group_size
    if columns % group_size or columns % 32 or rows % 32:
        raise ValueError(f"a weight of shape {weight.shape} does not divide into groups of {group_size} and words")
    from mopeq_hub.kernels.rows import pack_rows
    from mopeq_hub.kernels.search import ASYMMETRIC_STARTS, STARTS

    tried = (STARTS if symmetric else ASYMMETRIC_STARTS)[bits] if search else ()
    starts = np.float32(1) / np.array(tried, np.float32)
    heavy = np.empty(0, np.float32) if importance is None else np.ascontiguousarray(importance, np.float32)
    words = np.empty((columns * bits // 32, rows), np.int32)
    scales = np.empty((groups, rows), np.uint16)
    zeros = np.empty((groups, rows), np.uint8)
    if gpu is not None:
        from mopeq_hub.kernels import on_gpu

        filled = (words, scales, zeros)
        largest, largest_scale = on_gpu.quantize(weight, heavy, starts, group_size, bits, symmetric, *filled, gpu)
    else:
        from mopeq_hub.kernels.quantize import quantize as quantize_on_cpu

        where = (weight.first, weight.stride, int(weight.by_rows), weight.shape, weight.factors)
        how = (heavy, starts, group_size, bits, int(symmetric))
        largest, largest_scale = quantize_on_cpu(*where, *how, words, scales, zeros)
    if not np.isfinite(largest):
        raise MopeqError("NaN or infinite values", "the source is damaged or was trained to nowhere; use another")
    if largest_scale >= _FLOAT16_END:
        raise MopeqError("weights too large for a float16 scale", "the source is damaged; use another")
    if symmetric:
        middle = _repeated((1 << (bits - 1)) - 1, bits, rows)
        return Packed(words, np.repeat(middle[None], groups, 0), scales.view(np.float16))
    return Packed(words, pack_rows(zeros, bits), scales.view(np.float16))


def pack(codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray, bits: int) -> Packed:
    """Pack codes [out, in] uint8, scales [out, in / g] float16 and zero points as stored [out, in / g] uint8."""
    from mopeq_hub.kernels.rows import pack_rows

    return Packed(
        qweight=np.ascontiguousarray(pack_rows(codes, bits).T),
        qzeros=pack_rows(np.ascontiguousarray(zeros.T), bits),
        scales=np.ascontiguousarray(scales.T),
    )


def zeros_of(packed: Packed, bits: int) -> np.ndarray:
    """Zero points as stored [out, in / g], uint8."""
    from mopeq_hub.kernels.rows import unpack_rows

    return np.ascontiguousarray(unpack_rows(packed.qzeros, bits).T)


def dequantize(packed: Packed, bits: int, symmetric: bool) -> np.ndarray:
    """The weight [out, in], float32, that the packed form stands for."""
    from mopeq_hub.kernels.rows import unpack_rows

    groups, rows = packed.scales.shape
    columns = packed.qweight.shape[0] * 32 // bits
    codes = unpack_rows(np.ascontiguousarray(packed.qweight.T), bits)
    zeros = zeros_of(packed, bits).astype(np.float32) + (1.0 if symmetric else 0.0)
    grouped = codes.reshape(rows, groups, columns // groups).astype(np.float32) - zeros[..., None]
    return (grouped * packed.scales.T.astype(np.float32)[..., None]).reshape(rows, columns)


def _repeated(value: int, bits: int, count: int) -> np.ndarray:
    """int32 [count * bits / 32]: one value `count` times, packed."""
    stream = sum(value << (bits * place) for place in range(32))
    words = [stream >> (32 * word) & 0xFFFFFFFF for word in range(bits)]
    return np.tile(np.array(words, np.uint32).view(np.int32), count // 32)
