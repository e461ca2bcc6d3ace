"""Tiny untrained models of the supported families, saved as transformers saves them, with a processor that needs no
torchvision."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mopeq_hub.remote_code import keep_apart

SHAPES = Path(__file__).parent / "assets" / "shapes-moe-vl"
GROUP_SIZE = 32
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
_IMAGE_TOKEN = 4


def llava_over_deepseek_v2(folder: Path) -> Path:
    """LLaVA over deepseek_v2: the first layer dense, one shared expert, one tensor an expert in the file."""
    from transformers import CLIPVisionConfig, DeepseekV2Config, LlavaConfig, LlavaForConditionalGeneration

    text = DeepseekV2Config(
        vocab_size=208, hidden_size=64, intermediate_size=96, moe_intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2,
        first_k_dense_replace=1, q_lora_rank=None, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16,
        v_head_dim=16, n_group=1, topk_group=1, topk_method="greedy", max_position_embeddings=512,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=48, patch_size=16
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=_IMAGE_TOKEN, image_seq_length=9,
        vision_feature_layer=-1, vision_feature_select_strategy="default",
    )  # fmt: skip
    _save(LlavaForConditionalGeneration, config, folder)
    shutil.copyfile(SHAPES / "processor_config.json", folder / "processor_config.json")
    return folder


def qwen3_vl_moe(folder: Path, transpose: bool = True) -> Path:
    """Qwen3-VL-MoE with its experts fused in the file, as its authors orient them, [experts, in, out], unless told
    otherwise."""
    from safetensors.torch import load_file, save_file
    from transformers import Qwen2VLImageProcessorPil, Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3], "mrope_interleaved": True}
    text = {
        "vocab_size": 208, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "num_experts": 8,
        "num_experts_per_tok": 2, "moe_intermediate_size": 96, "rope_parameters": rope,
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "patch_size": 14,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 64, "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    config = Qwen3VLMoeConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=_IMAGE_TOKEN,
        video_token_id=201,
        vision_start_token_id=202,
        vision_end_token_id=203,
    )
    _save(Qwen3VLMoeForConditionalGeneration, config, folder)
    images = Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=28 * 28, max_pixels=56 * 56
    )
    images.save_pretrained(folder)
    preprocessor = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**preprocessor, "processor_class": "Qwen3VLProcessor"})
    )
    path = folder / "model.safetensors"
    tensors = load_file(path)
    live_shape = (8, 2 * 96, 64)
    for name in [name for name in tensors if ".experts." in name]:
        stored_live = tensors[name].shape[1:] in (live_shape[1:], (64, 96))
        if stored_live == transpose:
            tensors[name] = tensors[name].transpose(1, 2).contiguous()
    save_file(tensors, path, metadata={"format": "pt"})
    return folder


def mixtral(folder: Path) -> Path:
    """Mixtral, text alone: one tensor an expert in the file, its projections called w1, w2 and w3."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=208, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=512,
    )  # fmt: skip
    _save(MixtralForCausalLM, config, folder)
    return folder


def switch_transformers(folder: Path) -> Path:
    """Switch Transformers: every second layer of encoder and decoder has experts, each a module of two matrices."""
    from safetensors.torch import load_file, save_file
    from transformers import GenerationConfig, SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

    config = SwitchTransformersConfig(
        vocab_size=208, d_model=64, d_kv=16, d_ff=96, num_layers=4, num_sparse_encoder_layers=2, num_decoder_layers=2,
        num_sparse_decoder_layers=1, num_heads=4, num_experts=8, eos_token_id=2,
    )  # fmt: skip
    config.decoder_start_token_id = 0
    _save(SwitchTransformersForConditionalGeneration, config, folder)
    GenerationConfig(decoder_start_token_id=0, eos_token_id=2, pad_token_id=0).save_pretrained(folder)
    # Else, embeddings being the head's too, it repeats the token it read.
    tensors = load_file(folder / "model.safetensors")
    tensors["shared.weight"] *= 0.3
    tensors["decoder.final_layer_norm.weight"] *= 6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def kimi_vl_like(folder: Path, shards: int = 1) -> Path:
    """A model whose classes are in its folder alone (tests/assets/README.md), random weights in so many files."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(SHAPES.parent / "kimi-vl-like", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in _TOKENIZER:
        shutil.copyfile(SHAPES / name, folder / name)
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    del settings["processor_class"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    keep_apart()
    torch.manual_seed(0)
    trusted: dict[str, Any] = {"trust_remote_code": True}
    config = AutoConfig.from_pretrained(folder, **trusted)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, **trusted)
    _make_louder(model)
    with torch.no_grad():
        # Else it would answer with placeholders of pictures.
        model.get_output_embeddings().weight[_IMAGE_TOKEN] = 0
    _in_shards(model.state_dict(), folder, shards)
    return folder


def _in_shards(tensors: dict[str, torch.Tensor], folder: Path, count: int) -> None:
    from safetensors.torch import save_file

    weight_map: dict[str, str] = {}
    for number, names in enumerate(np.array_split(sorted(tensors), count), start=1):
        file = f"model-{number:05d}-of-{count:05d}.safetensors"
        save_file({name: tensors[name] for name in map(str, names)}, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(map(str, names), file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def deepseek_vl2(folder: Path, kind: str = "tiny") -> Path:
    """DeepSeek-VL2 as `kind` is built (tests/assets/README.md), in the layout of its repos: no architecture named, the
    processor's and tokenizer's files with their tokens in the vocabulary."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    assets = SHAPES.parent
    config = json.loads((assets / f"deepseek-vl2-{kind}-like" / "config.json").read_text("utf-8"))
    del config["architectures"]
    config["language_config"]["vocab_size"] = 352
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
    _make_louder(model)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    (folder / "generation_config.json").unlink(missing_ok=True)
    for path in (assets / "deepseek-vl2-processor").glob("*.json"):
        if path.name != "cases.json":
            shutil.copyfile(path, folder / path.name)
    return folder


def _make_louder(model: torch.nn.Module) -> None:
    """Weights larger than the initialisation's, so that quantizing an expert shows in the logits."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".experts." in name or "_proj" in name:
                value.normal_(0, 0.15)


def _save(model_class: type, config: object, folder: Path) -> None:
    torch.manual_seed(0)
    model = model_class(config).to(torch.bfloat16)  # type: ignore[call-arg]
    _make_louder(model)
    model.save_pretrained(folder)
    for name in _TOKENIZER:
        shutil.copyfile(SHAPES / name, folder / name)
    config_path = folder / "config.json"
    assert json.loads(config_path.read_text("utf-8"))["architectures"]
