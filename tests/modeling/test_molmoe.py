"""MolmoE computes what its original code computed, loads and writes the original's tensors, and generates."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from mopeq_hub.modeling.molmoe.configuration_molmoe import MolmoeConfig
from mopeq_hub.modeling.molmoe.modeling_molmoe import MolmoeForConditionalGeneration
from tests.modeling.molmoe import REFERENCE, small

PRECISION = 1e-4
"""Relative to the largest logit."""


@pytest.fixture(scope="module")
def reference() -> dict[str, torch.Tensor]:
    """Inputs and logits of the original code."""
    return load_file(REFERENCE / "reference.safetensors")


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import AutoModelForImageTextToText

    found = AutoModelForImageTextToText.from_pretrained(REFERENCE, dtype=torch.float32)
    assert type(found) is MolmoeForConditionalGeneration
    return found.eval()


def seen(reference: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The reference's inputs under the names that forward has for them."""
    names = {"pixel_values": "images"}
    inputs = ("input_ids", "pixel_values", "image_masks", "image_input_idx")
    return {name: reference[names.get(name, name)] for name in inputs}


def logits(model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_the_originals(reference: dict[str, torch.Tensor], attention: str) -> None:
    model = MolmoeForConditionalGeneration.from_pretrained(
        REFERENCE, dtype=torch.float32, attn_implementation=attention
    )
    assert distance(logits(model, **seen(reference)), reference["logits"]) < PRECISION
    assert distance(logits(model, input_ids=reference["input_ids"]), reference["text_only_logits"]) < PRECISION
    assert distance(reference["text_only_logits"], reference["logits"]) > 100 * PRECISION


@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
def test_any_implementation_of_experts_gives_them(reference: dict[str, torch.Tensor], experts: str) -> None:
    model = MolmoeForConditionalGeneration.from_pretrained(
        REFERENCE, dtype=torch.float32, experts_implementation=experts
    )
    assert distance(logits(model, **seen(reference)), reference["logits"]) < PRECISION


def test_a_checkpoint_is_loaded_whole_and_written_under_its_own_names(model: Any, tmp_path: Path) -> None:
    loaded: Any = MolmoeForConditionalGeneration.from_pretrained(REFERENCE, output_loading_info=True)
    assert not any(loaded[1].values())
    model.save_pretrained(tmp_path)
    original = json.loads((REFERENCE / "model.safetensors.index.json").read_text())["weight_map"]
    with safe_open(tmp_path / "model.safetensors", "pt") as written:
        assert set(written.keys()) == set(original)
    config = json.loads((tmp_path / "config.json").read_text())
    assert not {"text_config", "vision_config", "auto_map"} & set(config)
    assert (config["n_layers"], config["vision_backbone"]["image_emb_dim"]) == (3, 64)
    again = MolmoeForConditionalGeneration.from_pretrained(tmp_path)
    ids = torch.arange(5, 25).reshape(2, 10)
    assert torch.equal(logits(again, input_ids=ids), logits(model, input_ids=ids))


def test_generating_with_the_cache_gives_what_generating_without_it_gives(
    model: Any, reference: dict[str, torch.Tensor]
) -> None:
    inputs, length = seen(reference), reference["input_ids"].shape[1]
    asked = {**inputs, "max_new_tokens": 12, "do_sample": False}
    cached, fresh = (model.generate(**asked, use_cache=use) for use in (True, False))
    assert torch.equal(cached, fresh)
    # And both are what the whole sequence, looked at once, says comes next.
    at_once = logits(model, **(inputs | {"input_ids": cached[:, :-1]}))
    assert torch.equal(at_once[:, length - 1 :].argmax(-1), cached[:, length:])
    assert len(set(cached[:, length:].flatten().tolist())) > 2


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_rows_have_the_logits_of_single_ones(model: Any, reference: dict[str, torch.Tensor], side: str) -> None:
    inputs, length, missing = seen(reference), reference["input_ids"].shape[1], 7
    shorter = {name: value[1:, :-missing] if name == "input_ids" else value[1:] for name, value in inputs.items()}
    shorter["image_input_idx"] = torch.where(
        shorter["image_input_idx"] < length - missing, shorter["image_input_idx"], -1
    )
    alone = [logits(model, **{name: value[:1] for name, value in inputs.items()}), logits(model, **shorter)]

    first = missing if side == "left" else 0
    batch = {name: value.clone() for name, value in inputs.items()}
    mask = torch.ones_like(batch["input_ids"])
    batch["input_ids"][1] = 1
    batch["input_ids"][1, first : first + length - missing] = shorter["input_ids"][0]
    mask[1] = 0
    mask[1, first : first + length - missing] = 1
    places = shorter["image_input_idx"][0]
    batch["image_input_idx"][1] = torch.where(places < 0, places, places + first)
    # One more crop for the second row than the first has: a crop of -1 is none.
    for name, filling in (("pixel_values", -1.0), ("image_masks", -1.0), ("image_input_idx", -100)):
        batch[name] = torch.cat([batch[name], torch.full_like(batch[name][:, :1], filling)], dim=1)
    together = logits(model, **batch, attention_mask=mask)
    assert distance(together[:1], alone[0]) < PRECISION
    assert distance(together[1:, first : first + length - missing], alone[1]) < PRECISION


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_backbone": {"image_default_input_size": [70, 70], "image_num_pos": 26}},
        {"vision_backbone": {"image_default_input_size": [42, 70], "image_num_pos": 17}},
        {"image_pooling_h": 1, "image_pooling_w": 3},
        {"vit_layers": [-1]},
        {"image_padding_embed": None},
    ],
    ids=["odd grid", "other grid than the table's", "other pooling", "one layer", "no padding embedding"],
)
def test_every_pooled_patch_comes_of_its_own_patches(changes: dict[str, Any]) -> None:
    model = small(**changes)
    config, tower = model.config, model.model.vision_backbone
    (rows, columns), (high, wide) = config.vision_config.grid, (config.image_pooling_h, config.image_pooling_w)
    images, masks = torch.randn(1, 2, rows * columns, 588), torch.rand(1, 2, rows * columns).round(decimals=0)
    with torch.no_grad():
        features = tower(images, masks)
        layers = tower.image_vit(images[0], tuple(config.vit_layers))
        patches = torch.cat(layers, -1)[:, 1:]
        if tower.pad_embed is not None:
            patches = patches + tower.pad_embed[0] * (masks[0] == 0)[..., None]
        patches = patches.reshape(2, rows, columns, -1)
        number = 0
        for row in range(0, rows, high):
            for column in range(0, columns, wide):
                window = torch.zeros(2, high, wide, config.feature_size)
                found = patches[:, row : row + high, column : column + wide]
                window[:, : found.shape[1], : found.shape[2]] = found
                window = window.reshape(2, high * wide, -1)
                pooled = tower.image_projector(tower.image_pooling_2d(window.mean(1, keepdim=True), window))
                assert torch.allclose(features[0, :, number], pooled[:, 0], atol=1e-5)
                number += 1
    assert features.shape[2] == number


def test_a_model_with_fewer_key_heads_is_written_and_loaded(tmp_path: Path) -> None:
    model = small(n_kv_heads=2)
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as written:
        fused = written.get_slice("model.transformer.blocks.0.attn.att_proj.weight")
        assert fused.get_shape() == [128 + 64 + 64, 128]
    ids = torch.arange(5, 25).reshape(2, 10)
    again = MolmoeForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(logits(again, input_ids=ids), logits(model, input_ids=ids))


def test_features_are_added_where_they_belong_and_nowhere_else(model: Any, reference: dict[str, torch.Tensor]) -> None:
    inputs = seen(reference)
    features = model.get_image_features(inputs["pixel_values"], inputs["image_masks"])
    given: dict[str, torch.Tensor] = {}
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: given.update(found=kwargs["inputs_embeds"]), with_kwargs=True
    )
    logits(model, **inputs)
    hook.remove()
    expected = model.get_input_embeddings()(inputs["input_ids"]).detach().clone()
    for row, crop, patch in (inputs["image_input_idx"] >= 0).nonzero().tolist():
        expected[row, inputs["image_input_idx"][row, crop, patch]] += features[row, crop, patch].detach()
    assert torch.allclose(given["found"], expected, atol=1e-6)


def test_ids_of_the_second_table_follow_those_of_the_first(model: Any) -> None:
    table = model.get_input_embeddings()
    assert (len(table.embedding), len(table.new_embedding)) == (256, 16)
    ids = torch.tensor([[0, 255, 256, 271]])
    assert torch.equal(table(ids)[0], table.weight[ids[0]])


def test_it_learns(model: Any, reference: dict[str, torch.Tensor]) -> None:
    trained = small()
    trained.train()
    outputs = trained(**seen(reference), labels=reference["input_ids"], output_router_logits=True)
    outputs.loss.backward()
    parameters = dict(trained.named_parameters())
    untouched = {name for name, value in parameters.items() if value.grad is None}
    # The last layer of the tower is asked for by no vit_layers.
    assert all(".resblocks.3." in name for name in untouched)
    assert outputs.aux_loss > 0


def test_a_dense_molmo_is_refused_in_one_line(tmp_path: Path) -> None:
    from transformers import AutoConfig

    dense = {"model_type": "molmo", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(dense))
    with pytest.raises(ValueError, match=r"^this Molmo is dense .*only MolmoE is supported.*$"):
        AutoConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(("name", "value"), [("rope_impl", "cockatoo"), ("weight_tying", True), ("clip_qkv", 8.0)])
def test_a_choice_that_is_not_built_is_refused(name: str, value: Any) -> None:
    values = json.loads((REFERENCE / "config.json").read_text())
    with pytest.raises(ValueError, match=name):
        MolmoeConfig.from_dict(values | {name: value})
