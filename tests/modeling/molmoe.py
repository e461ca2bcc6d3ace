"""MolmoE in small: the reference checkpoint with a tokenizer and its processor's settings, as the Hub repo has them;
small models of other sizes."""

import json
import math
import shutil
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

REFERENCE = Path(__file__).parents[1] / "assets" / "molmoe-like"
SPECIAL = ("<|endoftext|>", "<|padding|>", "<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<|image|>")
SETTINGS = {
    "auto_map": {
        "AutoImageProcessor": "image_preprocessing_molmo.MolmoImageProcessor",
        "AutoProcessor": "preprocessing_molmo.MolmoProcessor",
    },
    "base_image_input_size": [56, 56],
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_padding_mask": True,
    "image_patch_size": 14,
    "image_processor_type": "MolmoImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_token_length_h": 2,
    "image_token_length_w": 2,
    "max_crops": 2,
    "overlap_margins": [0, 0],
    "processor_class": "MolmoProcessor",
}


def tokenizer() -> Any:
    """One token for each printable character, within the reference's 250."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = ["Ġ", "Ċ", *(chr(number) for number in range(33, 127))]
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *letters))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|endoftext|>",
        pad_token="<|padding|>",
        additional_special_tokens=list(SPECIAL[2:]),
    )


def with_processor(folder: Path) -> Path:
    """The reference checkpoint with its processor's files."""
    shutil.copytree(REFERENCE, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    tokenizer().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(SETTINGS))
    named = {"auto_map": {"AutoProcessor": "preprocessing_molmo.MolmoProcessor"}, "processor_class": "MolmoProcessor"}
    (folder / "processor_config.json").write_text(json.dumps(named))
    return folder


def small(**changes: Any) -> Any:
    """A small random model, whose config is the reference's with some values changed, those of the vision tower under
    `vision_backbone`."""
    from mopeq_hub.modeling.molmoe.configuration_molmoe import MolmoeConfig
    from mopeq_hub.modeling.molmoe.modeling_molmoe import MolmoeForConditionalGeneration

    values = json.loads((REFERENCE / "config.json").read_text())
    vision = values["vision_backbone"] | changes.pop("vision_backbone", {})
    torch.manual_seed(0)
    model = MolmoeForConditionalGeneration(
        MolmoeConfig.from_dict(values | changes | {"vision_backbone": vision})
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("pad_embed", "bias")) or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def as_torch_files(folder: Path) -> Path:
    """The folder's weights as the Hub repo holds them: float32, in torch's zip files, as many as there were."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    named: dict[str, str] = {}
    for shard in sorted(set(index.values())):
        name = f"pytorch_{shard.removesuffix('.safetensors')}.bin"
        tensors = {tensor: value.float() for tensor, value in load_file(folder / shard).items()}
        torch.save(tensors, folder / name)
        named |= dict.fromkeys(tensors, name)
        (folder / shard).unlink()
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": named}))
    return folder


FULL_SIZE = {
    "additional_vocab_size": 128, "d_model": 2048, "embedding_size": 50304, "max_position_embeddings": 32768,
    "max_sequence_length": 4096, "moe_num_experts": 64, "moe_top_k": 8, "n_heads": 16, "n_layers": 16,
    "vit_layers": [-2, -9], "vocab_size": 50280,
}  # fmt: skip
FULL_SIZE_VISION = {
    "image_default_input_size": [336, 336], "image_emb_dim": 1024, "image_head_dim": 64, "image_mlp_dim": 4096,
    "image_num_heads": 16, "image_num_key_value_heads": 16, "image_num_layers": 23, "image_num_pos": 577,
}  # fmt: skip


def full_size(folder: Path) -> Path:
    """MolmoE-1B-0924 with its config and every tensor's header, float32, and no weights: a file that is one hole."""
    listed = json.loads((REFERENCE.parent / "molmoe_tensors.json").read_text())
    config = json.loads((REFERENCE / "config.json").read_text()) | FULL_SIZE
    config["vision_backbone"] |= FULL_SIZE_VISION
    (folder / "config.json").write_text(json.dumps(config))
    header: dict[str, Any] = {}
    end = 0
    for pattern, shape, count, _ in listed["groups"]:
        stars = pattern.count("*")
        experts = 64 if stars == 2 else 1
        for number in range(count):
            name = pattern.replace("*", str(number // experts), 1).replace("*", str(number % experts), 1)
            start, end = end, end + 4 * math.prod(shape)
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    assert len(header) == listed["ntensors"]
    text = json.dumps(header).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return folder
