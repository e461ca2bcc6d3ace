"""Tiny configurations of every kind of model that was proven, and what to ask an instance: token ids, and a picture
where it takes one."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import CONFIG_MAPPING

IMAGE = 4
"""The token that stands for (a part of) a picture."""

_SMALL: dict[str, Any] = {
    "vocab_size": 208, "hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
    "num_experts": 8, "num_local_experts": 8, "n_routed_experts": 8, "moe_num_experts": 8, "num_experts_per_tok": 2,
    "moe_topk": 2, "moe_k": 2, "num_experts_per_token": 2, "top_k": 2, "shared_expert_intermediate_size": 32,
    "n_shared_experts": 1, "num_shared_experts": 1, "moe_num_shared_experts": 1, "shared_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32, "first_k_dense_replace": 1, "moe_layer_start_index": 1,
    "num_dense_layers": 1, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16,
    "v_head_dim": 16, "n_group": 1, "topk_group": 1, "sliding_window": 16, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
"""What a text config is given of these, under whichever of the names it knows."""

_LATENT = {"num_key_value_heads": 4}
_TEXTS: dict[str, dict[str, Any]] = {
    "afmoe": {}, "axk1": _LATENT, "axk2": _LATENT, "bailing_hybrid": {}, "cohere2_moe": {}, "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT, "deepseek_v32": _LATENT, "deepseek_v4": {}, "dots1": {}, "ernie4_5_moe": {},
    "exaone_moe": {}, "flex_olmo": {}, "glm4_moe": {}, "glm4_moe_lite": _LATENT, "glm_moe_dsa": _LATENT,
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"]}, "granitemoe": {}, "granitemoe_swa": {},
    "granitemoehybrid": {}, "granitemoeshared": {}, "hunyuan_v1_moe": {}, "hy_v3": {}, "hy_v4": _LATENT, "jamba": {},
    "kolibri1": {}, "laguna": {}, "lfm2_moe": {"layer_types": ["conv", "full_attention"]}, "mellum": {},
    "mimo_v2_flash": {}, "minimax": {}, "minimax_m2": {}, "mixtral": {}, "nemotron_h": {}, "olmoe": {}, "phimoe": {},
    "qwen2_moe": {}, "qwen3_5_moe_text": {}, "qwen3_moe": {}, "qwen3_next": {}, "qwen4_exp_text": {}, "solar_open": {},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""Text models, and what they need beside `_SMALL`."""


def _text(model_type: str, **more: Any) -> Any:
    kind = CONFIG_MAPPING[model_type]
    known = {name for each in kind.__mro__ for name in getattr(each, "__annotations__", {})} | set(kind.attribute_map)
    given = {name: value for name, value in _SMALL.items() if name in known}
    return kind(**{**given, **_TEXTS.get(model_type, {}), **more})


def _part(model_type: str, **more: Any) -> dict[str, Any]:
    return {**_text(model_type, **more).to_dict(), "model_type": model_type}


def _rope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), **more}


_TOWER = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 56,
    "patch_size": 14,
}  # fmt: skip
_CLIP = {**_TOWER, "model_type": "clip_vision_model"}
_QWEN = {
    "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 14, "spatial_merge_size": 2,
    "temporal_patch_size": 2, "out_hidden_size": 64,
}  # fmt: skip
_MARKS = {"image_token_id": IMAGE, "video_token_id": 201}
_VISION = {**_MARKS, "vision_start_token_id": 202, "vision_end_token_id": 203}
_FRAMES = {
    **_MARKS, "image_start_token_id": 202, "image_end_token_id": 203, "video_start_token_id": 204,
    "video_end_token_id": 206,
}  # fmt: skip
_LLAVA = {"image_token_index": IMAGE, "vision_feature_layer": -1, "vision_feature_select_strategy": "default"}
_TWO_TILES = {**_LLAVA, "image_grid_pinpoints": [[112, 56]]}


def _whole(model_type: str, text: dict[str, Any], vision: dict[str, Any], **more: Any) -> Any:
    kind: Any = CONFIG_MAPPING[model_type]
    return kind(text_config=text, vision_config=dict(vision), **more)


def _deepseek_ocr2() -> Any:
    sam = {
        "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_channels": 3,
        "image_size": 1024, "patch_size": 16, "global_attn_indexes": [1], "mlp_dim": 64, "window_size": 4,
        "downsample_channels": [24, 32],
    }  # fmt: skip
    encoder = {**_TOWER, "num_key_value_heads": 2}
    layers = {"num_hidden_layers": 2, "mlp_layer_types": ["dense", "sparse"], "num_key_value_heads": 4}
    text = _part("deepseek_ocr2_text", **layers)
    return _whole("deepseek_ocr2", text, {"sam_config": sam, "encoder_config": encoder}, image_token_id=IMAGE)


def _unlimited_ocr() -> Any:
    sam = {
        "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 128,
        "patch_size": 16, "global_attn_indexes": [1], "mlp_dim": 64, "window_size": 4, "downsample_channels": [24, 32],
    }  # fmt: skip
    text = _part("unlimited_ocr_text", num_key_value_heads=4, mlp_layer_types=["dense", "sparse"])
    vision = {"sam_config": sam, "encoder_config": {**_TOWER, "image_size": 28}}
    return _whole("unlimited_ocr", text, vision, image_token_id=IMAGE)


def _gemma4() -> Any:
    more = {
        "enable_moe_block": True, "top_k_experts": 2, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0,
        "vocab_size_per_layer_input": 208, "global_head_dim": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    }  # fmt: skip
    vision = {
        **_TOWER,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "pooling_kernel_size": 2,
        "position_embedding_size": 64,
    }
    tokens = {**_MARKS, "boi_token_id": 202, "eoi_token_id": 203, "audio_token_id": 205}
    return _whole("gemma4", _part("gemma4_text", **more), vision, audio_config=None, **tokens)


def _qwen3_omni() -> Any:
    audio = {
        "num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 32,
        "output_dim": 64, "n_window": 4, "downsample_hidden_size": 16,
    }  # fmt: skip
    vision = {**_QWEN, "deepstack_visual_indexes": [0, 1], "image_size": 56, "num_position_embeddings": 64}
    text = _part("qwen3_omni_moe_text", rope_parameters=_rope(2, 3, 3))
    return _whole("qwen3_omni_moe_thinker", text, vision, audio_config=audio, audio_token_id=205, **_VISION)


def _whole_qwen3_omni() -> Any:
    text = _part(
        "qwen3_omni_moe_talker_text",
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        num_experts=4,
        num_local_experts=4,
        rope_parameters=_rope(2, 3, 3),
    )
    code = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "head_dim": 16, "num_code_groups": 4,
    }  # fmt: skip
    talker = {
        "text_config": text, "code_predictor_config": code, "thinker_hidden_size": 64, "num_code_groups": 4,
        "accept_hidden_layer": 1, "spatial_merge_size": 2,
    }  # fmt: skip
    waves = {
        "codebook_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "decoder_dim": 32, "num_quantizers": 4,
        "upsample_rates": [2, 2], "upsampling_ratios": [2],
    }  # fmt: skip
    kind: Any = CONFIG_MAPPING["qwen3_omni_moe"]
    return kind(thinker_config=_qwen3_omni().to_dict(), talker_config=talker, code2wav_config=waves)


def _ernie() -> Any:
    vision = {key: value for key, value in _QWEN.items() if key not in ("temporal_patch_size", "out_hidden_size")}
    more = {
        "moe_intermediate_size": [96, 32],
        "rope_parameters": _rope(3, 3, 2),
        "mlp_layer_types": ["dense", "sparse"],
    }
    return _whole(
        "ernie4_5_vl_moe",
        _part("ernie4_5_vl_moe_text", **more),
        {**vision, "temporal_merge_size": 2, "in_channels": 3},
        **_FRAMES,
    )


_WHOLES: dict[str, Callable[[], Any]] = {
    "qwen3_vl_moe": lambda: _whole(
        "qwen3_vl_moe",
        _part("qwen3_vl_moe_text", rope_parameters=_rope(2, 3, 3, mrope_interleaved=True)),
        {**_QWEN, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64},
        **_VISION,
    ),
    "qwen3_5_moe": lambda: _whole(
        "qwen3_5_moe",
        _part(
            "qwen3_5_moe_text",
            num_hidden_layers=4,
            rope_parameters=_rope(1, 1, 2, mrope_interleaved=True, partial_rotary_factor=0.5),
        ),
        {**_QWEN, "num_position_embeddings": 64},
        **_VISION,
    ),
    "qwen3_omni_moe": _whole_qwen3_omni,
    "qwen3_omni_moe_thinker": _qwen3_omni,
    "glm4v_moe": lambda: _whole(
        "glm4v_moe",
        _part("glm4v_moe_text", rope_parameters=_rope(1, 1, 2, partial_rotary_factor=0.5)),
        {**_QWEN, "image_size": 112, "in_channels": 3},
        **_FRAMES,
    ),
    "ernie4_5_vl_moe": _ernie,
    "aria": lambda: _whole(
        "aria",
        _part("aria_text"),
        {**_TOWER, "model_type": "idefics3_vision"},
        projector_patch_to_query_dict={16: 8},
        image_token_index=IMAGE,
    ),
    "llama4": lambda: _whole(
        "llama4",
        _part("llama4_text", intermediate_size_mlp=96),
        {
            **_TOWER, "intermediate_size": 128, "vision_output_dim": 64, "projector_input_dim": 64,
            "projector_output_dim": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        image_token_index=IMAGE,
    ),
    "deepseek_ocr2": _deepseek_ocr2,
    "kimi_k25": lambda: _whole(
        "kimi_k25",
        _part("deepseek_v3"),
        {key: value for key, value in _TOWER.items() if key != "image_size"},
        projection_hidden_size=32,
        image_token_id=IMAGE,
    ),
    "gemma4": _gemma4,
    "unlimited_ocr": _unlimited_ocr,
    "mistral_large4": lambda: _whole(
        "mistral_large4", _part("mistral_large4_text", **_LATENT), _TOWER, image_token_index=IMAGE
    ),
    "minimax_m3_vl": lambda: _whole(
        "minimax_m3_vl",
        _part("minimax_m3_vl_text", rotary_dim=16, dense_intermediate_size=96),
        {**_TOWER, "temporal_patch_size": 2, "spatial_merge_size": 2},
        projector_hidden_size=32,
        image_token_index=IMAGE,
    ),
    "lfm2_vl over lfm2_moe": lambda: _whole(
        "lfm2_vl",
        _part("lfm2_moe"),
        {**_TOWER, "model_type": "siglip2_vision_model", "num_patches": 64},
        image_token_id=IMAGE,
        projector_hidden_size=64,
    ),
    "internvl over gpt_oss": lambda: _whole("internvl", _part("gpt_oss"), _TOWER, image_token_id=IMAGE),
    "internvl over qwen3_moe": lambda: _whole("internvl", _part("qwen3_moe"), _TOWER, image_token_id=IMAGE),
    "llava over olmoe": lambda: _whole("llava", _part("olmoe"), _CLIP, **_LLAVA),
    "llava over qwen3_moe": lambda: _whole("llava", _part("qwen3_moe"), _CLIP, **_LLAVA),
    "llava over deepseek_v2": lambda: _whole("llava", _part("deepseek_v2"), _CLIP, **_LLAVA),
    "llava_next over mixtral": lambda: _whole("llava_next", _part("mixtral"), _CLIP, **_TWO_TILES),
    "llava_onevision over qwen2_moe": lambda: _whole(
        "llava_onevision",
        _part("qwen2_moe"),
        {**_TOWER, "model_type": "siglip_vision_model"},
        **{**_TWO_TILES, "vision_feature_select_strategy": "full"},
        video_token_index=201,
    ),
    "mistral3 over mistral4": lambda: _whole(
        "mistral3", _part("mistral4", **_LATENT), {**_TOWER, "model_type": "pixtral"}, image_token_index=IMAGE
    ),
    "idefics3 over mixtral": lambda: _whole("idefics3", _part("mixtral"), _TOWER, image_token_id=IMAGE),
}  # fmt: skip

NAMES = (*_WHOLES, *_TEXTS)


def config_of(name: str) -> Any:
    return _WHOLES[name]() if name in _WHOLES else _text(name)


def takes_pictures(name: str) -> bool:
    return name in _WHOLES


def _random(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def _pictures() -> dict[str, tuple[int, dict[str, torch.Tensor]]]:
    """Of a composite model's outer part: the tokens that a picture of 56 x 56 takes, and how it comes."""
    whole, grid = {"pixel_values": _random(1, 3, 56, 56)}, {"image_grid_thw": torch.tensor([[1, 4, 4]])}
    tiles = {"pixel_values": _random(1, 3, 3, 56, 56), "image_sizes": torch.tensor([[56, 112]])}
    twice = {"pixel_values": _random(16, 3 * 2 * 14 * 14), **grid}
    places = torch.tensor([[[x, y] for y in range(4) for x in range(4)]])
    seen = {"spatial_shapes": torch.tensor([[4, 4]]), "pixel_attention_mask": torch.ones(1, 16, dtype=torch.long)}
    return {
        "qwen3_vl_moe": (4, twice),
        "qwen3_5_moe": (4, twice),
        "qwen3_omni_moe": (4, twice),
        "qwen3_omni_moe_thinker": (4, twice),
        "glm4v_moe": (4, twice),
        "ernie4_5_vl_moe": (4, {"pixel_values": _random(16, 3 * 14 * 14), **grid}),
        "aria": (8, {**whole, "pixel_mask": torch.ones(1, 56, 56, dtype=torch.bool)}),
        "llama4": (4, whole),
        "deepseek_ocr2": (257, {"pixel_values": _random(1, 3, 1024, 1024)}),
        "kimi_k25": (4, {"pixel_values": _random(16, 3, 14, 14), **grid}),
        "unlimited_ocr": (7, {"pixel_values": _random(1, 3, 128, 128)}),
        "minimax_m3_vl": (4, twice),
        "mistral_large4": (4, {**whole, "image_sizes": torch.tensor([[56, 56]])}),
        "gemma4": (4, {"pixel_values": _random(1, 16, 3 * 14 * 14), "image_position_ids": places}),
        "lfm2_vl": (4, {"pixel_values": _random(1, 16, 3 * 14 * 14), **seen}),
        "internvl": (4, whole),
        "llava": (16, whole),
        "llava_next": (26, tiles),
        "llava_onevision": (26, tiles),
        "mistral3": (4, {**whole, "image_sizes": torch.tensor([[56, 56]])}),
        "idefics3": (4, {"pixel_values": _random(1, 1, 3, 56, 56)}),
    }


_WHERE = ("mm_token_type_ids",)
_SAYS_WHERE = {
    "qwen3_vl_moe": _WHERE,
    "qwen3_5_moe": _WHERE,
    "glm4v_moe": _WHERE,
    # By the second it chooses between experts of texts and of pictures.
    "ernie4_5_vl_moe": (*_WHERE, "moe_mm_token_type_ids"),
}
"""By what inputs a model is told which tokens stand for a picture."""


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    """What the forward of an instance is called with: a few tokens, with a picture among them where it takes one."""
    if not takes_pictures(name):
        return {"input_ids": torch.arange(5, 17)[None]}
    outer = name.split(" ")[0]
    count, picture = _pictures()[outer]
    ids = torch.tensor([[5, 6, *[IMAGE] * count, 7, 8, 9]])
    kinds = dict.fromkeys(_SAYS_WHERE.get(outer, ()), (ids == IMAGE).int())
    return {"input_ids": ids, **picture, **kinds}
