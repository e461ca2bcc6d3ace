"""Rounding errors are made up for by the columns to come, as GPTQ defines it."""

import numpy as np
import pytest
import torch

from mopeq_hub.kernels.weight import Weight
from mopeq_hub.packing import dequantize, quantize, zeros_of
from mopeq_hub.quantization.compensation import BLOCK, DAMPING, Inverse, compensate

ROWS, COLUMNS, GROUP = 64, 256, 64
GRIDS = [(bits, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)]


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)).numpy()


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    """[2000, in] whose channels go together and differ in size."""
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(2000, COLUMNS, generator=generator) @ torch.randn(COLUMNS, COLUMNS, generator=generator)
    return mixed * torch.rand(COLUMNS, generator=generator)


def plain_gptq(weight: np.ndarray, hessian: torch.Tensor, bits: int, symmetric: bool) -> np.ndarray:
    """The algorithm as its paper has it, a column at a time, in float64, with the search's scales."""
    searched = quantize(Weight(weight), bits, GROUP, symmetric, search=True)
    scales = torch.from_numpy(searched.scales.T.astype(np.float64)).repeat_interleave(GROUP, 1)
    zeros = torch.from_numpy(zeros_of(searched, bits).astype(np.float64) + symmetric).repeat_interleave(GROUP, 1)
    damped = hessian.double() + DAMPING * hessian.double().diagonal().mean() * torch.eye(COLUMNS)
    order = hessian.diagonal().argsort(descending=True, stable=True)
    factor = torch.linalg.cholesky(torch.linalg.inv(damped[order][:, order]), upper=True)
    left, rounded = torch.from_numpy(weight).double()[:, order], torch.empty(ROWS, COLUMNS, dtype=torch.double)
    for place, column in enumerate(order.tolist()):
        scale, zero = scales[:, column], zeros[:, column]
        codes = ((left[:, place] / scale).round() + zero).clamp(0, 2**bits - 1)
        rounded[:, column] = (codes - zero) * scale
        error = (left[:, place] - rounded[:, column]) / factor[place, place]
        left[:, place:] -= error[:, None] * factor[place, place:]
    return rounded.numpy()


@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
def test_it_is_gptq(bits: int, symmetric: bool, weight: np.ndarray, inputs: torch.Tensor) -> None:
    assert COLUMNS > BLOCK, "errors must be handed on from block to block"
    hessian = inputs.T @ inputs
    ours = dequantize(compensate(Weight(weight), Inverse(hessian), bits, GROUP, symmetric), bits, symmetric)
    theirs = plain_gptq(weight, hessian, bits, symmetric)

    def loss(rounded: np.ndarray) -> float:
        return float(((torch.from_numpy(rounded - weight).double() @ inputs.T.double()) ** 2).sum())

    # A value halfway between two codes goes either way in float32, and what comes behind it follows.
    assert np.isclose(ours, theirs, rtol=1e-3, atol=1e-6).mean() > 0.98
    assert loss(ours) == pytest.approx(loss(theirs), rel=0.02)


@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
def test_outputs_change_less_than_with_the_search(
    bits: int, symmetric: bool, weight: np.ndarray, inputs: torch.Tensor
) -> None:
    def loss(packed) -> float:
        return float(((torch.from_numpy(dequantize(packed, bits, symmetric) - weight) @ inputs.T) ** 2).sum())

    searched = quantize(Weight(weight), bits, GROUP, symmetric, search=True)
    assert loss(compensate(Weight(weight), Inverse(inputs.T @ inputs), bits, GROUP, symmetric)) < 0.7 * loss(searched)


@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
def test_inputs_that_do_not_go_together_leave_nothing_to_make_up_for(
    bits: int, symmetric: bool, weight: np.ndarray
) -> None:
    packed = compensate(Weight(weight), Inverse(torch.diag(torch.rand(COLUMNS) + 0.1)), bits, GROUP, symmetric)
    searched = quantize(Weight(weight), bits, GROUP, symmetric, search=True)
    assert np.array_equal(packed.scales, searched.scales)
    assert np.array_equal(packed.qzeros, searched.qzeros)
    assert (dequantize(packed, bits, symmetric) == dequantize(searched, bits, symmetric)).mean() > 0.999


def test_few_tokens_and_inputs_that_are_always_zero_are_no_trouble(weight: np.ndarray, inputs: torch.Tensor) -> None:
    few = inputs[:3].clone()
    few[:, 7] = 0
    packed = compensate(Weight(weight), Inverse(few.T @ few), 4, GROUP, True)
    assert np.abs(dequantize(packed, 4, True) - weight).max() < 2 * np.abs(weight).max()
