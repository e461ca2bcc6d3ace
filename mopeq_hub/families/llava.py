"""LLaVA over a mixture-of-experts text model: CLIP-like vision tower, projector, any text tower."""

from mopeq_hub.families.base import Family

OVER_QWEN3_MOE = Family("llava", text_model_types=("qwen3_moe",))
OVER_DEEPSEEK_V2 = Family("llava", text_model_types=("deepseek_v2",), experts_count="n_routed_experts")
