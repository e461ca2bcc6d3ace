"""Synthetic checkpoints of realistic shapes, LLaVA over deepseek_v2 or qwen3_moe, written in one tensor's memory."""

import json
import shutil
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mopeq_hub.quantization.shards import ShardWriter, TensorPlan, fill_shards, named, write_index
from mopeq_hub.source import companions, open_source

if TYPE_CHECKING:
    from transformers import LlavaConfig

_SHAPES = Path(__file__).parent.parent / "assets" / "shapes-moe-vl"
_POOL = 1 << 24
_IMAGE_TOKEN = 4
_PATCH = 14


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. Over deepseek_v2 `shared` experts are always on and the first layer is dense; qwen3_moe has
    neither."""

    layers: int
    hidden: int
    dense: int
    expert: int
    experts: int
    shared: int
    per_token: int
    heads: int
    vocabulary: int
    vision_layers: int
    vision_hidden: int
    vision_dense: int
    image: int
    shard_bytes: int = 2_000_000_000
    text: str = "deepseek_v2"


TINY_SIZED = Shape(12, 1280, 6848, 896, 64, 2, 6, 10, 129280, 27, 1152, 4304, 384)
"""DeepSeek-VL2-tiny's text model, but for its attention, and a vision tower of the size of SigLIP-so400m."""
MEDIUM = Shape(4, 2048, 10944, 1408, 22, 2, 6, 16, 16384, 2, 1152, 4304, 384)
"""1.7 GB with the experts of DeepSeek-VL2-small."""
ANSWERING = Shape(4, 2048, 0, 768, 128, 0, 8, 32, 12800, 2, 1152, 4304, 384, text="qwen3_moe")
"""Four of the 48 layers of Qwen3-30B-A3B, and as large a part of its vocabulary: 5.1 GB."""
ANSWERING_SMALL = Shape(2, 128, 0, 64, 16, 0, 4, 4, 1024, 2, 96, 192, 56, 3_000_000, text="qwen3_moe")
SMALL = Shape(3, 128, 256, 64, 16, 2, 4, 4, 1024, 2, 96, 192, 56, 3_000_000)


def write(folder: Path, shape: Shape) -> Path:
    """The checkpoint in `folder`, with the bundled model's tokenizer and a processor for the shape's pictures.

    Weights are normal, each tensor's spread its own, so that experts differ in sensitivity. They are cut from one pool
    of numbers: nothing that is measured looks at more than a group.
    """
    folder.mkdir(parents=True)
    config = _config(shape)
    [shards] = named([fill_shards(list(_tensors(config, shape)), shape.shard_bytes)])
    pool = np.random.default_rng(0).standard_normal(_POOL, np.float32)
    with ShardWriter(folder, shards) as writer:
        for shard in shards:
            for tensor in shard.tensors:
                writer.write(tensor.name, _values(tensor, pool))
    write_index(folder, shards)
    config.save_pretrained(folder)
    for name in companions(open_source(str(_SHAPES))):
        shutil.copyfile(_SHAPES / name, folder / name)
    processor = json.loads((folder / "processor_config.json").read_text("utf-8"))
    square = {"height": shape.image, "width": shape.image}
    processor["image_processor"] |= {"crop_size": square, "size": square}
    (folder / "processor_config.json").write_text(json.dumps({**processor, "patch_size": _PATCH}), "utf-8")
    return folder


def nbytes(folder: Path) -> int:
    """Of the checkpoint's files."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _config(shape: Shape) -> "LlavaConfig":
    from transformers import CLIPVisionConfig, LlavaConfig

    text = _deepseek_v2(shape) if shape.text == "deepseek_v2" else _qwen3_moe(shape)
    vision = CLIPVisionConfig(
        hidden_size=shape.vision_hidden, intermediate_size=shape.vision_dense, num_hidden_layers=shape.vision_layers,
        num_attention_heads=shape.vision_hidden // 72 if shape.vision_hidden % 72 == 0 else 4, image_size=shape.image,
        patch_size=_PATCH,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=_IMAGE_TOKEN,
        image_seq_length=(shape.image // _PATCH) ** 2, vision_feature_layer=-1,
        vision_feature_select_strategy="default", architectures=["LlavaForConditionalGeneration"], dtype="bfloat16",
        tie_word_embeddings=False,
    )  # fmt: skip


def _deepseek_v2(shape: Shape) -> Any:
    from transformers import DeepseekV2Config

    head = shape.hidden // shape.heads
    return DeepseekV2Config(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.dense,
        moe_intermediate_size=shape.expert, num_hidden_layers=shape.layers, num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads, n_routed_experts=shape.experts, n_shared_experts=shape.shared,
        num_experts_per_tok=shape.per_token, first_k_dense_replace=1, q_lora_rank=None, kv_lora_rank=4 * head,
        qk_nope_head_dim=head, qk_rope_head_dim=head // 2, v_head_dim=head, n_group=1, topk_group=1,
        topk_method="greedy", max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip


def _qwen3_moe(shape: Shape) -> Any:
    from transformers import Qwen3MoeConfig

    return Qwen3MoeConfig(
        vocab_size=shape.vocabulary, hidden_size=shape.hidden, moe_intermediate_size=shape.expert,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=max(1, shape.heads // 8),
        num_experts=shape.experts, num_experts_per_tok=shape.per_token, max_position_embeddings=4096,
        tie_word_embeddings=False,
    )  # fmt: skip


def _tensors(config: "LlavaConfig", shape: Shape) -> Iterator[TensorPlan]:
    """What transformers would save, under the names that it saves it by: experts one by one."""
    import torch
    from transformers import LlavaForConditionalGeneration

    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    for live, value in model.state_dict().items():
        name = f"language_model.{live}" if live.startswith("lm_head") else live.removeprefix("model.")
        name = name.replace("language_model.", "language_model.model.", 1) if live.startswith("model.") else name
        module, _, parameter = name.rpartition(".experts.")
        if parameter == "gate_up_proj":
            for index in range(shape.experts):
                for projection in ("gate_proj", "up_proj"):
                    stored = f"{module}.experts.{index}.{projection}.weight"
                    yield TensorPlan(stored, "BF16", (shape.expert, shape.hidden))
        elif parameter == "down_proj":
            for index in range(shape.experts):
                stored = f"{module}.experts.{index}.down_proj.weight"
                yield TensorPlan(stored, "BF16", (shape.hidden, shape.expert))
        else:
            yield TensorPlan(name, "BF16", tuple(value.shape))


def _values(tensor: TensorPlan, pool: np.ndarray) -> np.ndarray:
    """bfloat16 as uint16."""
    generator = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    count = tensor.nbytes // 2
    start = int(generator.integers(0, _POOL // 2))
    taken = pool[start : start + count] if count <= _POOL // 2 else np.resize(pool, count)
    spread, middle = 0.02 * generator.lognormal(0, 0.3), 0.0
    if len(tensor.shape) == 1:
        spread, middle = 0.0, float("norm" in tensor.name and tensor.name.endswith("weight"))
    values = np.multiply(taken, np.float32(spread)) + np.float32(middle)
    return (values.view(np.uint32) >> 16).astype(np.uint16)
