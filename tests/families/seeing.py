"""Tiny models that see: their configurations, a picture for each, and how each is told where the picture is."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import CONFIG_MAPPING

from tests.families.texts import IMAGE, LATENT, part, rope

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
    text = part("deepseek_ocr2_text", **layers)
    return _whole("deepseek_ocr2", text, {"sam_config": sam, "encoder_config": encoder}, image_token_id=IMAGE)


def _unlimited_ocr() -> Any:
    sam = {
        "hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 128,
        "patch_size": 16, "global_attn_indexes": [1], "mlp_dim": 64, "window_size": 4, "downsample_channels": [24, 32],
    }  # fmt: skip
    text = part("unlimited_ocr_text", num_key_value_heads=4, mlp_layer_types=["dense", "sparse"])
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
    return _whole("gemma4", part("gemma4_text", **more), vision, audio_config=None, **tokens)


def _qwen3_omni() -> Any:
    audio = {
        "num_mel_bins": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 32,
        "output_dim": 64, "n_window": 4, "downsample_hidden_size": 16,
    }  # fmt: skip
    vision = {**_QWEN, "deepstack_visual_indexes": [0, 1], "image_size": 56, "num_position_embeddings": 64}
    text = part("qwen3_omni_moe_text", rope_parameters=rope(2, 3, 3))
    return _whole("qwen3_omni_moe_thinker", text, vision, audio_config=audio, audio_token_id=205, **_VISION)


def _whole_qwen3_omni() -> Any:
    text = part(
        "qwen3_omni_moe_talker_text",
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
        num_experts=4,
        num_local_experts=4,
        rope_parameters=rope(2, 3, 3),
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


def _dots3_note() -> Any:
    sliding = {
        "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "head_dim": 32,
        "qk_nope_head_dim": 16, "v_head_dim": 16, "qk_rope_head_dim": 16,
    }  # fmt: skip
    text = part(
        "dots3_note_text",
        num_key_value_heads=4,
        head_dim=32,
        index_topk=16,
        index_head_dim=16,
        index_n_heads=2,
        shared_experts_intermediate_size=32,
        layer_types=["sliding_attention", "indexed_attention"],
        mlp_layer_types=["dense", "sparse"],
        per_layer_config={0: sliding},
    )
    vision = {
        **_TOWER, "adapter_in_dim": 32, "adapter_out_dim": 64, "moe_intermediate_size": 48,
        "pyramid_num_routed": [-1, 4],
    }  # fmt: skip
    audio = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "downsample_hidden_size": 16, "adapter_input_size": 32, "adapter_out_dim": 64, "feature_size": 16,
    }  # fmt: skip
    return _whole("dots3_note", text, vision, audio_config=audio, audio_token_id=205, **_MARKS)


def _ernie() -> Any:
    vision = {key: value for key, value in _QWEN.items() if key not in ("temporal_patch_size", "out_hidden_size")}
    more = {
        "moe_intermediate_size": [96, 32],
        "rope_parameters": rope(3, 3, 2),
        "mlp_layer_types": ["dense", "sparse"],
    }
    return _whole(
        "ernie4_5_vl_moe",
        part("ernie4_5_vl_moe_text", **more),
        {**vision, "temporal_merge_size": 2, "in_channels": 3},
        **_FRAMES,
    )


WHOLES: dict[str, Callable[[], Any]] = {
    "qwen3_vl_moe": lambda: _whole(
        "qwen3_vl_moe",
        part("qwen3_vl_moe_text", rope_parameters=rope(2, 3, 3, mrope_interleaved=True)),
        {**_QWEN, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 64},
        **_VISION,
    ),
    "qwen3_5_moe": lambda: _whole(
        "qwen3_5_moe",
        part(
            "qwen3_5_moe_text",
            num_hidden_layers=4,
            rope_parameters=rope(1, 1, 2, mrope_interleaved=True, partial_rotary_factor=0.5),
        ),
        {**_QWEN, "num_position_embeddings": 64},
        **_VISION,
    ),
    "qwen3_omni_moe": _whole_qwen3_omni,
    "qwen3_omni_moe_thinker": _qwen3_omni,
    "glm4v_moe": lambda: _whole(
        "glm4v_moe",
        part("glm4v_moe_text", rope_parameters=rope(1, 1, 2, partial_rotary_factor=0.5)),
        {**_QWEN, "image_size": 112, "in_channels": 3},
        **_FRAMES,
    ),
    "glm5_next": lambda: _whole(
        "glm5_next",
        part(
            "glm5_next_text", num_key_value_heads=4, qk_rope_head_dim=0, index_topk=16, index_kpool=4,
            index_head_dim=16, index_n_heads=2, linear_head_dim=16, linear_num_heads=4, hc_mult=2, swiglu_limit=1.0,
            layer_types=["linear_attention", "indexed_attention"], mlp_layer_types=["dense", "sparse"],
            indexer_types=["full", "full"],
        ),
        {**_QWEN, "projection_intermediate_size": 64},
        **_FRAMES,
    ),
    "dots3_note": _dots3_note,
    "qwen4_exp": lambda: _whole(
        "qwen4_exp",
        part(
            "qwen4_exp_text", layer_types=["linear_attention", "indexed_attention"], hc_count=2, hc_lowrank=16,
            ple_layer_ids=[1], ngram_vocab_size_base=64, heads_per_ngram=2, make_ngram_vocab_size_divisible_by=8,
            split_ngram_parts=2, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=16, indexer_budget=16,
            indexer_compress_ratio=4, rope_parameters=rope(2, 3, 3, mrope_interleaved=True),
        ),
        {**_QWEN, "num_position_embeddings": 64},
        **_VISION,
    ),
    "nemotron_h_omni": lambda: _whole(
        "nemotron_h_omni",
        part("nemotron_h"),
        {
            **_TOWER, "model_type": "radio", "max_img_size": 112, "num_cls_tokens": 1, "num_registers": 1,
            "summary_idxs": [0], "video_temporal_patch_size": 2,
        },
        vision_hidden_size=32,
        projector_hidden_size=32,
        image_token_id=IMAGE,
    ),
    "muse_spark": lambda: _whole(
        "muse_spark",
        part(
            "muse_spark_text", moe_hidden_size=96, layer_types=["sliding_attention", "full_attention"],
            mlp_layer_types=["dense", "sparse"], output_multiplier=1.0, qk_scale_factor=1.0,
        ),
        {**_TOWER, "pos_emb_height": 4, "pos_emb_width": 4, "max_position_embeddings": 16},
        audio_config={
            "patch_sizes": [4, 2], "hidden_sizes": [16, 32], "depths": [1, 1], "num_hidden_layers": 2,
            "out_hidden_size": 64,
        },
        out_hidden_size=128,
        projector_hidden_size=32,
        audio_token_id=205,
        **_MARKS,
    ),
    "inkling2": lambda: _whole(
        "inkling2",
        part(
            "inkling2_text", unpadded_vocab_size=208, swa_num_attention_heads=4, swa_num_key_value_heads=2,
            swa_head_dim=16, d_rel=8, rel_extent=16, layer_types=["hybrid_sliding", "hybrid"],
            n_layers_per_attn_res_block=1, mlp_gate_softcap=1.0, mlp_up_softcap=1.0,
        ),
        {**_TOWER, "patch_size": 4, "posemb_grid_size": 4, "projection_hidden_dim": 32, "text_hidden_size": 64},
        image_token_id=IMAGE,
    ),
    "inkling_mm_model": lambda: _whole(
        "inkling_mm_model",
        part(
            "inkling_text", swa_num_attention_heads=4, swa_num_key_value_heads=2, swa_head_dim=16, d_rel=8,
            rel_extent=16, n_shared_experts=2, layer_types=["hybrid_sliding", "hybrid"],
            mlp_layer_types=["dense", "sparse"], logits_mup_width_multiplier=1.0,
        ),
        {"patch_size": 8, "hidden_size": 64, "num_hidden_layers": 3},
        audio_config={"n_mel_bins": 8, "mel_vocab_size": 16},
        image_token_id=IMAGE,
        audio_token_id=205,
    ),
    "ernie4_5_vl_moe": _ernie,
    "aria": lambda: _whole(
        "aria",
        part("aria_text"),
        {**_TOWER, "model_type": "idefics3_vision"},
        projector_patch_to_query_dict={16: 8},
        image_token_index=IMAGE,
    ),
    "llama4": lambda: _whole(
        "llama4",
        part("llama4_text", intermediate_size_mlp=96),
        {
            **_TOWER, "intermediate_size": 128, "vision_output_dim": 64, "projector_input_dim": 64,
            "projector_output_dim": 64, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        image_token_index=IMAGE,
    ),
    "deepseek_ocr2": _deepseek_ocr2,
    "kimi_k25": lambda: _whole(
        "kimi_k25",
        part("deepseek_v3"),
        {key: value for key, value in _TOWER.items() if key != "image_size"},
        projection_hidden_size=32,
        image_token_id=IMAGE,
    ),
    "gemma4": _gemma4,
    "unlimited_ocr": _unlimited_ocr,
    "step3p7": lambda: _whole(
        "step3p7",
        part(
            "step3p5", mlp_layer_types=["dense", "sparse"], share_expert_dim=32, swiglu_limits=[None, 1.0],
            layer_types=["sliding_attention", "full_attention"],
        ),
        {**_TOWER, "mlp_ratio": 2.0, "max_position_embeddings": 16},
        image_token_id=IMAGE,
    ),
    "mistral_large4": lambda: _whole(
        "mistral_large4", part("mistral_large4_text", **LATENT), _TOWER, image_token_index=IMAGE
    ),
    "minimax_m3_vl": lambda: _whole(
        "minimax_m3_vl",
        part("minimax_m3_vl_text", rotary_dim=16, dense_intermediate_size=96),
        {**_TOWER, "temporal_patch_size": 2, "spatial_merge_size": 2},
        projector_hidden_size=32,
        image_token_index=IMAGE,
    ),
    "lfm2_vl over lfm2_moe": lambda: _whole(
        "lfm2_vl",
        part("lfm2_moe"),
        {**_TOWER, "model_type": "siglip2_vision_model", "num_patches": 64},
        image_token_id=IMAGE,
        projector_hidden_size=64,
    ),
    "internvl over gpt_oss": lambda: _whole("internvl", part("gpt_oss"), _TOWER, image_token_id=IMAGE),
    "internvl over qwen3_moe": lambda: _whole("internvl", part("qwen3_moe"), _TOWER, image_token_id=IMAGE),
    "llava over olmoe": lambda: _whole("llava", part("olmoe"), _CLIP, **_LLAVA),
    "llava over qwen3_moe": lambda: _whole("llava", part("qwen3_moe"), _CLIP, **_LLAVA),
    "llava over deepseek_v2": lambda: _whole("llava", part("deepseek_v2"), _CLIP, **_LLAVA),
    "llava_next over mixtral": lambda: _whole("llava_next", part("mixtral"), _CLIP, **_TWO_TILES),
    "llava_onevision over qwen2_moe": lambda: _whole(
        "llava_onevision",
        part("qwen2_moe"),
        {**_TOWER, "model_type": "siglip_vision_model"},
        **{**_TWO_TILES, "vision_feature_select_strategy": "full"},
        video_token_index=201,
    ),
    "mistral3 over mistral4": lambda: _whole(
        "mistral3", part("mistral4", **LATENT), {**_TOWER, "model_type": "pixtral"}, image_token_index=IMAGE
    ),
    "idefics3 over mixtral": lambda: _whole("idefics3", part("mixtral"), _TOWER, image_token_id=IMAGE),
}  # fmt: skip


def _random(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


def pictures() -> dict[str, tuple[int, dict[str, torch.Tensor]]]:
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
        "glm5_next": (4, twice),
        "dots3_note": (4, {"pixel_values": _random(16, 3 * 14 * 14), **grid}),
        "inkling_mm_model": (4, {"pixel_values": _random(4, 2, 8, 8, 3)}),
        "inkling2": (4, {"pixel_values": _random(4, 8, 8, 3), "image_grid_thw": torch.tensor([[1, 2, 2]])}),
        "muse_spark": (4, twice),
        "nemotron_h_omni": (4, {"pixel_values": _random(16, 3 * 14 * 14), "image_grid_hw": torch.tensor([[4, 4]])}),
        "qwen4_exp": (4, twice),
        "step3p7": (1, whole),
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
SAYS_WHERE = {
    "qwen3_vl_moe": _WHERE,
    "qwen3_5_moe": _WHERE,
    "glm4v_moe": _WHERE,
    "glm5_next": _WHERE,
    "qwen4_exp": _WHERE,
    # By the second it chooses between experts of texts and of pictures.
    "ernie4_5_vl_moe": (*_WHERE, "moe_mm_token_type_ids"),
}
"""By what inputs a model is told which tokens stand for a picture."""
