"""The paper's signal: the closed form is the trace, Hutchinson's estimate agrees with it, and damage is named."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mopeq_hub import MopeqError, Recipe
from mopeq_hub.experts import Expert
from mopeq_hub.kernels.weight import Weight
from mopeq_hub.model import open_model
from mopeq_hub.progress import Quiet
from mopeq_hub.sensitivity import Profile, measure_matrices
from mopeq_hub.sensitivity.hessian import exact_trace, hutchinson_trace
from mopeq_hub.sensitivity.run import measure


def trace_by_autograd(weight: torch.Tensor) -> float:
    """The full Hessian of the Frobenius norm, element by element."""
    flat = weight.flatten().double()
    hessian = torch.autograd.functional.hessian(torch.linalg.vector_norm, flat)
    return float(torch.trace(hessian))


@pytest.mark.parametrize("shape", [(3, 4), (8, 8), (1, 7)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_the_closed_form_is_the_trace_of_the_hessian(shape: tuple[int, int], scale: float) -> None:
    weight = scale * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert exact_trace(Weight(weight.numpy())) == pytest.approx(trace_by_autograd(weight), rel=1e-5)


def test_hutchinson_agrees_with_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = Weight(torch.randn(64, 128, generator=generator).numpy())
    assert hutchinson_trace(weight, 8, generator) == pytest.approx(exact_trace(weight), rel=2e-3)


def test_zeros_lose_nothing_when_quantized() -> None:
    zeros = Weight(np.zeros((4, 4), np.float32))
    assert exact_trace(zeros) == 0.0
    assert hutchinson_trace(zeros, 2, torch.Generator()) == 0.0


def test_an_expert_is_the_sum_of_its_projections(shapes: Path, tmp_path: Path) -> None:
    model = open_model(str(shapes))
    profile = measure(model, Recipe(), tmp_path / "notes", Quiet())
    assert len(profile.sensitivities) == 96
    expert = Expert(2, 5)
    matrices = model.layout.experts[expert]
    assert {matrix.projection for matrix in matrices} == {"gate", "up", "down"}
    total = sum(exact_trace(matrix.read(model.checkpoint)) for matrix in matrices)
    assert profile.sensitivities[expert] == pytest.approx(total)


def test_progress_counts_every_byte_of_the_experts(shapes: Path) -> None:
    model = open_model(str(shapes))
    read: list[int] = []
    experts = [matrix for matrix in model.layout.matrices if matrix.expert]
    measure_matrices(model.checkpoint, experts, Recipe(), read.append)
    assert sum(read) == 96 * 3 * 64 * 128 * 2


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    parts = {"gate": (2.5, 0.5), "down": (3.0, 0.1)}
    experts = {Expert(1, 0): parts, Expert(1, 1): parts, Expert(4, 0): parts}
    profile = Profile({"name": "hessian"}, experts, "abc", (2, 3), {"q_proj": (7.0, 1.0)})
    profile.write(tmp_path / "profile.json")
    assert Profile.read(tmp_path / "profile.json") == profile


@pytest.mark.parametrize(
    "text", ["", "[]", '{"layers": {}}', '{"signal": {}, "source_commit": "", "layers": {"a": [1]}}']
)
def test_a_file_that_is_no_profile_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(MopeqError, match="not a profile"):
        Profile.read(tmp_path / "profile.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_sensitivity_is_a_finite_number(value: float) -> None:
    with pytest.raises(MopeqError, match="expert 3 in layer 7"):
        Profile({"name": "hessian"}, {Expert(7, 3): {"gate": (value,)}})
