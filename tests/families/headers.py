"""Large models by their configurations at full size, and folders that hold no more of them than headers."""

import json
import struct
from pathlib import Path
from typing import Any

import torch

_ROPE = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
_QWEN3_VL_235B = {
    "model_type": "qwen3_vl_moe_text", "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288,
    "moe_intermediate_size": 1536, "num_hidden_layers": 94, "num_attention_heads": 64, "num_key_value_heads": 4,
    "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8, "rope_parameters": _ROPE,
}  # fmt: skip
_KIMI_K2 = {
    "model_type": "deepseek_v3", "vocab_size": 163840, "n_routed_experts": 384, "num_experts_per_tok": 8, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "num_attention_heads": 64, "num_key_value_heads": 64,
}  # fmt: skip
LARGE: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen3-VL-235B-A22B": ("qwen3_vl_moe", {"text_config": _QWEN3_VL_235B}),
    "Llama-4-Scout": ("llama4", {}),
    "GLM-4.5V": ("glm4v_moe", {}),
    "ERNIE-4.5-VL-28B": ("ernie4_5_vl_moe", {}),
    "DeepSeek-V3": ("deepseek_v3", {}),
    "Kimi-K2.5": ("kimi_k25", {"text_config": _KIMI_K2}),
}
"""Model type, and what its config says that transformers' defaults do not."""


def headers_of(folder: Path, model_type: str, config: dict[str, Any]) -> Path:
    """A folder with config.json and a file as transformers would save it, its data never written."""
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    kind: Any = transformers.CONFIG_MAPPING[model_type]
    seeing = model_type != "deepseek_v3"
    auto_class = transformers.AutoModelForImageTextToText if seeing else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = auto_class.from_config(kind(**config), dtype=torch.bfloat16)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    tensors = {name: value for name, value in model.state_dict().items() if name not in model.all_tied_weights_keys}
    header, end = {}, 0
    for name, value in revert_weight_conversion(model, tensors).items():
        start, end = end, end + 2 * value.numel()
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder
