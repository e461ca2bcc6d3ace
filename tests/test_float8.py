"""Sources stored as float8 with a factor for each block: read as what they stand for, published without float8."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mopeq_hub import MopeqError, Recipe, pipeline
from mopeq_hub.model import open_model
from tests import tiny
from tests.conftest import edit_json

BLOCK = 32
RECIPE = Recipe(group_size=32)
FAMILIES = {"one tensor an expert": tiny.llava_over_deepseek_v2, "fused": tiny.qwen3_vl_moe}


def to_float8(folder: Path, exact: Path, dtype: torch.dtype = torch.float32) -> None:
    """Store the text model's matrices as float8 in two files, factors apart from what they belong to, and in `exact`
    what they stand for as `dtype`."""
    tensors = load_file(folder / "model.safetensors")
    first: dict[str, torch.Tensor] = {}
    second: dict[str, torch.Tensor] = {}
    plain: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dim() < 2 or not (".layers." in name and ("_proj" in name)) or "vision" in name or "visual" in name:
            first[name] = plain[name] = tensor
            continue
        rows, columns = tensor.shape[-2:]
        blocks = [-(-rows // BLOCK), -(-columns // BLOCK)]
        factors = torch.rand(*tensor.shape[:-2], *blocks) * 0.01 + 0.001
        spread = factors.repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)[..., :rows, :columns]
        stored = (tensor.float() / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        first[name], second[f"{name}_scale_inv"] = stored, factors
        plain[name] = (stored.float() * spread).to(dtype)
    (folder / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for number, part in enumerate((first, second), start=1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file(part, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    save_file(plain, exact / "model.safetensors", {"format": "pt"})
    quantization = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}
    edit_json(folder / "config.json", lambda config: config.update(quantization_config=quantization))


@pytest.fixture(params=FAMILIES)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A float8 model and the float32 one that it stands for."""
    folders = [FAMILIES[request.param](tmp_path / name) for name in ("float8", "float32")]
    torch.manual_seed(1)
    to_float8(folders[0], folders[1])
    return folders[0], folders[1]


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def test_it_gives_what_its_float32_gives(pair: tuple[Path, Path], tmp_path: Path) -> None:
    repos = [pipeline.quantize(str(folder), tmp_path / f"out{number}", RECIPE) for number, folder in enumerate(pair)]
    assert repos[0].manifest["experts"] == repos[1].manifest["experts"]
    ours, expected = (tensors_of(repo.folder) for repo in repos)
    assert set(ours) == set(expected)
    for name, tensor in expected.items():
        kept = tensor.to(torch.bfloat16) if tensor.dtype == torch.float32 else tensor
        assert torch.equal(ours[name], kept), name


def test_it_is_measured_and_loads(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = pipeline.quantize(str(pair[0]), tmp_path / "out", RECIPE).folder
    fidelity = pipeline.evaluate(folder, compare=False)
    assert 0 < fidelity["kl"]["mean"] < 1
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "auto-round"


def test_weights_are_read_where_they_lie(pair: tuple[Path, Path]) -> None:
    model, exact = (open_model(str(folder)) for folder in pair)
    for ours, theirs in zip(model.layout.matrices[:40], exact.layout.matrices[:40], strict=True):
        assert np.array_equal(ours.read(model.checkpoint).float32(), theirs.read(exact.checkpoint).float32())


def without_a_scale(folder: Path) -> None:
    path = folder / "model-00002-of-00002.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, path)
    edit_json(folder / "model.safetensors.index.json", lambda index: index["weight_map"].pop(name))


def with_other_blocks(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config["quantization_config"].update(weight_block_size=[64, 64]))


def with_odd_blocks(folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config["quantization_config"].update(weight_block_size=[0, "x"]))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_a_scale, "float8 without a scale"),
        (with_other_blocks, "where blocks of 64 x 64 need"),
        (with_odd_blocks, "quantized already"),
    ],
)
def test_what_does_not_fit_is_refused(damage: Callable[[Path], None], words: str, tmp_path: Path) -> None:
    folder, exact = (tiny.llava_over_deepseek_v2(tmp_path / name) for name in ("float8", "float32"))
    to_float8(folder, exact)
    damage(folder)
    with pytest.raises(MopeqError, match=words):
        open_model(str(folder))
