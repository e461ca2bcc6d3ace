"""What a GPU computes is what a CPU computes, but for near-ties; here torch's CPU device stands in for it."""

import numpy as np
import pytest
import torch

from mopeq_hub import MopeqError
from mopeq_hub.kernels import on_gpu
from mopeq_hub.kernels.weight import Weight
from mopeq_hub.packing import Packed, dequantize, quantize
from tests.kernels.test_quantize import VIEWS, error_of, gaussian, stored

GROUP = 64
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def both(
    weight: Weight, bits: int, symmetric: bool, search: bool, importance: np.ndarray | None = None
) -> list[Packed]:
    return [quantize(weight, bits, GROUP, symmetric, search, importance, gpu) for gpu in (None, DEVICE)]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", VIEWS)
def test_round_to_nearest_is_the_same(dtype: torch.dtype, bits: int, symmetric: bool) -> None:
    weight = stored((gaussian() * 50).to(dtype))
    ours, theirs = both(weight, bits, symmetric, search=False)
    assert np.array_equal(ours.scales, theirs.scales)
    assert np.array_equal(ours.qzeros, theirs.qzeros)
    assert (ours.qweight == theirs.qweight).mean() > 0.98


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("weighted", [True, False])
def test_the_search_finds_the_same_but_for_near_ties(weighted: bool, bits: int, symmetric: bool) -> None:
    weight = stored(gaussian(256, 512).to(torch.bfloat16))
    importance = np.random.default_rng(1).lognormal(0, 1.5, 512).astype(np.float32) if weighted else None
    numbers = weight.float32()
    packed = both(weight, bits, symmetric, True, importance)
    assert (packed[0].scales == packed[1].scales).mean() > (0.8 if weighted else 0.95)
    ours, theirs = (dequantize(each, bits, symmetric) for each in packed)
    heavy = 1.0 if importance is None else importance
    assert error_of(numbers, theirs, heavy) == pytest.approx(error_of(numbers, ours, heavy), rel=1e-3)


def test_rows_go_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = stored((gaussian(160, 256) * 50).to(torch.float8_e4m3fn))
    whole = quantize(weight, 3, GROUP, True, True, gpu=DEVICE)
    monkeypatch.setattr(on_gpu, "_SLICE", 64 * 256)
    sliced = quantize(weight, 3, GROUP, True, True, gpu=DEVICE)
    assert all(np.array_equal(whole.tensors()[part], sliced.tensors()[part]) for part in whole.tensors())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    weight = gaussian()
    weight[70, 200] = bad
    with pytest.raises(MopeqError, match="NaN or infinite"):
        quantize(Weight(weight.numpy()), 4, GROUP, True, True, gpu=DEVICE)


def test_special_groups() -> None:
    weight = np.zeros((32, 64), dtype=np.float32)
    weight[1] = 0.25
    weight[3, 7] = 100.0
    for symmetric in (True, False):
        back = dequantize(quantize(Weight(weight), 3, 32, symmetric, True, gpu=DEVICE), 3, symmetric)
        assert np.array_equal(back[0], weight[0])
        assert np.allclose(back[1], 0.25, rtol=1e-3)
        assert back[3, 7] == pytest.approx(100.0, rel=1e-3)
