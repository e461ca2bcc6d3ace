"""MolmoE in small: the reference checkpoint with a tokenizer and its processor's settings, as the Hub repo has them;
small models of other sizes."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

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
