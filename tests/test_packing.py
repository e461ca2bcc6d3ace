"""What is packed is what auto-round packs, bit for bit, and what is dequantized is what was searched."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from mopeq_hub import MopeqError
from mopeq_hub.kernels.rows import unpack_rows
from mopeq_hub.kernels.weight import Weight
from mopeq_hub.packing import Packed, dequantize, quantize

ROWS, COLUMNS, GROUP = 96, 256, 64
ERRORS = {
    # bits: relative error on Gaussian weights, groups of 64, of auto-round's round-to-nearest and of its searches
    (2, True): (0.394, 0.356),
    (3, True): (0.192, 0.177),
    (4, True): (0.095, 0.0902),
    (2, False): (0.458, 0.353),
    (3, False): (0.196, 0.177),
    (4, False): (0.0915, 0.0878),
}


@pytest.fixture(scope="module")
def weight() -> np.ndarray:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)).numpy()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_same_codes_are_packed_as_auto_round_packs_them(bits: int, symmetric: bool, weight: np.ndarray) -> None:
    from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

    packed = quantize(Weight(weight), bits, GROUP, symmetric, search=True)
    linear = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    linear.weight.data = torch.from_numpy(dequantize(packed, bits, symmetric))
    rival = (qlinear_torch_zp if symmetric else qlinear_torch).QuantLinear(bits, GROUP, COLUMNS, ROWS, False)
    rival.device = "cpu"
    scales = torch.from_numpy(packed.scales.T.astype(np.float32).copy())
    zeros = torch.from_numpy(unpack_rows(packed.qzeros, bits).T.astype(np.float32).copy())
    rival.pack(linear, scales, 2 ** (bits - 1) if symmetric else zeros)
    assert np.array_equal(rival.qweight.numpy(), packed.qweight)
    assert np.array_equal(rival.qzeros.numpy(), packed.qzeros)
    assert np.array_equal(rival.scales.numpy(), packed.scales)
    assert rival.qweight.dtype == torch.int32


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_auto_rounds_layer_computes_with_the_dequantized_weight(bits: int, symmetric: bool, weight: np.ndarray) -> None:
    from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

    packed = quantize(Weight(weight), bits, GROUP, symmetric, search=True)
    layer = (qlinear_torch_zp if symmetric else qlinear_torch).QuantLinear(bits, GROUP, COLUMNS, ROWS, False)
    for name, value in packed.tensors().items():
        setattr(layer, name, torch.from_numpy(value))
    inputs = torch.randn(5, COLUMNS)
    expected = inputs @ torch.from_numpy(dequantize(packed, bits, symmetric)).T
    assert torch.allclose(layer(inputs), expected, rtol=0, atol=2e-3 * float(expected.abs().max()))


@pytest.mark.parametrize(("bits", "symmetric"), ERRORS)
def test_the_search_loses_less_than_rounding_to_nearest(bits: int, symmetric: bool) -> None:
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(1)).numpy()

    def error(search: bool) -> float:
        back = dequantize(quantize(Weight(weight), bits, GROUP, symmetric, search), bits, symmetric)
        return float(np.linalg.norm(back - weight) / np.linalg.norm(weight))

    nearest, searched = ERRORS[bits, symmetric]
    assert error(search=False) == pytest.approx(nearest, rel=0.02)
    assert error(search=True) <= searched


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_search_is_never_worse_on_any_group(bits: int, symmetric: bool, weight: np.ndarray) -> None:
    def errors(search: bool) -> np.ndarray:
        back = dequantize(quantize(Weight(weight), bits, GROUP, symmetric, search), bits, symmetric)
        return ((back - weight) ** 2).reshape(-1, GROUP).sum(1)

    # Scales are stored in half precision, so a tie can go either way by that much.
    assert (errors(search=True) <= errors(search=False) * 1.002 + 1e-9).all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("search", [True, False])
def test_special_groups(bits: int, symmetric: bool, search: bool) -> None:
    weight = np.zeros((32, 64), dtype=np.float32)
    weight[1] = 0.25
    weight[2] = -3.0
    weight[3, 7] = 100.0
    weight[4] = 1e-9
    back = dequantize(quantize(Weight(weight), bits, 32, symmetric, search), bits, symmetric)
    assert np.isfinite(back).all()
    assert np.array_equal(back[0], weight[0])
    assert np.allclose(back[1], 0.25, rtol=1e-3)
    assert np.allclose(back[2], -3.0, rtol=1e-3)
    assert back[3, 7] == pytest.approx(100.0, rel=1e-3)
    assert np.array_equal(np.delete(back[3], 7), np.zeros(63))
    assert np.abs(back[4]).max() < 1e-4


@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
def test_shapes_and_dtypes(group_size: int, weight: np.ndarray) -> None:
    packed = quantize(Weight(weight), 3, group_size, True, True)
    assert packed.qweight.shape == (COLUMNS * 3 // 32, ROWS)
    assert packed.qzeros.shape == (COLUMNS // group_size, ROWS * 3 // 32)
    assert packed.scales.shape == (COLUMNS // group_size, ROWS)
    assert (packed.qweight.dtype, packed.qzeros.dtype, packed.scales.dtype) == (np.int32, np.int32, np.float16)


def test_a_weight_beyond_half_precision_is_refused() -> None:
    with pytest.raises(MopeqError, match="float16"):
        quantize(Weight(np.full((32, 32), 1e9, dtype=np.float32)), 4, 32, True, False)


def test_parts_have_auto_rounds_names(weight: np.ndarray) -> None:
    packed = quantize(Weight(weight), 4, GROUP, True, False)
    assert isinstance(packed, Packed)
    assert list(packed.tensors()) == ["qweight", "qzeros", "scales"]


PROGRAM = """
import hashlib, numpy, torch
from mopeq_hub.kernels.norm import sum_of_squares
from mopeq_hub.kernels.weight import Weight
from mopeq_hub.packing import quantize
weight = Weight(torch.randn(256, 512, generator=torch.Generator().manual_seed(3)).numpy())
whole = hashlib.sha256(repr(sum_of_squares(weight)).encode())
for bits in (2, 3, 4, 8):
    for symmetric in (True, False):
        for part in quantize(weight, bits, 64, symmetric, True).tensors().values():
            whole.update(part.tobytes())
print(whole.hexdigest())
"""


def test_the_bytes_depend_on_neither_the_cpu_nor_the_threads() -> None:
    machines = [
        {"NUMBA_NUM_THREADS": "1"},
        {"NUMBA_NUM_THREADS": "2"},
        {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_NUM_THREADS": "1"},
    ]
    printed = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, **machine},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for machine in machines
    }
    assert len(printed) == 1
