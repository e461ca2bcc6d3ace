"""Who is who: every tensor of the supported families has its place, whatever form the file gives the experts."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from mopeq_hub import MopeqError, quantize
from mopeq_hub.bitmap import BitMap, packed_bytes, quantization_config, width_of
from mopeq_hub.checkpoint import Checkpoint
from mopeq_hub.experts import Expert
from mopeq_hub.families import identify
from mopeq_hub.fidelity.measure import check_loading, load_alone
from mopeq_hub.model import open_model
from mopeq_hub.progress import Quiet
from mopeq_hub.recipe import Recipe
from mopeq_hub.source import FolderSource
from tests import tiny
from tests.conftest import edit_json


@pytest.mark.parametrize(
    ("make", "experts", "layers", "rest"),
    [
        # 2 layers of 8 experts after a dense one; 4 attention projections a layer, 3 dense, 2 x 3 shared.
        (tiny.llava_over_deepseek_v2, 16, [1, 2], 3 * 4 + 3 + 2 * 3),
        (tiny.qwen3_vl_moe, 16, [0, 1], 2 * 4),
    ],
)
def test_every_tensor_is_placed(
    make: Callable[[Path], Path], experts: int, layers: list[int], rest: int, tmp_path: Path
) -> None:
    layout = open_model(str(make(tmp_path / "model"))).layout
    assert len(layout.experts) == experts
    assert sorted(layout.modules_of) == layers
    assert len(layout.rest) == rest
    assert layout.ignored == ()
    assert all(
        {matrix.projection for matrix in matrices} == {"gate", "up", "down"} for matrices in layout.experts.values()
    )
    names = {matrix.name for matrix in layout.rest}
    assert not any("router" in name or name.endswith(".gate") or "vision" in name or "visual" in name for name in names)
    assert "lm_head.weight" in layout.kept


def test_fused_experts_are_read_as_out_by_in_from_either_orientation(tmp_path: Path) -> None:
    models = [open_model(str(tiny.qwen3_vl_moe(tmp_path / str(transpose), transpose))) for transpose in (True, False)]
    for expert in (Expert(0, 0), Expert(1, 7)):
        for one, other in zip(*(model.layout.experts[expert] for model in models), strict=True):
            assert (one.name, one.shape) == (other.name, other.shape)
            assert one.transposed != other.transposed
            weights = [matrix.read(model.checkpoint) for matrix, model in zip((one, other), models, strict=True)]
            assert np.array_equal(weights[0].values, weights[1].values)
            assert weights[0].by_rows != weights[1].by_rows
            assert weights[0].shape == one.shape


def test_the_configuration_needs_one_expression_a_layer_and_width(tmp_path: Path) -> None:
    layout = open_model(str(tiny.llava_over_deepseek_v2(tmp_path / "model"))).layout
    bitmap = BitMap.of(layout, lambda expert: 2 + expert.index % 3)
    config = quantization_config(layout, bitmap, Recipe(group_size=64, rest_bits=8))
    rules = config["extra_config"]
    assert rules[r"^model\.language_model\.layers\.1\.mlp\.experts\.(0|3|6)\."] == {"bits": 2}
    # Experts first, then what does not divide into groups of 64, then the rest.
    assert [rule["bits"] for rule in rules.values()] == [2, 3, 4, 2, 3, 4, *[16] * (len(rules) - 7), 8]
    assert any("down_proj" in pattern for pattern in rules)


def test_what_does_not_divide_stays_at_16_bits_outside_the_experts(tmp_path: Path) -> None:
    layout = open_model(str(tiny.llava_over_deepseek_v2(tmp_path / "model"))).layout
    bitmap = BitMap.uniform(layout, 4)
    widths = {matrix.name.split(".")[-1]: width_of(matrix, bitmap, Recipe(group_size=64)) for matrix in layout.rest}
    assert widths["kv_b_proj"] == 16, "32 inputs are not a group of 64"
    assert widths["q_proj"] == 4


def test_packed_bytes_count_codes_scales_and_zero_points() -> None:
    assert packed_bytes((64, 128), 3, 64) == 64 * 128 * 3 // 8 + 64 * 2 * 2 + 64 * 2 * 3 // 8


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_sources_of_16_and_32_bits_give_the_same_experts(dtype: str, tmp_path: Path) -> None:
    """bfloat16 weights fit float32 exactly, so the packed experts are the same; float16 is near."""
    source = tiny.llava_over_deepseek_v2(tmp_path / "model")
    _convert(source, dtype)
    repo = quantize(str(source), tmp_path / "quantized", Recipe(group_size=32, rest_bits=16))
    stored = {info.dtype for info in open_checkpoint(repo.folder).tensors.values()}
    assert stored == {"I32", "F16", {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]}
    assert repo.manifest["sizes"]["experts_bpw"] < 5


def test_a_head_tied_to_the_embedding_needs_no_tensor_of_its_own(tmp_path: Path) -> None:
    source = tiny.qwen3_vl_moe(tmp_path / "model")
    edit_json(source / "config.json", lambda config: config.update(tie_word_embeddings=True))
    edit_json(source / "config.json", lambda config: config["text_config"].update(tie_word_embeddings=True))
    tensors = load_file(source / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    repo = quantize(str(source), tmp_path / "quantized", Recipe(group_size=32))
    check_loading(load_alone(repo.folder, "AutoModelForImageTextToText"), repo.manifest)


def test_tensors_that_the_class_does_not_load_are_left_out_and_said(tmp_path: Path) -> None:
    source = tiny.qwen3_vl_moe(tmp_path / "model")
    tensors = load_file(source / "model.safetensors")
    tensors["model.extra.head"] = torch.zeros(3)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    told: list[str] = []

    class Listener(Quiet):
        def say(self, text: str) -> None:
            told.append(text)

    repo = quantize(str(source), tmp_path / "quantized", Recipe(group_size=32), progress=Listener())
    assert any("model.extra.head" in line for line in told)
    assert "model.extra.head" not in open_checkpoint(repo.folder).tensors


def test_what_is_quantized_already_is_refused(tmp_path: Path) -> None:
    source = tiny.qwen3_vl_moe(tmp_path / "model")
    edit_json(source / "config.json", lambda config: config.update(quantization_config={"quant_method": "gptq"}))
    with pytest.raises(MopeqError, match="quantized already, by gptq"):
        open_model(str(source))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"model_type": "molmo", "language_config": {"n_routed_experts": 64}},
            "not supported yet: model type molmo",
        ),
        ({"model_type": "bert", "text_config": None}, "not a mixture of experts"),
        ({"model_type": "llava", "text_config": "odd"}, "not a mixture of experts"),
        ({}, "no model_type"),
    ],
)
def test_what_was_found_is_said(config: dict, words: str) -> None:
    with pytest.raises(MopeqError, match=words):
        identify(config, "this model")


def open_checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(FolderSource(folder))


def _convert(folder: Path, dtype: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    converted = {name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}
    save_file(converted, folder / "model.safetensors", metadata={"format": "pt"})
