"""Weights are quantized where they lie: every stored dtype and orientation, with and without importances, as well as
auto-round's searches."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mopeq_hub import MopeqError
from mopeq_hub.kernels.weight import Weight
from mopeq_hub.packing import Packed, dequantize, quantize

GROUP = 64
VIEWS = {
    torch.bfloat16: torch.uint16,
    torch.float16: torch.float16,
    torch.float32: torch.float32,
    torch.float8_e4m3fn: torch.uint8,
}


def stored(tensor: torch.Tensor) -> Weight:
    """The weight as a mapped file would give it; float8 in blocks of 32 x 64, each with a factor of its own."""
    values = tensor.view(VIEWS[tensor.dtype]).numpy()
    if tensor.dtype != torch.float8_e4m3fn:
        return Weight(values)
    blocks = np.random.default_rng(0).uniform(0.5, 2.0, (tensor.shape[0] // 32, tensor.shape[1] // 64))
    return Weight(values, blocks.astype(np.float32).repeat(2, 0).repeat(4, 1))


def same(one: Packed, other: Packed) -> bool:
    return all(np.array_equal(one.tensors()[part], other.tensors()[part]) for part in one.tensors())


def gaussian(rows: int = 96, columns: int = 256, seed: int = 0) -> torch.Tensor:
    return 0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dtype", VIEWS)
def test_a_stored_dtype_gives_what_its_float32_gives(dtype: torch.dtype, bits: int, symmetric: bool) -> None:
    weight = stored((gaussian() * 50).to(dtype))
    assert same(
        quantize(weight, bits, GROUP, symmetric, True), quantize(Weight(weight.float32()), bits, GROUP, symmetric, True)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_transposed_slice_gives_what_its_copy_gives(dtype: torch.dtype) -> None:
    fused = gaussian(3 * 256, 96).to(dtype).view(VIEWS[dtype]).numpy().reshape(3, 256, 96)
    view = Weight(fused[1].T[32:96])
    assert not view.by_rows
    assert same(quantize(view, 3, GROUP, True, True), quantize(Weight(view.float32()), 3, GROUP, True, True))


def test_float32_of_every_float8_is_torchs() -> None:
    every = torch.arange(256, dtype=torch.uint8).repeat(16).reshape(16, 256)
    weight = Weight(every.numpy(), np.full((1, 16), 0.5, np.float32))
    assert np.array_equal(weight.float32(), every.view(torch.float8_e4m3fn).float().numpy() * 0.5, equal_nan=True)


@pytest.mark.parametrize("dtype", VIEWS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(dtype: torch.dtype, bad: float) -> None:
    weight = gaussian()
    weight[70, 200] = bad
    if dtype == torch.float8_e4m3fn:
        weight[70, 200] = float("nan")
    with pytest.raises(MopeqError, match="NaN or infinite"):
        quantize(stored(weight.to(dtype)), 4, GROUP, True, True)


def test_subnormal_half_precision_is_read_as_it_is() -> None:
    weight = stored((torch.arange(32 * 64).reshape(32, 64) % 1000 * 2.0**-24).half())
    assert same(quantize(weight, 8, GROUP, True, True), quantize(Weight(weight.float32()), 8, GROUP, True, True))


def error_of(weight: np.ndarray, back: np.ndarray, importance: np.ndarray | float = 1.0) -> float:
    return float(np.sqrt((importance * (back - weight) ** 2).sum() / (importance * weight**2).sum()))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_importance_moves_error_to_where_it_matters_less(bits: int, symmetric: bool) -> None:
    weight = gaussian().numpy()
    importance = np.random.default_rng(1).lognormal(0, 1.5, 256).astype(np.float32)
    plain, weighted = (
        dequantize(quantize(Weight(weight), bits, GROUP, symmetric, True, given), bits, symmetric)
        for given in (None, importance)
    )
    assert error_of(weight, weighted, importance) < 0.97 * error_of(weight, plain, importance)
    assert error_of(weight, weighted) > error_of(weight, plain)


@pytest.mark.parametrize("symmetric", [True, False])
def test_importance_counts_at_8_bits_too(symmetric: bool) -> None:
    weight = gaussian().numpy()
    importance = np.random.default_rng(1).lognormal(0, 1.5, 256).astype(np.float32)
    plain, weighted = (
        dequantize(quantize(Weight(weight), 8, GROUP, symmetric, True, given), 8, symmetric)
        for given in (None, importance)
    )
    assert error_of(weight, weighted, importance) < error_of(weight, plain, importance)


def test_equal_importance_changes_next_to_nothing() -> None:
    weight = gaussian().numpy()
    plain, weighted = (
        dequantize(quantize(Weight(weight), 3, GROUP, True, True, given), 3, True)
        for given in (None, np.full(256, 7.0, np.float32))
    )
    assert error_of(weight, weighted) == pytest.approx(error_of(weight, plain), rel=1e-3)


def rivals() -> dict[str, tuple[bool, Callable[..., Any]]]:
    from auto_round.data_type.int import quant_tensor_opt_rtn_sym
    from auto_round.data_type.neuqi import quant_tensor_opt_rtn_asym, quant_tensor_opt_rtn_sym_neuqi

    return {
        "symmetric search": (True, quant_tensor_opt_rtn_sym),
        "symmetric NeUQI": (True, quant_tensor_opt_rtn_sym_neuqi),
        "asymmetric NeUQI": (False, quant_tensor_opt_rtn_asym),
    }


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("rival", ["symmetric search", "symmetric NeUQI", "asymmetric NeUQI"])
def test_the_search_is_as_good_as_auto_rounds(rival: str, bits: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "autoround")
    symmetric, search = rivals()[rival]
    weight = gaussian(256, 512)
    ours = dequantize(quantize(Weight(weight.numpy()), bits, GROUP, symmetric, True), bits, symmetric)
    theirs = search(weight.clone(), bits=bits, group_size=GROUP)[0].numpy()
    assert error_of(weight.numpy(), ours) <= 1.003 * error_of(weight.numpy(), theirs)
