"""What auto-round tuned is what is packed, to the bit; who was not tuned was searched; the same again is the same."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mopeq_hub import MopeqError, Recipe, quantize
from mopeq_hub.errors import UsageError
from mopeq_hub.experts import Expert
from mopeq_hub.fidelity.measure import check_loading, load_alone
from mopeq_hub.model import open_model
from mopeq_hub.packing import dequantize
from mopeq_hub.quantization import calibrated
from mopeq_hub.quantization.signround import packed_linear
from mopeq_hub.repo import QuantizedRepo
from tests import tiny

GRIDS = [(bits, symmetric) for bits in (2, 3, 4, 8) for symmetric in (True, False)]
RECIPE = Recipe(quantizer="signround", iterations=2)


def rounded_by_auto_round(bits: int, symmetric: bool, dtype: torch.dtype) -> SimpleNamespace:
    """A linear layer as auto-round leaves it, its roundings moved at random."""
    from auto_round.data_type.int import quant_tensor_asym, quant_tensor_sym

    generator = torch.Generator().manual_seed(bits)
    weight = torch.randn(96, 256, generator=generator).to(dtype)
    weight[3], weight[4, 64:128] = 0, 0.25
    moves = torch.rand(96 * 4, 64, generator=generator) - 0.5
    least, most = (0.7 + 0.3 * torch.rand(96 * 4, generator=generator) for _ in range(2))
    function = quant_tensor_sym if symmetric else quant_tensor_asym
    values, scale, zp = function(weight, bits, 64, v=moves, min_scale=least, max_scale=most, scale_dtype=torch.float16)
    return SimpleNamespace(weight=values.to(dtype), scale=scale.reshape(96, -1), zp=zp)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
def test_packed_codes_stand_for_the_very_weight_that_was_tuned(bits: int, symmetric: bool, dtype: torch.dtype) -> None:
    linear = rounded_by_auto_round(bits, symmetric, dtype)
    packed = packed_linear(linear, "some.layer", bits, symmetric)
    assert torch.equal(torch.from_numpy(dequantize(packed, bits, symmetric)).to(dtype), linear.weight)
    assert np.array_equal(packed.scales, linear.scale.numpy().T)


def test_a_weight_that_its_scales_do_not_give_is_refused() -> None:
    linear = rounded_by_auto_round(4, True, torch.float32)
    linear.weight[5, 5] += 0.3 * float(linear.scale.abs().min())
    with pytest.raises(MopeqError, match=r"some\.layer"):
        packed_linear(linear, "some.layer", 4, True)


def text_questions(folder: Path) -> Path:
    """Two questions without pictures, whose few tokens cannot reach every expert."""
    folder.mkdir()
    lines = (tiny.SHAPES / "calibration.jsonl").read_text("utf-8").splitlines()
    without = [line for line in lines if json.loads(line)["image"] is None]
    (folder / "calibration.jsonl").write_text("\n".join(without[:2]), "utf-8")
    return folder / "calibration.jsonl"


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_questions(tmp_path_factory.mktemp("questions") / "few")


@pytest.fixture(scope="module")
def tuned(shapes: Path, calibration: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizedRepo:
    return quantize(str(shapes), tmp_path_factory.mktemp("tuned") / "repo", RECIPE, calibration=calibration)


@pytest.fixture(scope="module")
def searched(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> QuantizedRepo:
    return quantize(str(shapes), tmp_path_factory.mktemp("searched") / "repo", Recipe())


def codes(repo: QuantizedRepo) -> dict[str, np.ndarray]:
    tensors = {name: value for file in repo.folder.glob("*.safetensors") for name, value in load_file(file).items()}
    return {name: value.numpy() for name, value in tensors.items() if name.endswith(".qweight")}


def test_experts_that_no_token_reached_are_those_of_the_search(
    shapes: Path, tuned: QuantizedRepo, searched: QuantizedRepo
) -> None:
    layout = open_model(str(shapes)).layout
    ours, theirs = codes(tuned), codes(searched)
    unreached = tuned.manifest["calibration"]["unreached_experts"]
    same: set[Expert] = set()
    for expert, matrices in layout.experts.items():
        if all(np.array_equal(ours[f"{each.name}.qweight"], theirs[f"{each.name}.qweight"]) for each in matrices):
            same.add(expert)
    assert 0 < unreached < len(layout.experts)
    assert len(same) == unreached
    assert not any(np.array_equal(ours[f"{each.name}.qweight"], theirs[f"{each.name}.qweight"]) for each in layout.rest)


def test_it_has_the_form_of_every_publication(tuned: QuantizedRepo, searched: QuantizedRepo) -> None:
    assert {name: value.shape for name, value in codes(tuned).items()} == {
        name: value.shape for name, value in codes(searched).items()
    }
    assert (tuned.folder / "config.json").read_text() == (searched.folder / "config.json").read_text()


def test_the_same_again_gives_the_same_bytes(
    shapes: Path, tuned: QuantizedRepo, calibration: Path, tmp_path: Path
) -> None:
    moved = shutil.copyfile(calibration, tmp_path / "under-another-name.jsonl")
    again = quantize(str(shapes), tmp_path / "again", RECIPE, calibration=moved)
    assert again.manifest == tuned.manifest
    assert (again.folder / "mopeq.json").read_bytes() == (tuned.folder / "mopeq.json").read_bytes()


def test_fused_experts_and_an_asymmetric_grid_load_as_written(tmp_path: Path) -> None:
    recipe = Recipe(quantizer="signround", iterations=1, group_size=32, symmetric=False, rest_bits=8)
    repo = quantize(str(tiny.qwen3_vl_moe(tmp_path / "source")), tmp_path / "quantized", recipe)
    loading = load_alone(repo.folder, repo.manifest["model"]["auto_class"])
    check_loading(loading, repo.manifest)
    assert repo.manifest["calibration"]["bundled"] is True
    assert repo.manifest["calibration"]["with_picture"] > 0


def test_the_digest_names_the_calibration_data(shapes: Path, calibration: Path) -> None:
    digests = {
        calibrated.calibrated(recipe, questions).digest
        for recipe in (RECIPE, Recipe(quantizer="signround"), Recipe(quantizer="gptq"))
        for questions in (None, calibration, shapes / "calibration.jsonl")
    }
    assert len(digests) == 9
    assert calibrated.calibrated(Recipe(), None) == Recipe()


def test_calibration_data_that_nobody_uses_are_refused(shapes: Path, calibration: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nor --quantizer search uses calibration data"):
        quantize(str(shapes), tmp_path / "out", Recipe(), calibration=calibration)


@pytest.mark.parametrize("quantizer", calibrated.CALIBRATED)
def test_a_model_that_does_not_fit_memory_is_told_before_anything_is_done(
    quantizer: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mopeq_hub.workplace.free_memory", lambda: 1_000_000_000)
    with pytest.raises(MopeqError, match=r"^1\.0 GB of free memory do not hold .* use a machine with 3 GB free, or"):
        quantize(str(shapes), tmp_path / "out", Recipe.from_dict({"quantizer": quantizer}))
    assert list(tmp_path.iterdir()) == []


def test_what_stops_the_other_process_is_told_in_one_line(shapes: Path, tmp_path: Path) -> None:
    broken = tmp_path / "calibration.jsonl"
    (tmp_path / "picture.png").write_bytes(b"no picture")
    broken.write_text(json.dumps({"image": "picture.png", "question": "what ?", "answer": "nothing"}), "utf-8")
    with pytest.raises(
        MopeqError, match=r"the model could not be calibrated: .*picture\.png.*; use --quantizer search"
    ):
        quantize(str(shapes), tmp_path / "out", RECIPE, calibration=broken)
    assert not (tmp_path / "out").exists()
