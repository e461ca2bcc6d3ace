"""The same quantization by torch, for a GPU: scale and zero point of every group by the same search, in float32.

Candidates, objective and formulas are those of `mopeq_hub.kernels.search`; arithmetic is float32 throughout where the
CPU's search counts in 16-bit integers, so that near-ties can fall the other way. A slice of rows is on the device at a
time.
"""

from functools import cache

import numpy as np
import torch

from mopeq_hub.kernels.weight import Weight

_SLICE = 1 << 25
"""Weights on the device at a time; a handful of float32 copies of them are needed."""
_TINY = 2.0**-24


@cache
def device() -> "torch.device | None":
    """The GPU, where there is one."""
    return torch.device("cuda") if torch.cuda.is_available() else None


def quantize(
    weight: Weight,
    importance: np.ndarray,
    starts: np.ndarray,
    group: int,
    bits: int,
    symmetric: bool,
    words: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    on: torch.device,
) -> tuple[float, float]:
    """Quantize and pack a weight on a device; arguments, what is filled and what is returned as for
    `mopeq_hub.kernels.quantize.quantize`."""
    rows, columns = weight.shape
    step = max(32, _SLICE // columns // 32 * 32)
    largest = largest_scale = 0.0
    heavy = torch.from_numpy(importance).to(on).reshape(1, -1, group) if len(importance) else None
    for first in range(0, rows, step):
        part = slice(first, min(first + step, rows))
        numbers = _on_device(weight, part, on).reshape(-1, columns // group, group)
        scale, zero = _chosen(numbers, heavy, starts, bits, symmetric)
        if heavy is not None and len(starts):
            scale = _refitted(numbers, heavy, scale, zero, float((1 << bits) - 1))
        stored = _stored(scale)
        largest = max(largest, _largest(numbers))
        largest_scale = max(largest_scale, float(scale.abs().max()))
        top = (1 << bits) - 1
        code = ((numbers / stored[..., None]).round() + zero[..., None]).clamp(0, top).to(torch.int64)
        words[:, part] = _packed(code.reshape(-1, columns), bits).T.cpu().numpy()
        scales[:, part] = stored.half().view(torch.int16).T.contiguous().cpu().numpy().view(np.uint16)
        zeros[:, part] = zero.to(torch.uint8).T.cpu().numpy()
    return largest, largest_scale


def _on_device(weight: Weight, rows: slice, on: torch.device) -> torch.Tensor:
    """Rows of the weight as float32 on the device."""
    part = Weight(np.ascontiguousarray(weight.values[rows]), _factors(weight, rows))
    if part.values.dtype == np.uint16:
        return torch.from_numpy(part.values.view(np.int16)).to(on).view(torch.bfloat16).float()
    return torch.from_numpy(part.float32()).to(on)


def _factors(weight: Weight, rows: slice) -> np.ndarray:
    if weight.values.dtype != np.uint8:
        return weight.factors
    return np.ascontiguousarray(weight.factors[rows.start // 16 : -(-rows.stop // 16)])


def _chosen(
    numbers: torch.Tensor, importance: torch.Tensor | None, starts: np.ndarray, bits: int, symmetric: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points [rows, groups], float32, of weights [rows, groups, group]."""
    top, half = float((1 << bits) - 1), float(1 << (bits - 1))
    least, most = numbers.amin(-1).clamp(max=0), numbers.amax(-1).clamp(min=0)
    spread = (most - least) / top
    if len(starts) == 0 and symmetric:
        farthest = torch.where(most > -least, -most, -least)
        return farthest / half, torch.full_like(spread, half)
    if len(starts) == 0:
        spread = spread.clamp(min=2.0**-100)
        return spread, (-least / spread).round().clamp(0, top)
    base = torch.maximum(most, -least) / half if symmetric else spread
    base = base.clamp(min=2.0**-100)
    zero = torch.full_like(base, half - 1) if symmetric else (-least / base).floor().clamp(0, top - 1)
    gain, scale, chosen = (torch.zeros_like(base) for _ in range(3))
    weighted = numbers if importance is None else numbers * importance
    for inverse in starts:
        nearest = (numbers * (float(inverse) / base)[..., None]).round()
        for shift in (0, 1):
            low = -(zero + shift)[..., None]
            code = torch.minimum(torch.maximum(nearest, low), low + top)
            cross = (code * weighted).sum(-1).clamp(min=0)
            power = (code * code * (1 if importance is None else importance)).sum(-1)
            saved = torch.where(power > 0, cross * cross / power, 0.0)
            better = saved > gain
            gain = torch.where(better, saved, gain)
            scale = torch.where(better, cross / power, scale)
            chosen = torch.where(better, float(shift), chosen)
    if symmetric:
        return torch.where(chosen == 0, -scale, scale), torch.full_like(base, half)
    return scale, zero + chosen


def _refitted(
    numbers: torch.Tensor, importance: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, top: float
) -> torch.Tensor:
    """The weighted least-squares scales of the codes that these scales give."""
    low = -zero[..., None]
    code = torch.minimum(torch.maximum((numbers / scale[..., None]).round(), low), low + top)
    cross, power = ((importance * code * other).sum(-1) for other in (numbers, code))
    return torch.where(power > 0, cross / power, scale)


def _stored(scale: torch.Tensor) -> torch.Tensor:
    """The nearest float16 that is not zero, as float32."""
    magnitude = scale.abs().clamp(min=_TINY)
    return torch.where(scale.signbit(), -magnitude, magnitude).half().float()


def _largest(numbers: torch.Tensor) -> float:
    value = float(numbers.abs().max())
    return value if value < float("inf") else float("inf")


def _packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Words [rows, columns * bits / 32], int32, of codes [rows, columns], int64."""
    rows, columns = codes.shape
    fields = codes.reshape(rows, columns // 32, 32)
    words = torch.zeros(rows, columns // 32, bits + 1, dtype=torch.int64, device=codes.device)
    for number in range(32):
        word, shift = divmod(number * bits, 32)
        field = fields[..., number] << shift
        words[..., word] |= field & 0xFFFFFFFF
        words[..., word + 1] |= field >> 32
    signed = words[..., :bits]
    signed = torch.where(signed >= 1 << 31, signed - (1 << 32), signed)
    return signed.to(torch.int32).reshape(rows, columns * bits // 32)
