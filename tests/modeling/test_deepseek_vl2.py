"""DeepSeek-VL2 by transformers' parts gives what the original code gives: logits of three small checkpoints in the real
repos' layout, made by the original (tests/assets/README.md)."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, SiglipVisionModel

import mopeq_hub  # noqa: F401

ASSETS = Path(__file__).parent.parent / "assets"
KINDS = ("tiny", "small", "base")
Inputs = dict[str, Any]


def folder_of(kind: str) -> Path:
    return ASSETS / f"deepseek-vl2-{kind}-like"


def load(folder: Path, **options: Any) -> Any:
    loaded: Any = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **options
    )
    model, info = loaded
    assert not any(info.values()), info
    return model.eval()


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(kind: str) -> Any:
    return load(folder_of(kind))


@pytest.fixture(scope="module")
def reference(kind: str) -> dict[str, torch.Tensor]:
    return load_file(folder_of(kind) / "reference.safetensors")


def asked(reference: dict[str, torch.Tensor]) -> Inputs:
    names = {"input_ids": "input_ids", "pixel_values": "images"}
    names |= {name: name for name in ("images_seq_mask", "images_spatial_crop")}
    return {ours: reference[theirs] for ours, theirs in names.items()}


def logits(model: Any, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    found, expected = found.detach(), expected.detach()
    assert float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logits_are_the_originals_with_pictures_and_without(model, reference, attention):
    model.set_attn_implementation(attention)
    assert_close(logits(model, **asked(reference)), reference["logits"])
    assert_close(logits(model, input_ids=reference["input_ids"]), reference["text_only_logits"])


@pytest.mark.parametrize("experts", ["eager", "batched_mm", "grouped_mm"])
def test_any_implementation_of_experts_gives_them(kind, reference, experts):
    # transformers notes of SigLIP that it has no experts, and takes the note for what is derived from it.
    assert not SiglipVisionModel._can_set_experts_implementation()
    assert_close(logits(load(folder_of(kind), experts_implementation=experts), **asked(reference)), reference["logits"])


def test_no_picture_is_said_by_zeros_too(model, reference):
    nothing = {
        "pixel_values": torch.zeros_like(reference["images"][:, :1]),
        "images_seq_mask": torch.zeros_like(reference["images_seq_mask"]),
        "images_spatial_crop": torch.zeros_like(reference["images_spatial_crop"]),
    }
    assert_close(logits(model, input_ids=reference["input_ids"], **nothing), reference["text_only_logits"])


def test_saved_again_it_is_the_checkpoint_it_came_from(kind, model, tmp_path):
    model.save_pretrained(tmp_path)
    original: dict[str, torch.Tensor] = {}
    for path in folder_of(kind).glob("model-*.safetensors"):
        original |= load_file(path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], original[name].float()) for name in original)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert config["model_type"] == "deepseek_vl_v2"
    assert config["language_config"]["n_routed_experts"] == 8
    assert_close(load(tmp_path).model.image_newline, model.model.image_newline)


def test_the_pooling_head_of_real_checkpoints_is_passed_over(tmp_path, reference, kind):
    from safetensors.torch import save_file

    folder = folder_of(kind)
    weights = {name: value for path in folder.glob("model-*") for name, value in load_file(path).items()}
    weights["vision.attn_pool.latent"] = torch.zeros(1, 1, 64)
    weights["vision.attn_pool.norm.weight"] = torch.zeros(64)
    weights["vision.attn_pool.mlp.fc1.weight"] = torch.zeros(256, 64)
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert_close(logits(load(tmp_path), **asked(reference)), reference["logits"])


def test_generation_is_the_same_with_the_cache_and_without(model, reference):
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    with_cache = model.generate(**asked(reference), **options, use_cache=True)
    assert torch.equal(with_cache, model.generate(**asked(reference), **options, use_cache=False))
    assert with_cache.shape[1] == reference["input_ids"].shape[1] + 8
    beams = model.generate(**asked(reference), **options, num_beams=2)
    assert torch.equal(beams, model.generate(**asked(reference), **options, num_beams=2, use_cache=False))


def test_an_answer_ends_with_the_text_models_end_token_though_no_file_is_about_generation(model, reference):
    end = model.config.language_config.eos_token_id
    assert end is not None
    assert model.generation_config.eos_token_id == end
    always = {"suppress_tokens": [token for token in range(model.config.language_config.vocab_size) if token != end]}
    made = model.generate(**asked(reference), **always, max_new_tokens=8, do_sample=False, pad_token_id=end)
    assert made.shape[1] == reference["input_ids"].shape[1] + 1


def pictured(model: Any, crops: list[tuple[int, int]], before: int, after: int, seed: int = 0) -> Inputs:
    """A row with these pictures, each `before` tokens after the last, and `after` tokens at the end."""
    torch.manual_seed(seed)
    config = model.config
    side = -(-(config.vision_config.image_size // config.vision_config.patch_size) // 2)
    mask: list[bool] = []
    for across, down in crops:
        mask += [False] * before + [True] * (side * (side + 1) + 1 + down * side * (across * side + 1))
    mask += [False] * after
    size = config.vision_config.image_size
    return {
        "input_ids": torch.randint(3, config.language_config.vocab_size, (1, len(mask))),
        "attention_mask": torch.ones(1, len(mask), dtype=torch.bool),
        "pixel_values": torch.randn(1, max(1, sum(1 + a * d for a, d in crops)), 3, size, size),
        "images_seq_mask": torch.tensor([mask]),
        "images_spatial_crop": torch.tensor([crops or [(0, 0)]]),
    }


def left_padded(rows: list[Inputs]) -> Inputs:
    """The rows as one batch: tokens padded on the left, tiles and pictures at the end."""

    def pad(tensor: torch.Tensor, name: str) -> torch.Tensor:
        missing = max(row[name].shape[1] for row in rows) - tensor.shape[1]
        left = name in ("input_ids", "attention_mask", "images_seq_mask")
        widths = [0, 0] * (tensor.dim() - 2) + ([missing, 0] if left else [0, missing])
        return torch.nn.functional.pad(tensor, widths)

    return {name: torch.cat([pad(row[name], name) for row in rows]) for name in rows[0]}


ROWS: list[tuple[list[tuple[int, int]], int, int]] = [
    ([(2, 1)], 4, 5),
    ([], 0, 9),
    ([(1, 3), (1, 1), (3, 2)], 3, 6),
    ([(1, 1), (1, 1)], 2, 4),
]


def test_rows_in_a_padded_batch_are_what_they_are_alone(model):
    rows = [pictured(model, *row, seed=number) for number, row in enumerate(ROWS)]
    together = logits(model, **left_padded(rows))
    for number, row in enumerate(rows):
        alone = logits(model, **row)[0]
        assert_close(together[number, -len(alone) :], alone)
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    generated = model.generate(**left_padded(rows), **options)
    for number, row in enumerate(rows):
        assert torch.equal(generated[number, -5:], model.generate(**row, **options)[0, -5:])


def test_logits_that_nobody_asks_for_are_not_computed(model, reference):
    kept = logits(model, **asked(reference), logits_to_keep=3)
    assert kept.shape[1] == 3
    assert_close(kept, reference["logits"][:, -3:])


def test_labels_give_a_loss_and_every_parameter_a_gradient(kind):
    model = load(folder_of(kind)).train()
    row = pictured(model, [(2, 2)], 4, 8)
    model(**row, labels=row["input_ids"]).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


def test_hidden_states_attentions_and_router_logits_are_given(model, reference):
    with torch.no_grad():
        model.set_attn_implementation("eager")
        inputs = asked(reference)
        found = model(**inputs, output_hidden_states=True, output_attentions=True, output_router_logits=True)
    text = model.config.get_text_config()
    assert len(found.hidden_states) == text.num_hidden_layers + 1
    assert len(found.attentions) == text.num_hidden_layers
    assert len(found.router_logits) == text.num_hidden_layers - 1


def varied(kind: str, **changes: dict[str, Any]) -> Any:
    """An untrained model of the config of this kind, changed part by part."""
    config = json.loads((folder_of(kind) / "config.json").read_text("utf-8"))
    for part, values in changes.items():
        config[part] = {**config[part], **values} if isinstance(values, dict) else values
    torch.manual_seed(0)
    made = AutoConfig.for_model(**config)
    return AutoModelForImageTextToText.from_config(made, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("tiny", {"vision_config": {"image_size": 42, "patch_size": 14}}),
        ("tiny", {"vision_config": {"image_size": 70}, "global_view_pos": "tail"}),
        ("tiny", {"language_config": {"num_key_value_heads": 2, "n_shared_experts": None, "norm_topk_prob": True}}),
        ("small", {"language_config": {"q_lora_rank": 24, "first_k_dense_replace": 0, "moe_layer_freq": 2}}),
        ("small", {"language_config": {"num_attention_heads": 7, "moe_intermediate_size": 40}}),
        ("small", {"language_config": {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}}),
        ("base", {"language_config": {"n_group": 4, "topk_group": 2, "num_experts_per_tok": 4}}),
        ("base", {"projector_config": {"depth": 3, "mlp_ratio": 2, "input_dim": 96}, "vision_config": {"width": 96}}),
        ("base", {"vision_config": {"mlp_ratio": 3.7362, "heads": 2}}),
        ("base", {"language_config": {"use_mla": False, "tie_word_embeddings": True}}),
    ],
)  # fmt: skip
def test_other_sizes_and_settings_hold_in_batches_and_over_saving(kind, changes, tmp_path):
    model = varied(kind, **changes)
    rows = [pictured(model, *row, seed=number) for number, row in enumerate(ROWS)]
    together = logits(model, **left_padded(rows))
    for number, row in enumerate(rows):
        alone = logits(model, **row)[0]
        assert_close(together[number, -len(alone) :], alone)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(load(tmp_path), **rows[0]), logits(model, **rows[0]))


def test_tiles_lie_as_in_the_picture(model):
    """Newlines end rows of the whole picture, not of its tiles, and tiles go across before they go down."""
    text = model.model
    side, width = 2, text.image_newline.shape[0]
    tiles = torch.arange(1 + 3 * 2).view(-1, 1, 1).expand(-1, side * side, width).float()
    whole, separator, local = text._arranged(tiles, 3, 2)
    rows = local.view(2 * side, 3 * side + 1, width)
    assert rows[:, :-1, 0].tolist() == [[1, 1, 2, 2, 3, 3]] * 2 + [[4, 4, 5, 5, 6, 6]] * 2
    assert torch.equal(rows[:, -1], text.image_newline.expand(2 * side, -1))
    assert whole.shape == (side * (side + 1), width)
    assert torch.equal(separator[0], text.view_seperator)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"images_seq_mask": None}, "images_seq_mask is missing"),
        ({"images_spatial_crop": torch.tensor([[[1, 1]], [[1, 1]]])}, "image positions"),
        ({"images_spatial_crop": torch.tensor([[[9, 9]], [[1, 1]]])}, "counts 82 tiles"),
        ({"pixel_values": torch.zeros(2, 3, 3, 28, 28)}, "28 x 28 pixels"),
        ({"input_ids": None}, "either input_ids or inputs_embeds"),
    ],
)
def test_what_does_not_fit_together_is_said(change, word):
    model = load(folder_of("tiny"))
    inputs = asked(load_file(folder_of("tiny") / "reference.safetensors")) | change
    with pytest.raises(ValueError, match=word):
        logits(model, **inputs)


@pytest.mark.parametrize(
    ("part", "values", "word"),
    [
        ("tile_tag", "1D", "1D"),
        ("projector_config", {"token_pooling": True}, "pooling"),
        ("projector_config", {"projector_type": "resampler"}, "resampler"),
        ("language_config", {"topk_method": "random"}, "random"),
    ],
)
def test_settings_that_are_not_known_are_refused(part, values, word):
    with pytest.raises(ValueError, match=word):
        varied("tiny", **{part: values})
