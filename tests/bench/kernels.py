"""How good the search is and how fast, beside auto-round's searches on the same weights."""

from collections.abc import Iterator

import numpy as np
import torch
from rich.table import Table

from mopeq_hub.kernels.weight import Weight
from mopeq_hub.model import open_model
from mopeq_hub.packing import dequantize, quantize
from tests.bench.rivals import Rival, searches
from tests.bench.tables import SHAPES, Settings, in_turns, rate, table, times

GROUP = 64
_BITS = (2, 3, 4)
_ERROR_COLUMNS = ("auto-round's search", "weights", *(f"{bits} bits" for bits in _BITS))
_SPEED_COLUMNS = ("auto-round's search", "bits", "ours, GB/s", "auto-round, GB/s", "ours / auto-round's")
_DTYPE_COLUMNS = ("stored as", "bits", "symmetric, GB/s", "asymmetric, GB/s")
_STORED = {
    "bfloat16": (torch.bfloat16, torch.uint16),
    "float16": (torch.float16, torch.float16),
    "float32": (torch.float32, torch.float32),
    "float8, blocks of 128": (torch.float8_e4m3fn, torch.uint8),
}


def kernels(settings: Settings) -> Iterator[Table]:
    rivals = searches()
    weights = {"Gaussian": gaussian(1, settings.small)[0][:256], "bundled model's experts": trained(settings.small)}
    yield table(
        "Search error, ours / auto-round's, groups of 64",
        _ERROR_COLUMNS,
        (_error_row(rival, name, weight) for rival in rivals for name, weight in weights.items()),
        "Root of the sum of squared errors. Target: at most 1.003.",
    )
    matrices = gaussian(8, settings.small)
    rows, columns = matrices[0].shape
    yield table(
        f"Search and pack, {len(matrices)} matrices of {rows} x {columns}, groups of 64",
        _SPEED_COLUMNS,
        (_speed_row(rival, bits, matrices, settings) for rival in rivals for bits in _BITS),
        "GB of bfloat16 a second; auto-round's is given one matrix, or for the asymmetric search 128 rows of it, as "
        "float32, and does not pack. Targets: 0.4 GB/s, and 200x.",
    )
    yield table(
        "Search and pack by stored dtype",
        _DTYPE_COLUMNS,
        (_dtype_row(name, bits, matrices, settings) for name in _STORED for bits in (*_BITS, 8)),
        "Two bytes are counted for each weight, whatever it is stored as.",
    )


def gaussian(count: int, small: bool) -> list[torch.Tensor]:
    """Matrices of an expert of DeepSeek-VL2-small, bfloat16."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = (128, 256) if small else (1408, 2048)
    return [(0.02 * torch.randn(rows, columns, generator=generator)).bfloat16() for _ in range(count)]


def trained(small: bool) -> torch.Tensor:
    """Groups of every fourth of the bundled model's experts, one a row, bfloat16."""
    model = open_model(str(SHAPES))
    experts = list(model.layout.experts.values())[:: 24 if small else 4]
    read = [matrix.read(model.checkpoint).values.reshape(-1, GROUP) for group in experts for matrix in group]
    return torch.from_numpy(np.concatenate(read)).view(torch.bfloat16)


def stored(tensor: torch.Tensor, name: str) -> Weight:
    """The weight as a mapped file would give it."""
    dtype, view = _STORED[name]
    if name.startswith("float8"):
        rows, columns = (-(-length // 16) for length in tensor.shape)
        values = (tensor.float() * 1000).to(dtype).view(view).numpy()
        return Weight(values, np.full((rows, columns), 0.001, np.float32))
    return Weight(tensor.to(dtype).view(view).numpy())


def _error_row(rival: Rival, name: str, weight: torch.Tensor) -> tuple[str, ...]:
    exact = weight.float()
    ratios = []
    for bits in _BITS:
        packed = quantize(stored(weight, "bfloat16"), bits, GROUP, rival.symmetric, True)
        ours = torch.from_numpy(dequantize(packed, bits, rival.symmetric))
        theirs = rival(exact.clone(), bits)
        ratios.append(float((ours - exact).norm() / (theirs - exact).norm()))
    return rival.name, name, *(f"{ratio:.4f}" for ratio in ratios)


def _speed_row(rival: Rival, bits: int, matrices: list[torch.Tensor], settings: Settings) -> tuple[str, ...]:
    weights = [stored(matrix, "bfloat16") for matrix in matrices]
    sample = matrices[0].float()[: rival.rows]

    def ours() -> None:
        for weight in weights:
            quantize(weight, bits, GROUP, rival.symmetric, True)

    ours()
    rival(sample[:32].clone(), bits)
    mine, theirs = in_turns(settings.turns, ours, lambda: rival(sample.clone(), bits))
    done, sampled = sum(weight.nbytes for weight in weights), 2 * sample.numel()
    ratio = (done / mine) / (sampled / theirs)
    return rival.name, str(bits), rate(done, mine), rate(sampled, theirs), times(ratio)


def _dtype_row(name: str, bits: int, matrices: list[torch.Tensor], settings: Settings) -> tuple[str, ...]:
    weights = [stored(matrix, name) for matrix in matrices]
    count = sum(matrix.numel() for matrix in matrices)

    def run(symmetric: bool) -> None:
        for weight in weights:
            quantize(weight, bits, GROUP, symmetric, True)

    run(True)
    run(False)
    taken = in_turns(settings.turns, lambda: run(True), lambda: run(False))
    return name, str(bits), *(rate(2 * count, seconds) for seconds in taken)
