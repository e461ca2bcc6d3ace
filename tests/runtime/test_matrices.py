"""Products with packed weights are those with the weights that they stand for, at every width, grid and count."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mopeq_hub import MopeqError
from mopeq_hub.runtime.matrices import Experts, PackedMatrix, Table, is_fixed, runs_of
from tests.runtime.packed import distance, fixed_point_error, product, random_matrix

ROUNDING = 5e-6
WAYS = [pytest.param(bits, symmetric, id=f"{bits} bits, {'a' * (not symmetric)}symmetric")
        for bits in (2, 3, 4, 8) for symmetric in (True, False)]  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
LOSS = {torch.float32: ROUNDING, torch.bfloat16: 4.5e-3, torch.float16: 5e-4}
SHAPES = [(32, 32, 32), (96, 64, 32), (64, 256, 64), (160, 256, 256), (768, 384, 128)]


@pytest.mark.parametrize(("rows", "columns", "group"), SHAPES)
@pytest.mark.parametrize(("bits", "symmetric"), WAYS)
def test_every_width_and_grid(bits: int, symmetric: bool, rows: int, columns: int, group: int) -> None:
    made = [
        [random_matrix(rows, columns, bits, group, symmetric, bias=True, seed=2 * expert + part) for part in range(2)]
        for expert in range(3)
    ]
    table = Table([[matrix for matrix, _ in expert] for expert in made], rows, columns)
    vectors = torch.randn(11, columns)
    whole = [torch.cat([product(vectors, part) for part in expert], 1) for expert in made]
    runs = [*runs_of(2, 0, 6), *runs_of(0, 6, 4), *runs_of(1, 10, 1)]
    expected = torch.cat([whole[2][:6], whole[0][6:10], whole[1][10:]])
    assert distance(table.multiply(vectors, torch.tensor(runs), 11), expected) < ROUNDING

    for expert in range(3):
        assert distance(table.product(vectors, expert), whole[expert]) < ROUNDING
        assert distance(table.product(vectors.bfloat16(), expert), whole[expert]) < 0.02


@pytest.mark.parametrize(("rows", "columns", "group"), SHAPES)
@pytest.mark.parametrize(("bits", "symmetric"), WAYS)
def test_fixed_point_is_off_by_no_more_than_its_last_bit(
    bits: int, symmetric: bool, rows: int, columns: int, group: int
) -> None:
    matrix, weight = random_matrix(rows, columns, bits, group, symmetric, bias=True)
    table, runs = Table([[matrix]], rows, columns), torch.tensor(runs_of(0, 0, 5))
    vectors = (torch.randn(5, columns) * torch.logspace(-6, 6, 5)[:, None]).bfloat16()
    assert matrix.bias is not None
    exact = vectors.double() @ weight.double().T
    allowed = fixed_point_error(vectors, weight, group)
    for given in (vectors, vectors.float()):
        found = table.multiply(given, runs, 5, fixed=True).double() - matrix.bias
        assert ((found - exact).abs() <= allowed).all()


def test_bfloat16_that_fits_a_block_is_multiplied_exactly() -> None:
    matrix, weight = random_matrix(64, 256, 4, 64)
    vectors = (torch.rand(3, 256) + 1).bfloat16() * torch.tensor([1.0, -64.0, 2.0**-20])[:, None].bfloat16()
    found = Table([[matrix]], 64, 256).multiply(vectors, torch.tensor(runs_of(0, 0, 3)), 3, fixed=True)
    assert ((found - vectors.double() @ weight.double().T).abs() < 5e-7 * found.abs().amax(1, keepdim=True)).all()


@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("strange", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_hidden(strange: float, fixed: bool) -> None:
    matrix, _ = random_matrix(32, 128, 4, 64)
    vectors = torch.randn(4, 128)
    vectors[2, 70] = strange
    found = Table([[matrix]], 32, 128).multiply(vectors, torch.tensor(runs_of(0, 0, 4)), 4, fixed=fixed)
    assert not found[2].isfinite().any()
    assert found[[0, 1, 3]].isfinite().all()


def test_zeros_and_what_is_next_to_nothing_come_to_nothing() -> None:
    matrix, _ = random_matrix(32, 64, 4, 64)
    vectors = torch.tensor([[0.0], [1e-40], [-1e-35]]).expand(3, 64).contiguous()
    found = Table([[matrix]], 32, 64).multiply(vectors, torch.tensor(runs_of(0, 0, 3)), 3, fixed=True)
    assert found.abs().max() < 1e-30


@pytest.mark.parametrize(("bits", "symmetric"), WAYS)
def test_one_vector_for_many_experts(bits: int, symmetric: bool) -> None:
    made = [random_matrix(96, 128, bits, 64, symmetric, bias=True, seed=expert) for expert in range(4)]
    table = Table([[matrix] for matrix, _ in made], 96, 128)
    chosen, vector = [3, 0, 2], torch.randn(1, 128)
    runs = torch.tensor([[expert, place, 1] for place, expert in enumerate(chosen)])
    expected = torch.cat([product(vector, made[expert]) for expert in chosen])
    assert distance(table.multiply(vector, runs, 3, step=0), expected) < ROUNDING


@pytest.mark.parametrize(("rows", "columns", "group"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_vector_in_its_own_dtype(dtype: torch.dtype, rows: int, columns: int, group: int) -> None:
    made = [random_matrix(rows, columns, bits, group, bias=True, seed=bits) for bits in (2, 3, 4, 8)]
    table, runs = Table([[matrix for matrix, _ in made]], rows, columns), torch.tensor(runs_of(0, 0, 1))
    for vector in torch.randn(3, 1, 1, columns).to(dtype):
        found = table.of_one(vector)
        assert found.shape == (1, 1, 4 * rows)
        assert found.equal(table.multiply(vector, runs, 1, fixed=is_fixed(dtype)).to(dtype)[None])
    assert table.of_one(torch.full((columns,), torch.nan, dtype=dtype)).isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("width", "hidden", "group"), [(32, 64, 32), (768, 512, 64), (1024, 1024, 256), (512, 512, 512)]
)
def test_the_experts_of_one_token_in_one_region(width: int, hidden: int, group: int, dtype: torch.dtype) -> None:
    made = [
        [
            random_matrix(width, hidden, (2, 3, 4)[expert % 3], group, bias=True, seed=2 * expert),
            random_matrix(width, hidden, (4, 8, 3)[expert % 3], group, bias=True, seed=2 * expert + 1),
            random_matrix(hidden, width, (3, 4, 8)[expert % 3], min(group, width), bias=True, seed=-expert % 99),
        ]
        for expert in range(6)
    ]
    first = Table([[matrix for matrix, _ in parts[:2]] for parts in made], width, hidden)
    down = Table([[parts[2][0]] for parts in made], hidden, width)
    region, vector, weights = Experts(first, down), torch.randn(1, hidden).to(dtype), [0.5, 0.25, -0.125, 9.0]
    expected = torch.zeros(1, hidden)
    for expert, weight in ((5, 0.5), (0, 0.25), (1, -0.125)):
        gate, up, last = made[expert]
        given = vector.float()
        expected += weight * product(torch.nn.functional.silu(product(given, gate)) * product(given, up), last)
    for kind in (torch.float32, torch.bfloat16, torch.float16) * 6:
        # The last stands for no expert.
        numbers = torch.tensor([5, 0, 1, 6], dtype=torch.int32 if kind == torch.float16 else torch.int64)
        found = region(vector, numbers, torch.tensor(weights, dtype=kind))
        assert found.dtype == dtype
        assert distance(found, expected) < LOSS[dtype]
    assert not region(vector, torch.tensor([-1, 6]), torch.tensor(weights[:2])).any()


def test_a_width_for_each_matrix_of_an_expert() -> None:
    made = [random_matrix(64, 64, bits, seed=bits) for bits in (2, 4)]
    table = Table([[matrix for matrix, _ in made]], 64, 64)
    vectors = torch.randn(4, 64)
    expected = torch.cat([vectors @ weight.T for _, weight in made], 1)
    assert distance(table.multiply(vectors, torch.tensor(runs_of(0, 0, 4)), 4), expected) < ROUNDING


_ON_ANY_CPU = """
import torch
from mopeq_hub.runtime.matrices import Table, runs_of
from tests.runtime.packed import distance, fixed_point_error, random_matrix
torch.manual_seed(0)
for bits in (2, 3, 4, 8):
    matrix, weight = random_matrix(96, 128, bits, 64, symmetric=False)
    table, vectors = Table([[matrix]], 96, 128), torch.randn(5, 128)
    expected, runs = vectors @ weight.T, torch.tensor(runs_of(0, 0, 5))
    assert distance(table.multiply(vectors, runs, 5), expected) < 5e-6
    off = table.multiply(vectors, runs, 5, fixed=True) - expected
    assert (off.abs() <= fixed_point_error(vectors, weight, 64)).all()
    assert distance(table.product(vectors), expected) < 5e-6
"""


def test_a_cpu_without_vector_units_gives_right_results() -> None:
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    root = str(Path(__file__).parents[2])
    run = subprocess.run(
        [sys.executable, "-c", _ON_ANY_CPU], env={**os.environ, **plain}, cwd=root, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "change",
    [
        lambda matrix: {"qweight": matrix.qweight[:-1]},
        lambda matrix: {"qzeros": matrix.qzeros[:, 1:]},
        lambda matrix: {"scales": matrix.scales.float()},
        lambda matrix: {"scales": matrix.scales[:, :32]},
        lambda matrix: {"qweight": matrix.qweight.repeat(2, 1)},
        lambda matrix: {"qweight": matrix.qweight.T.contiguous().T},
    ],
    ids=[
        "a word short",
        "few zero points",
        "scales of another dtype",
        "few scales",
        "too many words",
        "not contiguous",
    ],
)
def test_misshapen_tensors_are_refused(change) -> None:
    matrix, _ = random_matrix(64, 64, 4)
    matrix.check(64, 64, "it")
    parts = {"qweight": matrix.qweight, "qzeros": matrix.qzeros, "scales": matrix.scales, "bias": None, "offset": 1}
    with pytest.raises(MopeqError, match=r"the packed tensors of it are not those of a weight \[64, 64\]"):
        PackedMatrix(**{**parts, **change(matrix)}).check(64, 64, "it")


def test_runs_take_as_many_vectors_together_as_they_can() -> None:
    assert runs_of(7, 10, 9) == [(7, 10, 4), (7, 14, 4), (7, 18, 1)]
    assert runs_of(7, 0, 0) == []
