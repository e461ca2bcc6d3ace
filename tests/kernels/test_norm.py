"""The sum of squares is that of float64 arithmetic, for every stored dtype and orientation, and tells damage."""

import numpy as np
import pytest
import torch

from mopeq_hub.kernels.norm import all_finite, sum_of_squares
from mopeq_hub.kernels.weight import Weight
from tests.kernels.test_quantize import VIEWS, gaussian, stored


@pytest.mark.parametrize("dtype", VIEWS)
def test_it_is_the_sum_in_double_precision(dtype: torch.dtype) -> None:
    weight = stored(gaussian().to(dtype))
    assert sum_of_squares(weight) == pytest.approx(float((weight.float32().astype(np.float64) ** 2).sum()), rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 7), (5, 3), (33, 100)])
def test_any_shape_will_do(shape: tuple[int, int]) -> None:
    values = gaussian(*shape).numpy()
    expected = float((values.astype(np.float64) ** 2).sum())
    assert sum_of_squares(Weight(values)) == pytest.approx(expected, rel=1e-12)
    assert sum_of_squares(Weight(values.T)) == pytest.approx(expected, rel=1e-12)


def test_a_transposed_float8_weight_meets_its_own_factors() -> None:
    values = gaussian(64, 128).mul(50).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    factors = np.random.default_rng(0).uniform(0.5, 2, (8, 4)).astype(np.float32)
    weight = Weight(values.T, factors)
    assert not weight.by_rows
    assert sum_of_squares(weight) == pytest.approx(float((weight.float32().astype(np.float64) ** 2).sum()), rel=1e-12)


@pytest.mark.parametrize(
    ("dtype", "torch_dtype"), [("BF16", torch.bfloat16), ("F16", torch.float16), ("F32", torch.float32)]
)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_damage_is_told(dtype: str, torch_dtype: torch.dtype, bad: float) -> None:
    tensor = gaussian(3, 50)
    good = tensor.to(torch_dtype).view(VIEWS[torch_dtype]).numpy()
    assert all_finite(good, dtype)
    assert all_finite(good[0, :1].reshape(()), dtype)
    tensor[2, 49] = bad
    assert not all_finite(tensor.to(torch_dtype).view(VIEWS[torch_dtype]).numpy(), dtype)


def test_whole_numbers_are_always_finite() -> None:
    assert all_finite(np.arange(5), "I64")
    assert all_finite(np.empty((0, 4), np.uint16), "BF16")
    assert not all_finite(np.array([0x7F], np.uint8), "F8_E4M3")
