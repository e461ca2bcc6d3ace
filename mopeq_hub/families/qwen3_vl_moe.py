"""Qwen3-VL-MoE: experts fused in the file, [experts, in, out] as the authors publish them."""

from mopeq_hub.families.base import Family

QWEN3_VL_MOE = Family("qwen3_vl_moe")
