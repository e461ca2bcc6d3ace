"""Tiny configurations of text models, alone or as a part of one that sees."""

from typing import Any

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

LATENT = {"num_key_value_heads": 4}
TEXTS: dict[str, dict[str, Any]] = {
    "afmoe": {}, "axk1": LATENT, "axk2": LATENT, "bailing_hybrid": {}, "cohere2_moe": {}, "deepseek_v2": LATENT,
    "deepseek_v3": LATENT, "deepseek_v32": LATENT, "deepseek_v4": {}, "dots1": {}, "ernie4_5_moe": {},
    "exaone_moe": {}, "flex_olmo": {}, "glm4_moe": {}, "glm4_moe_lite": LATENT, "glm_moe_dsa": LATENT,
    "gpt_oss": {"layer_types": ["sliding_attention", "full_attention"]}, "granitemoe": {}, "granitemoe_swa": {},
    "granitemoehybrid": {}, "granitemoeshared": {}, "hunyuan_v1_moe": {}, "hy_v3": {}, "hy_v4": LATENT, "jamba": {},
    "kolibri1": {}, "laguna": {}, "lfm2_moe": {"layer_types": ["conv", "full_attention"]}, "mellum": {},
    "mimo_v2_flash": {}, "minimax": {}, "minimax_m2": {}, "mixtral": {}, "nemotron_h": {}, "olmoe": {}, "phimoe": {},
    "qwen2_moe": {}, "qwen3_5_moe_text": {}, "qwen3_moe": {}, "qwen3_next": {}, "qwen4_exp_text": {}, "solar_open": {},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
"""Text models, and what they need beside `_SMALL`."""


def text(model_type: str, **more: Any) -> Any:
    kind = CONFIG_MAPPING[model_type]
    known = {name for each in kind.__mro__ for name in getattr(each, "__annotations__", {})} | set(kind.attribute_map)
    given = {name: value for name, value in _SMALL.items() if name in known}
    return kind(**{**given, **TEXTS.get(model_type, {}), **more})


def part(model_type: str, **more: Any) -> dict[str, Any]:
    return {**text(model_type, **more).to_dict(), "model_type": model_type}


def rope(*sections: int, **more: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(sections), **more}
